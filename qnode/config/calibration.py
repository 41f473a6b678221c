"""The table ``[calibration]`` of a site: what each controller sets, by how much, within which limits."""

from collections.abc import Iterator
from typing import Annotated, Literal

from qnode.choices import BiasAim, Role
from qnode.config.description import Described, Limits, limit_faults
from qnode.config.link import SourceParameters, Table


class PhaseSection(Table, frozen=True):
    """At Bob: the controller of the interferometer's phase (docs/calibration.md)."""

    device: Annotated[str, Described("name of the device that sets the phase; empty: no controller")] = ""
    dither_rad: Annotated[
        float, Described("step to either side of the best phase", limits=Limits(0.005, 0.5))
    ] = 0.06
    stretch_s: Annotated[float, Described("tag time at each side", limits=Limits(0.1, 3600.0))] = 10.0
    settle_s: Annotated[
        float,
        Described(
            "time that the phase needs to settle after a step, and the delay of tags in their source; "
            "the tags of this time are cut",
            limits=Limits(0.0, 60.0),
        ),
    ] = 0.1
    visibility: Annotated[
        float,
        Described(
            "visibility of the interferometer at its best phase, about", "fraction", limits=Limits(0.3, 1.0)
        ),
    ] = 0.95
    walk_rad_per_root_s: Annotated[
        float, Described("expected random walk of the phase", "rad/√s", limits=Limits(1e-6, 1.0))
    ] = 4e-3
    rate_rad_per_s: Annotated[
        float, Described("largest steady drift of the phase", "rad/s", limits=Limits(1e-6, 1.0))
    ] = 5e-3


class BiasSection(Table, frozen=True):
    """At Alice: the controller of one modulator's bias, by the bit errors of blocks or the light behind it.

    You choose NAME.
    """

    device: Annotated[str, Described("name of the device that sets the bias voltage")] = ""
    half_wave_v: Annotated[
        float,
        Described(
            "change of the bias that leads from the least to the most light", "V", limits=Limits(0.1, 100.0)
        ),
    ] = 5.0
    seek: Annotated[
        BiasAim,
        Described(
            "what is best: the fewest bit errors of blocks, or the least or the most power at `monitor`"
        ),
    ] = "fewest_errors"
    monitor: Annotated[str, Described("name of the device that measures the power behind the modulator")] = ""
    full_power_w: Annotated[
        float, Described("power at the monitor with the most light", "W", limits=Limits(1e-15, 10.0))
    ] = 1e-6
    monitor_noise: Annotated[
        float,
        Described(
            "standard deviation of one measurement of the monitor, as a fraction of the full power",
            "fraction",
            limits=Limits(1e-6, 0.5),
        ),
    ] = 1e-3
    dither_v: Annotated[
        float, Described("step to either side of the best bias", "V", limits=Limits(1e-4, 10.0))
    ] = 0.05
    least_v: Annotated[
        float,
        Described("lowest bias that is set, within the limits of the device", "V", limits=Limits(-1e3, 1e3)),
    ] = -1e3
    most_v: Annotated[float, Described("highest bias that is set", "V", limits=Limits(-1e3, 1e3))] = 1e3
    stretch_s: Annotated[
        float,
        Described(
            "least tag time of the blocks, or time of measurement, at each side", limits=Limits(0.0, 1e5)
        ),
    ] = 60.0
    walk_v_per_root_hour: Annotated[
        float, Described("expected random walk of the best bias", "V/√h", limits=Limits(1e-6, 10.0))
    ] = 0.05
    rate_v_per_hour: Annotated[
        float, Described("largest steady drift of the best bias", "V/h", limits=Limits(1e-6, 10.0))
    ] = 0.05


class IntensitySection(Table, frozen=True):
    """At Alice: the controller of the mean photon numbers, by a power monitor and an attenuator."""

    attenuator: Annotated[str, Described("name of the device that attenuates; empty: no controller")] = ""
    monitor: Annotated[str, Described("name of the device that measures the power")] = ""
    power_w: Annotated[
        float,
        Described(
            "power at the monitor at which the mean photon numbers are those of `link.source.mu`",
            "W",
            limits=Limits(1e-15, 10.0),
        ),
    ] = 1e-6
    start_db: Annotated[
        float,
        Described(
            "attenuation that is set first; the attenuator opens at its maximum",
            "dB",
            limits=Limits(0.0, 200.0),
        ),
    ] = 60.0
    least_db: Annotated[
        float, Described("least attenuation that is set", "dB", limits=Limits(0.0, 200.0))
    ] = 0.0
    period_s: Annotated[
        float,
        Described(
            "time between two measurements; a block is decided after the first one that follows it",
            limits=Limits(0.1, 60.0),
        ),
    ] = 5.0
    largest_step_db: Annotated[
        float, Described("largest step of the attenuation", "dB", limits=Limits(0.001, 10.0))
    ] = 0.1
    monitor_uncertainty: Annotated[
        float,
        Described(
            "relative uncertainty of the monitor, with all losses behind it",
            "fraction",
            limits=Limits(0.0, 0.5),
        ),
    ] = 0.005
    largest_error: Annotated[
        float,
        Described(
            "beyond this relative error of the intensities, measurement included, blocks are discarded; at "
            "most `link.source.mu_uncertainty`, for which the key length is calculated",
            "fraction",
            limits=Limits(1e-4, 0.5),
        ),
    ] = 0.01


