"""The page of `qnode report plausibility`: all checks, their false alarms, wrong intensities."""

import math
from collections.abc import Callable, Sequence
from typing import Final

import msgspec.structs
import numpy as np

from qnode.bench.drawn_blocks import DrawnLink
from qnode.bench.intensities import excess, lengths, outcome, threshold, with_decoy
from qnode.config import EstimationParameters, LinkParameters
from qnode.distill.block_counts import BlockCounts
from qnode.distill.check_table import CHECKS
from qnode.distill.estimation import visibility_error
from qnode.distill.plausibility import SIDES, YEAR_S, chance_of_false_alarm, examine
from qnode.distill.plausibility.chance import standard_deviations
from qnode.loopback.markdown import NOTHING, table
from qnode.loopback.prepare import LoopbackConfig
from qnode.plan.forecast import forecast

SEED: Final = 12
TRIED_CHANCE: Final = 1e-3
BLOCKS_AT_A_THRESHOLD: Final = 400
BLOCKS_OF_A_FAULT: Final = 50
OFF: Final = (0.0025, 0.005, 0.01, 0.02, 0.03, 0.05)
UNCERTAINTIES: Final = (0.0, 0.005, 0.01, 0.02, 0.03)

_HOW = (
    "An estimator assumes that its counts are true. Before the estimator, the node compares every block with "
    "the limits of physics and of the link's parameters. Each check below measures one value of the block's "
    "public record and compares it with two limits. The limits follow from the parameters in the link's file "
    "and from chance; observations never move them. The first value outside its limits discards the block at "
    "both sites. The check is then the reason in `qnodectl blocks` and in the metric "
    "`qkd_blocks_discarded_total`, and the alarm is `counts.implausible`. Its text states the value, the "
    "limits and the possible causes. `qnodectl checks` shows all checks of the last block, `qnodectl blocks "
    "--csv` those of every block, and Prometheus gets `qkd_check_value` with `qkd_check_limit`."
)
_TOLERANCES = (
    "`[link.plausibility]` sets the tolerances of optics and electronics, equal at both sites: "
    "`least_error_z` and `least_error_x` (no modulator and no interferometer is better), "
    "`balance_tolerance` (of rho and t2 around one half), `arm_ratio`, `late_tolerance`, "
    "`cross_click_factor`, `out_of_gate`, `drift` (of a click rate within a block), and "
    "`link.receiver.dead_time_s`. The shipped `arm_ratio` and `out_of_gate` are wide, because they depend on "
    "the detectors. Set them after measuring the link."
)


def plausibility_page(
    configs: Sequence[LoopbackConfig], blocks: int, command: str, tell: Callable[[str], None]
) -> str:
    """Return the page in Markdown; wrong intensities are tried on the first link."""
    parts = [
        "# Plausibility of the counts of a block",
        f"Made by `{command}`; every seed is fixed. Do not edit.",
        _HOW,
        "## The checks",
        _checks_table(),
        _TOLERANCES,
        "A block with a peer of protocol 1 has the counts for some checks only: no rho, no t2, and no counts "
        "of tags.",
        "## False alarms",
        "All checks together give `false_alarms_per_year` false alarms at an honest link, 1 as shipped. "
        f"Each of their {SIDES} sides gets an equal part of the probability of a false alarm in a block:",
        _chances_table(configs),
        f"For the next table each side of each check has a probability of {TRIED_CHANCE:g}, and {blocks:,} "
        "honest blocks are drawn around the analytic model. The table shows the share of blocks beyond "
        "either limit. A check with a tolerance beyond chance shows none. Each check is therefore repeated "
        "without tolerances, with its limits at the expectation of the link. Two sides then give at most "
        "twice the probability. Counts with less than random variation, because of dead time or a fixed sum, "
        "give less.",
        _tails_table(configs, blocks, tell),
    ]
    parts += _intensities(configs[0], tell)
    return "\n\n".join(parts) + "\n"


def _checks_table() -> str:
    rows = [[check.name, check.what, check.low or "(no limit)", check.high] for check in CHECKS]
    return table(
        ["check", "measures", "possible causes if too low", "possible causes if too high"],
        rows,
        words=(0, 1, 2, 3),
    )


