"""The devices of a loopback run: simulated in the daemons, emulated behind ports, or a recording."""

from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from qnode.choices import Role
from qnode.config import LinkParameters, tables
from qnode.config.calibration import CalibrationSection
from qnode.simulate.parameters import SimulationParameters

Tables = dict[str, Any]
# The names of the devices of each site.
DEVICES: dict[Role, frozenset[str]] = {"alice": frozenset({"transmitter"}), "bob": frozenset({"tdc"})}
# The instruments that may stand on Alice's emulated bench besides: the driver, and the keys of its table.
OZ_DD100, POWER_METER, BCB4 = "oz-dd100", "scpi-power-meter", "optilab-bcb4"
_INSTRUMENTS: dict[str, Tables] = {OZ_DD100: {}, POWER_METER: {}, BCB4: {"point": "minimum"}}


class PlayedFile(Struct, frozen=True):
    """A time tagger's file as Bob's tags: the keys of the driver ``tag-file``."""

    file: Path
    channels: dict[str, int]
    began_at_s: float
    format: str


class Played(Struct, frozen=True):
    """A recording in place of simulated hardware; ``tag_file``: Bob's tags, if the recording lacks them."""

    recording: Path
    loop: bool
    tag_file: PlayedFile | None = None


def simulated(
    fibre: Path, role: Role, link: LinkParameters, simulation: SimulationParameters, speed: float | None
) -> Tables:
    """Return the device tables of simulated hardware at one end of ``fibre``."""
    shared = _physics(fibre, link, simulation, speed)
    if role == "alice":
        return {"transmitter": {"driver": "simulated-transmitter", "config": shared}}
    receiver = {"receiver_p_z": link.receiver.p_z}
    return {"tdc": {"driver": "simulated-tdc", "config": {**shared, **receiver}}}


def instruments(section: CalibrationSection) -> dict[str, str]:
    """Return the drivers of what Alice's controllers have besides the transmitter, by device name."""
    intensity = section.intensity
    roles = [(intensity.attenuator, OZ_DD100), (intensity.monitor, POWER_METER)]
    roles += [(bias.device, BCB4) for bias in section.bias.values()]
    return {name: driver for name, driver in roles if name and name not in DEVICES["alice"]}


def devices_at(role: Role, section: CalibrationSection) -> frozenset[str]:
    """Return the names of the devices of a site whose controllers are those of ``section``."""
    return DEVICES[role] | (instruments(section).keys() if role == "alice" else frozenset())


def emulated_instruments(
    fibre: Path, section: CalibrationSection, simulation: SimulationParameters, number: int
) -> tuple[Tables, list[Tables]]:
    """Return the device tables of the instruments that ``section`` names, and themselves on Alice's bench."""
    sections: Tables = {}
    bench: list[Tables] = []
    for index, (name, driver) in enumerate(instruments(section).items(), 1):
        serial_number = f"E-{driver}-{number}-{index}"
        port = str(fibre.with_name(f"instrument-{number}-{index}"))
        config = {"address": f"serial://{port}", "identity": serial_number, **_INSTRUMENTS[driver]}
        sections[name] = {"driver": driver, "config": config}
        device: Tables = {"kind": driver, "port": port, "serial_number": serial_number, "fibre": str(fibre)}
        if driver == BCB4:
            device["half_wave_v"] = simulation.modulator_half_wave_v
        bench.append(device)
    return sections, bench


def emulated(
    fibre: Path, role: Role, link: LinkParameters, simulation: SimulationParameters, port: str, number: int
) -> tuple[Tables, Tables]:
    """Return the device tables of real drivers, and the device behind their ``port`` on the site's bench."""
    place = port if port.startswith("tcp:") else f"serial://{port}"
    physics = _physics(fibre, link, simulation, 1.0)
    if role == "alice":
        serial_number = f"E-TX-{number}"
        pattern = {
            "qubit_rate_hz": float(link.source.qubit_rate_hz),
            "bin_spacing_ps": round(link.source.bin_spacing_ps),
            "p_z": link.source.p_z,
            "p": list(link.source.p),
            "levels": [1.0, link.source.mu[1] / link.source.mu[0]],
        }
        config = {"address": place, "serial_number": serial_number, **pattern}
        device = {"kind": "open-transmitter", "port": port, "serial_number": serial_number, **physics}
        return {"transmitter": {"driver": "open-transmitter", "config": config}}, device
    serial_number = f"E-TDC-{number}"
    receiver = {"receiver_p_z": link.receiver.p_z}
    device = {"kind": "open-tdc", "port": port, "serial_number": serial_number, **physics, **receiver}
    config = {"address": place, "serial_number": serial_number}
    return {"tdc": {"driver": "open-tdc", "config": config}}, device


def played(role: Role, recording: Played, speed: float | None) -> Tables:
    """Return the device tables of recorded hardware."""
    shared = {"recording": str(recording.recording.resolve()), "loop": recording.loop}
    if role == "alice":
        return {"transmitter": {"driver": "replay-transmitter", "config": shared}}
    pace = {} if speed is None else {"speed": speed}
    if recording.tag_file is not None:
        file = {**msgspec.structs.asdict(recording.tag_file), "file": str(recording.tag_file.file.resolve())}
        return {"tdc": {"driver": "tag-file", "config": {**file, **pace}}}
    return {"tdc": {"driver": "replay-tdc", "config": {**shared, **pace}}}


def _physics(
    fibre: Path, link: LinkParameters, simulation: SimulationParameters, speed: float | None
) -> Tables:
    """Return what both ends of the fibre must know, and make the folder of the fibre."""
    fibre.parent.mkdir(mode=0o700, exist_ok=True)
    paced = msgspec.structs.replace(simulation, speed="max" if speed is None else speed)
    return {"fibre": str(fibre), "source": tables(link.source), "simulation": tables(paced)}
