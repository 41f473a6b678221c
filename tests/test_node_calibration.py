"""Controllers of a link over devices: the phase end to end, bias and power on a bench in memory."""

import math
import tomllib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, cast

import msgspec
import numpy as np
import pytest
import trio
from capabilities_support import Bench
from qnode_drivers.simulated import SimulatedTdc, SimulatedTransmitter, TdcConfig, TransmitterConfig
from test_node_receiver import ListeningPart, until
from trio.testing import MockClock

from qnode.block.outcome import BlockLost
from qnode.choices import BiasAim, ControllerState
from qnode.config import DeviceSection, MonitorsSection, SiteConfig, convert, load
from qnode.config.calibration import (
    BiasSection,
    CalibrationSection,
    DetectorSection,
    IntensitySection,
    PhaseSection,
)
from qnode.devices.protocols import EmissionRun
from qnode.errors import ConfigError
from qnode.node.calibration.controllers import Controllers
from qnode.node.calibration.instruments import Instruments
from qnode.node.monitoring.watch import LEAD_S, MonitorWatch
from qnode.node.quantum.adjustments import Adjustments
from qnode.node.quantum.bob import BobSide
from qnode.node.quantum.receiver import Receiver
from qnode.node.quantum.receiver_requests import AlignmentRequest, ReceiverRequest
from qnode.node.quantum.recorder import BobRecorder
from qnode.node.status.block_table import KnownOfBlock
from qnode.node.status.link_figures import LinkFigures
from qnode.node.status.site_figures import SiteFigures
from qnode.operate.recording.recordings import Recordings
from qnode.operate.status.metrics import render_metrics
from qnode.operate.status.model import ControllerStatus
from qnode.tags.alignment import correlate
from qnode.tags.types import OUTCOME_CENTRAL, X_PLUS

TOP = Path(__file__).parent.parent
BOB = load(TOP / "config" / "bob.toml", SiteConfig)
ALICE = load(TOP / "config" / "alice.toml", SiteConfig)
TURN_S = 800.0


async def no_block() -> int:
    return 0


class AlicesPart(ListeningPart):
    """A session's part with Alice's symbols: it aligns, and counts clicks in central slots on |+>."""

    def __init__(self, alice: SimulatedTransmitter, run: EmissionRun) -> None:
        super().__init__()
        self.run = run
        self._alice = alice
        self.cut_s = 0.0
        self.e_vis = list[tuple[float, float]]()

    async def do(self, request: ReceiverRequest) -> None:
        if isinstance(request, AlignmentRequest):
            lookup = lambda slots: self._alice.symbols(self.run.run_id, slots)  # noqa: E731
            offsets = request.offsets
            with request.reply:
                found = await trio.to_thread.run_sync(
                    correlate, request.probe, lookup, offsets.start, offsets.stop - 1
                )
                request.reply.send_nowait(found)
            return
        self.cut_s += request.cut_slots / 6e8
        central = request.clicks.slots[request.clicks.outcomes == OUTCOME_CENTRAL]
        states = self._alice.symbols(self.run.run_id, central) & 3
        plus = int((states == X_PLUS).sum())
        self.e_vis.append((plus, len(states) - plus))


def mean_e_vis(counts: list[tuple[float, float]]) -> float:
    plus, others = (sum(column) for column in zip(*counts, strict=True))
    return float(plus / others / 2.0)  # p_Z = p_X