def _chances_table(configs: Sequence[LoopbackConfig]) -> str:
    rows = []
    for config in configs:
        span_s = forecast(config.simulation, config.link).span_s
        chance = chance_of_false_alarm(config.link, span_s)
        rows.append(
            [
                config.link.name,
                f"{span_s:.3g} s",
                f"{YEAR_S / span_s:,.0f}",
                f"{chance:.1e}",
                f"{standard_deviations(chance):.2f}",
            ]
        )
    return table(
        ["link", "block", "blocks a year", "probability of a side", "standard deviations"], rows, words=(0,)
    )


def _tails_table(configs: Sequence[LoopbackConfig], blocks: int, tell: Callable[[str], None]) -> str:
    columns = [_tails(config, blocks, tell) for config in configs]
    rows = []
    for check in CHECKS:
        cells = [f"`{check.name}`"]
        for tried, bare, real in columns:
            if check.name not in tried or check.name in _NOT_DRAWN:
                cells += [NOTHING] * 3
            else:
                beyond = bare.get(check.name)
                cells += [
                    _rate(tried[check.name], blocks),
                    NOTHING if beyond is None else _rate(beyond, blocks),
                ]
                cells.append(str(real[check.name]))
        rows.append(cells)
    titles = ["check"]
    for config in configs:
        name = config.link.name
        titles += [f"{name}: at {TRIED_CHANCE:g} a side", "no tolerance", "blocks at the real rate"]
    return table(titles, rows, words=(0,))


def _rate(beyond: int, blocks: int) -> str:
    return f"{beyond / blocks:.1e}" if beyond else "0"


def _tails(
    config: LoopbackConfig, blocks: int, tell: Callable[[str], None]
) -> tuple[dict[str, int], dict[str, int], dict[str, int]]:
    """Count blocks beyond a limit: at the tested probability, without tolerances, at the real probability."""
    link = DrawnLink(config.link, config.simulation)
    without = _without_tolerance(config.link, link.expected())
    counted: tuple[dict[str, int], dict[str, int], dict[str, int]] = ({}, {}, {})
    judges = ((config.link, TRIED_CHANCE), (without, TRIED_CHANCE), (config.link, None))
    for number, counts in enumerate(link.blocks(blocks, np.random.default_rng(SEED)), 1):
        for beyond, (judge, chance) in zip(counted, judges, strict=True):
            for found in examine(counts, judge, chance):
                beyond[found.check] = beyond.get(found.check, 0) + (not found.plausible)
        if number % 10_000 == 0:
            tell(f"{config.link.name}: {number:,} of {blocks:,} blocks")
    for name in _ALWAYS_TOLERANT:
        counted[1].pop(name, None)
    return counted


# An honest receiver never violates its dead time. The model has no second click of a detector in a slot.
_NOT_DRAWN: Final = ("dead_time", "double_clicks")
# Their limits are not tolerances around an expectation: no link can exceed them, or they are always wide.
_ALWAYS_TOLERANT: Final = (
    "boundary_error", "boundary_plus", "boundary_same", "errors_z", "errors_x", "yield_z", "double_clicks",
    "dead_time", "occupancy",
)  # fmt: skip


def _without_tolerance(link: LinkParameters, expected: BlockCounts) -> LinkParameters:
    """Return the link with the limits of each check at the expected values."""
    replace = msgspec.structs.replace
    tags = expected.tags
    assert tags is not None
    z, x = sum(tags.z_clicks), sum(tags.x_clicks)
    e_vis = visibility_error(expected.x, link.source.p_z)
    assert e_vis is not None
    outside = tags.out_of_gate / (z + x + tags.cross_clicks + tags.out_of_gate)
    plausibility = replace(
        link.plausibility,
        least_error_z=expected.qber_z,
        least_error_x=e_vis,
        balance_tolerance=0.0,
        late_tolerance=0.0,
        cross_click_factor=1.0,
        drift=0.0,
        arm_ratio=(x / z, x / z),
        out_of_gate=(outside, outside),
    )
    source = replace(link.source, mu_uncertainty=(0.0, 0.0))
    return replace(link, plausibility=plausibility, source=source)


