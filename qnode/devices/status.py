"""The state of a part of the node, with its start time and its reason."""

from msgspec import Struct

from qnode.choices import DeviceState


class State(Struct, frozen=True):
    """A state in one word, its start ``since`` (Unix seconds), and the reason ``because`` for people."""

    state: str
    since: float
    because: str = ""

    def to(self, state: str, because: str = "", *, at: float) -> "State":
        """Return the state after a transition at ``at`` (unix seconds); an unchanged word keeps its age."""
        return State(str(state), self.since if state == self.state else at, because)


class Exchange(Struct, frozen=True):
    """Bytes that went together: ``at`` in Unix seconds, ``sent`` by the node or received."""

    at: float
    sent: bool
    data: bytes


class DeviceStatus(Struct, frozen=True, kw_only=True):
    """One device as operators see it.

    ``state`` is a `DeviceState`. ``retry_at``: unix seconds of the next attempt while waiting.
    ``failing_since``: Unix seconds of the first failure since it last ran, None while it runs.
    ``readings``: figures from its capabilities, units in their names.
    """

    name: str
    driver: str
    state: State
    model: str = ""
    serial: str = ""
    simulated: bool = False
    restarts: int = 0
    failing_since: float | None = None
    retry_at: float | None = None
    readings: dict[str, float] = {}

    @property
    def well(self) -> bool:
        """True when the device needs no attention; a source that ended yields nothing more."""
        return self.state.state == DeviceState.RUNNING

    @property
    def finished(self) -> bool:
        """True for a source that has ended."""
        return self.state.state == DeviceState.FINISHED