async def test_the_phase_of_a_drifting_interferometer_is_found_and_held(tmp_path: Path) -> None:
    """Half a turn away at first, then a turn in 800 s: three times as fast as a laboratory's."""
    simulation: dict[str, Any] = {
        "speed": "max",
        "drift": {"interferometer_turn_s": TURN_S},
        "schedule": [{"at_s": 0.0, "interferometer_phase_rad": 3.0}],
        "attenuation_db": 10.8,
    }
    table = {"fibre": str(tmp_path / "fibre"), "simulation": simulation}
    section = PhaseSection(device="tdc", stretch_s=2.0, dither_rad=0.1, settle_s=0.05, rate_rad_per_s=0.02)
    config = msgspec.structs.replace(BOB, calibration=CalibrationSection(phase=section))
    figures = LinkFigures(config)
    receiver = Receiver(config, figures, BobRecorder(config, Recordings(), simulated=True))
    instruments = Instruments()
    controllers = Controllers(
        config, figures, instruments,
        adjustments=receiver.adjustments, watch=MonitorWatch(MonitorsSection()), last_block=no_block,
    )  # fmt: skip
    async with (
        SimulatedTransmitter.open(msgspec.convert(table, TransmitterConfig)) as alice,
        SimulatedTdc.open(msgspec.convert(table, TdcConfig)) as bob,
    ):
        runs = alice.runs()
        part = AlicesPart(alice, await anext(runs))
        receiver._part = cast(BobSide, part)

        async def until_tag_time(second: float) -> None:
            await until(lambda: (figures.quantum.status.tag_time_s or 0.0) >= second)

        async def use() -> None:
            await receiver.use(bob, 300.0)  # a busy machine

        with trio.fail_after(300):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(instruments.keep, "tdc", bob, 10.0, use)
                nursery.start_soon(controllers.run)
                await until_tag_time(40.0)
                (status,) = figures.status().controllers
                assert status.state.state == ControllerState.FOLLOWING
                part.e_vis.clear()
                await until_tag_time(90.0)
                held, (status,) = mean_e_vis(part.e_vis), figures.status().controllers
                folded = figures.quantum.status.folded
                assert folded is not None
                assert folded.visibility == pytest.approx(0.93, abs=0.08)  # 0.95, less dither and noise
                controllers.command("phase", "hold")
                await until(lambda: figures.status().controllers[0].state.state == ControllerState.HELD)
                part.e_vis.clear()
                await until_tag_time((figures.quantum.status.tag_time_s or 0.0) + 120.0)
                lost = mean_e_vis(part.e_vis)
                nursery.cancel_scope.cancel()
        await runs.aclose()
    assert held < 0.045
    assert lost > 0.065  # of 120 s of drift, at least
    assert status.moves == pytest.approx(90.0 / 3.5, abs=8)
    assert figures.status().controllers[0].moves <= status.moves + 2
    assert "phase" in render_metrics(SiteFigures(config.node, [figures]).status()).decode()


class Room:
    """Controllers at Alice's over a bench in memory."""

    def __init__(self, section: CalibrationSection, device: Any) -> None:
        source = msgspec.structs.replace(ALICE.link.source, mu_uncertainty=(0.02, 0.02))
        link = msgspec.structs.replace(ALICE.link, source=source)
        devices = {"bench": DeviceSection(driver="bench")}
        self.config = msgspec.structs.replace(ALICE, link=link, devices=devices, calibration=section)
        self.figures = LinkFigures(self.config)
        self.watch = MonitorWatch(MonitorsSection())
        self.instruments = Instruments()
        self.device = device
        self.last_block = 0
        self.controllers = Controllers(
            self.config, self.figures, self.instruments,
            adjustments=None, watch=self.watch, last_block=self._last_block,
        )  # fmt: skip

    async def _last_block(self) -> int:
        return self.last_block

    def judge_block_of_last(self, seconds: float) -> None:
        self.watch.check_now(trio.current_time() - seconds + LEAD_S)

    @property
    def status(self) -> ControllerStatus:
        (status,) = self.figures.status().controllers
        return status

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.instruments.keep, "bench", self.device, 10.0, trio.sleep_forever)
            await self.controllers.run()


BIAS = CalibrationSection(bias={"im1": BiasSection(device="bench", half_wave_v=5.0, least_v=-2.0)})


async def feed_blocks(room: Room, bench: Bench, best_v: Callable[[int], float]) -> None:
    """Report the errors of blocks of 130 s, each with the bias that was set when it was agreed."""
    random = np.random.default_rng(1)
    agreed = list[float]()
    while True:
        room.last_block += 1
        agreed.append(bench.bias)
        await trio.sleep(130.0)
        number = room.last_block - 1
        leak = math.sin(math.pi * (agreed.pop(0) - best_v(number)) / 10.0) ** 2
        errors = int(random.binomial(1_000_000, 0.0087 + 0.98 * leak))
        room.figures.blocks._open[number] = KnownOfBlock(span_s=130.0)
        room.figures.blocks.sampled(number, errors, 1_000_000)


