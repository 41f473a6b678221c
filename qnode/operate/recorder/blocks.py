"""Records the decided blocks of a running node in a table."""

import time
from collections.abc import Callable
from pathlib import Path

from qnode.operate.blocks.row import KEPT_BLOCKS
from qnode.operate.blocks.table_file import BlockTable
from qnode.operate.control.client import NoAnswer, NodeNotRunning, ask_blocks

POLL_S = 1.0
PATIENCE_S = 2.0


def record_blocks(
    socket: Path,
    table: BlockTable,
    *,
    duration_s: float | None,
    wait: Callable[[float], bool],
    tell: Callable[[str], None],
    link: str = "",
) -> int | None:
    """Append each newly decided block to ``table``; return how many, None if the node never answered.

    ``link``: of a site with several; empty: of the first.

    Ends after ``duration_s`` seconds, or when ``wait(seconds)`` returns True. A node that does not answer is
    asked again, and ``tell`` gets the reason. No block is missed while the node keeps it: the node keeps its
    latest `KEPT_BLOCKS` until its restart.

    Raises:
        OSError: the table cannot be written.
    """
    ends = None if duration_s is None else time.monotonic() + duration_s
    written, answered, trouble = 0, False, ""
    while True:
        try:
            blocks = ask_blocks(
                socket, KEPT_BLOCKS, after=table.last_block_id, link=link, patience_s=PATIENCE_S
            )
        except (NodeNotRunning, NoAnswer) as error:
            if str(error) != trouble:
                trouble = str(error)
                tell(f"{trouble}; trying again")
        else:
            if trouble:
                trouble = ""
                tell(f"{socket}: answers")
            answered = True
            table.append(blocks)
            written += len(blocks)
        pause_s = POLL_S if ends is None else min(POLL_S, ends - time.monotonic())
        if pause_s <= 0 or wait(pause_s):
            return written if answered else None