class DetectorSection(Table, frozen=True):
    """At Bob: the settings of one detector, which are set when its device opens, and then compared.

    You choose NAME. Settings that are left out stay as they are.
    """

    device: Annotated[str, Described("name of the device that controls the detector")] = ""
    channel: Annotated[
        Literal[0, 1], Described("tag channel of the detector: 0 in the Z arm, 1 in the X arm", "channel")
    ] = 0
    bias_v: Annotated[float | None, Described("bias", "V", limits=Limits(-1e4, 1e4))] = None
    dead_time_s: Annotated[float | None, Described("dead time", limits=Limits(0.0, 1.0))] = None
    temperature_k: Annotated[float | None, Described("temperature", "K", limits=Limits(0.001, 400.0))] = None
    tolerance: Annotated[
        float,
        Described(
            "greatest relative difference of what the detector reports from its setting",
            "fraction",
            limits=Limits(0.0, 1.0),
        ),
    ] = 0.02
    period_s: Annotated[float, Described("time between two comparisons", limits=Limits(0.1, 3600.0))] = 5.0


class CalibrationSection(Table, frozen=True):
    """The controllers of this site. Without a table there is none."""

    phase: PhaseSection = PhaseSection()
    bias: dict[str, BiasSection] = {}  # noqa: RUF012
    intensity: IntensitySection = IntensitySection()
    detectors: dict[str, DetectorSection] = {}  # noqa: RUF012


def calibration_at(section: CalibrationSection, role: Role) -> CalibrationSection:
    """Return the controllers of ``section`` that work at the site of ``role``."""
    if role == "bob":
        return CalibrationSection(phase=section.phase, detectors=section.detectors)
    return CalibrationSection(bias=section.bias, intensity=section.intensity)


def calibration_faults(
    section: CalibrationSection, role: Role, devices: frozenset[str], source: SourceParameters
) -> Iterator[str]:
    """Yield what no site of ``role`` with these ``devices`` can have."""
    where = "calibration"
    yield from limit_faults(section.phase, f"{where}.phase")
    yield from limit_faults(section.intensity, f"{where}.intensity")
    named = [("phase", "device", section.phase.device, "bob")]
    for name, bias in section.bias.items():
        yield from limit_faults(bias, f"{where}.bias.{name}")
        named.append((f"bias.{name}", "device", bias.device, "alice"))
        if bias.seek != "fewest_errors":
            named.append((f"bias.{name}", "monitor", bias.monitor, "alice"))
        if not bias.least_v < bias.most_v:
            yield f"{where}.bias.{name}.least_v: {bias.least_v:g} is not below most_v, {bias.most_v:g}"
    yield from _set_twice(where, "bias", {name: bias.device for name, bias in section.bias.items()})
    channels = {name: f"{one.device}, channel {one.channel}" for name, one in section.detectors.items()}
    yield from _set_twice(where, "detectors", channels)
    for name, detector in section.detectors.items():
        yield from limit_faults(detector, f"{where}.detectors.{name}")
        named.append((f"detectors.{name}", "device", detector.device, "bob"))
    intensity = section.intensity
    if intensity.attenuator:
        named.append(("intensity", "attenuator", intensity.attenuator, "alice"))
        named.append(("intensity", "monitor", intensity.monitor, "alice"))
        if intensity.largest_error > min(source.mu_uncertainty):
            yield (
                f"{where}.intensity.largest_error: {intensity.largest_error:g} is more than "
                f"link.source.mu_uncertainty, {list(source.mu_uncertainty)}, for which the key length is "
                "calculated"
            )
    for table, key, device, of in named:
        if not device and table == "phase":
            continue
        if role != of:
            yield f"{where}.{table}: this controller works at {of}, this site is {role}"
        elif device not in devices:
            known = ", ".join(sorted(devices)) or "none"
            yield f"{where}.{table}.{key}: no device {device!r} (devices: {known})"


def _set_twice(where: str, table: str, devices: dict[str, str]) -> Iterator[str]:
    """Yield the controllers that would work against one another; ``devices``: what each one sets."""
    first = dict[str, str]()
    for name, device in devices.items():
        before = first.setdefault(device, name)
        if before != name:
            yield f"{where}.{table}.{name}.device: {where}.{table}.{before} sets {device} already"
