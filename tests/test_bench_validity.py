"""No bound fails more often than it claims at 1e-10 and 1e-15, and a bound that does is seen to."""

import math
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from qnode.bench import validity
from qnode.bench.validity import FAMILIES, Block, Found, removed_reference
from qnode.cli.loopback import load_loopback
from qnode.cli.report import report
from qnode.cli.validity_page import block_of
from qnode.distill.counts import Pair
from qnode.distill.keylength.shares import odds_lower
from qnode.loopback.prepare import LoopbackConfig

ROOT = Path(__file__).parent.parent
TURIN, FAST = (load_loopback(ROOT / "config" / name) for name in ("turin.toml", "fast.toml"))
# A block of another size and choice of bases than the page's.
SMALL = Block(
    n_z=60_000,
    n_z_plus=15_000,
    c_z=20_000,
    boundary=42_000,
    e_same=9_000,
    e_dark=250,
    mu=Pair(0.4, 0.1),
    p=Pair(0.6, 0.4),
    p_z=0.8,
)


def log_inverse(eps_sec: float, events: int) -> float:
    return math.log(events) + 2 * math.log(3 / eps_sec)


@pytest.mark.parametrize("eps_sec", [1e-10, 1e-15])
def test_every_bound_holds_at_its_real_epsilon_for_every_channel(eps_sec: float) -> None:
    found = validity.validity(SMALL, log_inverse(eps_sec, 11), 3)
    assert len(found) == 11 * len(FAMILIES)
    for one in found:
        assert one.real.probability <= one.claimed * (1 + 5 * one.real.relative_error), one
        assert one.real.relative_error < 0.5, one
    # Exact limits are tight where all chances are equal, so that a weaker one would be seen.
    tight = [one for one in found if one.bound in ("share q", "share s", "sampling")]
    honest = [one for one in tight if one.family == "honest"]
    assert all(one.real.probability > 0.3 * one.claimed for one in honest)


def test_a_limit_that_fails_three_times_as_often_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(validity, "odds_lower", lambda x, n, log: odds_lower(x, n, log - math.log(3)))
    by_name = {(one.bound, one.family): one for one in validity.validity(SMALL, log_inverse(1e-10, 11), 3)}
    broken: Found = by_name["share q", "honest"]
    assert broken.real.probability > 2 * broken.claimed
    assert by_name["sampling", "honest"].real.probability <= broken.claimed


@pytest.mark.parametrize(
    ("config", "p_z", "eps_sec", "holds"),
    [
        (TURIN, None, 1e-10, 1.2e-8),
        (TURIN, None, 1e-15, 4.5e-12),
        (FAST, None, 1e-10, 1.7e-8),
        (FAST, 0.95, 1e-10, 1.4e-7),
    ],
    ids=["Turin", "Turin, 1e-15", "fast", "fast, p_Z 0.95"],
)
def test_the_removed_bound_claims_too_much(
    config: LoopbackConfig, p_z: float | None, eps_sec: float, holds: float
) -> None:
    block = block_of(config, p_z)
    log = log_inverse(eps_sec, 15)
    real = removed_reference(block, FAMILIES[0], log, np.random.default_rng(1))
    found = 2 * math.sqrt(9 * math.exp(-log) + real.probability) + eps_sec / 3
    assert found == pytest.approx(holds, rel=0.1)


def test_the_page_in_docs_is_what_the_command_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    page = tmp_path / "validity.md"
    result = CliRunner().invoke(report, ["validity", "--output", str(page)], standalone_mode=False)
    assert result.return_value == 0, result.output
    assert page.read_text() == (ROOT / "docs" / "validity.md").read_text()