async def test_a_drifting_bias_is_held_by_the_errors_of_blocks(autojump_clock: MockClock) -> None:
    bench = Bench()
    room = Room(BIAS, bench)
    best = list(np.cumsum(np.random.default_rng(2).normal(0.0, 0.05 * math.sqrt(130 / 3600), 1000)))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(room.run)
        nursery.start_soon(feed_blocks, room, bench, lambda number: best[number % 1000])
        await trio.sleep(3 * 3600.0)
        off = list[float]()
        for _ in range(400):
            await trio.sleep(130.0)
            assert room.status.best is not None
            off.append(room.status.best - best[room.last_block - 1])
        nursery.cancel_scope.cancel()
    assert float(np.sqrt(np.mean(np.square(off)))) < 0.05
    assert room.status.state.state == ControllerState.FOLLOWING
    assert room.status.setting == pytest.approx(room.status.best, abs=0.051)


async def test_an_operator_holds_a_bias_and_gives_it_back(autojump_clock: MockClock) -> None:
    bench = Bench()
    room = Room(BIAS, bench)
    async with trio.open_nursery() as nursery:
        with pytest.raises(ConfigError, match="device bench is not open"):
            room.controllers.command("bias.im1", "1.5")
        nursery.start_soon(room.run)
        await trio.sleep(1.0)
        assert room.controllers.command("bias.im1", "1.5").name == "bias.im1"
        await trio.sleep(1.0)
        assert (bench.bias, room.status.state.state) == (1.5, ControllerState.HELD)
        for word, said in (
            ("11", "expected -2 to 10 V, got 11"),
            ("-3", "expected -2 to 10 V, got -3"),
            ("nan", "expected hold, auto or a value in V, got 'nan'"),
            ("of", "expected hold, auto or a value in V, got 'of'"),
        ):
            with pytest.raises(ConfigError, match=said):
                room.controllers.command("bias.im1", word)
        with pytest.raises(ConfigError, match=r"no controller 'im1' \(controllers: bias.im1\)"):
            room.controllers.command("im1", "hold")
        room.controllers.command("bias.im1", "auto")
        await trio.sleep(1.0)
        assert bench.bias == pytest.approx(0.5 + 0.05)
        nursery.cancel_scope.cancel()


class LitBench(Bench):
    """A bench whose power follows a laser and the attenuator."""

    laser_w = 1e-3
    broken = False

    async def power_w(self) -> float:
        await trio.sleep(0.001)
        if self.broken:
            raise OSError("gone")
        return float(self.laser_w * 10.0 ** (-self.attenuation / 10.0))


INTENSITY = CalibrationSection(
    intensity=IntensitySection(attenuator="bench", monitor="bench", power_w=1e-6, start_db=30.5, period_s=5.0)
)


async def test_the_power_is_held_while_the_laser_drifts_and_blocks_outside_are_discarded(
    autojump_clock: MockClock,
) -> None:
    bench = LitBench()
    room = Room(INTENSITY, bench)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(room.run)
        await trio.sleep(1.0)
        assert room.status.state.state == ControllerState.OUTSIDE
        assert bench.attenuation == pytest.approx(30.4)  # one step from where it starts
        with pytest.raises(BlockLost, match=r"^intensity: "):
            room.judge_block_of_last(0.5)
        await trio.sleep(120.0)
        assert bench.attenuation == pytest.approx(30.0, abs=0.01)
        for hour in range(24):
            bench.laser_w = 1e-3 * (1.0 + 0.05 * math.sin(hour / 24.0 * 2.0 * math.pi))
            await trio.sleep(120.0)
            assert await bench.power_w() == pytest.approx(1e-6, rel=0.003)
            room.judge_block_of_last(60.0)
        bench.laser_w = 0.0
        before = bench.attenuation
        await trio.sleep(60.0)
        assert bench.attenuation == before  # no light is no reason to open the attenuator
        with pytest.raises(BlockLost, match=r"^intensity: .*0 W at the monitor, expected 1e-06 W"):
            room.judge_block_of_last(1.0)
        room.controllers.look_after()
        (alarm,) = room.figures.status().alarms
        assert alarm.name == "calibration.failed"
        bench.laser_w = 1e-3
        await trio.sleep(60.0)
        room.judge_block_of_last(30.0)
        room.controllers.look_after()
        assert not room.figures.status().alarms
        nursery.cancel_scope.cancel()
    await trio.sleep(30.0)
    with pytest.raises(BlockLost, match=r"^unwatched: calibration.intensity: no reading for 3"):
        room.judge_block_of_last(1.0)


