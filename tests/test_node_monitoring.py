"""What a node does with monitored devices: blocks are discarded by name at both sites, seeds need health."""

from collections.abc import Awaitable, Callable
from functools import partial
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trio
from capabilities_support import Bench
from keys_support import Site as StoreSite
from link_room import link_node
from msgspec import to_builtins
from msgspec.structs import replace
from small_link import ROLES, Conduct, SmallLink, Spoken, one_loop, small_link, virtual_clock
from trio.testing import MockClock

from qnode.block.outcome import BlockLost
from qnode.config import (
    DeviceSection,
    MonitorsSection,
    PhotocurrentMonitor,
    RandomnessSection,
    ReadingMonitor,
    Role,
    SiteConfig,
    convert,
    load,
)
from qnode.config.monitors import monitor_faults
from qnode.devices import registry
from qnode.devices.capabilities import DetectorState
from qnode.devices.protocols import DeviceIdentity
from qnode.devices.supervisor import READING_PERIOD_S
from qnode.errors import ConfigError, DeviceError, DeviceGone
from qnode.link.frames import FrameStream
from qnode.link.messages import ClicksEnded, Message, Sifted
from qnode.link.session import Session
from qnode.node.link_node import LinkNode
from qnode.node.monitoring.randomness import DRAW_LIMIT_S, DeviceRandomness, health_tests
from qnode.node.monitoring.watch import MonitorWatch, TagCounter
from qnode.tags.types import TagBlock

CONFIG = Path(__file__).parent.parent / "config"
BACKWARD = ReadingMonitor(
    monitor="backward_light", device="diode", reading="power_w", least=0.0, most=1e-9, noise=1e-10
)
MONITORS = MonitorsSection(readings={"back": BACKWARD})
DARK, BRIGHT = {"power_w": 1e-10}, {"power_w": 1e-6}


# Blocks


class Told:
    """The text of an alarm, as the figures of a link hold it."""

    def __init__(self) -> None:
        self.now: str | None = None
        self.all: list[str] = []

    def __call__(self, text: str | None) -> None:
        if text is not None and text != self.now:
            self.all.append(text)
        self.now = text


def session(
    folder: Path,
    monitored: Role,
    bob: Callable[[SmallLink, Spoken], Awaitable[None]],
    readings: Callable[[float], dict[str, float] | None],
    said: list[Message] | None = None,
) -> tuple[dict[Role, list[str]], Told]:
    """Hold a session in which ``monitored`` gets ``readings`` of a time; return outcomes and alarms.

    ``said`` gets what that site sends.
    """
    told = Told()

    def listen(session: Session, _frames: FrameStream) -> None:
        say = session.send

        async def send(message: Message) -> None:
            if said is not None:
                said.append(message)
            await say(message)

        session.send = send  # type: ignore[method-assign]

    with one_loop("monitors"), small_link(folder) as link:
        site = link.site(monitored)

        async def both() -> None:
            site.watch = MonitorWatch(MONITORS, told)

            async def read() -> None:
                while True:
                    found = readings(trio.current_time())
                    if found is not None:
                        site.watch.note("diode", found)
                    await trio.sleep(READING_PERIOD_S)

            async def idle(_spoken: Spoken) -> None:
                await trio.sleep_forever()

            async with trio.open_nursery() as nursery:
                nursery.start_soon(read)
                nursery.start_soon(site.watch.run)
                alice, other = trio.testing.memory_stream_pair()
                conducts: dict[Role, Conduct] = {"alice": Conduct(idle), "bob": Conduct(partial(bob, link))}
                conducts[monitored].prepare = listen
                await link.meet({"alice": alice, "bob": other}, conducts)
                nursery.cancel_scope.cancel()

        trio.run(both, clock=virtual_clock())
        outcomes = {
            role: [one.outcome for one in link.site(role).figures.blocks.table.latest(20)] for role in ROLES
        }
    return outcomes, told


async def three_blocks(link: SmallLink, spoken: Spoken) -> None:
    """Fill a block, pause, fill another, pause, and fill a third."""
    for number in range(3):
        if number:
            await trio.sleep(61.0)  # no reading is due at this time
        await link.fill_blocks(spoken, 1)


