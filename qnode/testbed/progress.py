"""What a testbed tells while it runs: its stages, and figures, which stay in place on a terminal."""

import sys
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

import trio

if TYPE_CHECKING:
    from rich.live import Live

LINE_PERIOD_S: Final = 10.0
Figures = dict[str, str]


class Progress:
    """Writes to stderr, so that stdout stays free for the result."""

    def __init__(self, *, on_terminal: bool) -> None:
        self._live: Live | None = None
        if on_terminal:
            from rich import console
            from rich import live as rich_live

            view = console.Console(stderr=True)
            self._live = rich_live.Live(console=view, refresh_per_second=4, transient=True)
        self._said_s = -LINE_PERIOD_S

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def stage(self, text: str) -> None:
        """Tell that a stage begins."""
        if self._live is not None:
            self._live.console.print(text, highlight=False)
        else:
            print(text, file=sys.stderr, flush=True)

    def show(self, figures: Figures) -> None:
        """Show the present figures of a stage."""
        if self._live is not None:
            from rich.table import Table

            grid = Table.grid(padding=(0, 2))
            grid.add_column(style="bold")
            grid.add_column()
            for name, value in figures.items():
                grid.add_row(name, value)
            self._live.update(grid)
        elif trio.current_time() - self._said_s >= LINE_PERIOD_S:
            self._said_s = trio.current_time()
            line = ", ".join(f"{name} {value}" for name, value in figures.items())
            print(f"  {line}", file=sys.stderr, flush=True)
