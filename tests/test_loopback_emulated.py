"""`qnode loopback --devices emulated`: keys flow through real drivers and the ports of emulated devices."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from click.testing import CliRunner
from daemons_support import PATIENCE_S, SMALL_LINK

from qnode.cli.loopback import loopback
from qnode.config import LinkParameters, convert, load, load_site
from qnode.devices.registry import known_drivers
from qnode.emulate.bench import Bench, TdcOnBench, TransmitterOnBench
from qnode.errors import ConfigError
from qnode.loopback.prepare import LoopbackConfig, Staging, prepare

KEYS = 10
OUT_OF_ALIGNMENT: dict[str, Any] = {
    **SMALL_LINK,
    "simulation": {
        **SMALL_LINK["simulation"],
        "schedule": [{"at_s": 0.0, "interferometer_phase_rad": 2.0, "source_attenuation_db": 0.5}],
    },
    "calibration": {
        "phase": {"device": "tdc", "stretch_s": 1.0, "settle_s": 0.05, "dither_rad": 0.1, "visibility": 0.99},
        "bias": {
            "im1": {"device": "transmitter", "half_wave_v": 5.0, "dither_v": 0.1, "stretch_s": 2.0},
            "im2": {"device": "im2-bias", "half_wave_v": 5.0, "dither_v": 0.02, "stretch_s": 2.0},
        },
        "intensity": {
            "attenuator": "voa",
            "monitor": "meter",
            "start_db": 20.5,
            "period_s": 1.0,
            "largest_step_db": 1.0,
        },
    },
}
INSTALLED = pytest.mark.skipif(
    not {"open-tdc", "open-transmitter"} <= set(known_drivers()),
    reason="this installation is older than the drivers of the open protocol: pip install -e .",
)


@INSTALLED
@pytest.mark.link
def test_controllers_and_keys_work_through_emulated_devices(tmp_path: Path) -> None:
    """The interferometer is 2 rad from its best phase, and the attenuator opens at its most.

    Without their controllers there is no key.
    """
    config = tmp_path / "small.toml"
    config.write_text(tomli_w.dumps(OUT_OF_ALIGNMENT))
    command = ["loopback", "--config", str(config), "--devices", "emulated"]
    done = subprocess.run(
        [sys.executable, "-m", "qnode", *command, "--until-keys", str(KEYS), "--json"],
        capture_output=True,
        text=True,
        timeout=2 * PATIENCE_S,
        check=True,
    )
    result = json.loads(done.stdout)
    assert result["keys_compared"] >= KEYS
    assert result["keys_different"] == 0
    assert result["simulated"] is True
    assert 'model="emulated open TDC"' in done.stderr
    for model in (
        "emulated open transmitter",
        "OZ Optics DD-100",
        "Optilab BCB-4",
        "QNODE EMULATED POWER METER",
    ):
        assert f'model="{model}"' in done.stderr


@INSTALLED
def test_site_files_name_the_real_drivers_and_each_bench_the_other_end_of_their_ports(tmp_path: Path) -> None:
    link = LinkParameters()
    prepared = prepare(tmp_path, LoopbackConfig(link), Staging(1.0, links=2, emulated=True))
    for name, site_file in prepared.site_files.items():
        sections = [section for site in load_site(site_file) for section in site.devices.values()]
        bench = load(prepared.benches[name], Bench)
        assert [s.config["serial_number"] for s in sections] == [d.serial_number for d in bench.device]
        for section, device in zip(sections, bench.device, strict=True):
            assert section.config["address"] in (device.port, f"serial://{device.port}")
            assert isinstance(device, TransmitterOnBench | TdcOnBench)
            assert isinstance(device, TransmitterOnBench) == (name == "alice")
            assert device.simulation.speed == 1.0


def test_instruments_that_controllers_name_are_on_the_bench_of_each_link_and_nowhere_else(
    tmp_path: Path,
) -> None:
    config = convert(OUT_OF_ALIGNMENT, LoopbackConfig, where="test")
    prepared = prepare(tmp_path, config, Staging(1.0, links=2, emulated=True))
    bench = load(prepared.benches["alice"], Bench)
    sites = load_site(prepared.site_files["alice"])
    assert [list(site.devices) for site in sites] == 2 * [["transmitter", "voa", "meter", "im2-bias"]]
    sections = [section for site in sites for section in site.devices.values()]
    assert len({device.port for device in bench.device}) == len(sections) == 8
    assert [device.port for device in bench.device] == [
        section.config["address"].removeprefix("serial://") for section in sections
    ]
    assert len({device.fibre for device in bench.device}) == 2
    with pytest.raises(ConfigError, match=r"no device voa, meter, im2-bias: .* --devices emulated"):
        prepare(tmp_path, config, Staging(1.0))


def test_emulated_devices_run_in_real_time_only() -> None:
    result = CliRunner().invoke(
        loopback, ["--devices", "emulated", "--speed", "max", "--until-keys", "1"], standalone_mode=False
    )
    assert result.return_value == 64
    assert "real time" in result.output
