"""The durable key store of one site: states of a chunk, their only legal moves, authentication pool."""

from typing import TYPE_CHECKING

from qnode.choices import BlockState
from qnode.keys._backup import BackupHead, BackupUnusable, read_backup
from qnode.keys._front_end_batch import Fetch, Take
from qnode.keys._layout import key_id
from qnode.keys._model import (
    MOST_SKIPPED,
    AgeMark,
    Answer,
    Assignment,
    AuditStanding,
    BlockRecord,
    Condition,
    Counts,
    FrontEnds,
    Handover,
    HashKeys,
    KeyLayout,
    KeyRange,
    Loss,
    Pad,
    PadId,
    PadsLeft,
    Positions,
    PreparedBlock,
    Release,
    StockItem,
    StoreCondition,
    StoredBlock,
    StoredKey,
    StoreStanding,
    Waiting,
    chunks_per_key,
)
from qnode.keys._protocol import KeyStore
from qnode.keys._putting_back import restore_backup
from qnode.keys._rollback import RolledBack, roll_back
from qnode.keys._server import check_address, front_end_store, open_server_store
from qnode.keys._store import SqliteKeyStore, SqlKeyStore, open_store

if TYPE_CHECKING:
    from qnode.keys._front_end_store import FrontEndStore

__all__ = [
    "MOST_SKIPPED",
    "AgeMark",
    "Answer",
    "Assignment",
    "AuditStanding",
    "BackupHead",
    "BackupUnusable",
    "BlockRecord",
    "BlockState",
    "Condition",
    "Counts",
    "Fetch",
    "FrontEndStore",
    "FrontEnds",
    "Handover",
    "HashKeys",
    "KeyLayout",
    "KeyRange",
    "KeyStore",
    "Loss",
    "Pad",
    "PadId",
    "PadsLeft",
    "Positions",
    "PreparedBlock",
    "Release",
    "RolledBack",
    "SqlKeyStore",
    "SqliteKeyStore",
    "StockItem",
    "StoreCondition",
    "StoreStanding",
    "StoredBlock",
    "StoredKey",
    "Take",
    "Waiting",
    "check_address",
    "chunks_per_key",
    "front_end_store",
    "key_id",
    "open_server_store",
    "open_store",
    "read_backup",
    "restore_backup",
    "roll_back",
]
