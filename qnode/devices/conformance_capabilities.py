"""Checks of the conformance kit on the capabilities of an open device: they set it, within its limits.

Each setter must reach its value, read it back, refuse a value outside the limits without a change, and leave
no false answer behind when it is cancelled.
"""

import math
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final, TypeVar, get_args

import msgspec
import trio

from qnode.devices.capabilities import (
    BiasControl,
    BiasLock,
    BiasPoint,
    DetectorControl,
    DetectorState,
    Laser,
    LaserState,
    PatternControl,
    PhaseControl,
    PowerMonitor,
    PulsePattern,
    RandomSource,
    VariableAttenuator,
)
from qnode.devices.conformance_checks import promise, sound
from qnode.devices.contract import readings_fault
from qnode.devices.protocols import Transmitter
from qnode.errors import DeviceError, TransientDeviceError
from qnode.tags.types import X_CHANNEL, Z_CHANNEL

ANSWER_LIMIT_S: Final = 30.0
RESOLUTION: Final = 0.002  # of the range between the limits: how far a setting may read back from its value
BEYOND: Final = 0.1  # of the range: how far outside the limits the refused values lie
RANDOM_BYTES: Final = 32
TURN_RAD: Final = 2 * math.pi

T = TypeVar("T")


async def _within_limit(name: str, question: Callable[[], Awaitable[T]]) -> T:
    with trio.move_on_after(ANSWER_LIMIT_S):
        return await question()
    raise AssertionError(f"{name}: nothing within {ANSWER_LIMIT_S:g} s")


async def answer(name: str, question: Callable[[], Awaitable[T]]) -> T:
    """Await the device's answer, within `ANSWER_LIMIT_S`; the device must not refuse."""
    try:
        return await _within_limit(name, question)
    except DeviceError as error:
        raise AssertionError(f"{name} failed: {error}") from error


async def refuses(name: str, question: Callable[[], Awaitable[object]], because: str) -> None:
    """Check that the device refuses with a `DeviceError`."""
    try:
        await _within_limit(name, question)
    except DeviceError:
        return
    raise AssertionError(f"{name} took {because}: raise DeviceError and leave the device as it is")


async def disturb(device: object) -> None:
    """Leave a laser on and an attenuator below its maximum, as a user does whose use ends suddenly."""
    if isinstance(device, Laser) and (await device.laser_state()).interlock_closed is not False:
        await answer("set_laser(True)", partial(device.set_laser, True))
    if isinstance(device, VariableAttenuator):
        least, most = device.attenuation_limits_db
        middle = partial(device.set_attenuation_db, (least + most) / 2)
        await answer("set_attenuation_db()", middle)


async def check_abilities(device: object, is_safe: Callable[[], bool] | None) -> None:
    """Check every capability of `qnode.devices.capabilities` that an open ``device`` has, and use it."""
    if isinstance(device, Laser | VariableAttenuator):
        promise(is_safe is None or is_safe(), "opened, the hardware is not safe: make it so first in open()")
    if isinstance(device, Laser):
        await _check_laser(device)
    if isinstance(device, VariableAttenuator):
        await _check_attenuator(device)
    if isinstance(device, BiasLock):
        await _check_bias_lock(device)
    if isinstance(device, BiasControl):
        await _check_bias(device)
    if isinstance(device, PowerMonitor):
        sound(readings_fault({"power_w": await answer("power_w()", device.power_w)}))
    if isinstance(device, DetectorControl):
        await _check_detectors(device)
    if isinstance(device, PhaseControl):
        least, most = _limits("phase_limits_rad", device.phase_limits_rad)
        promise(most - least >= TURN_RAD, f"phase_limits_rad spans {most - least:g}, expected 2 π or more")
        await _check_setting("phase_rad", (least, most), device.phase_rad, device.set_phase_rad)
    if isinstance(device, RandomSource):
        await _check_random(device)
    if isinstance(device, PatternControl):
        await _check_pattern(device, emits=isinstance(device, Transmitter))
    await disturb(device)


def _limits(name: str, limits: tuple[float, float]) -> tuple[float, float]:
    least, most = limits
    promise(
        math.isfinite(least) and math.isfinite(most) and least < most,
        f"{name} is {limits}, expected two finite figures, the least first",
    )
    return least, most


