"""The drifts of the simulated link, and the settings by which they are compensated."""

import math
from pathlib import Path

import msgspec
import numpy as np
import pytest
import trio
from qnode_drivers.simulated import SimulatedTdc, SimulatedTransmitter, TdcConfig, TransmitterConfig
from simulated_counts import KEY, counted, still

from qnode.config import LinkParameters
from qnode.devices.capabilities import (
    BiasControl,
    DetectorControl,
    DetectorState,
    PhaseControl,
    PowerMonitor,
    capabilities_of,
)
from qnode.errors import DeviceError
from qnode.simulate.drift import DriftParameters, fibre_rate, laser_power, phase_steps_rad
from qnode.simulate.generator import KNOTS_PER_S, Lit, TagGenerator
from qnode.simulate.model import expected_rates
from qnode.simulate.parameters import Change, Settings, SimulationParameters
from qnode.tags.types import X_CHANNEL, Z_CHANNEL

LINK = LinkParameters()
TURIN = still(SimulationParameters())


def drifting(**drift: float) -> SimulationParameters:
    return msgspec.structs.replace(TURIN, drift=DriftParameters(**drift))


def clicks(simulation: SimulationParameters, world_s: float, seconds: int = 2) -> tuple[int, int]:
    """Count the tags of both arms in ``seconds`` from ``world_s`` on."""
    generator = TagGenerator(simulation, LINK, world_s=world_s)
    channels = []
    while generator.knot < seconds * KNOTS_PER_S:
        block = generator.step(seconds * KNOTS_PER_S, simulation.first_settings(), Lit(KEY, 0))
        channels.append(block.channels)
    both = np.concatenate(channels)
    return int(np.count_nonzero(both == Z_CHANNEL)), int(np.count_nonzero(both == X_CHANNEL))


def test_the_phase_of_the_interferometer_turns_steadily() -> None:
    """Half a turn in two seconds: the mean of the errors is that of half a period of the cosine."""
    turning = counted(drifting(interferometer_turn_s=4.0), LINK, 2)
    still = counted(TURIN, LINK, 2)
    opposite = counted(TURIN, LINK, 2, Settings(interferometer_phase_rad=math.pi))
    middle = (still.x.c_plus.total + opposite.x.c_plus.total) / 2.0
    assert turning.x.c_plus.total == pytest.approx(middle, rel=0.1)
    assert still.x.c_plus.total < 0.2 * middle


def test_steps_of_the_phase_come_at_their_rate() -> None:
    drift = DriftParameters(interferometer_steps_per_hour=360.0, interferometer_step_rad=0.2)
    steps = phase_steps_rad(drift, np.random.default_rng(1), 100_000, 0.01)
    assert np.count_nonzero(steps) == pytest.approx(100, abs=40)
    assert set(np.unique(np.abs(steps))) == {0.0, 0.2}


def test_without_drifts_nothing_is_drawn_for_them() -> None:
    random = np.random.default_rng(1)
    phase_steps_rad(DriftParameters(), random, 100, 0.01)
    assert random.random() == np.random.default_rng(1).random()


def test_laser_and_x_arm_drift_by_the_day_as_the_model_says() -> None:
    simulation = drifting(laser_daily=0.3, x_arm_daily_db=1.0)
    bright = Settings(
        attenuation_db=TURIN.attenuation_db, source_attenuation_db=-10.0 * math.log10(1.3)
    )  # at noon of a day that begins at six
    expected = expected_rates(msgspec.structs.replace(TURIN, x_arm_loss_db=3.3), LINK, bright)
    z, x = clicks(simulation, 6.0 * 3600.0)
    assert z / 2 == pytest.approx(expected.z_detector.clicks_hz, rel=0.02)
    assert x / 2 == pytest.approx(expected.x_detector.clicks_hz, rel=0.02)
    assert laser_power(simulation.drift, 18.0 * 3600.0) == pytest.approx(0.7)


