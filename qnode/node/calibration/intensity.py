"""Alice's controller of the mean photon numbers, by a power monitor and an attenuator."""

from functools import partial
from typing import Never

import trio

from qnode.calibration.hold import PowerTarget, corrected_attenuation_db, intensity_error
from qnode.choices import ControllerState
from qnode.config_calibration import IntensitySection
from qnode.devices.capabilities import PowerMonitor, VariableAttenuator
from qnode.node.calibration.controller import Controller
from qnode.node.calibration.instruments import Instruments
from qnode.node.quantum.transmitter_port import TransmitterPort

PATIENCE_S = 60.0
# After so many good measurements in a row, blocks count again.
GOOD_AGAIN = 3


class IntensityController(Controller):
    """Holds the power at the monitor; while it is outside, blocks are discarded."""

    def __init__(self, section: IntensitySection, instruments: Instruments, port: TransmitterPort) -> None:
        super().__init__("intensity", (section.attenuator, section.monitor), "dB", PATIENCE_S, instruments)
        self._section = section
        self._port = port
        self._good = 0
        self._port.unfit = "the mean photon numbers were not measured yet"

    async def _control(self) -> Never:
        try:
            await self._hold_power()
        finally:  # without a measurement the intensities are not known
            self._good = 0
            self._port.unfit = "the mean photon numbers are not measured"

    async def _hold_power(self) -> Never:
        section, ask = self._section, self._instruments.ask
        limits = await ask(section.attenuator, VariableAttenuator, _limits)
        self._limits = max(limits[0], section.least_db), limits[1]
        target = PowerTarget(
            power_w=section.power_w, limits_db=self._limits, largest_step_db=section.largest_step_db
        )
        present_db = self.status.setting
        if present_db is None:
            present_db = min(max(section.start_db, self._limits[0]), self._limits[1])
        await self._set(present_db)
        while True:
            if self._held and self._held_at is not None and self._held_at != present_db:
                present_db = self._held_at
                await self._set(present_db)
            power_w = await ask(section.monitor, PowerMonitor, lambda device: device.power_w())
            self._judge(target, power_w)
            next_db = None if self._held else corrected_attenuation_db(target, present_db, power_w)
            if next_db is not None:
                present_db = next_db
                await self._set(present_db)
            await self._until_commanded(partial(trio.sleep, section.period_s))

    def _judge(self, target: PowerTarget, power_w: float) -> None:
        section = self._section
        error = intensity_error(target, power_w, section.monitor_uncertainty)
        within = error <= section.largest_error
        self._good = self._good + 1 if within else 0
        because = f"{power_w:.4g} W at the monitor, expected {section.power_w:.4g} W"
        if not within:
            self._port.unfit = f"the mean photon numbers are outside their limits ({because})"
        elif self._good >= GOOD_AGAIN:
            self._port.unfit = ""
        state = ControllerState.HELD if self._held else ControllerState.FOLLOWING
        self._note(
            state if within else ControllerState.OUTSIDE, "" if within else because, sigma=None, best=None
        )

    async def _set(self, attenuation_db: float) -> None:
        await self._instruments.ask(
            self._section.attenuator,
            VariableAttenuator,
            lambda device: device.set_attenuation_db(attenuation_db),
        )
        self._moved(attenuation_db)


async def _limits(device: VariableAttenuator) -> tuple[float, float]:
    return device.attenuation_limits_db