@pytest.mark.parametrize("monitored", ROLES)
def test_both_sites_discard_the_block_during_which_a_monitor_tripped_for_its_name(
    tmp_path: Path, monitored: Role
) -> None:
    # A block takes no time here; the second one waits for the reading at 65 s.
    outcomes, told = session(
        tmp_path, monitored, three_blocks, lambda at: BRIGHT if 62.0 < at < 72.0 else DARK
    )
    for role in ROLES:
        assert outcomes[role][:3] == ["accepted", "backward_light", "accepted"], (role, outcomes)
    assert len(told.all) == 1
    assert "readings.back" in told.all[0]
    assert "Trojan horse" in told.all[0]
    assert told.now is None


@pytest.mark.parametrize(("monitored", "kind"), [("alice", Sifted), ("bob", ClicksEnded)])
def test_nothing_of_a_block_is_disclosed_when_the_trip_is_known_at_its_end(
    tmp_path: Path, monitored: Role, kind: type[Message]
) -> None:
    said: list[Message] = []
    outcomes, _ = session(
        tmp_path, monitored, three_blocks, lambda at: BRIGHT if 52.0 < at < 62.0 else DARK, said
    )
    assert outcomes[monitored][:3] == ["accepted", "backward_light", "accepted"]
    assert [getattr(one, "block_id", None) for one in said if isinstance(one, kind)] == [1, 3]


@pytest.mark.parametrize("monitored", ROLES)
def test_a_block_without_readings_is_discarded_as_unwatched_at_both_sites(
    tmp_path: Path, monitored: Role
) -> None:
    outcomes, told = session(
        tmp_path, monitored, three_blocks, lambda at: None if 40.0 < at < 100.0 else DARK
    )
    for role in ROLES:
        assert outcomes[role][:3] == ["accepted", "unwatched", "accepted"], (role, outcomes)
    assert told.all == ["readings.back: no reading"]


def test_a_reading_after_the_end_of_a_block_discards_it(tmp_path: Path) -> None:
    """The light came during the block and was read only afterwards."""
    ended = float("inf")

    async def one_block(link: SmallLink, spoken: Spoken) -> None:
        nonlocal ended
        await trio.sleep(60.1)  # just after a reading
        ended = trio.current_time()
        await link.fill_blocks(spoken, 1)

    outcomes, _ = session(tmp_path, "alice", one_block, lambda at: BRIGHT if at > ended else DARK)
    for role in ROLES:
        assert outcomes[role][:1] == ["backward_light"]


def test_clicks_that_waited_to_be_announced_are_judged_by_the_time_at_which_they_arrived(
    tmp_path: Path,
) -> None:
    async def one_block(link: SmallLink, spoken: Spoken) -> None:
        await trio.sleep(61.0)
        await link.fill_blocks(spoken, 1, arrived_s=33.0)

    outcomes, _ = session(tmp_path, "bob", one_block, lambda at: BRIGHT if 27.0 < at < 37.0 else DARK)
    for role in ROLES:
        assert outcomes[role][:1] == ["backward_light"]


# Readings


async def test_a_missing_figure_is_no_reading(autojump_clock: MockClock) -> None:
    told = Told()
    watch = MonitorWatch(MONITORS, told)
    watch.note("diode", DARK)
    await trio.sleep(MONITORS.longest_gap_s + 1.0)
    watch.note("diode", {"temperature_k": 300.0})
    watch.note("another", DARK)
    assert told.now == "readings.back: no reading"
    watch.note("diode", DARK)
    assert told.now is None


CURRENT = PhotocurrentMonitor(
    device="spd", channel=1, reading="x_detector_photocurrent_a", dark_a=1e-9, charge_per_click_c=1e-12
)


def tags(n: int, until_s: float) -> TagBlock:
    return TagBlock(
        np.zeros(2 * n, np.int64), np.arange(2 * n, dtype=np.int8) % 2, until_ps=round(until_s * 1e12)
    )


async def test_a_photocurrent_is_compared_with_the_tags_since_the_last_reading(
    autojump_clock: MockClock,
) -> None:
    watch = MonitorWatch(MonitorsSection(photocurrents={"x": CURRENT}))
    honest = {"x_detector_photocurrent_a": 1e-9 + 1e-12 * 2000}
    watch.tags.begin()
    watch.tags.see(tags(1000, 1.0))
    watch.note("spd", honest)
    assert watch.findings == {}  # there is nothing to compare the first reading with
    watch.tags.see(tags(10_000, 6.0))
    watch.note("spd", honest)
    found = watch.findings["photocurrents.x"]
    assert found.plausible
    assert found.value == pytest.approx(3e-9)
    watch.tags.see(tags(10_000, 11.0))
    watch.note("spd", {"x_detector_photocurrent_a": 1e-6})
    assert watch.findings["photocurrents.x"].too_high


