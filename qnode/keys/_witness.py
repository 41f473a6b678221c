"""A witness: a copy of the anchor on another machine, which a snapshot of this one does not set back.

It follows the store by a second or so, so what it finds out it cannot mend exactly: a store older than its
witness is voided and waits for the peer, who skips the pads that may have been under way.
"""

from pathlib import Path

from qnode.errors import StoreUnusable
from qnode.keys._anchor import Anchor
from qnode.keys._database import Lineage
from qnode.keys._model import Positions


class Witness:
    """The file at `path`, opened anew each time: what it lies on may come and go."""

    def __init__(self, path: Path, store_key: bytes, store_id: bytes) -> None:
        self._path = path
        self._store_key = store_key
        self._store_id = store_id

    def later_than(self, own: Positions, lineage: Lineage) -> Positions | None:
        """Return what the witness knows, if the store is not what it goes on from.

        Raises OSError where the file cannot be reached; StoreUnusable when it is of another store.
        """
        known = Anchor.open(self._path, self._store_key, self._store_id)
        if known is None:
            return None
        known.close()
        goes_on = (
            known.lineage in (lineage.own, lineage.before) and own.generation >= known.positions.generation
        )
        return None if goes_on else known.positions

    def follow(self, own: Positions, lineage: Lineage) -> None:
        """Write down how far the store is.

        Raises StoreUnusable when it is not what the witness goes on from: this machine was set back while the
        store was open. Raises OSError as `later_than`.
        """
        known = Anchor.open(self._path, self._store_key, self._store_id)
        if known is None:
            Anchor.create(self._path, self._store_key, self._store_id, own, lineage.own).close()
            return
        try:
            if known.positions.generation > own.generation:
                raise StoreUnusable(
                    f"{self._path}: the witness knows a later state: this machine was set back; start again"
                )
            if known.positions.generation < own.generation:
                known.advance(own, lineage.own)
        finally:
            known.close()

    def replace(self, own: Positions, lineage: Lineage) -> None:
        """Begin anew with a store that has given up what the witness knew more of. Raises OSError."""
        Anchor.create(self._path, self._store_key, self._store_id, own, lineage.own).close()