async def test_a_block_counts_only_if_the_power_was_right_at_the_first_measurement_after_it(
    autojump_clock: MockClock,
) -> None:
    bench = LitBench()
    room = Room(INTENSITY, bench)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(room.run)
        await trio.sleep(121.0)
        bench.laser_w *= 1.3  # between two measurements
        ended = trio.current_time() + 1.0
        await trio.sleep(1.0)
        with pytest.raises(BlockLost, match=r"^intensity: .*1.299e-06 W at the monitor"):
            await room.watch.check(ended - 60.0, ended)
        assert trio.current_time() <= ended + 5.0
        nursery.cancel_scope.cancel()


async def test_a_fault_that_a_controller_meets_is_raised_where_the_device_is_kept(
    autojump_clock: MockClock,
) -> None:
    bench = LitBench()
    room = Room(INTENSITY, bench)
    with pytest.RaisesGroup(OSError, flatten_subgroups=True):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(room.run)
            await trio.sleep(120.0)
            bench.broken = True
            await trio.sleep(10.0)


async def test_a_device_without_the_capability_is_named(autojump_clock: MockClock) -> None:
    room = Room(BIAS, object())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(room.run)
        await trio.sleep(1.0)
        assert room.status.state.because == "device bench (object) is no BiasControl"
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"phase": {"device": "tdc"}}, "calibration.phase: this controller works at bob, this site is alice"),
        (
            {"bias": {"im1": {"device": "im1", "half_wave_v": 5.0}}},
            r"calibration.bias.im1.device: no device 'im1' \(devices: transmitter\)",
        ),
        ({"bias": {"a": {"device": "transmitter", "half_wave_v": 0.0}}}, "calibration.bias.a.half_wave_v"),
        (
            {"intensity": {"attenuator": "transmitter", "monitor": "transmitter", "largest_error": 0.05}},
            "calibration.intensity.largest_error: 0.05 is more than link.source.mu_uncertainty",
        ),
        (
            {"bias": {"a": {"device": "transmitter", "seek": "most_power"}}},
            r"calibration.bias.a.monitor: no device ''",
        ),
        (
            {"bias": {"a": {"device": "transmitter", "half_wave_v": 5.0, "least_v": 2.0, "most_v": 1.0}}},
            "least_v: 2 is not below most_v, 1",
        ),
        (
            {"bias": {"a": {"device": "transmitter"}, "b": {"device": "transmitter"}}},
            "calibration.bias.b.device: calibration.bias.a sets transmitter already",
        ),
    ],
)
def test_a_table_that_cannot_be_is_refused(table: dict[str, Any], said: str, tmp_path: Path) -> None:
    raw = tomllib.loads((TOP / "config" / "alice.toml").read_text())
    raw["calibration"] = table
    with pytest.raises(ConfigError, match=said):
        convert(raw, SiteConfig, where="test", folder=tmp_path)


class ModulatedBench(Bench):
    """A bench whose power follows the bias of a modulator with its most light at ``best``."""

    best = 0.8

    async def power_w(self) -> float:
        await trio.sleep(0.001)
        return 1e-6 * (0.5 + 0.5 * math.cos(math.pi * (self.bias - self.best) / 5.0))


@pytest.mark.parametrize(("seek", "best_v"), [("most_power", 0.8), ("least_power", -4.2)])
async def test_a_bias_is_held_at_the_most_or_the_least_light(
    seek: BiasAim, best_v: float, autojump_clock: MockClock
) -> None:
    section = BiasSection(
        device="bench", monitor="bench", seek=seek, half_wave_v=5.0, stretch_s=10.0, least_v=-5.0, most_v=5.0
    )
    bench = ModulatedBench()
    bench.bias = best_v + 1.5 if seek == "least_power" else -1.5
    room = Room(CalibrationSection(bias={"im2": section}), bench)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(room.run)
        await trio.sleep(600.0)
        assert bench.bias == pytest.approx(best_v, abs=0.1)
        bench.best += 0.3
        await trio.sleep(3600.0)
        assert room.status.best == pytest.approx(best_v + 0.3, abs=0.05)
        nursery.cancel_scope.cancel()


