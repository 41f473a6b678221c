"""The durable key store of one site: states of a chunk, their only legal moves, authentication pool."""

from qnode.choices import BlockState
from qnode.keys._backup import BackupHead, BackupUnusable, read_backup
from qnode.keys._layout import key_id
from qnode.keys._model import (
    MOST_SKIPPED,
    AgeMark,
    Assignment,
    AuditStanding,
    BlockRecord,
    Condition,
    Counts,
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
from qnode.keys._server import check_address, open_server_store
from qnode.keys._store import SqliteKeyStore, SqlKeyStore, open_store

__all__ = [
    "MOST_SKIPPED",
    "AgeMark",
    "Assignment",
    "AuditStanding",
    "BackupHead",
    "BackupUnusable",
    "BlockRecord",
    "BlockState",
    "Condition",
    "Counts",
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
    "Waiting",
    "check_address",
    "chunks_per_key",
    "key_id",
    "open_server_store",
    "open_store",
    "read_backup",
    "restore_backup",
    "roll_back",
]
