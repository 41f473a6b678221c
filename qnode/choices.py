"""Every list of words that configuration, commands and messages choose from, each in one place."""

from enum import StrEnum
from typing import Any, Final, Literal, Self, get_args

Role = Literal["alice", "bob"]
ROLES: Final[tuple[Role, Role]] = get_args(Role)

# Of the key length.
EstimatorName = Literal["rusca2018", "eur", "wiesemann2024", "three_state"]
Statistics = Literal["hoeffding", "exact"]
XMode = Literal["visibility", "visibility + asymmetry"]
VacuumRule = Literal["min", "k1", "k2", "form_a", "min3", "max3"]
AsymmetryBound = Literal["shares", "joint"]

# Of error correction and verification.
ReconciliationMethod = Literal["cascade", "ldpc"]
LeakCount = Literal["alice", "both"]
TagBits = Literal[64, 128]

# Of a receiver: whether a click blanks its own detector, or both.
DeadTime = Literal["independent", "joint"]
Arm = Literal["z", "x"]

# Of the log.
LogLevel = Literal["debug", "info", "warning", "error"]
LogFormat = Literal["auto", "terminal", "plain", "journal", "json"]


class BlockState(StrEnum):
    """Where a block stands in the two-step commit at one site."""

    UNKNOWN = "unknown"
    PREPARED = "prepared"
    AVAILABLE = "available"
    VOID = "void"


class Word(StrEnum):
    """A stable word with its ``meaning`` for people; a member is written ``NAME = "word", "meaning"``."""

    meaning: str

    def __new__(cls, word: str, meaning: str) -> Self:
        """Make a member."""
        member = str.__new__(cls, word)
        member._value_ = word
        member.meaning = meaning
        return member


def choices_of(kind: Any) -> tuple[Any, ...]:
    """Return the values of one of the lists above, in their order."""
    return get_args(kind)


def peer_of(role: Role) -> Role:
    """Return the role of the other site."""
    return "bob" if role == "alice" else "alice"
