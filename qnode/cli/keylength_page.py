"""The page of `qnode report keylength`: key length by estimator on a link, from the analytic model.

The page contains no measurement and does not depend on the machine. `tests/test_keylength_page.py` compares
it with the output of the command.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import msgspec.structs
from msgspec import Struct

from qnode.config import LinkParameters
from qnode.distill.counts import Pair
from qnode.distill.keylength import EstimatorInput, KeyLength, estimate
from qnode.loopback.markdown import table
from qnode.loopback.prepare import LoopbackConfig
from qnode.plan.forecast import Forecast, at_loss, forecast
from qnode.units import CHUNK_BITS

ATTENUATIONS_DB: Final = (5.5, 10.8, 13.5, 16.3, 19.0, 21.8, 25.0)
BLOCKS: Final = (100_000, 300_000, 1_000_000, 3_000_000, 10_000_000)
EPSILONS: Final = (1e-6, 1e-9, 1e-10, 1e-12, 1e-15)
UNCERTAINTIES: Final = (0.0, 0.005, 0.01, 0.02, 0.05)


class Variant(Struct, frozen=True):
    """One way to compute the key length."""

    title: str
    estimation: dict[str, str]


VARIANTS: Final = (
    Variant("rusca2018", {"estimator": "rusca2018", "x_mode": "visibility"}),
    Variant("eur hoeffding", {"estimator": "eur", "x_mode": "visibility", "statistics": "hoeffding"}),
    Variant("eur exact", {"estimator": "eur", "x_mode": "visibility", "statistics": "exact"}),
    Variant(
        "eur exact, shares",
        {"estimator": "eur", "x_mode": "visibility + asymmetry", "statistics": "exact"},
    ),
    Variant(
        "eur exact, joint",
        {
            "estimator": "eur",
            "x_mode": "visibility + asymmetry",
            "statistics": "exact",
            "asymmetry_bound": "joint",
        },
    ),
    Variant("wiesemann2024", {"estimator": "wiesemann2024", "x_mode": "visibility"}),
)
_BOUNDS: Final[tuple[tuple[str, Callable[[KeyLength], float]], ...]] = (
    ("n+_Z,1", lambda r: r.weighted.n_z.signal_upper),
    ("n-_Z,2", lambda r: r.weighted.n_z.decoy_lower),
    ("s_Z0 lower", lambda r: r.s_z0_lower),
    ("s_Z0 upper", lambda r: r.s_z0_upper),
    ("s_Z1 lower", lambda r: r.s_z1_lower),
    ("s_X0 upper", lambda r: r.s_x0_upper),
    ("s_X1 lower", lambda r: r.s_x1_lower),
    ("v_X1 upper", lambda r: r.v_x1_upper),
)
# The published example (formal-qkd, test/ExampleValuesSKL.lean) with its own figures, rule k2.
EXAMPLE: Final = EstimatorInput(
    n_z=Pair(8875913, 1124087),
    m_z=Pair(185856, 26055),
    n_x=Pair(165048, 20902),
    m_x=Pair(3456, 484),
    mu=Pair(0.51, 0.15),
    p=Pair(0.7, 0.3),
    eps_sec=1e-9,
    eps_cor=1e-15,
    lambda_ec=1776924,
    vacuum_rule="k2",
)
_EXAMPLE_PUBLISHED: Final = (
    21141564.8406, 4311213.0917, 0.0, 167020.1793, 5396516.2688, 6645.5231, 76462.2755, 5411.8126,
)  # fmt: skip


def keylength_page(config: LoopbackConfig, f_ec: float, command: str) -> str:
    """Return the page in Markdown."""
    estimation = config.link.estimation
    at = f"{config.simulation.attenuation_db:g} dB"
    block = f"{_fixed_bits(config.link):,} sifted bits"
    usual = f"f_EC {f_ec:g}, eps_sec {estimation.eps_sec:g}, eps_cor {estimation.eps_cor:g}"
    return "\n\n".join(
        [
            "# Key length by estimator",
            f"Made by `{command}` from the analytic link model; nothing here is measured. Do not edit.",
            "Each cell is the result of the node's own decision, without its limits, on one block of "
            "expected counts: secret bits of the block, and AES-256 keys a second. The parameters are those "
            "of the configuration. [Security](security.md) lists the assumptions of the estimators.",
            f"## Over attenuation\n\n{block}, {usual}.",
            _table("attenuation", {f"{db:g} dB": _loss(config, f_ec, db) for db in ATTENUATIONS_DB}),
            f"## Over the size of a block\n\n{at}, {usual}.",
            _table("sifted bits", {f"{bits:,}": _block(config, f_ec, bits) for bits in BLOCKS}),
            f"## Over eps_sec\n\n{at}, {block}, f_EC {f_ec:g}.",
            _table("eps_sec", {f"{eps:g}": _epsilon(config, f_ec, eps) for eps in EPSILONS}),
            "## Over the uncertainty of both intensities",
            f"{at}, {block}, {usual}. Each cell is the least key of the four corners.",
            _table("mu known within", {f"{off:.1%}": _uncertain(config, f_ec, off) for off in UNCERTAINTIES}),
            f"## The intermediate bounds\n\n{at}, {block}, {usual}.",
            _bounds_table([found.result for found in _forecasts(config, f_ec) if found.result is not None]),
            "## The published example",
            "formal-qkd computes this example by interval arithmetic, for `rusca2018` with vacuum rule k2.",
            _example_table(estimate(EXAMPLE, "rusca2018")) + "\n",
        ]
    )


def _variants(link: LinkParameters) -> list[LinkParameters]:
    replace = msgspec.structs.replace
    return [replace(link, estimation=replace(link.estimation, **each.estimation)) for each in VARIANTS]


def _forecasts(config: LoopbackConfig, f_ec: float) -> list[Forecast]:
    return [forecast(config.simulation, each, f_ec) for each in _variants(config.link)]


def _loss(config: LoopbackConfig, f_ec: float, loss_db: float) -> list[Forecast]:
    simulation = at_loss(config.simulation, loss_db)
    return _forecasts(msgspec.structs.replace(config, simulation=simulation), f_ec)


def _block(config: LoopbackConfig, f_ec: float, bits: int) -> list[Forecast]:
    return _forecasts(_with(config, "block", sifted_bits=bits, longest_s=86_400.0), f_ec)


def _epsilon(config: LoopbackConfig, f_ec: float, eps_sec: float) -> list[Forecast]:
    return _forecasts(_with(config, "estimation", eps_sec=eps_sec), f_ec)


def _uncertain(config: LoopbackConfig, f_ec: float, off: float) -> list[Forecast]:
    return _forecasts(_with(config, "source", mu_uncertainty=(off, off)), f_ec)


def _with(config: LoopbackConfig, part: str, **fields: Any) -> LoopbackConfig:
    replace = msgspec.structs.replace
    link = replace(config.link, **{part: replace(getattr(config.link, part), **fields)})
    return replace(config, link=link)


def _table(what: str, rows: Mapping[str, Sequence[Forecast]]) -> str:
    titles = [what, *(variant.title for variant in VARIANTS)]
    return table(titles, [[name, *map(_cell, row)] for name, row in rows.items()], words=())


def _cell(found: Forecast) -> str:
    length = found.result.length if found.result is not None else 0
    return f"{length:,} ({length / found.span_s / CHUNK_BITS:.2f}/s)" if length else "0"


def _bounds_table(results: Sequence[KeyLength]) -> str:
    rows = [[name, *(f"{value(result):,.1f}" for result in results)] for name, value in _BOUNDS]
    rows += [
        ["error rate v_X1 / s_X1", *(f"{result.error_rate_x1:.3%}" for result in results)],
        ["phi_Z upper", *(f"{result.phi_z_upper:.3%}" for result in results)],
        ["lambda_EC", *(f"{result.lambda_ec_bits:,.0f}" for result in results)],
        ["smoothing, amplification", *(f"{result.overhead_bits:.1f}" for result in results)],
        ["verification", *(f"{result.verification_bits:.1f}" for result in results)],
        ["key length", *(f"{result.length:,}" for result in results)],
    ]
    return table(["", *(variant.title for variant in VARIANTS)], rows, words=(0,))


def _example_table(result: KeyLength) -> str:
    rows = [
        [name, f"{value(result):.4f}", f"{published:.4f}"]
        for (name, value), published in zip(_BOUNDS, _EXAMPLE_PUBLISHED, strict=True)
    ]
    rows += [
        ["phi_Z upper", f"{result.phi_z_upper:.12f}", "0.079173659378"],
        ["key length before rounding down", f"{result.length_unfloored:.4f}", "1464719.0887"],
        ["key length", f"{result.length}", "1464719"],
    ]
    return table(["", "qnode", "published"], rows, words=(0,))


def _fixed_bits(link: LinkParameters) -> int:
    """Return the configured size of a block; the page's blocks are of a fixed size."""
    bits = link.block.sifted_bits
    return 1_000_000 if bits == "auto" else bits
