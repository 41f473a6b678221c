"""Alice's controller of a modulator's bias, by the bit errors of corrected blocks or the light behind it."""

import math
from collections.abc import Awaitable, Callable
from typing import Never

import trio

from qnode.calibration.tracker import Shape, Stretch, Tracker, share
from qnode.choices import ControllerState
from qnode.config.calibration import BiasSection
from qnode.devices.capabilities import BiasControl, PowerMonitor
from qnode.node.calibration.controller import Controller, figure
from qnode.node.calibration.instruments import Instruments

# A wrong bias x sends sin²(x / 2) of the light into the wrong bin, less the errors of other causes; so much
# more or less light passes the modulator as well.
SLOPE = 0.49
MEASUREMENT_S = 1.0
SETTLED_RAD = 0.1
PATIENCE_S = 7200.0
HOUR_S = 3600.0

LastBlock = Callable[[], Awaitable[int]]
"""Returns the number of the latest block that was agreed."""


class BlockErrors:
    """The measured errors of blocks, summed over the blocks after a certain one."""

    def __init__(self) -> None:
        self._after = 0
        self._last = 0
        self._at_s = 0.0
        self._grown = trio.Event()
        self._begin(0)

    def _begin(self, after: int) -> None:
        self._after = after
        self.error_bits = self.bits = 0
        self._span_s = self._weighted_s = 0.0

    def note(self, block_id: int, error_bits: int, bits: int, span_s: float) -> None:
        """Take a block's errors; the first report of a block counts."""
        if block_id <= self._last:
            return
        # Blocks follow one another without a gap; those between gave no figure.
        self._at_s += span_s * (block_id - self._last if self._last else 1)
        self._last = block_id
        if block_id <= self._after:
            return
        self.error_bits += error_bits
        self.bits += bits
        self._span_s += span_s
        self._weighted_s += span_s * (self._at_s - span_s / 2.0)
        self._grown.set()
        self._grown = trio.Event()

    async def after(self, block_id: int, lasting_s: float) -> Stretch:
        """Return the error rate of the next blocks after ``block_id`` that last for ``lasting_s`` or more."""
        self._begin(block_id)
        while not self.bits or self._span_s < lasting_s:
            await self._grown.wait()
        signal, variance = share(self.error_bits, self.bits)
        middle_s = self._weighted_s / self._span_s if self._span_s else self._at_s
        return Stretch(signal=signal, variance=variance, at_s=middle_s, cosine=1.0 - signal / SLOPE)


Look = Callable[[], Awaitable[Stretch]]
"""Measures at the present bias, and returns when that is done."""


def look_at_errors(section: BiasSection, errors: BlockErrors, last_block: LastBlock) -> Look:
    """Return a measurement of the errors of whole blocks.

    A block counts if it was agreed after the bias was set: it begins later still.
    """

    async def look() -> Stretch:
        return await errors.after(await last_block(), section.stretch_s)

    return look


def look_at_power(section: BiasSection, instruments: Instruments) -> Look:
    """Return a measurement of the mean power at the monitor; most power counts as the least signal."""
    sign = -1.0 if section.seek == "most_power" else 1.0

    async def look() -> Stretch:
        began_s, total, number = trio.current_time(), 0.0, 0
        while number == 0 or trio.current_time() - began_s < section.stretch_s:
            await trio.sleep(MEASUREMENT_S)
            power_w = await instruments.ask(section.monitor, PowerMonitor, lambda device: device.power_w())
            total += figure(f"power_w of {section.monitor}", power_w)
            number += 1
        signal = sign * total / number / section.full_power_w
        middle_s = (began_s + trio.current_time()) / 2.0
        return Stretch(signal=signal, variance=section.monitor_noise**2 / number, at_s=middle_s)

    return look


class BiasController(Controller):
    """Dithers the bias from one measurement to the next; ``turn``: who measures the same, one at a time."""

    def __init__(
        self, name: str, section: BiasSection, instruments: Instruments, look: Look, turn: trio.Lock
    ) -> None:
        monitors = () if section.seek == "fewest_errors" else (section.monitor,)
        super().__init__(f"bias.{name}", (section.device, *monitors), "V", PATIENCE_S, instruments)
        self._section = section
        self._look = look
        self._turn = turn
        self._tracker: Tracker | None = None
        self._last_s = 0.0

    async def _control(self) -> Never:
        section = self._section
        limits, present_v = await self._instruments.ask(section.device, BiasControl, _present)
        self._limits = max(limits[0], section.least_v), min(limits[1], section.most_v)
        if self._tracker is None:
            self._tracker = self._tracker_at(present_v, self._limits)
        tracker = self._tracker
        while True:
            if self._held:
                held_v = self._volts(tracker.centre_rad) if self._held_at is None else self._held_at
                await self._set(held_v)
                self._note(ControllerState.HELD, "by an operator")
                await self._until_commanded(trio.sleep_forever)
                tracker.forget_first()
                continue
            async with self._turn:
                await self._pair(tracker)

    async def _pair(self, tracker: Tracker) -> None:
        """Measure at both sides of the best bias."""
        for _ in range(2):
            await self._set(self._volts(tracker.setting_rad))
            stretch = await self._until_commanded(self._look)
            if stretch is None:
                tracker.forget_first()
                return
            self._observe(tracker, stretch)

    def _tracker_at(self, bias_v: float, limits_v: tuple[float, float]) -> Tracker:
        section = self._section
        per_v = math.pi / section.half_wave_v
        shape = Shape(
            slope=SLOPE,
            dither_rad=section.dither_v * per_v,
            limits_rad=(limits_v[0] * per_v, limits_v[1] * per_v),
            walk_rad_per_root_s=section.walk_v_per_root_hour * per_v / math.sqrt(HOUR_S),
            rate_rad_per_s=section.rate_v_per_hour * per_v / HOUR_S,
            rate_walk=section.rate_v_per_hour * per_v / HOUR_S / math.sqrt(6.0 * HOUR_S),
        )
        least, most = limits_v[0] + section.dither_v, limits_v[1] - section.dither_v
        return Tracker(shape, min(max(bias_v, least), most) * per_v)

    def _observe(self, tracker: Tracker, stretch: Stretch) -> None:
        spacing_s, self._last_s = stretch.at_s - self._last_s, stretch.at_s
        tracker.observe(stretch, stretch.at_s + spacing_s)
        volts = self._section.half_wave_v / math.pi
        self._track(
            tracker,
            SETTLED_RAD,
            best=volts * tracker.centre_rad,
            sigma=volts * tracker.sigma_rad,
            drift_per_hour=-HOUR_S * volts * tracker.rate_rad_per_s,
        )

    def _volts(self, phase_rad: float) -> float:
        return phase_rad * self._section.half_wave_v / math.pi

    async def _set(self, bias_v: float) -> None:
        if bias_v == self.status.setting:
            return
        await self._instruments.ask(
            self._section.device, BiasControl, lambda device: device.set_bias_v(bias_v)
        )
        self._moved(bias_v)


async def _present(device: BiasControl) -> tuple[tuple[float, float], float]:
    return device.bias_limits_v, figure("bias_v", await device.bias_v())
