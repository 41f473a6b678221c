"""The plan of a link: the reference's figures, the search, the optimum, the curves."""

import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qnode.block.outcome import Reason
from qnode.cli.loopback import load_loopback
from qnode.distill.counts import Pair
from qnode.plan.curve import Against, Fibre, Link, curve, places
from qnode.plan.forecast import at_loss, forecast, reach_db
from qnode.plan.optimum import ALICES, optimum
from qnode.plan.search import Interval, maximise

TURIN = load_loopback(Path(__file__).parent.parent / "config" / "turin.toml")
FIBRE = Fibre(db_per_km=0.22, excess_db=8.0)
LINK = Link(simulation=TURIN.simulation, link=TURIN.link, f_ec=1.16, fibre=FIBRE)


def changed(**tables: dict[str, Any]) -> Link:
    link = TURIN.link
    for name, fields in tables.items():
        link = msgspec.structs.replace(link, **{name: msgspec.structs.replace(getattr(link, name), **fields)})
    return msgspec.structs.replace(LINK, link=link)


def test_the_turin_link_gives_its_published_keys_a_second() -> None:
    found = LINK.forecast()
    assert found.lost is None
    assert found.secret_bits_per_s / 256 == pytest.approx(5.1, abs=0.05)
    assert found.rates.qber_z == pytest.approx(0.015, abs=1e-4)
    assert found.span_s == pytest.approx(131.5, abs=0.5)
    assert found.counts.n_z.total == pytest.approx(1e6)


@pytest.mark.parametrize(("length_km", "keys_per_s"), [(12.7, 5.1), (25.0, 4.9), (50.0, 3.6)])
def test_the_predicted_keys_hold_where_the_existing_excess_loss_stays(
    length_km: float, keys_per_s: float
) -> None:
    found = LINK.at("distance", length_km).forecast()
    assert found.secret_bits_per_s / 256 == pytest.approx(keys_per_s, abs=0.07)


@pytest.mark.parametrize("db_per_km", [0.18, 0.2, 0.22, 0.25])
def test_no_loss_by_length_alone_can_give_the_predicted_keys(db_per_km: float) -> None:
    plain = msgspec.structs.replace(LINK, fibre=Fibre(db_per_km=db_per_km))
    measured = LINK.forecast().secret_bits_per_s
    near, far = (plain.at("distance", km).forecast().secret_bits_per_s for km in (25.0, 50.0))
    # Fewer dB than the measured link can only give more key, and 25 km is below it at any of these losses.
    assert near > measured
    assert far > 0.9 * measured


def test_a_block_ends_at_the_latency_limit_and_a_tiny_one_is_discarded() -> None:
    short = changed(block={"longest_s": 30.0}).forecast()
    assert short.span_s == 30.0
    assert short.counts.n_z.total == pytest.approx(30 * short.sifted_bits_per_s)
    tiny = changed(block={"longest_s": 0.1}).forecast()
    assert tiny.lost == Reason.TOO_FEW_BITS
    assert tiny.secret_bits_per_s == 0.0


def test_an_automatic_block_is_the_one_that_the_node_would_choose() -> None:
    auto = changed(block={"sifted_bits": "auto", "longest_s": 1800.0})
    found = auto.forecast()
    assert found.span_s == 1800.0
    assert found.secret_bits_per_s > LINK.forecast().secret_bits_per_s


def test_joining_the_dead_times_costs_what_the_reference_says_and_settings_win_it_back() -> None:
    joined = changed(receiver={"dead_time": "joint"})
    joined = msgspec.structs.replace(
        joined, simulation=msgspec.structs.replace(joined.simulation, hold_off="joint")
    )
    now, before = joined.forecast(), LINK.forecast()
    assert now.secret_bits_per_s == pytest.approx(800, rel=0.02)
    assert now.sifted_bits_per_s / before.sifted_bits_per_s == pytest.approx(0.75, abs=0.03)
    assert now.rates.x.c_z.total / before.rates.x.c_z.total == pytest.approx(0.23, abs=0.01)
    assert joined.optimum(ALICES).forecast.secret_bits_per_s > 2 * before.secret_bits_per_s


def test_uncertain_intensities_cost_key_in_the_plan_too() -> None:
    uncertain = changed(source={"mu_uncertainty": (0.02, 0.02)}).forecast()
    assert uncertain.result is not None
    assert uncertain.result.mu == Pair(0.5 * 0.98, 0.2 * 1.02)
    assert uncertain.secret_bits < 0.8 * LINK.forecast().secret_bits


