import numpy as np
import pytest

from qnode.config import ReceiverParameters, SourceParameters
from qnode.tags.acceptance import GateTable
from qnode.tags.gates import acceptance, gates, leak


def test_gates_at_800_ps_lie_where_the_light_arrives() -> None:
    placed = gates(SourceParameters(), ReceiverParameters())
    assert placed.early.centre_ps == 0.0
    assert placed.late.centre_ps == placed.central.centre_ps == 800.0
    assert placed.boundary.centre_ps == pytest.approx(-33.333, abs=0.001)
    assert placed.boundary.arrivals_ps == pytest.approx((0.0, -66.667), abs=0.001)
    assert placed.skew_ps == pytest.approx(-33.333, abs=0.001)


@pytest.mark.parametrize("jitter", [20.0, 92.0, 130.0])
@pytest.mark.parametrize("spacing", [800.0, 833.3333333, 850.0])
def test_boundary_and_central_gates_accept_the_same_fraction(jitter: float, spacing: float) -> None:
    placed = gates(SourceParameters(bin_spacing_ps=spacing), ReceiverParameters(jitter_ps=jitter))
    assert acceptance(placed.boundary, jitter) == pytest.approx(acceptance(placed.central, jitter), abs=1e-12)
    rng = np.random.default_rng(1)
    arrivals = rng.choice(placed.boundary.arrivals_ps, 200_000) + rng.normal(0, jitter, 200_000)
    inside = np.abs(arrivals - placed.boundary.centre_ps) < placed.boundary.half_width_ps
    assert inside.mean() == pytest.approx(acceptance(placed.boundary, jitter), abs=3e-3)


def test_acceptance_and_leak_are_those_of_the_security_model() -> None:
    for jitter, accepted, leaked in ((100.0, 0.954, 1e-9), (130.0, 0.876, 2e-6)):
        placed = gates(SourceParameters(), ReceiverParameters(jitter_ps=jitter))
        assert acceptance(placed.early, jitter) == pytest.approx(accepted, abs=1e-3)
        assert leak(placed.late, placed.early.arrivals_ps, jitter) == pytest.approx(leaked, rel=0.3)


def test_an_even_spacing_needs_no_wider_boundary_gate() -> None:
    placed = gates(SourceParameters(bin_spacing_ps=1e12 / 1.2e9), ReceiverParameters())
    assert placed.boundary.half_width_ps == pytest.approx(placed.central.half_width_ps)
    assert placed.skew_ps == pytest.approx(0.0, abs=1e-9)


def test_gates_that_would_reach_into_the_next_bin_are_refused() -> None:
    with pytest.raises(ValueError, match=r"link\.source\.bin_spacing_ps"):
        gates(SourceParameters(bin_spacing_ps=550.0), ReceiverParameters())


def test_edges_belong_to_one_side_only() -> None:
    gate = gates(SourceParameters(), ReceiverParameters()).early
    assert gate.accepts(-200.0)
    assert not gate.accepts(200.0)


def test_on_the_comb_of_ticks_the_z_bins_lie_symmetrically() -> None:
    table = GateTable.of(gates(SourceParameters(), ReceiverParameters()))
    assert table.centres_ps == pytest.approx([16.667, -16.667, -16.667, -16.667], abs=0.001)
