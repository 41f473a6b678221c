"""What masters with a limit have had lately, in the store: one count for the node and all front ends.

A master has ``paid_until``, a time of the server's clock: each key moves it on by its share of a minute. It
may be at most a minute ahead. A clock that jumps back leaves it at most a minute ahead as well.
"""

from collections.abc import Iterable

from qnode.keys._tx import Tx

WINDOW_S = 60.0


class Rates:
    """The counts of some masters, locked in the open transaction."""

    def __init__(self, tx: Tx, sae_ids: Iterable[str]) -> None:
        self._tx = tx
        self._paid_until_s: dict[str, float] = {}
        self._changed: set[str] = set()
        self._now_s = 0.0
        for sae_id in sorted(set(sae_ids)):  # in one order, so that no two transactions wait for each other
            tx.connection.execute(
                "INSERT INTO sae_rate (sae_id, paid_until) VALUES (?, 0) ON CONFLICT (sae_id) DO NOTHING",
                (sae_id,),
            )
            row = tx.connection.execute(
                "SELECT paid_until, extract(epoch FROM clock_timestamp())::double precision FROM sae_rate "
                "WHERE sae_id = ? FOR UPDATE",
                (sae_id,),
            ).fetchone()
            self._now_s = row[1]
            self._paid_until_s[sae_id] = min(max(row[0], self._now_s), self._now_s + WINDOW_S)

    def wait_s(self, sae_id: str, number: int, keys_per_minute: int) -> float:
        """Return how long a master must wait for so many keys; 0 if it may have them now."""
        cost_s = number * WINDOW_S / keys_per_minute
        wait_s = self._paid_until_s[sae_id] + cost_s - self._now_s - WINDOW_S
        return wait_s if wait_s > 1e-6 else 0.0

    def spend(self, sae_id: str, number: int, keys_per_minute: int) -> None:
        """Count keys; a negative number gives them back."""
        self._paid_until_s[sae_id] += number * WINDOW_S / keys_per_minute
        self._changed.add(sae_id)

    def write_down(self) -> None:
        """Store the counts."""
        for sae_id in sorted(self._changed):
            self._tx.connection.execute(
                "UPDATE sae_rate SET paid_until = ? WHERE sae_id = ?", (self._paid_until_s[sae_id], sae_id)
            )