async def test_tags_of_another_opening_are_not_compared_with_the_last_reading() -> None:
    watch = MonitorWatch(MonitorsSection(photocurrents={"x": CURRENT}))
    watch.tags.begin()
    watch.note("spd", {"x_detector_photocurrent_a": 1e-6})
    watch.tags.begin()
    watch.tags.see(tags(10, 5.0))
    watch.note("spd", {"x_detector_photocurrent_a": 1e-6})
    assert watch.findings == {}


def test_only_tags_of_monitored_detectors_are_counted() -> None:
    counter = TagCounter(frozenset({1}))
    counter.begin()
    counter.see(tags(7, 1.0))
    counter.see(tags(3, 2.0))
    assert counter.at(1) == (1, 10, 2_000_000_000_000)


# Random bytes

SECTION = RandomnessSection(device="generator", min_entropy_bits=7.0)


class Generator:
    """A source of random bytes; ``stuck`` and ``gone`` are faults of it."""

    def __init__(self) -> None:
        self.identity = DeviceIdentity("generator", "G-1")
        self.stuck = self.gone = False
        self.given = 0
        self._rng = np.random.default_rng(4)

    async def random_bytes(self, number: int) -> bytes:
        await trio.sleep(0.01)
        if self.gone:
            raise DeviceGone("unplugged")
        self.given += number
        return b"\x5a" * number if self.stuck else self._rng.bytes(number)


async def used(randomness: DeviceRandomness, generator: Any, *, task_status: Any) -> None:
    """Use a generator as its supervisor does, until it fails."""
    task_status.started()
    try:
        await randomness.use(generator, 10.0)
    except DeviceError:
        return


async def test_seeds_come_from_the_device_after_its_start_up_test(autojump_clock: MockClock) -> None:
    told: list[str] = []
    randomness, generator = DeviceRandomness(SECTION, told.append), Generator()
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(used, randomness, generator))
        drawn = [await randomness.draw(number) for number in (1, 8, 32, 33, 100_000)]
        assert [len(one) for one in drawn] == [1, 8, 32, 33, 100_000]
        # 320 bits of entropy for each 256 bits; 7 bits a byte.
        per_digest = 46
        digests = sum((number + 31) // 32 for number in (1, 8, 32, 33, 100_000))
        assert generator.given == health_tests(SECTION).start_up_bytes + per_digest * digests
        assert abs(np.unpackbits(np.frombuffer(drawn[-1], np.uint8)).mean() - 0.5) < 0.005
        nursery.cancel_scope.cancel()
    assert told == []


async def test_draws_at_the_same_time_get_different_bytes(autojump_clock: MockClock) -> None:
    randomness = DeviceRandomness(SECTION, lambda _: None)
    found: list[bytes] = []

    async def draw() -> None:
        found.append(await randomness.draw(1000))

    async with trio.open_nursery() as nursery:
        await nursery.start(partial(used, randomness, Generator()))
        async with trio.open_nursery() as drawing:
            for _ in range(5):
                drawing.start_soon(draw)
        nursery.cancel_scope.cancel()
    assert len(set(found)) == 5


async def test_a_generator_that_fails_its_test_is_not_used_again_even_after_it_was_opened_again(
    autojump_clock: MockClock,
) -> None:
    told: list[str] = []
    randomness, generator = DeviceRandomness(SECTION, told.append), Generator()
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(used, randomness, generator))
        await randomness.draw(100)
        generator.stuck = True
        with pytest.raises(BlockLost, match="stuck") as lost:
            await randomness.draw(100)
        assert lost.value.reason == "randomness"
        nursery.cancel_scope.cancel()
    generator.stuck = False
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(used, randomness, generator))
        with pytest.raises(BlockLost, match="repetition_count"):
            await randomness.draw(100)
        nursery.cancel_scope.cancel()
    assert len(told) == 1
    assert "5a" not in told[0].lower()


async def test_a_generator_that_fails_its_start_up_test_gives_nothing(autojump_clock: MockClock) -> None:
    randomness, generator = DeviceRandomness(SECTION, lambda _: None), Generator()
    generator.stuck = True
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(used, randomness, generator))
        with pytest.raises(BlockLost, match="stuck"):
            await randomness.draw(100)
        nursery.cancel_scope.cancel()


