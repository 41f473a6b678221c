"""The page of `qnode report validity`: the claimed and the real failure probability of each bound."""

import math
from collections.abc import Sequence
from typing import Final

import msgspec.structs
import numpy as np

from qnode.bench.pooled_attack import attack
from qnode.bench.validity import (
    FAMILIES,
    Block,
    Check,
    joint_asymmetry,
    removed_reference,
    shares_asymmetry,
    validity,
)
from qnode.distill.counts import Pair
from qnode.loopback.markdown import table
from qnode.loopback.prepare import LoopbackConfig
from qnode.plan.forecast import forecast

EPSILONS: Final = (1e-10, 1e-15)
SEED: Final = 8
LOPSIDED_P_Z: Final = 0.95
ATTACKS: Final = tuple(
    (mu, p, n_z, damping)
    for mu, p in (
        (Pair(0.5, 0.2), Pair(0.7, 0.3)),
        (Pair(0.3, 0.1), Pair(0.7, 0.3)),
        (Pair(0.15, 0.05), Pair(0.6, 0.4)),
    )
    for n_z, damping in ((1e6, 0.06), (1e7, 0.12), (1e8, 0.06))
)
# One-sided events of `eur`: its own, and those that each bound on the asymmetry adds.
OWN_EVENTS: Final = 9
_ASYMMETRIES: Final = (
    ("removed reference", 6, removed_reference),
    ("joint", 6, joint_asymmetry),
    ("shares", 2, shares_asymmetry),
)


def validity_page(configs: Sequence[LoopbackConfig], command: str) -> str:
    """Return the page in Markdown: all bounds on the first link, the asymmetry on every one."""
    block = block_of(configs[0])
    parts = [
        "# Claimed and real failure probability of the bounds",
        f"Made by `{command}`; nothing here is measured, and every seed is fixed. Do not edit.",
        "Each bound of the estimators is a function of counts. It may lie on the wrong side of the true "
        "value with the epsilon of one event: (eps_sec/3)^2 / K with `eur`, K = 11. A plain Monte Carlo "
        "test cannot measure 1e-22. Here the counts are drawn from exponentially tilted distributions, in "
        "which failures are frequent, and the result is weighted back (`qnode/bench/large_deviations.py`; "
        "tests compare it with exact enumeration). The bounds are the node's own functions. The true values "
        "are computed independently (`qnode/bench/validity.py`).",
        "## The channels",
        _families_table(),
        "The channel fixes the clicks of each kind of light. The random quantities are the intensity of "
        "each click, the errors of empty qubits, the one-photon qubits in the sample, and the states that "
        "Alice sent. If Eve treats kinds of light unequally, these probabilities are unequal.",
    ]
    for eps_sec in EPSILONS:
        parts += [
            f"## eps_sec {eps_sec:g}\n\nLink `{configs[0].link.name}`, {block.n_z:,.0f} sifted bits.",
            _bounds_table(block, eps_sec),
        ]
    parts += [
        "A bound holds if the real probability is at most the claimed one (sampling error: 2 %, for a "
        "joint bound 8 %, for shares 20 %). Exact limits are tight where all probabilities are equal "
        "(share q, share s, sampling), and are loose elsewhere. The asymmetry by shares fails only if both "
        "of its limits have their worst value together, which is far less likely than either.",
        "The asymmetry here is that of all photon numbers together. The channel that treats one photon and "
        "several photons in opposite ways has no such asymmetry, while its one-photon part has 0.14. No "
        "row covers this, and it stays an assumption ([security](security.md)).",
        "## An attack that no bound on the pooled asymmetry detects",
        "Eve damps |-> towards |+> on single photons, and filters pairs of photons so that the "
        "asymmetry of all light together is zero again (`qnode/bench/pooled_attack.py` describes the "
        "attack; quantum mechanics allows it). The table uses expected counts, visibility 0.95 and eps_sec "
        "1e-10. The right key follows from the true one-photon share and phase error.",
        _attack_table(),
        "From blocks of 1e7 on, the claimed phase error lies below the true one. The key is then too long "
        "if the other bounds are tight. The same counts reveal the attack: rho of the signal and rho of "
        "the decoy differ, because their shares of pairs differ.",
        "## Why the bound `reference` was removed",
        "It allowed each of C_Z, E_same, E_plus, E_dark to deviate by "
        "sqrt(n ln(1/e)/2). This is right for a share of n events. But n itself is random, with variance n "
        "and not n/4. The table shows the eps_sec that holds on an honest channel: 2 sqrt(9 e + f) + "
        "eps_sec/3, where f is the real failure probability of the bound on the asymmetry.",
        _history_table(configs),
        _at_one_percent(block),
    ]
    return "\n\n".join(parts) + "\n"


