"""Alice's controller of the mean photon numbers, by a power monitor and an attenuator."""

from functools import partial
from typing import Never

import trio

from qnode.block.outcome import Reason
from qnode.calibration.hold import PowerTarget, corrected_attenuation_db, intensity_error
from qnode.choices import ControllerState
from qnode.config.calibration import IntensitySection
from qnode.devices.capabilities import PowerMonitor, VariableAttenuator
from qnode.distill.check_table import Finding
from qnode.node.calibration.controller import Controller
from qnode.node.calibration.instruments import Instruments
from qnode.node.monitoring.watch import MonitorWatch

PATIENCE_S = 60.0
# Without a measurement for this many periods, the intensities are not known.
LONGEST_GAP_PERIODS = 3.0
PLACE = "calibration.intensity"


class IntensityController(Controller):
    """Holds the power at the monitor, which ``watch`` watches: a block needs good measurements all the time.

    So from the last one before it to the first one after it.
    """

    def __init__(self, section: IntensitySection, instruments: Instruments, watch: MonitorWatch) -> None:
        super().__init__("intensity", (section.attenuator, section.monitor), "dB", PATIENCE_S, instruments)
        self._section = section
        self._watch = watch
        self._last_db = section.start_db
        watch.add(PLACE, LONGEST_GAP_PERIODS * section.period_s)

    async def _control(self) -> Never:
        section, ask = self._section, self._instruments.ask
        limits = await ask(section.attenuator, VariableAttenuator, _limits)
        self._limits = max(limits[0], section.least_db), limits[1]
        target = PowerTarget(
            power_w=section.power_w, limits_db=self._limits, largest_step_db=section.largest_step_db
        )
        present_db = min(max(self._last_db, self._limits[0]), self._limits[1])
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
        because = f"{power_w:.4g} W at the monitor, expected {section.power_w:.4g} W"
        points_to = "" if within else f"mean photon numbers that are not the configured ones ({because})"
        self._watch.see(PLACE, Finding(Reason.INTENSITY, error, None, section.largest_error, points_to))
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
        self._last_db = attenuation_db
        self._moved(attenuation_db)


async def _limits(device: VariableAttenuator) -> tuple[float, float]:
    return device.attenuation_limits_db
