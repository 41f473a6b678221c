"""The page of `qnodectl align`, for the person at the bench: live rates, visibility, folded histograms."""

from collections.abc import Sequence

from qnode.operate.events.line import printable
from qnode.operate.status.model import NodeStatus
from qnode.operate.status.screen import age, si

ROWS = 6
BAR = "#"


def bench_lines(status: NodeStatus) -> list[str]:
    """Return the page for one link; the histograms are known at Bob's site."""
    quantum = status.quantum
    lines = [
        f"{printable(status.site.kme_id)}  {printable(status.site.link)}  "
        f"{quantum.lock.state} for {age(quantum.lock.since, status.at)}"
        + (f": {printable(quantum.lock.because)}" if quantum.lock.because else "")
    ]
    rates = "   ".join(f"{arm.upper()} {si(rate_hz)}cps" for arm, rate_hz in quantum.click_rates_hz.items())
    residual = quantum.phase_residual_ps
    lines.append(
        "  "
        + "   ".join(
            part
            for part in (
                rates or "no rates without lock",
                "" if quantum.folded is None else _percent("outside the gates", quantum.folded.out_of_gate),
                "" if residual is None else f"clock ±{residual:.0f} ps",
                "" if quantum.vector_strength is None else f"sharpness {quantum.vector_strength:.2f}",
            )
            if part
        )
    )
    if quantum.folded is not None:
        lines.append("  " + _percent("visibility now", quantum.folded.visibility))
    lines.append(f"  last block: {_percent('QBER Z', quantum.qber_z)}   {_percent('e_vis', quantum.e_vis)}")
    if quantum.folded is None:
        where = "Bob's site has the histograms" if status.site.role == "alice" else "no clock to fold by"
        return [*lines, f"  {where}"]
    lines += ["", *histogram("Z arm, half a slot: early and late together", quantum.folded.z_bins)]
    return [*lines, "", *histogram("X arm, a slot: boundary | central", quantum.folded.x_bins)]


def histogram(title: str, bins: Sequence[int]) -> list[str]:
    """Draw a histogram in `ROWS` lines under its title."""
    most = max(bins, default=0)
    heights = [round(ROWS * n / most) if most else 0 for n in bins]
    rows = ["".join(BAR if height >= row else " " for height in heights) for row in range(ROWS, 0, -1)]
    return [f"  {title}; highest {most:,}", *(f"  |{row}|" for row in rows), "  +" + "-" * len(bins) + "+"]


def _percent(name: str, fraction: float | None) -> str:
    return f"{name} ?" if fraction is None else f"{name} {100.0 * fraction:.1f} %"
