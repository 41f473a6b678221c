"""Bob's controller of the interferometer's phase, by the central share of the clicks of the X arm."""

import math
from functools import partial
from typing import Never

import trio

from qnode.calibration.tracker import Shape, Stretch, Tracker, central_cosine, central_slope, share
from qnode.choices import ControllerState
from qnode.config import LinkParameters
from qnode.config.calibration import PhaseSection
from qnode.devices.capabilities import PhaseControl
from qnode.node.calibration.controller import Controller, figure
from qnode.node.calibration.instruments import Instruments
from qnode.node.quantum.adjustments import Adjustments, XClicks

SETTLED_RAD = 0.15
# A pair of stretches further apart than this many stretches says nothing.
LONGEST_PAIR = 3.0


class PhaseController(Controller):
    """Dithers the phase between the best phase plus and minus a small step."""

    def __init__(
        self, section: PhaseSection, link: LinkParameters, instruments: Instruments, adjustments: Adjustments
    ) -> None:
        patience_s = 300.0 + 30.0 * section.stretch_s
        super().__init__("phase", (section.device,), "rad", patience_s, instruments)
        self._section = section
        self._p_x = 1.0 - link.source.p_z
        self._adjustments = adjustments
        self._tracker: Tracker | None = None
        self._last_s = -math.inf

    async def _control(self) -> Never:
        limits, present_rad = await self._instruments.ask(self._section.device, PhaseControl, _present)
        self._limits = limits
        if self._tracker is None:
            self._tracker = self._tracker_at(present_rad, limits)
        while True:
            tracker = self._tracker
            if self._held:
                held_rad = tracker.centre_rad if self._held_at is None else self._held_at
                await self._set(held_rad)
                self._note(ControllerState.HELD, "by an operator")
                await self._until_commanded(trio.sleep_forever)
                tracker.forget_first()
                continue
            await self._set(tracker.setting_rad)
            clicks = await self._until_commanded(partial(self._adjustments.x_clicks, self._section.stretch_s))
            if clicks is None:
                tracker.forget_first()
            elif clicks.middle_s < self._last_s:  # the TDC has begun to count anew
                self._last_s = clicks.middle_s
                self._tracker = self._tracker_at(tracker.centre_rad, limits)
            else:
                self._observe(tracker, clicks)

    def _tracker_at(self, phase_rad: float, limits_rad: tuple[float, float]) -> Tracker:
        section = self._section
        shape = Shape(
            slope=central_slope(self._p_x, section.visibility),
            dither_rad=section.dither_rad,
            limits_rad=limits_rad,
            walk_rad_per_root_s=section.walk_rad_per_root_s,
            rate_rad_per_s=section.rate_rad_per_s,
        )
        least, most = (limits_rad[0] + section.dither_rad, limits_rad[1] - section.dither_rad)
        return Tracker(shape, min(max(phase_rad, least), most))

    def _observe(self, tracker: Tracker, clicks: XClicks) -> None:
        if clicks.middle_s - self._last_s > LONGEST_PAIR * self._section.stretch_s:
            tracker.forget_first()
        spacing_s = min(clicks.middle_s - self._last_s, LONGEST_PAIR * self._section.stretch_s)
        self._last_s = clicks.middle_s
        whole = clicks.central + clicks.boundary
        if not clicks.boundary:
            return
        signal, variance = share(clicks.central, whole)
        cosine = central_cosine(signal, self._p_x, self._section.visibility)
        stretch = Stretch(signal=signal, variance=variance, at_s=clicks.middle_s, cosine=cosine)
        tracker.observe(stretch, clicks.middle_s + spacing_s)
        self._track(
            tracker,
            SETTLED_RAD,
            best=tracker.centre_rad,
            sigma=tracker.sigma_rad,
            drift_per_hour=-3600.0 * tracker.rate_rad_per_s,
        )

    async def _set(self, phase_rad: float) -> None:
        if phase_rad == self.status.setting:
            return
        with self._adjustments.adjust(self._section.settle_s):
            await self._instruments.ask(
                self._section.device, PhaseControl, lambda device: device.set_phase_rad(phase_rad)
            )
        self._moved(phase_rad)


async def _present(device: PhaseControl) -> tuple[tuple[float, float], float]:
    return device.phase_limits_rad, figure("phase_rad", await device.phase_rad())