def _intensities(config: LoopbackConfig, tell: Callable[[str], None]) -> list[str]:
    config = msgspec.structs.replace(
        config, link=msgspec.structs.replace(config.link, estimation=EstimationParameters())
    )
    link = config.link
    mu2 = link.source.mu[1]
    tell(f"{link.name}: wrong intensities")
    return [
        "## Wrong intensities",
        f"Here the transmitter of `{link.name}` sends a decoy that differs from the {mu2:g} of the link's "
        "file. Noise cancels in n - 2 m, so each block measures mu2 / mu1 to a fraction of a per cent. With "
        "a decoy three standard deviations beyond the threshold, this check discards nearly every block. "
        "With a decoy three standard deviations below it, nearly no block is discarded.",
        _thresholds_table(config),
        f"Each row has {BLOCKS_AT_A_THRESHOLD} blocks per decoy. The next table shows larger faults, with "
        f"{BLOCKS_OF_A_FAULT} blocks each:",
        _faults_table(link, config),
        "Below the threshold the key is too long, because the estimator assumes wrong intensities. The table "
        "shows the excess in per cent of the right length (shipped estimator). The rows are the error of the "
        "decoy (the worse of brighter and weaker), the columns the allowance by `mu_uncertainty`:",
        _excess_table(link, config),
        "The checks cannot detect a common scale of both intensities, because it looks like less loss. If "
        f"both are 5 % brighter, the key is {_scaled(link, config, 1.05)} too long with exact intensities. "
        "The calibration of the intensities to `mu_uncertainty` is an assumption. A power monitor at the "
        "source can verify it.",
    ]


def _with_uncertainty(link: LinkParameters, off: float) -> LinkParameters:
    source = msgspec.structs.replace(link.source, mu_uncertainty=(off, off))
    return msgspec.structs.replace(link, source=source)


def _thresholds_table(config: LoopbackConfig) -> str:
    rows = []
    for off in (0.0, 0.01):
        link = _with_uncertainty(config.link, off)
        for brighter in (True, False):
            found = threshold(link, config.simulation, brighter=brighter)
            cells = [f"{off:.1%}", f"{found.decoy:.4f} ({found.decoy / link.source.mu[1] - 1.0:+.2%})"]
            cells.append(f"{found.deviation / link.source.mu[1]:.2%}")
            for steps in (3.0, -3.0):
                decoy = found.decoy + steps * found.deviation * (1.0 if brighter else -1.0)
                seen = outcome(link, with_decoy(link, decoy), config.simulation, BLOCKS_AT_A_THRESHOLD)
                cells.append(f"{seen.by_check} of {seen.blocks}")
            rows.append(cells)
    titles = [
        "mu known within", "threshold of the decoy", "one standard deviation",
        "discarded three above", "discarded three below",
    ]  # fmt: skip
    return table(titles, rows, words=(0,))


def _faults_table(link: LinkParameters, config: LoopbackConfig) -> str:
    mu1, mu2 = link.source.mu
    faults = {
        f"decoy {1.5 * mu2:.3g}": with_decoy(link, 1.5 * mu2),
        f"decoy {2.0 * mu2:.3g}": with_decoy(link, 2.0 * mu2),
        "swapped": with_decoy(link, mu1, mu2),
    }
    for off in (0.05, 0.1, 0.2):
        faults[f"decoy {off:+.0%}"] = with_decoy(link, mu2 * (1.0 + off))
        faults[f"decoy {-off:+.0%}"] = with_decoy(link, mu2 * (1.0 - off))
    rows = []
    for name, sent in faults.items():
        seen = outcome(link, sent, config.simulation, BLOCKS_OF_A_FAULT)
        reasons = ", ".join(f"{count} {reason}" for reason, count in seen.reasons.items())
        rows.append([name, f"{seen.without_key} of {seen.blocks}", reasons])
    return table(["sent", "discarded", "for"], rows, words=(0, 2))


def _excess_table(link: LinkParameters, config: LoopbackConfig) -> str:
    rows = []
    for off in OFF:
        cells = [f"{off:.2%}"]
        for allowed in UNCERTAINTIES:
            judge = _with_uncertainty(link, allowed)
            worst = max(
                excess(
                    *lengths(
                        judge, with_decoy(link, link.source.mu[1] * (1.0 + sign * off)), config.simulation
                    )
                )
                for sign in (1.0, -1.0)
            )
            cells.append("0" if worst == 0.0 else f"{worst:.1%}")
        rows.append(cells)
    return table(["decoy off by", *(f"allowed {allowed:.1%}" for allowed in UNCERTAINTIES)], rows, words=())


def _scaled(link: LinkParameters, config: LoopbackConfig, by: float) -> str:
    mu1, mu2 = link.source.mu
    claimed, right = lengths(link, with_decoy(link, mu2 * by, mu1 * by), config.simulation)
    off = excess(claimed, right)
    return "infinitely" if math.isinf(off) else f"{off:.1%}"
