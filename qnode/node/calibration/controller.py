"""What all controllers have in common: a status, an operator's hold, and a device that may be away."""

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from typing import Never, TypeVar

import msgspec.structs
import structlog
import trio

from qnode.calibration.tracker import Tracker
from qnode.choices import ControllerState
from qnode.errors import ConfigError, DeviceError
from qnode.node.calibration.instruments import Instruments
from qnode.operate.status.model import ControllerStatus, State

RETRY_S = 5.0
AUTO, HOLD = "auto", "hold"

T = TypeVar("T")

log = structlog.get_logger()


def figure(what: str, value: float) -> float:
    """Return what a device reports, if it is a finite number.

    Raises:
        DeviceError: it is none, so no setting can follow from it.
    """
    if not math.isfinite(value):
        raise DeviceError(f"{what} is {value}")
    return value


class Controller(ABC):
    """One controller; a subclass says what it measures and sets.

    ``devices``: the names of all that it uses, first the one that it sets. ``patience_s``: an alarm is raised
    if it does not hold its setting for longer than this.
    """

    def __init__(
        self, name: str, devices: tuple[str, ...], unit: str, patience_s: float, instruments: Instruments
    ) -> None:
        self.status = ControllerStatus(
            name=name, device=devices[0], unit=unit, state=State(ControllerState.WAITING, time.time())
        )
        self._devices = devices
        self._instruments = instruments
        self._patience_s = patience_s
        self._limits: tuple[float, float] | None = None
        self._held = False
        self._held_at: float | None = None
        self._commanded = False
        self._scope = trio.CancelScope()

    async def run(self) -> Never:
        """Control until cancelled; begin again when a device was closed or has failed."""
        while True:
            try:
                await self._instruments.opened(*self._devices)
                with self._instruments.while_open(*self._devices):
                    await self._control()
            except DeviceError as error:
                self._note(ControllerState.WAITING, str(error), setting=None)
                log.warning("calibration.waiting", controller=self.status.name, because=str(error))
                await trio.sleep(RETRY_S)

    @abstractmethod
    async def _control(self) -> Never:
        """Control the opened devices until one fails.

        Raises:
            DeviceError: what failed.
        """

    def command(self, word: str) -> None:
        """Do as an operator says: `hold`, `auto`, or a value to hold, in the unit of the setting.

        Raises:
            ConfigError: it is none of these, or outside the limits.
        """
        held_at = None
        if word not in (AUTO, HOLD):
            held_at = self._value(word)
        self._held, self._held_at = word != AUTO, held_at
        log.info("calibration.commanded", controller=self.status.name, command=word)
        self._commanded = True
        self._scope.cancel()

    def _value(self, word: str) -> float:
        status = self.status
        try:
            value = float(word)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise ConfigError(f"{status.name}: expected hold, auto or a value in {status.unit}, got {word!r}")
        if self._limits is None:
            raise ConfigError(f"{status.name}: device {status.device} is not open")
        least, most = self._limits
        if not least <= value <= most:
            raise ConfigError(f"{status.name}: expected {least:g} to {most:g} {status.unit}, got {value:g}")
        return value

    async def _until_commanded(self, question: Callable[[], Awaitable[T]]) -> T | None:
        """Return the answer, or None as soon as an operator commands."""
        if self._commanded:
            self._commanded = False
            return None
        with trio.CancelScope() as self._scope:
            return await question()
        self._commanded = False
        return None

    def _note(self, state: ControllerState, because: str = "", **values: float | None) -> None:
        """Show the state, and values by the names that they have in `ControllerStatus`."""
        shown = self.status.state.to(state, because, at=time.time())
        self.status = msgspec.structs.replace(self.status, state=shown, **values)

    def _track(self, tracker: Tracker, settled_rad: float, **values: float | None) -> None:
        """Show how well a tracker holds its setting; ``settled_rad``: the standard error that is good."""
        state, because = ControllerState.FOLLOWING, ""
        if tracker.sigma_rad >= settled_rad:
            state = ControllerState.SETTLING
        elif tracker.is_limited:
            state, because = ControllerState.OUTSIDE, "the best setting lies beyond the limits"
        self._note(state, because, **values)

    def _moved(self, setting: float) -> None:
        self.status = msgspec.structs.replace(self.status, setting=setting, moves=self.status.moves + 1)

    @property
    def trouble(self) -> str:
        """Why an operator should look at this controller; empty if it is well."""
        status = self.status
        state = status.state
        lasting_s = time.time() - state.since
        outside = state.state == ControllerState.OUTSIDE
        late = state.state in (ControllerState.WAITING, ControllerState.SETTLING)
        if not outside and not (late and lasting_s > self._patience_s):
            return ""
        return f"{status.name} {state.state}" + (f": {state.because}" if state.because else "")
