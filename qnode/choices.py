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

# Of a controller of a modulator's bias: what the best bias gives.
BiasAim = Literal["fewest_errors", "least_power", "most_power"]

# Of the log.
LogLevel = Literal["debug", "info", "warning", "error"]
LogFormat = Literal["auto", "terminal", "plain", "journal", "json"]


class Word(StrEnum):
    """A stable word with its ``meaning`` for people; a member is written ``NAME = "word", "meaning"``."""

    meaning: str

    def __new__(cls, word: str, meaning: str = "") -> Self:
        """Make a member; with a word alone, a class with members returns the member of that word."""
        member = str.__new__(cls, word)
        member._value_ = word
        member.meaning = meaning
        return member


class BlockState(Word):
    """The state of a block in the two-step commit at one site."""

    UNKNOWN = "unknown", "the block is unknown"
    PREPARED = "prepared", "the key is stored, and waits for the confirmation of the other site"
    AVAILABLE = "available", "the key may be assigned and delivered"
    VOID = "void", "the block was discarded"


class ControllerState(Word):
    """What a controller of a setting does."""

    WAITING = "waiting", "it waits for its device, or for the first measurement"
    SETTLING = "settling", "the best setting is not known well yet"
    FOLLOWING = "following", "the setting follows the best one"
    HELD = "held", "an operator holds the setting"
    OUTSIDE = "outside", "what it controls is outside its limits"


class LockState(Word):
    """Whether clicks are assigned to slots."""

    SEARCHING = "searching", "the period of Alice's clock is not known yet"
    ALIGNING = "aligning", "the period is known, the numbers of the slots are not"
    LOCKED = "locked", "clicks are assigned to slots"
    LOST = "lost", "there are no tags or no clicks"


class ConnectionState(Word):
    """Whether there is a session with the other site."""

    CONNECTED = "connected", "an authenticated session is open"
    DISCONNECTED = "disconnected", "there is no session; the sites try again automatically"


class DeviceState(Word):
    """The state of a device."""

    STARTING = "starting", "the node opens the device"
    RUNNING = "running", "works normally"
    WAITING = "waiting", "the device failed; the node will open it again"
    FINISHED = "finished", "the source has ended, for example a recording"


class NodeState(Word):
    """The state of the daemon."""

    STARTING = "starting", "not ready yet"
    RUNNING = "running", "works normally"


class Door(Word):
    """The interface through which a key left its store."""

    ETSI014 = "etsi014", "ETSI GS QKD 014"
    SKIP = "skip", "Cisco SKIP"
    ETSI004 = "etsi004", "a key stream, ETSI GS QKD 004: the key is held for its GET_KEY"
    DISCARDED = "discarded", "nobody got it: the stream of the key was closed before"
    UNKNOWN = "unknown", "not a request of an encryptor"


def choices_of(kind: Any) -> tuple[Any, ...]:
    """Return the values of one of the lists above, in their order."""
    return get_args(kind)


def peer_of(role: Role) -> Role:
    """Return the role of the other site."""
    return "bob" if role == "alice" else "alice"
