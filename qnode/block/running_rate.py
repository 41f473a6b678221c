"""The running rate of clicks, which determines the span of the next block."""

import math

from qnode.block.decision import MOST_ANNOUNCED_CLICKS
from qnode.block.span_policy import BlockRates, choose_span_s
from qnode.config import LinkParameters

# After this many Z clicks the running rate is accurate enough to choose a span.
CLICKS_FOR_RATE = 2_000
# The window of the running rate in Z clicks.
RATE_WINDOW_CLICKS = 500_000
# A rate that keeps the expected clicks of a block below what can be sifted.
MOST_EXPECTED_CLICKS = 0.9 * MOST_ANNOUNCED_CLICKS


class RunningRate:
    """Clicks and sifted bits per slot, from the clicks accepted so far; older ones lose weight."""

    def __init__(self, p_z: float) -> None:
        self._p_z = p_z
        self._clicks = 0.0
        self._z_clicks = 0.0
        self._slots = 0.0
        self._run_id: int | None = None
        self._reached_slot = 0

    def begin_session(self) -> None:
        """Ignore the slots since the last announcement: their clicks were not announced."""
        self._run_id = None

    def add(self, run_id: int, reached_slot: int, *, cut_slots: int, clicks: int, z_clicks: int) -> None:
        """Add the clicks of an emission run since the last call, all up to ``reached_slot``.

        ``z_clicks``: of the ``clicks``, those of the Z arm; ``cut_slots``: slots that passed without lock.
        """
        passed = reached_slot - self._reached_slot - cut_slots
        same_run = self._run_id == run_id
        self._run_id, self._reached_slot = run_id, reached_slot
        if not same_run or passed <= 0:
            return
        self._clicks += clicks
        self._z_clicks += z_clicks
        self._slots += passed
        if self._z_clicks > RATE_WINDOW_CLICKS:
            self._clicks /= 2
            self._z_clicks /= 2
            self._slots /= 2

    @property
    def known(self) -> bool:
        """Whether the rate is accurate enough to choose a span."""
        return self._z_clicks >= CLICKS_FOR_RATE

    @property
    def sifted_per_slot(self) -> float:
        """Sifted bits per slot: Alice sent Z in a share p_Z of the slots in which Bob's Z arm clicked."""
        return self._p_z * self._z_clicks / self._slots if self._slots else 0.0

    def span_slots(self, link: LinkParameters, recent: BlockRates | None) -> int:
        """Return the number of slots of the next block; may take milliseconds (``sifted_bits = "auto"``).

        It follows from the span policy at the running rate, limited by the number of clicks that can be
        sifted. ``recent``: the rates of the latest blocks.
        """
        rate_hz = link.source.qubit_rate_hz
        span_s = choose_span_s(link, self.sifted_per_slot * rate_hz, recent)
        most = MOST_EXPECTED_CLICKS * self._slots / self._clicks if self._clicks else math.inf
        return max(1, round(min(span_s * rate_hz, most)))
