"""The durable key store of one site: states of a chunk, their only legal moves, authentication pool."""

from qnode.keys._layout import key_id
from qnode.keys._model import (
    Assignment,
    BlockRecord,
    BlockState,
    BlockSummary,
    Condition,
    Counts,
    Handover,
    HashKeys,
    Key,
    KeyLayout,
    KeyRange,
    Pad,
    PadId,
    PadsLeft,
    Positions,
    PreparedBlock,
    Role,
    StoreCondition,
    chunks_per_key,
)
from qnode.keys._protocol import KeyStore
from qnode.keys._store import SqliteKeyStore, open_store

__all__ = [
    "Assignment",
    "BlockRecord",
    "BlockState",
    "BlockSummary",
    "Condition",
    "Counts",
    "Handover",
    "HashKeys",
    "Key",
    "KeyLayout",
    "KeyRange",
    "KeyStore",
    "Pad",
    "PadId",
    "PadsLeft",
    "Positions",
    "PreparedBlock",
    "Role",
    "SqliteKeyStore",
    "StoreCondition",
    "chunks_per_key",
    "key_id",
    "open_store",
]
