"""Finding drivers by entry point and checking their tables."""

import sys
from pathlib import Path

import msgspec
import pytest

from qnode.config import DeviceSection
from qnode.devices.protocols import DeviceIdentity
from qnode.devices.registry import device_opener, driver_config, known_drivers, load_driver
from qnode.devices.supervisor import check_devices
from qnode.errors import ConfigError

MODULE = """
from contextlib import asynccontextmanager
import msgspec
from qnode.devices.protocols import DeviceIdentity

class Lamp:
    class Config(msgspec.Struct, frozen=True):
        port: str
        brightness: float = 1.0
        simulated: bool = False

    def __init__(self, config):
        self.identity = DeviceIdentity("lamp", config.port, config.simulated)
        self.is_lit = True

    @classmethod
    @asynccontextmanager
    async def open(cls, config):
        lamp = cls(config)
        try:
            yield lamp
        finally:
            lamp.is_lit = False

not_a_driver = 7

class NoConfig:
    open = None
"""

ENTRY_POINTS = """
[qnode.drivers]
third-party-lamp = third_party_lamp:Lamp
third-party-number = third_party_lamp:not_a_driver
third-party-no-config = third_party_lamp:NoConfig
third-party-absent = third_party_lamp:Absent
third-party-missing-library = third_party_lamp_usb:Lamp
"""


@pytest.fixture(autouse=True)
def _third_party(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Install a third party's wheel: a module and its entry points on the path, as pip would."""
    (tmp_path / "third_party_lamp.py").write_text(MODULE)
    (tmp_path / "third_party_lamp_usb.py").write_text("import no_such_usb_library")
    info = tmp_path / "third_party_lamp-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: third-party-lamp\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(ENTRY_POINTS)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "third_party_lamp", raising=False)


def test_a_third_partys_driver_is_found_beside_ours() -> None:
    assert {"third-party-lamp", "simulated-tdc"} <= set(known_drivers())
    assert load_driver("third-party-lamp").__name__ == "Lamp"


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("third-party-lmap", "unknown driver third-party-lmap, did you mean third-party-lamp"),
        ("zzz", r"unknown driver zzz \(installed: .*third-party-lamp"),
        ("third-party-number", "no driver class with an open"),
        ("third-party-no-config", "no driver class with an open"),
        ("third-party-absent", "third_party_lamp:Absent does not exist"),
        ("third-party-missing-library", "cannot be imported: No module named 'no_such_usb_library'"),
    ],
)
def test_what_is_no_driver_is_refused_with_the_reason(name: str, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        load_driver(name)


def test_the_drivers_own_table_is_checked_by_the_driver() -> None:
    lamp = load_driver("third-party-lamp")
    config = driver_config(lamp, {"port": "p"}, "[devices.lamp.config]")
    assert msgspec.to_builtins(config) == {"port": "p", "brightness": 1.0, "simulated": False}
    with pytest.raises(ConfigError, match=r"\[devices.lamp.config\].*brightnes, did you mean brightness"):
        driver_config(lamp, {"port": "p", "brightnes": 2}, "[devices.lamp.config]")
    with pytest.raises(ConfigError, match="brightness"):
        driver_config(lamp, {"port": "p", "brightness": "high"}, "[devices.lamp.config]")


def test_all_devices_of_a_file_are_checked_before_any_is_opened() -> None:
    good = DeviceSection(driver="third-party-lamp", config={"port": "p"})
    check_devices({"a": good})
    with pytest.raises(ConfigError, match=r"\[devices.b\] unknown driver"):
        check_devices({"a": good, "b": DeviceSection(driver="third-party-lmp")})
    with pytest.raises(ConfigError, match=r"\[devices.b.config\]"):
        check_devices({"a": good, "b": DeviceSection(driver="third-party-lamp", config={"prt": "p"})})


async def test_an_opened_device_is_left_safe() -> None:
    section = DeviceSection(driver="third-party-lamp", config={"port": "p"})
    async with device_opener("lamp", section, allow_simulated=False)() as device:
        assert device.identity == DeviceIdentity("lamp", "p")
        assert vars(device)["is_lit"]
    assert not vars(device)["is_lit"]


async def test_a_simulated_device_needs_permission() -> None:
    section = DeviceSection(driver="third-party-lamp", config={"port": "p", "simulated": True})
    async with device_opener("lamp", section, allow_simulated=True)() as device:
        assert device.identity.simulated
    with pytest.raises(ConfigError, match="simulated keys are not keys: set allow_simulated = true"):
        async with device_opener("lamp", section, allow_simulated=False)():
            pass