async def test_a_draw_waits_for_a_device_that_comes_back_and_not_for_ever(
    autojump_clock: MockClock,
) -> None:
    randomness, generator = DeviceRandomness(SECTION, lambda _: None), Generator()
    with pytest.raises(BlockLost, match=f"within {DRAW_LIMIT_S:g} s"):
        await randomness.draw(8)
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(used, randomness, generator))
        await randomness.draw(8)
        generator.gone = True
        with pytest.raises(BlockLost, match="failed while it was read"):
            await randomness.draw(8)
        generator.gone = False

        async def come_back() -> None:
            await trio.sleep(5.0)
            await nursery.start(partial(used, randomness, generator))

        nursery.start_soon(come_back)
        assert len(await randomness.draw(8)) == 8
        nursery.cancel_scope.cancel()


async def test_only_a_configured_fallback_continues_without_a_healthy_device(
    autojump_clock: MockClock,
) -> None:
    began = trio.current_time()
    told: list[str] = []
    randomness, generator = (
        DeviceRandomness(replace(SECTION, fallback_to_system=True), told.append),
        Generator(),
    )
    generator.stuck = True
    assert len(await randomness.draw(100)) == 100  # without the device, a little later
    assert trio.current_time() - began < DRAW_LIMIT_S / 2
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(used, randomness, generator))
        assert len(await randomness.draw(100)) == 100
        nursery.cancel_scope.cancel()
    assert len(told) == 1


async def test_a_device_that_gives_too_few_bytes_is_opened_again(autojump_clock: MockClock) -> None:
    class Short(Generator):
        async def random_bytes(self, number: int) -> bytes:
            return bytes(number - 1)

    with pytest.raises(DeviceError, match="did not return 4096 bytes"):
        await DeviceRandomness(SECTION, lambda _: None).use(Short(), 10.0)


async def test_a_device_that_is_no_generator_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="device generator: expected a source of random numbers"):
        await DeviceRandomness(SECTION, lambda _: None).use(object(), 10.0)


def test_a_health_test_that_never_fires_is_refused_at_the_start() -> None:
    with pytest.raises(ConfigError, match=r"\[randomness\].*never"):
        DeviceRandomness(replace(SECTION, min_entropy_bits=0.01), lambda _: None)


@pytest.mark.parametrize("unhealthy", ROLES)
def test_both_sites_discard_blocks_while_a_generator_is_not_healthy(tmp_path: Path, unhealthy: Role) -> None:
    with one_loop("generator"), small_link(tmp_path) as link:
        site, generator = link.site(unhealthy), Generator()

        async def both() -> None:
            randomness = DeviceRandomness(SECTION, lambda _: None)
            site.draw = randomness.draw

            async def bob(spoken: Spoken) -> None:
                await link.fill_blocks(spoken, 1)
                generator.stuck = True
                await link.fill_blocks(spoken, 1)

            async def idle(_spoken: Spoken) -> None:
                await trio.sleep_forever()

            async with trio.open_nursery() as nursery:
                await nursery.start(partial(used, randomness, generator))
                alice, other = trio.testing.memory_stream_pair()
                await link.meet({"alice": alice, "bob": other}, {"alice": Conduct(idle), "bob": Conduct(bob)})
                nursery.cancel_scope.cancel()

        trio.run(both, clock=virtual_clock())
        for role in ROLES:
            outcomes = [one.outcome for one in link.site(role).figures.blocks.table.latest(20)]
            assert outcomes[:2] == ["accepted", "randomness"], (role, outcomes)


# The file


@pytest.mark.parametrize(
    ("tables", "fault"),
    [
        (
            {"monitors": {"readings": {"back": {"device": "diodes"}}}},
            "monitors.readings.back.device: no device diodes (known: diode)",
        ),
        (
            {"monitors": {"readings": {"back": {"least": 2.0}}}},
            "monitors.readings.back.least: expected at most 1e-09 (most), got 2",
        ),
        (
            {"monitors": {"readings": {"back": {"noise": -1.0}}}},
            "monitors.readings.back.noise: expected 0 to 1e+09, got -1",
        ),
        ({"monitors": {"longest_gap_s": 1.0}}, "monitors.longest_gap_s: expected 5.5 to 3600, got 1"),
        (
            {"randomness": {"device": "qrng", "min_entropy_bits": 1.0}},
            "randomness.device: no device qrng (known: diode)",
        ),
        (
            {"randomness": {"device": "diode", "min_entropy_bits": 1.5, "sample_bits": 1}},
            "randomness.min_entropy_bits: expected at most 1 (sample_bits), got 1.5",
        ),
        (
            {"randomness": {"device": "diode", "min_entropy_bits": float("nan")}},
            "randomness.min_entropy_bits: expected a number above 0, got nan",
        ),
    ],
)
def test_a_wrong_table_is_refused_by_key(tables: dict[str, Any], fault: str) -> None:
    back = {**to_builtins(BACKWARD), **tables.get("monitors", {}).get("readings", {}).get("back", {})}
    section = {**tables.get("monitors", {}), "readings": {"back": back}}
    monitors = convert(section, MonitorsSection, where="site")
    randomness = tables.get("randomness")
    asked = None if randomness is None else convert(randomness, RandomnessSection, where="site")
    assert list(monitor_faults(monitors, asked, frozenset({"diode"}))) == [fault]