async def _check_setting(
    name: str,
    limits: tuple[float, float],
    read: Callable[[], Awaitable[float]],
    set_to: Callable[[float], Awaitable[None]],
    fractions: tuple[float, ...] = (0.5, 0.25, 0.75),
) -> None:
    """Set values at ``fractions`` of the range, and values that must be refused; cancel a setting."""
    least, most = limits
    near = RESOLUTION * (most - least)

    async def look() -> float:
        value = await answer(f"{name}()", read)
        sound(readings_fault({name: value}))
        return value

    for fraction in fractions:
        wanted = least + fraction * (most - least)
        await answer(f"set_{name}()", partial(set_to, wanted))
        found = await look()
        promise(
            abs(found - wanted) <= near,
            f"{name}() is {found:g} after set_{name}({wanted:g}): read each setting back, and raise "
            "DeviceError if it differs",
        )
    beyond = BEYOND * (most - least)
    for wrong in (most + beyond, least - beyond, math.nan):
        await refuses(f"set_{name}({wrong:g})", partial(set_to, wrong), "a value outside its limits")
    now = await look()
    promise(abs(now - found) <= 2 * near, f"a refused value changed {name}() from {found:g} to {now:g}")
    other = least + fractions[0] * (most - least)
    with trio.move_on_after(0):
        await set_to(other)
    try:
        now = await _within_limit(f"{name}()", read)
    except TransientDeviceError:
        return  # the node opens the device again
    promise(
        least - near <= now <= most + near,
        f"after a cancelled set_{name}(), {name}() is {now:g}: a late answer was taken for another",
    )


async def _check_laser(laser: Laser) -> None:
    def sound_state(state: object) -> LaserState:
        promise(isinstance(state, LaserState), f"laser_state() is a {type(state).__name__}, no LaserState")
        assert isinstance(state, LaserState)
        return state

    state = sound_state(await answer("laser_state()", laser.laser_state))
    promise(not state.on, "opened, the laser is on: switch it off first in open()")
    if state.interlock_closed is False:
        await refuses(
            "set_laser(True)", partial(laser.set_laser, True), "the laser on with its interlock open"
        )
    else:
        await answer("set_laser(True)", partial(laser.set_laser, True))
        state = sound_state(await answer("laser_state()", laser.laser_state))
        promise(state.on, "the laser is off after set_laser(True): raise DeviceError if it stays off")
    await answer("set_laser(False)", partial(laser.set_laser, False))
    state = sound_state(await answer("laser_state()", laser.laser_state))
    promise(not state.on, "the laser is on after set_laser(False): raise DeviceError if it stays on")


async def _check_attenuator(attenuator: VariableAttenuator) -> None:
    least, most = _limits("attenuation_limits_db", attenuator.attenuation_limits_db)
    promise(least >= 0, f"attenuation_limits_db begins at {least:g}: an attenuation is not negative")
    found = await answer("attenuation_db()", attenuator.attenuation_db)
    promise(
        abs(found - most) <= RESOLUTION * (most - least),
        f"opened, the attenuation is {found:g} dB, expected the greatest, {most:g}: set it first in open()",
    )
    await _check_setting(
        "attenuation_db",
        (least, most),
        attenuator.attenuation_db,
        attenuator.set_attenuation_db,
        fractions=(0.75, 0.875, 0.5),  # not the least: behind it is a detector for single photons
    )


async def _check_bias_lock(lock: BiasLock) -> None:
    points: tuple[BiasPoint, ...] = get_args(BiasPoint)
    first = await answer("bias_point()", lock.bias_point)
    promise(first in points, f"bias_point() is {first!r}, expected one of {', '.join(points)}")
    for point in (*points, first):
        if point == "manual" and isinstance(lock, BiasControl):
            held = await answer("bias_v()", lock.bias_v)
        await answer(f"set_bias_point({point!r})", partial(lock.set_bias_point, point))
        found = await answer("bias_point()", lock.bias_point)
        promise(
            found == point,
            f"bias_point() is {found!r} after set_bias_point({point!r}): raise DeviceError if it differs",
        )
        if point == "manual" and isinstance(lock, BiasControl):
            least, most = _limits("bias_limits_v", lock.bias_limits_v)
            now = await answer("bias_v()", lock.bias_v)
            promise(
                abs(now - held) <= 2 * RESOLUTION * (most - least),
                f"set_bias_point('manual') moved the bias from {held:g} V to {now:g} V: hold what was there",
            )