def test_the_fibre_grows_and_shrinks_by_its_amplitude() -> None:
    drift = DriftParameters(fibre_daily_ns=38.2)
    times_s = np.arange(0.0, 6.0 * 3600.0, 10.0)
    assert float(np.sum(fibre_rate(drift, times_s)) * 10.0) == pytest.approx(38.2e-9, rel=0.01)
    assert float(fibre_rate(drift, times_s)[0]) * 3600.0 == pytest.approx(10e-9, rel=0.01)


async def test_alices_bias_acts_and_is_read_back_and_its_monitor_sees_the_power(tmp_path: Path) -> None:
    table = {"fibre": str(tmp_path / "fibre"), "simulation": {"drift": {"laser_daily": 0.05}}}
    config = msgspec.convert(table, TransmitterConfig)
    async with SimulatedTransmitter.open(config) as alice:
        assert isinstance(alice, BiasControl)
        assert isinstance(alice, PowerMonitor)
        assert await alice.power_w() == pytest.approx(1e-6, rel=1e-3)
        await alice.set_bias_v(2.5)
        assert await alice.bias_v() == pytest.approx(2.5)
        assert alice._end.changed.modulator_bias_rad == pytest.approx(math.pi / 2)
        with pytest.raises(DeviceError, match="bias 11 V: expected -10 to 10"):
            await alice.set_bias_v(11.0)
        with pytest.raises(DeviceError, match="bias nan V"):
            await alice.set_bias_v(math.nan)
        await alice.change(Change(source_attenuation_db=3.0))
        assert await alice.power_w() == pytest.approx(0.501e-6, rel=0.01)
        await alice.change(Change(source_on=False))
        assert await alice.power_w() == 0.0


async def test_alices_monitor_sees_a_scheduled_change_of_the_light(tmp_path: Path) -> None:
    schedule = [{"at_s": 0.0, "source_attenuation_db": -3.0}]
    table = {"fibre": str(tmp_path / "fibre"), "simulation": {"schedule": schedule}}
    async with SimulatedTransmitter.open(msgspec.convert(table, TransmitterConfig)) as alice:
        assert await alice.power_w() == pytest.approx(1.995e-6, rel=0.01)


async def test_bobs_phase_acts_on_the_next_tags(tmp_path: Path) -> None:
    table = {"fibre": str(tmp_path / "fibre"), "simulation": {"speed": "max"}}
    async with (
        SimulatedTransmitter.open(msgspec.convert(table, TransmitterConfig)),
        SimulatedTdc.open(msgspec.convert(table, TdcConfig)) as bob,
    ):
        assert isinstance(bob, PhaseControl)
        assert isinstance(bob, DetectorControl)
        assert capabilities_of(bob) == ("DetectorControl", "PhaseControl")
        rates = []
        tags = bob.tags()
        for phase in (0.0, math.pi):
            await bob.set_phase_rad(phase)
            assert await bob.phase_rad() == phase
            await anext(tags)  # may have been generated before
            n = 0
            first = (await anext(tags)).until_ps
            with trio.fail_after(60):
                while True:
                    block = await anext(tags)
                    n += int(np.count_nonzero(block.channels == X_CHANNEL))
                    if block.until_ps - first > 2e12:
                        break
            rates.append(n / (block.until_ps - first) * 1e12)
        await tags.aclose()
        expected = [
            expected_rates(TURIN, LINK, Settings(interferometer_phase_rad=phase)).x_detector.clicks_hz
            for phase in (0.0, math.pi)
        ]
        assert rates == pytest.approx(expected, rel=0.01)
        with pytest.raises(DeviceError, match="phase"):
            await bob.set_phase_rad(5.0)
        state = await bob.detector_state(Z_CHANNEL)
        assert state.dead_time_s == TURIN.z_detector.dead_time_s
        await bob.set_detector(Z_CHANNEL, DetectorState(dead_time_s=state.dead_time_s))
        with pytest.raises(DeviceError, match="cannot be set"):
            await bob.set_detector(Z_CHANNEL, DetectorState(dead_time_s=1e-5))