def test_a_plan_charges_the_parities_of_both_sites_where_the_node_does() -> None:
    alone, both = (changed(reconciliation={"leak_count": name}).forecast() for name in ("alice", "both"))
    disclosed = alone.counts.reconciliation_leak_bits
    assert both.counts.reconciliation_leak_bits == pytest.approx(2 * disclosed, abs=1)
    assert both.counts.alice_parities == alone.counts.alice_parities
    assert both.result is not None
    assert alone.result is not None
    assert both.result.length == pytest.approx(alone.result.length - disclosed, abs=2)


def test_a_dark_link_is_refused() -> None:
    quiet = msgspec.structs.replace(TURIN.simulation.z_detector, dark_rate_hz=0.0, afterpulse_probability=0.0)
    settings_off = TURIN.simulation.settings_at(0.0)
    with pytest.raises(ValueError, match="no sifted bits"):
        forecast(
            msgspec.structs.replace(TURIN.simulation, z_detector=quiet),
            TURIN.link,
            settings=msgspec.structs.replace(settings_off, source_on=False),
        )


def test_the_reach_is_where_the_key_ends() -> None:
    reach = reach_db(TURIN.simulation, TURIN.link, 1.16)
    assert reach is not None
    assert forecast(at_loss(TURIN.simulation, reach), TURIN.link, 1.16).lost is None
    beyond = forecast(at_loss(TURIN.simulation, reach + 0.02), TURIN.link, 1.16)
    assert beyond.lost == Reason.KEY_LENGTH
    blind = msgspec.structs.replace(TURIN.simulation, visibility=0.0)
    assert reach_db(blind, TURIN.link, 1.16) is None


def test_the_reach_is_found_where_too_little_loss_gives_no_key() -> None:
    link = changed(block={"sifted_bits": 10_000_000})
    assert link.at("loss", 0.0).forecast().lost is not None
    assert link.at("loss", 10.8).forecast().lost is None
    reach = link.reach_db()
    assert reach is not None
    assert reach > 24.0


@settings(max_examples=30, deadline=None, derandomize=True)
@given(loss_db=st.floats(0.0, 30.0), more_db=st.floats(0.0, 10.0), more_f=st.floats(0.0, 0.3))
def test_more_loss_or_leak_never_gives_more_key(loss_db: float, more_db: float, more_f: float) -> None:
    here = LINK.at("loss", loss_db).forecast()
    assert LINK.at("loss", loss_db + more_db).forecast().secret_bits_per_s <= here.secret_bits_per_s + 0.01
    leaky = msgspec.structs.replace(LINK, f_ec=LINK.f_ec + more_f).at("loss", loss_db)
    assert leaky.forecast().secret_bits_per_s <= here.secret_bits_per_s


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    top=st.lists(st.floats(0.1, 0.9), min_size=1, max_size=4),
    widths=st.lists(st.floats(0.2, 3.0), min_size=4, max_size=4),
)
def test_the_search_climbs_a_hill_to_its_top(top: list[float], widths: list[float]) -> None:
    def hill(at: Sequence[float]) -> float:
        return 10.0 - sum(((a - t) / w) ** 2 for a, t, w in zip(at, top, widths[: len(top)], strict=True))

    found = maximise(hill, [Interval(0.0, 1.0)] * len(top), [0.5] * len(top), tolerance=1e-9)
    assert found.value == pytest.approx(10.0, abs=1e-4)
    assert found.evaluations <= 400 + len(top) + 2


def test_the_search_follows_a_curved_ridge_and_never_leaves_its_intervals() -> None:
    asked: list[tuple[float, ...]] = []

    def banana(at: Sequence[float]) -> float:
        asked.append(tuple(at))
        x, y = at
        return -((1.0 - x) ** 2) - 30.0 * (y - x * x) ** 2

    intervals = [Interval(-2.0, 2.0), Interval(-1.0, 3.0)]
    found = maximise(banana, intervals, [-1.2, 1.0], tolerance=1e-12, most_evaluations=2000)
    assert found.arguments == pytest.approx((1.0, 1.0), abs=1e-3)
    assert all(-2.0 < x < 2.0 and -1.0 < y < 3.0 for x, y in asked)


def test_a_start_outside_is_moved_inside_and_a_wall_of_minus_infinity_is_avoided() -> None:
    def wall(at: Sequence[float]) -> float:
        return -math.inf if at[0] > 0.7 else at[0]

    found = maximise(wall, [Interval(0.0, 1.0)], [-3.0], step=1.0, most_evaluations=300)
    assert 0.69 < found.arguments[0] <= 0.7