def block_of(config: LoopbackConfig, p_z: float | None = None) -> Block:
    """Return the expected block of a link, with another ``p_z`` of Alice if one is given."""
    link = config.link
    if p_z is not None:
        link = msgspec.structs.replace(link, source=msgspec.structs.replace(link.source, p_z=p_z))
    counts = forecast(config.simulation, link).counts
    assert counts.n_z_plus is not None  # a forecast has all counts of protocol 2
    assert counts.boundary is not None
    x = counts.x
    return Block(
        n_z=counts.n_z.total,
        n_z_plus=counts.n_z_plus.total,
        c_z=x.c_z.total,
        boundary=counts.boundary,
        e_same=x.e_same.total,
        e_dark=x.e_dark.total,
        mu=Pair(*link.source.mu),
        p=Pair(*link.source.p),
        p_z=link.source.p_z,
    )


def _families_table() -> str:
    rows = []
    for family in FAMILIES:
        rho, t2 = (sum(part.share * getattr(part, name) for part in family.parts) for name in ("rho", "t2"))
        rows.append(
            [
                family.name,
                _percents(family.photons),
                _percents(family.wrong),
                f"{len(family.parts)}",
                f"{rho:.3f}",
                f"{t2:.3f}",
            ]
        )
    titles = ["channel", "clicks of 0, 1, 2, 3 photons", "X errors of each", "kinds of light", "rho", "t2"]
    return table(titles, rows, words=(0, 1, 2))


def _percents(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.1%}" for value in values)


def _bounds_table(block: Block, eps_sec: float) -> str:
    found = validity(block, _log_inverse(eps_sec, 2), SEED)
    bounds = list(dict.fromkeys(one.bound for one in found))
    cells = {(one.bound, one.family): one for one in found}
    rows = []
    for bound in bounds:
        claimed = cells[bound, FAMILIES[0].name].claimed
        real = [_power(cells[bound, family.name].real.probability) for family in FAMILIES]
        rows.append([bound, _power(claimed), *real])
    return table(["bound", "claimed", *(family.name for family in FAMILIES)], rows, words=(0,))


def _attack_table() -> str:
    rows = []
    for mu, p, n_z, damping in ATTACKS:
        found = attack(mu, p, n_z, damping)
        claimed, (signal, decoy, sigmas) = found.claimed, found.rho_by_intensity
        assert claimed.shares is not None  # the attack's counts have them
        rows.append(
            [
                f"{mu.signal:g}, {mu.decoy:g}",
                f"{n_z:.0e}",
                f"{damping:g}",
                f"{claimed.shares.rho:.3f}, {claimed.shares.t2:.3f}",
                f"{claimed.phi_z_upper:.2%}",
                f"{found.true_phase_error:.2%}",
                f"{claimed.length:,}",
                f"{max(0.0, found.true_bits):,.0f}",
                f"{signal:.3f}, {decoy:.3f} ({sigmas:.0f})",
            ]
        )
    titles = [
        "mu", "n_Z", "damping", "rho, t2", "phi claimed", "phi true", "key claimed", "key right",
        "rho of signal, decoy (standard deviations apart)",
    ]  # fmt: skip
    return table(titles, rows, words=(0,))


def _history_table(configs: Sequence[LoopbackConfig]) -> str:
    rows = []
    for config in configs:
        for p_z in (None, LOPSIDED_P_Z):
            block = block_of(config, p_z)
            for eps_sec in EPSILONS:
                row = [config.link.name, f"{block.p_z:g}", f"{eps_sec:g}"]
                rows.append(row + [_holding(block, eps_sec, *each) for each in _ASYMMETRIES])
    return table(["link", "p_Z", "claimed", *(name for name, _, _ in _ASYMMETRIES)], rows, words=(0,))


def _at_one_percent(block: Block) -> str:
    real = removed_reference(block, FAMILIES[0], -math.log(0.01), np.random.default_rng(SEED)).probability
    return (
        f"At e = 1 % the removed bound fails with {real:.2%}, while its six events claim 6 %. Deviations "
        "that add linearly hide the error at this e, so no plain Monte Carlo test revealed it."
    )


def _holding(block: Block, eps_sec: float, _name: str, events: int, fails_with: Check) -> str:
    log_inverse = _log_inverse(eps_sec, events)
    real = fails_with(block, FAMILIES[0], log_inverse, np.random.default_rng(SEED)).probability
    return f"{2 * math.sqrt(OWN_EVENTS * math.exp(-log_inverse) + real) + eps_sec / 3:.1e}"


def _log_inverse(eps_sec: float, asymmetry_events: int) -> float:
    """Return ln(1/e) of each event of `eur`."""
    return math.log(OWN_EVENTS + asymmetry_events) - 2.0 * math.log(eps_sec / 3.0)


def _power(probability: float) -> str:
    return f"10^{math.log10(probability):.1f}" if probability > 0.0 else "0"
