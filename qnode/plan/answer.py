"""The answer of `qnode plan`: figures of operating points and curves, as one value for text and JSON."""

from collections.abc import Collection, Sequence

import msgspec.structs
from msgspec import Struct

from qnode.config import LinkParameters, SourceParameters
from qnode.plan.curve import Against, CurvePoint, Link, curve
from qnode.plan.forecast import Forecast
from qnode.plan.optimum import Free
from qnode.units import CHUNK_BITS


class PointFigures(Struct, frozen=True, kw_only=True):
    """One operating point: parameters, expected block, key; ``saturation``: S tau of the detectors Z, X."""

    mu: tuple[float, float]
    p: tuple[float, float]
    p_z: float
    splitter: float
    sifted_bits: int
    block_s: float
    sifted_bits_per_s: float
    secret_bits: int
    secret_bits_per_s: float
    keys_per_s: float
    qber_z: float
    e_vis: float | None
    phi_z_upper: float
    saturation: tuple[float, float]
    no_key_because: str | None


class LossFigures(Struct, frozen=True, kw_only=True):
    """One attenuation: as configured, and at the best parameters (None: not requested, or none gives key)."""

    loss_db: float
    fibre_km: float | None
    now: PointFigures
    best: PointFigures | None


class CurveFigures(Struct, frozen=True, kw_only=True):
    """A curve: secret bits a second at each ``x`` (dB, km, sifted bits, microseconds)."""

    against: Against
    x: list[float]
    now_secret_bits_per_s: list[float]
    best_secret_bits_per_s: list[float | None]


class UncertaintyCost(Struct, frozen=True, kw_only=True):
    """The cost of intensities that are known within intervals only, at the first attenuation.

    ``mu_uncertainty``: of signal and decoy, as fractions. ``share_of_key``: of the secret bits with exact
    intensities; None where there are none. ``configured``: whether the link itself has intervals; otherwise
    this is the cost of the shipped uncertainty.
    """

    mu_uncertainty: tuple[float, float]
    share_of_key: float | None
    configured: bool


class Answer(Struct, frozen=True, kw_only=True):
    """The whole answer. ``reach_db``: the largest attenuation with key as configured."""

    link: str
    estimator: str
    x_mode: str
    eps_sec: float
    f_ec: float
    chosen: list[Free]
    losses: list[LossFigures]
    reach_db: float | None
    uncertainty: UncertaintyCost
    curve: CurveFigures | None
    assumptions: list[str]


def answer(
    link: Link,
    losses_db: Sequence[float],
    free: Collection[Free],
    *,
    by_length: bool,
    against: Against | None = None,
    at: Sequence[float] = (),
) -> Answer:
    """Compute all figures; with ``by_length`` each attenuation is also given as a length of fibre.

    Raises:
        ValueError: a link without any clicks, or an attenuation that no link has.
    """
    losses = [_loss(link.at("loss", loss_db), free, by_length) for loss_db in losses_db]
    first = link.at("loss", losses_db[0])
    points = [] if against is None else curve(first, against, at, free)
    estimation, result = link.link.estimation, first.forecast().result
    return Answer(
        link=link.link.name,
        estimator=estimation.estimator,
        x_mode=estimation.x_mode,
        eps_sec=estimation.eps_sec,
        f_ec=link.f_ec,
        chosen=list(free),
        losses=losses,
        reach_db=link.reach_db(),
        uncertainty=_uncertainty(first),
        curve=None if against is None else _curve(against, points),
        assumptions=[] if result is None else list(result.assumptions.values()),
    )


def _uncertainty(link: Link) -> UncertaintyCost:
    configured = link.link.source.mu_uncertainty != (0.0, 0.0)
    off = link.link.source.mu_uncertainty if configured else SourceParameters().mu_uncertainty
    exact, known = (_with_uncertainty(link, one).forecast().secret_bits for one in ((0.0, 0.0), off))
    return UncertaintyCost(
        mu_uncertainty=off, share_of_key=1.0 - known / exact if exact else None, configured=configured
    )


def _with_uncertainty(link: Link, off: tuple[float, float]) -> Link:
    source = msgspec.structs.replace(link.link.source, mu_uncertainty=off)
    return msgspec.structs.replace(link, link=msgspec.structs.replace(link.link, source=source))


def _loss(link: Link, free: Collection[Free], by_length: bool) -> LossFigures:
    best = link.optimum(free) if free else None
    loss_db = link.simulation.attenuation_db
    found = best is not None and best.forecast.lost is None
    return LossFigures(
        loss_db=loss_db,
        fibre_km=link.fibre.length_km(loss_db) if by_length else None,
        now=figures(link.link, link.forecast()),
        best=figures(best.link, best.forecast) if best is not None and found else None,
    )


def figures(link: LinkParameters, forecast: Forecast) -> PointFigures:
    """Return the figures of one operating point."""
    source = link.source
    return PointFigures(
        mu=source.mu,
        p=source.p,
        p_z=source.p_z,
        splitter=link.receiver.p_z,
        sifted_bits=round(forecast.counts.n_z.total),
        block_s=forecast.span_s,
        sifted_bits_per_s=forecast.sifted_bits_per_s,
        secret_bits=forecast.secret_bits,
        secret_bits_per_s=forecast.secret_bits_per_s,
        keys_per_s=forecast.secret_bits_per_s / CHUNK_BITS,
        qber_z=forecast.rates.qber_z,
        e_vis=forecast.e_vis,
        phi_z_upper=0.5 if forecast.result is None else forecast.result.phi_z_upper,
        saturation=(forecast.rates.z_detector.saturation, forecast.rates.x_detector.saturation),
        no_key_because=forecast.why_no_key,
    )


def _curve(against: Against, points: Sequence[CurvePoint]) -> CurveFigures:
    return CurveFigures(
        against=against,
        x=[point.x for point in points],
        now_secret_bits_per_s=[point.now.secret_bits_per_s for point in points],
        best_secret_bits_per_s=[
            None if point.best is None else point.best.forecast.secret_bits_per_s for point in points
        ],
    )
