"""The figure of a curve, as PNG or SVG; needs the extra ``plots``."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from qnode.errors import ConfigError
from qnode.plan.answer import Answer, CurveFigures
from qnode.plan.curve import decades

SUFFIXES: Final = (".png", ".svg")
_TITLES: Final = {
    "loss": "attenuation (dB)",
    "distance": "fibre (km)",
    "block": "sifted bits of a block",
    "dead-time": "dead time (µs)",
}
# The same input gives the same bytes: no date, and identifiers that do not depend on the process.
SAME_BYTES: Final = {"svg.hashsalt": "qnode", "svg.fonttype": "path"}


def check_figure(path: Path) -> None:
    """Refuse a figure that cannot be written, before anything is computed.

    Raises:
        ConfigError: unknown suffix, no such folder, or matplotlib is not installed.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise ConfigError(f"{path}: expected a name that ends in {' or '.join(SUFFIXES)}")
    if not path.absolute().parent.is_dir():
        raise ConfigError(f"{path}: no such folder")
    _matplotlib()


def write_figure(path: Path, answer: Answer) -> None:
    """Draw the answer's curve, with a mark at the operating point, if it is on the axis.

    Raises:
        ConfigError: like `check_figure`.
        ValueError: the answer has no curve.
    """
    curve = answer.curve
    if curve is None:
        raise ValueError("an answer without a curve")
    save_figure(path, (7.0, 4.5), lambda figure: _draw(figure.add_subplot(), answer, curve))


def save_figure(path: Path, size_inches: tuple[float, float], draw: Callable[[Any], None]) -> None:
    """Let ``draw`` draw on a matplotlib figure, and write it to ``path``.

    Raises:
        ConfigError: like `check_figure`, or it cannot be written.
    """
    check_figure(path)
    matplotlib = _matplotlib()
    with matplotlib.rc_context(SAME_BYTES):
        from matplotlib.figure import Figure

        figure = Figure(figsize=size_inches, layout="constrained")
        draw(figure)
        metadata = {"Date": None} if path.suffix.lower() == ".svg" else None
        try:
            figure.savefig(path, dpi=150, metadata=metadata)
        except OSError as error:
            raise ConfigError(f"{path}: cannot be written: {error.strerror or error}") from None


def _draw(axes: Any, answer: Answer, curve: CurveFigures) -> None:
    axes.plot(curve.x, _positive(curve.now_secret_bits_per_s), marker=".", label="as configured")
    best = _positive([value or 0.0 for value in curve.best_secret_bits_per_s])
    if answer.chosen:
        label = f"best {', '.join(answer.chosen)}"
        axes.plot(curve.x, best, marker=".", linestyle="--", label=label)
    first = answer.losses[0]
    here = {"loss": first.loss_db, "distance": first.fibre_km, "block": first.now.sifted_bits}
    x = here.get(curve.against)
    if x is not None:
        axes.plot([x], _positive([first.now.secret_bits_per_s]), "o", color="C0")
        if first.best is not None:
            axes.plot([x], _positive([first.best.secret_bits_per_s]), "o", color="C1")
    axes.set_yscale("log")
    if decades(curve.x) > 2.0 and curve.against in ("block", "dead-time"):
        axes.set_xscale("log")
    axes.set_xlabel(_TITLES[curve.against])
    axes.set_ylabel("secret key (bit/s)")
    axes.set_title(f"{answer.link}: {answer.estimator}, {answer.x_mode}, $f_{{EC}}$ {answer.f_ec:g}")
    axes.grid(visible=True, which="both", alpha=0.3)
    axes.legend()


def _positive(values: list[float]) -> list[float]:
    """Return ``values`` with gaps where there is no key: a logarithmic axis has no zero."""
    return [value if value > 0.0 else float("nan") for value in values]


def _matplotlib() -> Any:
    try:
        import matplotlib
    except ImportError:
        raise ConfigError("figures need matplotlib: install the extra plots, qnode[plots]") from None
    return matplotlib
