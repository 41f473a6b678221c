"""Bob's controller of one detector: it sets what is configured, and compares what the detector reports."""

from functools import partial
from typing import Never

import msgspec.structs
import trio

from qnode.calibration.hold import outside
from qnode.choices import ControllerState
from qnode.config.calibration import DetectorSection
from qnode.devices.capabilities import DetectorControl, DetectorState
from qnode.errors import ConfigError
from qnode.node.calibration.controller import AUTO, HOLD, Controller
from qnode.node.calibration.instruments import Instruments
from qnode.node.quantum.adjustments import Adjustments

PATIENCE_S = 60.0
# A cooler needs minutes after its setting.
COOLING_S = 900.0


class DetectorController(Controller):
    """Sets the detector when its device opens; the tags of that time are cut."""

    def __init__(
        self, name: str, section: DetectorSection, instruments: Instruments, adjustments: Adjustments
    ) -> None:
        super().__init__(f"detectors.{name}", (section.device,), "K", PATIENCE_S + COOLING_S, instruments)
        self._section = section
        self._adjustments = adjustments
        self._wanted = DetectorState(
            bias_v=section.bias_v, dead_time_s=section.dead_time_s, temperature_k=section.temperature_k
        )

    def command(self, word: str) -> None:
        """Do as an operator says: `hold` leaves the detector alone, `auto` sets it again.

        Raises:
            ConfigError: a value; the settings of a detector are in the site's file.
        """
        if word not in (AUTO, HOLD):
            raise ConfigError(f"{self.status.name}: expected hold or auto, got {word!r}")
        super().command(word)

    async def _control(self) -> Never:
        section, ask = self._section, self._instruments.ask
        was_held, set_at_s = True, trio.current_time()
        while True:
            if was_held and not self._held:
                with self._adjustments.adjust(0.0):
                    await ask(
                        section.device,
                        DetectorControl,
                        lambda device: device.set_detector(section.channel, self._wanted),
                    )
                set_at_s = trio.current_time()
            was_held = self._held
            state = await ask(
                section.device, DetectorControl, lambda device: device.detector_state(section.channel)
            )
            self._judge(state, cooling=trio.current_time() - set_at_s < COOLING_S)
            await self._until_commanded(partial(trio.sleep, section.period_s))

    def _judge(self, state: DetectorState, *, cooling: bool) -> None:
        wrong = []
        for name, wanted in msgspec.structs.asdict(self._wanted).items():
            found = getattr(state, name)
            if wanted is None:
                continue
            allowed = self._section.tolerance * abs(wanted)
            if outside(found, wanted - allowed, wanted + allowed):
                wrong.append((name, f"{name} is {found:g}, set to {wanted:g}"))
        because = "; ".join(text for _, text in wrong)
        if not wrong:
            now = ControllerState.HELD if self._held else ControllerState.FOLLOWING
        elif cooling and all(name == "temperature_k" for name, _ in wrong):
            now = ControllerState.SETTLING
        else:
            now = ControllerState.OUTSIDE
        self._note(now, because, setting=self._wanted.temperature_k, best=state.temperature_k)