def test_a_site_reads_its_monitors_and_refuses_a_device_that_it_does_not_have() -> None:
    site = load(CONFIG / "bob.toml", SiteConfig)
    assert site.monitors.tables() == {}
    assert site.randomness is None
    with pytest.raises(ValueError, match=r"monitors\.readings\.back\.device: no device diode"):
        replace(site, monitors=MONITORS)


def test_a_photocurrent_at_alice_is_refused_because_there_are_no_tags() -> None:
    monitors = MonitorsSection(photocurrents={"x": replace(CURRENT, device="transmitter")})
    with pytest.raises(ValueError, match=r"monitors\.photocurrents: they are compared with tags"):
        replace(load(CONFIG / "alice.toml", SiteConfig), monitors=monitors)


# The whole of a link


async def test_a_running_link_reads_its_monitored_devices_and_raises_alarms(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    opened: list[Bench] = []

    class Kept(Bench):
        def __init__(self, flaw: str = "") -> None:
            super().__init__(flaw)
            opened.append(self)

    class Found(EntryPoint):
        def load(self) -> type[Bench]:
            return Kept

    async def rest(self: LinkNode) -> None:
        await trio.sleep_forever()

    monkeypatch.setattr(registry, "entry_points", lambda **_: [Found("bench", "x:Bench", "qnode.drivers")])
    for task in ("keep_link", "_keep_fresh"):
        monkeypatch.setattr(LinkNode, task, rest)
    heat = ReadingMonitor(
        monitor="detector_temperature",
        device="bench",
        reading="z_detector_temperature_k",
        least=222.5,
        most=223.5,
        noise=0.05,
    )
    config = replace(
        load(CONFIG / "bob.toml", SiteConfig),
        devices={"bench": DeviceSection(driver="bench")},
        monitors=MonitorsSection(readings={"heat": heat}),
        randomness=RandomnessSection(device="bench", min_entropy_bits=7.0),
    )
    with StoreSite(tmp_path / "bob", "bob").open() as store:
        node = link_node(config, store)
        monkeypatch.setattr(node, "_transport", type("None", (), {"renew": lambda *_: None})())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(node.run, None)  # type: ignore[arg-type]
            await trio.sleep(12.0)
            status = node.figures.status()
            assert status.monitors["readings.heat"].plausible
            assert status.alarms == []
            assert node._randomness is not None
            assert len(await node._randomness.draw(40)) == 40
            assert len(await node.random_bytes(40)) == 40
            opened[0].detectors[0] = DetectorState(temperature_k=230.0)
            await trio.sleep(READING_PERIOD_S + 1.0)
            (alarm,) = node.figures.status().alarms
            assert alarm.name == "monitor.tripped"
            assert "heated by bright light" in alarm.text
            opened[0].detectors[0] = DetectorState(temperature_k=223.0)
            await trio.sleep(READING_PERIOD_S + 1.0)
            assert node.figures.status().alarms == []
            nursery.cancel_scope.cancel()


async def test_random_bytes_for_encryptors_are_those_of_the_seeds_or_none(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    plain = load(CONFIG / "bob.toml", SiteConfig)
    with_device = replace(plain, randomness=RandomnessSection(device="tdc", min_entropy_bits=7.0))
    with StoreSite(tmp_path / "bob", "bob").open() as store:
        assert len(await link_node(plain, store).random_bytes(5000)) == 5000
        with pytest.raises(DeviceError, match="randomness: tdc gave no random bytes within 60 s"):
            await link_node(with_device, store).random_bytes(32)