@pytest.mark.parametrize("loss_db", [10.8, 20.0])
def test_no_random_choice_of_parameters_beats_the_optimum(loss_db: float) -> None:
    link = LINK.at("loss", loss_db)
    best = link.optimum(ALICES)
    assert best.forecast.lost is None
    assert best.forecast.secret_bits_per_s > link.forecast().secret_bits_per_s
    chance = random.Random(5)
    for _ in range(150):
        mu1, p_1 = chance.uniform(0.02, 1.2), chance.uniform(0.02, 0.98)
        source = msgspec.structs.replace(
            link.link.source,
            mu=(mu1, mu1 * chance.uniform(0.02, 0.9)),
            p=(p_1, 1.0 - p_1),
            p_z=chance.uniform(0.05, 0.99),
        )
        other = msgspec.structs.replace(link.link, source=source)
        tried = forecast(link.simulation, other, link.f_ec)
        assert tried.secret_bits_per_s <= best.forecast.secret_bits_per_s


def test_only_what_is_free_is_chosen() -> None:
    best = LINK.optimum(["p_z"])
    source = best.link.source
    assert (source.mu, source.p) == (TURIN.link.source.mu, TURIN.link.source.p)
    assert best.link.receiver == TURIN.link.receiver
    assert source.p_z > TURIN.link.source.p_z
    one = LINK.optimum(["mu1"]).link.source
    assert one.mu[1] == TURIN.link.source.mu[1]
    split = LINK.optimum(["splitter"]).link
    assert split.source == TURIN.link.source
    with pytest.raises(ValueError, match="no parameter is free"):
        optimum(TURIN.simulation, TURIN.link, 1.16, ())


def test_the_optimum_keeps_uncertain_intensities_apart() -> None:
    uncertain = changed(source={"mu_uncertainty": (0.1, 0.1)})
    source = uncertain.optimum(ALICES).link.source
    assert source.mu[1] * 1.1 < source.mu[0] * 0.9


def test_a_search_from_the_neighbour_finds_what_a_search_from_afar_finds() -> None:
    here = LINK.optimum(ALICES)
    there = LINK.at("loss", 12.0)
    near, afar = there.optimum(ALICES, near=here.link), there.optimum(ALICES)
    assert near.forecast.secret_bits_per_s == pytest.approx(afar.forecast.secret_bits_per_s, rel=0.005)
    assert near.evaluations < 0.5 * afar.evaluations


def test_curves_ascend_and_end_where_no_choice_gives_key() -> None:
    points = curve(LINK, "loss", [0.0, 15.0, 24.0, 26.0, 45.0, 60.0], ALICES)
    assert [point.x for point in points] == [0.0, 15.0, 24.0, 26.0, 45.0, 60.0]
    now = [point.now.secret_bits_per_s for point in points]
    assert now == sorted(now, reverse=True)
    assert now[3] == 0.0
    reached = [point.best is not None for point in points]
    assert reached == [True, True, True, True, False, False]
    for point in points:
        if point.best is not None:
            assert point.best.forecast.secret_bits_per_s >= point.now.secret_bits_per_s


def test_larger_blocks_and_shorter_dead_times_give_more_key() -> None:
    axes: tuple[tuple[Against, int], ...] = (("block", 1), ("dead-time", -1))
    for against, better in axes:
        points = curve(LINK, against, places(LINK, against, 5), ())
        assert all(point.best is None for point in points)
        now = [point.now.secret_bits_per_s for point in points][::better]
        assert now == sorted(now)
        assert now[-1] > 2 * now[0]
    assert LINK.at("block", 3e6).forecast().counts.n_z.total == pytest.approx(3e6)


def test_places_are_round_and_reach_beyond_the_end_of_the_key() -> None:
    losses = places(LINK, "loss", 16)
    assert losses[0] == 0.0
    assert losses[1] in (2.0, 2.5)
    assert losses[-1] > (LINK.reach_db() or 0.0)
    lengths = places(LINK, "distance", 16)
    assert LINK.fibre.loss_db(lengths[-1]) > (LINK.reach_db() or 0.0)
    assert places(LINK, "block", 3) == pytest.approx([1e4, math.sqrt(1e4 * 5e7), 5e7])
    assert Fibre(db_per_km=0.2, excess_db=8.0).length_km(7.0) == 0.0
