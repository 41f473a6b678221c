"""The table ``[calibration]`` of a site: what each controller sets, by how much, within which limits."""

from collections.abc import Iterator
from typing import Annotated

from qnode.choices import Role
from qnode.config_description import Described, Limits, limit_faults
from qnode.config_link import SourceParameters, Table


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
            "time that the phase needs to settle after a step; its tags are cut", limits=Limits(0.0, 60.0)
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
    """At Alice: the controller of one modulator's bias, by the bit errors of blocks. You choose NAME."""

    device: Annotated[str, Described("name of the device that sets the bias voltage")] = ""
    half_wave_v: Annotated[
        float,
        Described(
            "change of the bias that leads from the least to the most light", "V", limits=Limits(0.1, 100.0)
        ),
    ] = 5.0
    dither_v: Annotated[
        float, Described("step to either side of the best bias", "V", limits=Limits(1e-4, 10.0))
    ] = 0.05
    least_v: Annotated[
        float,
        Described("lowest bias that is set, within the limits of the device", "V", limits=Limits(-1e3, 1e3)),
    ] = -1e3
    most_v: Annotated[float, Described("highest bias that is set", "V", limits=Limits(-1e3, 1e3))] = 1e3
    stretch_s: Annotated[
        float, Described("least tag time of the blocks at each side", limits=Limits(0.0, 1e5))
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
    period_s: Annotated[float, Described("time between two measurements", limits=Limits(0.1, 3600.0))] = 5.0
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


class CalibrationSection(Table, frozen=True):
    """The controllers of this site. Without a table there is none."""

    phase: PhaseSection = PhaseSection()
    bias: dict[str, BiasSection] = {}  # noqa: RUF012
    intensity: IntensitySection = IntensitySection()


def calibration_at(section: CalibrationSection, role: Role) -> CalibrationSection:
    """Return the controllers of ``section`` that work at the site of ``role``."""
    if role == "bob":
        return CalibrationSection(phase=section.phase)
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
        if not bias.least_v < bias.most_v:
            yield f"{where}.bias.{name}.least_v: {bias.least_v:g} is not below most_v, {bias.most_v:g}"
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
