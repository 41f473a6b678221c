"""Alice's transmitter as the node uses it: its faults are its own, and end neither session nor node."""

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest
import trio
from keys_support import Site as StoreSite
from link_room import link_node

from qnode.block.outcome import BlockLost
from qnode.config import DeviceSection, SiteConfig, load
from qnode.devices.protocols import DeviceIdentity, EmissionRun, Transmitter
from qnode.errors import ConfigError, DeviceError, DeviceGone
from qnode.node.quantum.transmitter_port import TransmitterPort
from qnode.tags.types import Codes, Slots

SLOTS = np.arange(5, dtype=np.int64)
Answer = Callable[[Slots], Codes]


def all_early(slots: Slots) -> Codes:
    return np.zeros(slots.shape[0], np.uint8)


def gone(slots: Slots) -> Codes:
    raise DeviceGone("its cable was pulled")


def too_few(slots: Slots) -> Codes:
    return all_early(slots)[1:]


class Lamp:
    """A transmitter that names ``run_ids`` and answers as it is told."""

    identity = DeviceIdentity("lamp", "L-1")

    def __init__(self, answer: Answer = all_early, run_ids: tuple[int, ...] = (7,)) -> None:
        self._answer = answer
        self._run_ids = run_ids

    async def runs(self) -> AsyncGenerator[EmissionRun, None]:
        for run_id in self._run_ids:
            yield EmissionRun(run_id, 1.7e9)
        await trio.sleep_forever()

    def symbols(self, run_id: int, slots: Slots) -> Codes:
        return self._answer(slots)


@asynccontextmanager
async def used(source: TransmitterPort, lamp: Transmitter) -> AsyncIterator[trio.Nursery]:
    """Have ``source`` use ``lamp``; ready when its emission run is known."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(source.use, lamp)
        while source.run is None:
            await source.changed.wait()
        yield nursery


async def test_symbols_are_looked_up_of_the_run_that_the_transmitter_names() -> None:
    source = TransmitterPort()
    async with used(source, Lamp()) as nursery:
        assert (source.lookup(7, SLOTS) == 0).all()
        nursery.cancel_scope.cancel()
    assert source.run is None
    with pytest.raises(BlockLost, match="has ended"):
        source.lookup(7, SLOTS)


@pytest.mark.parametrize(("answer", "said"), [(gone, "cable was pulled"), (too_few, "4 symbols for 5 slots")])
async def test_a_transmitter_whose_symbols_cannot_be_read_loses_the_block_and_is_opened_anew(
    answer: Answer, said: str
) -> None:
    source, lost = TransmitterPort(), False
    with (
        trio.fail_after(60),
        pytest.RaisesGroup(pytest.RaisesExc(DeviceError, match=said), flatten_subgroups=True),
    ):
        async with used(source, Lamp(answer)):
            told = "^emission: the transmitter's record of symbols cannot be read$"  # also to the peer
            with pytest.raises(BlockLost, match=told):
                await trio.to_thread.run_sync(source.lookup, 7, SLOTS)
            lost = True
    assert lost
    assert source.run is None


@pytest.mark.parametrize(("run_ids", "said"), [((7, 7), "a run_id again"), ((-1,), "run_id is -1")])
async def test_a_transmitter_that_misnumbers_its_runs_is_opened_anew(
    run_ids: tuple[int, ...], said: str
) -> None:
    with (
        trio.fail_after(60),
        pytest.RaisesGroup(pytest.RaisesExc(DeviceError, match=said), flatten_subgroups=True),
    ):
        await TransmitterPort().use(Lamp(run_ids=run_ids))


async def test_a_device_that_the_site_has_no_use_for_is_refused(tmp_path: Path) -> None:
    config = load(Path(__file__).parent.parent / "config" / "bob.toml", SiteConfig)
    with StoreSite(tmp_path / "bob", "bob").open() as store:
        node = link_node(config, store)
        said = (
            "driver lamp is of no use at bob: expected a tag source, sensor or other capability, got a Lamp"
        )
        with pytest.raises(ConfigError, match=said):
            await node.devices._use_part(DeviceSection(driver="lamp"), Lamp())