async def test_a_detector_is_set_when_it_opens_and_compared_from_then_on(autojump_clock: MockClock) -> None:
    section = DetectorSection(
        device="bench", channel=1, dead_time_s=3e-5, temperature_k=230.0, tolerance=0.01
    )
    config = msgspec.structs.replace(
        BOB,
        devices={"bench": DeviceSection(driver="bench")},
        calibration=CalibrationSection(detectors={"x": section}),
    )
    figures, instruments, bench = LinkFigures(config), Instruments(), Bench()
    controllers = Controllers(
        config, figures, instruments,
        adjustments=Adjustments(6e8), watch=MonitorWatch(MonitorsSection()), last_block=no_block,
    )  # fmt: skip

    def state() -> str:
        return figures.status().controllers[0].state.state

    async with trio.open_nursery() as nursery:
        nursery.start_soon(instruments.keep, "bench", cast(Any, bench), 10.0, trio.sleep_forever)
        nursery.start_soon(controllers.run)
        await trio.sleep(1.0)
        assert bench.detectors[1].dead_time_s == 3e-5
        assert bench.detectors[1].bias_v == 3.0  # as it was
        assert bench.detectors[0].dead_time_s == 2e-5
        assert state() == ControllerState.FOLLOWING
        bench.detectors[1] = msgspec.structs.replace(bench.detectors[1], temperature_k=240.0)
        await trio.sleep(10.0)
        assert state() == ControllerState.SETTLING  # a cooler needs time
        await trio.sleep(1000.0)
        assert state() == ControllerState.OUTSIDE
        assert figures.status().controllers[0].state.because == "temperature_k is 240, set to 230"
        controllers.look_after()
        assert [alarm.name for alarm in figures.status().alarms] == ["calibration.failed"]
        with pytest.raises(ConfigError, match=r"detectors.x: expected hold or auto, got '220'"):
            controllers.command("detectors.x", "220")
        controllers.command("detectors.x", "hold")
        await trio.sleep(1.0)
        controllers.command("detectors.x", "auto")
        await trio.sleep(1.0)
        assert bench.detectors[1].temperature_k == 230.0
        assert state() == ControllerState.FOLLOWING
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("seek", "attribute", "said"),
    [
        ("fewest_errors", "bias", "device bench: bias_v is nan"),
        ("most_power", "best", "power_w of bench is nan"),
    ],
)
async def test_what_is_no_number_moves_nothing_and_is_named(
    seek: BiasAim, attribute: str, said: str, autojump_clock: MockClock
) -> None:
    bench = ModulatedBench()
    setattr(bench, attribute, math.nan)
    section = BiasSection(device="bench", monitor="bench", seek=seek, stretch_s=10.0)
    room = Room(CalibrationSection(bias={"im2": section}), bench)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(room.run)
        await trio.sleep(4.0)
        assert (room.status.state.state, room.status.state.because) == (ControllerState.WAITING, said)
        bench.bias, bench.best = 0.0, 0.8
        await trio.sleep(600.0)
        assert room.status.setting is not None
        assert abs(room.status.setting) < 2.0
        nursery.cancel_scope.cancel()


async def test_a_setting_is_made_again_when_its_device_was_opened_again_between_two_measurements(
    autojump_clock: MockClock,
) -> None:
    """A device opens safe: the attenuator at its maximum, and no light. Else nobody would open it."""
    bench = LitBench()
    held = CalibrationSection(intensity=INTENSITY.intensity, bias=BIAS.bias)
    room = Room(held, bench)

    async def keep(for_s: float) -> None:
        await room.instruments.keep("bench", cast(Any, bench), 10.0, partial(trio.sleep, for_s))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(room.controllers.run)
        nursery.start_soon(keep, 301.0)
        await trio.sleep(1.0)
        room.controllers.command("bias.im1", "1.5")
        await trio.sleep(302.0)
        bench.attenuation, bench.bias = 60.0, 0.0
        waiting = {one.state.because for one in room.figures.status().controllers}
        assert waiting == {"device bench was closed"}
        nursery.start_soon(keep, math.inf)
        await trio.sleep(5.0)  # from its last setting, not from the first one
        assert bench.attenuation == pytest.approx(30.0, abs=0.01)
        assert bench.bias == 1.5
        nursery.cancel_scope.cancel()


async def test_a_controller_whose_best_setting_lies_beyond_its_limits_says_so(
    autojump_clock: MockClock,
) -> None:
    section = BiasSection(
        device="bench", monitor="bench", seek="most_power", stretch_s=10.0, least_v=-0.4, most_v=0.4
    )
    room = Room(CalibrationSection(bias={"im2": section}), ModulatedBench())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(room.run)
        await trio.sleep(3600.0)
        assert room.status.state.state == ControllerState.OUTSIDE
        room.controllers.look_after()
        (alarm,) = room.figures.status().alarms
        assert "bias.im2 outside: the best setting lies beyond the limits" in alarm.text
        nursery.cancel_scope.cancel()
