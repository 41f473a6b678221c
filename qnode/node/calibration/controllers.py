"""All controllers of a link, from its table ``[calibration]``."""

from collections.abc import Mapping

import trio

from qnode.config import SiteConfig
from qnode.errors import ConfigError
from qnode.node.calibration.bias import (
    BiasController,
    BlockErrors,
    LastBlock,
    look_at_errors,
    look_at_power,
)
from qnode.node.calibration.controller import Controller
from qnode.node.calibration.detectors import DetectorController
from qnode.node.calibration.instruments import Instruments
from qnode.node.calibration.intensity import IntensityController
from qnode.node.calibration.phase import PhaseController
from qnode.node.monitoring.watch import MonitorWatch
from qnode.node.quantum.adjustments import Adjustments
from qnode.node.status.link_figures import LinkFigures
from qnode.operate.status.alarms import AlarmName
from qnode.operate.status.model import ControllerStatus


class Controllers:
    """The controllers of one link; none if nothing is configured.

    ``adjustments``: those of Bob's receiver. ``watch``: the monitors of the site. ``last_block``: see
    `look_at_errors`.
    """

    def __init__(
        self,
        config: SiteConfig,
        figures: LinkFigures,
        instruments: Instruments,
        *,
        adjustments: Adjustments | None,
        watch: MonitorWatch,
        last_block: LastBlock,
    ) -> None:
        section = config.calibration
        self._figures = figures
        found = list[Controller]()
        if section.phase.device and adjustments is not None:
            found.append(PhaseController(section.phase, config.link, instruments, adjustments))
        for name, detector in section.detectors.items():
            if adjustments is not None:
                found.append(DetectorController(name, detector, instruments, adjustments))
        if section.intensity.attenuator:
            found.append(IntensityController(section.intensity, instruments, watch))
        errors, turn = BlockErrors(), trio.Lock()
        for name, bias in section.bias.items():
            if bias.seek == "fewest_errors":  # of all modulators together
                look, whose = look_at_errors(bias, errors, last_block), turn
            else:
                look, whose = look_at_power(bias, instruments), trio.Lock()
            found.append(BiasController(name, bias, instruments, look, whose))
        if section.bias:
            figures.blocks.on_errors = errors.note
        self._by_name: Mapping[str, Controller] = {one.status.name: one for one in found}
        figures.controllers = self.status

    async def run(self) -> None:
        """Run all of them; return at once if there is none."""
        async with trio.open_nursery() as nursery:
            for one in self._by_name.values():
                nursery.start_soon(one.run)

    def status(self) -> list[ControllerStatus]:
        """Return what each of them does."""
        return [one.status for one in self._by_name.values()]

    def command(self, name: str, word: str) -> ControllerStatus:
        """Do as an operator says: see `Controller.command`.

        Raises:
            ConfigError: there is no such controller, or it cannot.
        """
        one = self._by_name.get(name)
        if one is None:
            known = ", ".join(self._by_name) or "none"
            raise ConfigError(f"no controller {name!r} (controllers: {known})")
        one.command(word)
        return one.status

    def look_after(self) -> None:
        """Raise or end the alarm; called from time to time."""
        troubles = [trouble for one in self._by_name.values() if (trouble := one.trouble)]
        if troubles:
            self._figures.alarms.raise_alarm(AlarmName.CALIBRATION_FAILED, "; ".join(troubles))
        else:
            self._figures.alarms.clear_alarm(AlarmName.CALIBRATION_FAILED)
