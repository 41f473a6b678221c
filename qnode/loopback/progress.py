"""The progress of a running link for people: blocks, error rates, key rate, delivered keys."""

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from qnode.loopback.result import LinkResult
from qnode.operate.status.model import NodeStatus
from qnode.operate.status.troubles import why_no_key


def progress_line(result: LinkResult, bob: NodeStatus) -> str:
    """Return the progress in one line, for logs."""
    filled = f"{bob.block.filled:.0%}" if bob.block.filled is not None else bob.quantum.lock.state
    parts = [
        f"{result.simulated_s:.0f} s simulated",
        f"block {bob.block.current or '-'} {filled}",
        f"accepted {result.blocks_accepted}",
        f"discarded {sum(result.blocks_discarded.values())}",
        f"QBER {_percent(result.qber_z)}",
        f"{result.secret_bits_per_simulated_s:.0f} secret bit/s",
        f"keys {result.keys_compared} compared, {result.keys_different} different",
    ]
    return ", ".join(parts)


def progress_view(result: LinkResult, bob: NodeStatus) -> RenderableType:
    """Return the progress for a terminal."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold")
    grid.add_column()
    quantum, block = bob.quantum, bob.block
    rates = quantum.click_rates_hz
    grid.add_row(
        "quantum",
        f"{quantum.lock.state}   "
        + (f"clicks Z {rates['z']:.0f}/s  X {rates['x']:.0f}/s" if rates else "clicks unknown")
        + f"   clock {quantum.clock_offset_ppm or 0:+.3f} ppm",
    )
    filled = Table.grid(padding=(0, 1))
    filled.add_row(f"#{block.current or '-'}", ProgressBar(100, 100 * (block.filled or 0.0), width=32))
    grid.add_row("block", filled)
    discarded = ", ".join(f"{reason} {n}" for reason, n in result.blocks_discarded.items()) or "none"
    grid.add_row("blocks", f"{result.blocks_accepted} accepted, discarded: {discarded}")
    grid.add_row(
        "errors",
        f"QBER Z {_percent(result.qber_z)}   e_vis {_percent(result.e_vis)}"
        f"   phase error up to {_percent(result.phase_error_upper)}",
    )
    grid.add_row(
        "key",
        f"{result.secret_bits_per_simulated_s:.0f} secret bit per simulated second"
        f" = {result.secret_bits_per_simulated_s / 256:.2f} AES-256 keys/s",
    )
    grid.add_row("store", f"{bob.keys.available_own} + {bob.keys.available_peer} keys ready at Bob")
    grid.add_row(
        "encryptors",
        f"{result.keys_compared} keys compared from both ends, {result.keys_different} different",
    )
    grid.add_row(
        "time", f"{result.simulated_s:.0f} s simulated in {result.wall_s:.0f} s"
        f" ({result.simulated_s_per_wall_s:.0f} times real time)"
    )  # fmt: skip
    missing = why_no_key(bob)
    notes = [Text(f"no key: {missing}", style="yellow")] if missing else []
    title = Text("SIMULATED LINK: these keys protect nothing", style="bold red")
    return Group(title, grid, *notes)


def _percent(fraction: float | None) -> str:
    return "-" if fraction is None else f"{100 * fraction:.2f} %"
