"""When the initiator begins a change of key: period, volume, few stored keys, failures. Pure."""

import math
from dataclasses import dataclass, field

FEW_KEYS = 8
FIRST_PAUSE_S = 1.0


@dataclass
class Schedule:
    """All times in seconds of one monotonic clock.

    The rule while few keys are stored: with ``n`` keys at the key manager, fewer than `FEW_KEYS`, the period
    is multiplied by ``FEW_KEYS / n``, up to half of ``longest_s``. So the changes follow the rate at which
    keys come, and some keys stay for a change that is asked for. Volume asks for none meanwhile.
    """

    period_s: float
    longest_s: float
    started_at: float
    changed_at: float = field(default=-math.inf, init=False)
    _asked_at: float | None = field(default=None, init=False)
    _surprises: int = field(default=0, init=False)
    _pause_s: float = field(default=0.0, init=False)
    _not_before: float = field(default=-math.inf, init=False)
    _stored: int | None = field(default=None, init=False)
    _next_look: float = field(default=-math.inf, init=False)

    def __post_init__(self) -> None:
        self._asked_at = self.started_at

    def changed(self, now: float) -> None:
        """A change is done."""
        if self._asked_at is None:
            self._surprises = 0
        self.changed_at, self._asked_at, self._pause_s = now, None, 0.0
        self._not_before = self._next_look = -math.inf

    def ask(self, now: float, *, surprised: bool = False) -> None:
        """Make a change due at once, but not before the pause after a failure has passed.

        ``surprised``: the ends or their encryptors use another key than was agreed. If that comes again and
        again, changes would only use up keys: 1 s after the last one, twice as long each time, at most a
        period.
        """
        if self._asked_at is not None:
            return
        self._asked_at = now
        if surprised:
            pause_s = min(FIRST_PAUSE_S * 2.0 ** min(self._surprises, 32), self.period_s)
            self._not_before = max(self._not_before, self.changed_at + pause_s)
            self._surprises += 1

    def failed(self, now: float, wish_s: float | None = None) -> None:
        """A change failed: pause 1 s, twice as long each time, at most a period.

        ``wish_s``: how long the key manager asks to wait; also at most a period.
        """
        self._pause_s = min(max(FIRST_PAUSE_S, 2 * self._pause_s), self.period_s)
        self._not_before = now + max(self._pause_s, min(wish_s or 0.0, self.period_s))

    def looked(self, now: float, stored: int | None) -> None:
        """The key manager has ``stored`` keys for this pair; None: it did not say."""
        self._stored = stored
        self._next_look = now + self.period_s

    @property
    def stored(self) -> int | None:
        """Keys at the key manager when it was last asked."""
        return self._stored

    @property
    def few(self) -> bool:
        """Whether few keys were stored when the key manager was last asked."""
        return self._stored is not None and self._stored < FEW_KEYS

    @property
    def stretched_period_s(self) -> float:
        """The period by the rule for few keys."""
        if self._stored is None or not self.few:
            return self.period_s
        longest = max(self.period_s, self.longest_s / 2)
        return min(self.period_s * FEW_KEYS / max(1, self._stored), longest)

    def look_at(self) -> float:
        """Return when to ask the key manager for its stock: before a change, and again every period."""
        if self._asked_at is not None:
            return self._not_before
        again = min(self._next_look, self.changed_at + self.stretched_period_s)
        return max(self.changed_at + self.period_s, again, self._not_before)

    def due_at(self) -> float:
        """Return when the next change is due, without the pause after a failure."""
        if self._asked_at is not None:
            return self._asked_at
        return self.changed_at + self.stretched_period_s

    def begin_at(self) -> float:
        """Return when the next change is to be begun."""
        return max(self.due_at(), self._not_before)
