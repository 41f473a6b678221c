"""What a device's capabilities report, in one place."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import trio
from capabilities_support import Bench
from keys_support import Site as StoreSite
from link_room import link_node
from trio.testing import MockClock

from qnode.choices import Role
from qnode.config import DeviceSection, SiteConfig, load
from qnode.devices import registry
from qnode.devices.capabilities import DetectorState
from qnode.devices.protocols import DeviceIdentity
from qnode.devices.readings import has_readings, read
from qnode.devices.supervisor import supervise

ALL = {
    "laser_on": 0.0,
    "interlock_closed": 1.0,
    "attenuation_db": 60.0,
    "bias_v": 0.5,
    "bias_lock_on": 1.0,
    "power_w": 1e-6,
    "phase_rad": 1.0,
    "z_detector_bias_v": 3.0,
    "z_detector_dead_time_s": 2e-5,
    "z_detector_temperature_k": 223.0,
    "z_detector_photocurrent_a": 1e-9,
    "x_detector_bias_v": 3.0,
    "x_detector_dead_time_s": 2e-5,
    "x_detector_temperature_k": 223.0,
    "x_detector_photocurrent_a": 1e-9,
}


async def test_every_capability_is_read_by_name_and_unit() -> None:
    assert await read(Bench()) == ALL


async def test_what_a_device_does_not_report_is_left_out() -> None:
    bench = Bench()
    bench.detector_channels = (1,)
    bench.detectors[1] = DetectorState(temperature_k=223.0)
    assert {name for name in await read(bench) if "detector" in name} == {"x_detector_temperature_k"}


async def test_random_numbers_are_never_read() -> None:
    class Generator:
        identity = DeviceIdentity("generator", "G-1")

        async def random_bytes(self, number: int) -> bytes:
            raise AssertionError("they are key material")

    assert not has_readings(Generator())
    assert await read(Generator()) == {}


@pytest.mark.parametrize("role", ["alice", "bob"])
async def test_a_device_of_any_capability_is_kept_open_and_read_at_either_site(
    role: Role, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    opened: list[str] = []

    class Counted(Bench):
        @classmethod
        @asynccontextmanager
        async def open(cls, config: object) -> AsyncIterator[Bench]:
            opened.append(role)
            yield cls()

    class Found(EntryPoint):
        def load(self) -> type[Counted]:
            return Counted

    monkeypatch.setattr(registry, "entry_points", lambda **_: [Found("bench", "x:Bench", "qnode.drivers")])
    config = load(Path(__file__).parent.parent / "config" / f"{role}.toml", SiteConfig)
    with StoreSite(tmp_path / role, role).open() as store:
        node = link_node(config, store)
        section = DeviceSection(driver="bench")
        board = node.devices.board
        async with trio.open_nursery() as nursery:

            async def run() -> None:
                await supervise(
                    "bench",
                    section,
                    lambda device: node.devices.use("bench", section, device),
                    board=board,
                    allow_simulated=False,
                )

            nursery.start_soon(run)
            await trio.sleep(20)
            (status,) = node.figures.devices()
            assert (status.state.state, status.restarts, status.readings) == ("running", 0, ALL)
            nursery.cancel_scope.cancel()
    assert opened == [role]
