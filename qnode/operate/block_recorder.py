"""Write down what a running node decides of its blocks, for as long as one wants to know."""

import time
from collections.abc import Callable
from pathlib import Path

from qnode.operate.block_table import BlockTable
from qnode.operate.blocks import KEPT_BLOCKS
from qnode.operate.client import NoAnswer, NodeNotRunning, ask_blocks

POLL_S = 1.0
PATIENCE_S = 2.0


class BlockPoll:
    """Appends to ``table`` what the node at ``socket`` has decided since it was asked last.

    ``tell`` hears why a node does not answer, and when it does again. Nothing is missed while the node keeps
    the blocks: its latest `KEPT_BLOCKS`, until it is started anew.
    """

    def __init__(self, socket: Path, table: BlockTable, tell: Callable[[str], None]) -> None:
        self._socket = socket
        self._table = table
        self._tell = tell
        self._trouble = ""
        self._asked_at = float("-inf")
        self.written = 0
        self.answered = False

    def now(self) -> None:
        """Ask.

        Raises:
            OSError: the table cannot be written.
        """
        self._asked_at = time.monotonic()
        try:
            blocks = ask_blocks(
                self._socket, KEPT_BLOCKS, after=self._table.last_block_id, patience_s=PATIENCE_S
            )
        except (NodeNotRunning, NoAnswer) as error:
            if str(error) != self._trouble:
                self._trouble = str(error)
                self._tell(f"{self._trouble}; trying again")
            return
        if self._trouble:
            self._trouble = ""
            self._tell(f"{self._socket}: answers")
        self.answered = True
        self._table.append(blocks)
        self.written += len(blocks)

    def now_and_then(self) -> None:
        """Ask if that was not done within the last second; raises as `now`."""
        if time.monotonic() - self._asked_at >= POLL_S:
            self.now()


def record_blocks(
    socket: Path,
    table: BlockTable,
    *,
    duration_s: float | None,
    wait: Callable[[float], bool],
    tell: Callable[[str], None],
) -> int | None:
    """Append each newly decided block to ``table``; return how many, None if the node never answered.

    Ends after ``duration_s`` seconds, or when ``wait(seconds)`` returns True; a node that does not answer is
    asked again.

    Raises:
        OSError: the table cannot be written.
    """
    ends = None if duration_s is None else time.monotonic() + duration_s
    poll = BlockPoll(socket, table, tell)
    while True:
        poll.now()
        pause_s = POLL_S if ends is None else min(POLL_S, ends - time.monotonic())
        if pause_s <= 0 or wait(pause_s):
            return poll.written if poll.answered else None