async def _check_bias(bias: BiasControl) -> None:
    limits = _limits("bias_limits_v", bias.bias_limits_v)
    await _check_setting("bias_v", limits, bias.bias_v, bias.set_bias_v)
    if isinstance(bias, BiasLock):
        await answer("set_bias_v()", partial(bias.set_bias_v, sum(limits) / 2))
        point = await answer("bias_point()", bias.bias_point)
        promise(point == "manual", f"after set_bias_v(), bias_point() is {point!r}, expected 'manual'")


async def _check_detectors(control: DetectorControl) -> None:
    channels = tuple(control.detector_channels)
    promise(
        channels and set(channels) <= {Z_CHANNEL, X_CHANNEL} and len(set(channels)) == len(channels),
        f"detector_channels is {channels}, expected 0 (Z), 1 (X) or both",
    )
    for channel in channels:
        state = await answer("detector_state()", partial(control.detector_state, channel))
        promise(isinstance(state, DetectorState), f"detector_state() is a {type(state).__name__}")
        known = {name: value for name, value in msgspec.structs.asdict(state).items() if value is not None}
        promise(known, "detector_state() has no figure at all")
        sound(readings_fault(known))
        promise(state.dead_time_s is None or state.dead_time_s >= 0, "dead_time_s is negative")
        promise(state.temperature_k is None or state.temperature_k > 0, "temperature_k is not above 0 K")
        for wrong in (
            DetectorState(photocurrent_a=1e-6),
            DetectorState(bias_v=1e6),
            DetectorState(dead_time_s=-1.0),
            DetectorState(temperature_k=-1.0),
            DetectorState(temperature_k=math.nan),
        ):
            name = f"set_detector({channel}, {wrong})"
            await refuses(name, partial(control.set_detector, channel, wrong), "what no detector can have")
        await answer("set_detector()", partial(control.set_detector, channel, DetectorState()))
        again = await answer("detector_state()", partial(control.detector_state, channel))
        promise(
            (again.bias_v, again.dead_time_s) == (state.bias_v, state.dead_time_s),
            f"a refused value changed the detector from {state} to {again}",
        )
    nobody = partial(control.set_detector, 7, DetectorState(bias_v=0.0))
    await refuses("set_detector(7)", nobody, "a channel that it does not control")


async def _check_random(source: RandomSource) -> None:
    """Check size and type, and that the bytes differ; they are never shown."""
    drawn = [await answer("random_bytes()", partial(source.random_bytes, RANDOM_BYTES)) for _ in range(2)]
    for one in drawn:
        promise(
            isinstance(one, bytes) and len(one) == RANDOM_BYTES,
            f"random_bytes({RANDOM_BYTES}) returned {len(one)} as {type(one).__name__}, expected bytes",
        )
    promise(drawn[0] != drawn[1], "random_bytes() returned the same bytes twice: never keep them")


async def _check_pattern(control: PatternControl, *, emits: bool) -> None:
    await answer("stop_emission()", control.stop_emission)
    pattern = await answer("pattern()", control.pattern)
    promise(isinstance(pattern, PulsePattern), f"pattern() is a {type(pattern).__name__}, no PulsePattern")
    slot_ps = 1e12 / pattern.qubit_rate_hz if pattern.qubit_rate_hz > 0 else 0.0
    promise(
        0 < pattern.bin_spacing_ps < slot_ps, f"bin_spacing_ps does not fit into a slot of {slot_ps:g} ps"
    )
    promise(0 < pattern.p_z < 1, f"p_z is {pattern.p_z:g}, expected a fraction between 0 and 1")
    promise(
        len(pattern.probabilities) == len(pattern.levels) > 0 and abs(sum(pattern.probabilities) - 1) < 1e-6,
        f"probabilities {pattern.probabilities} and levels {pattern.levels}: expected as many, sum 1",
    )
    await answer("set_pattern()", partial(control.set_pattern, pattern))
    again = await answer("pattern()", control.pattern)
    promise(again == pattern, f"pattern() is {again} after set_pattern({pattern})")
    wrong = msgspec.structs.replace(pattern, p_z=1.5)
    await refuses("set_pattern()", partial(control.set_pattern, wrong), "p_z of 1.5")
    await answer("start_emission()", control.start_emission)
    await refuses("set_pattern()", partial(control.set_pattern, pattern), "a pattern while it emits")
    if not emits:
        await answer("stop_emission()", control.stop_emission)
