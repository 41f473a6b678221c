"""The state of an agent: whether its tunnel has a fresh key; if not, since when and why."""

from dataclasses import dataclass

from qnode.choices import Word


class AgentState(Word):
    """What an operator must know about the key of a tunnel."""

    READY = "ready", "the key is younger than the agreed period"
    HOLDING = "holding", "a change of key is due and does not come, or the encryptor cannot be asked"
    STARVED = "starved", "there is no key, or it is older than longest_s"


@dataclass(frozen=True)
class Condition:
    """A state, since when (Unix time), and why; ``because`` may also say something about `READY`."""

    state: AgentState
    since: float
    because: str
