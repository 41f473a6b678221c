"""A witness: a copy of the anchor on another machine, which a snapshot of this machine does not set back.

It follows the store within about a second, so it does not know the exact progress. A store older than its
witness is voided and waits for the peer, which skips the pads that may have been in transit.
"""

from pathlib import Path

from qnode.audit.entries import Head
from qnode.errors import StoreUnusable
from qnode.keys._anchor import Anchor
from qnode.keys._database import Lineage
from qnode.keys._model import Positions


class Witness:
    """The file at `path`, opened for each access: its mount may come and go."""

    def __init__(self, path: Path, store_key: bytes, store_id: bytes) -> None:
        self._path = path
        self._store_key = store_key
        self._store_id = store_id

    def later_than(self, own: Positions, lineage: Lineage) -> tuple[Positions, Head | None] | None:
        """Return positions and head of the audit of the witness, if the store does not continue from them.

        Raises OSError if the file is not reachable; StoreUnusable if it belongs to another store.
        """
        known = Anchor.open(self._path, self._store_key, self._store_id)
        if known is None:
            return None
        known.close()
        goes_on = (
            known.lineage in (lineage.own, lineage.before) and own.generation >= known.positions.generation
        )
        return None if goes_on else (known.positions, known.audit)

    def follow(self, own: Positions, lineage: Lineage, audit: Head) -> None:
        """Record the progress of the store.

        Raises StoreUnusable if the store does not continue from the witness: this machine was set back while
        the store was open. Raises OSError like `later_than`.
        """
        known = Anchor.open(self._path, self._store_key, self._store_id)
        if known is None:
            Anchor.create(self._path, self._store_key, self._store_id, own, lineage.own, audit).close()
            return
        try:
            if known.positions.generation > own.generation:
                raise StoreUnusable(
                    f"{self._path}: the witness knows a later state: this machine was set back; start again"
                )
            if known.positions.generation < own.generation:
                known.advance(own, lineage.own, audit)
        finally:
            known.close()

    def replace(self, own: Positions, lineage: Lineage, audit: Head) -> None:
        """Start again with a store that has voided the later state of the witness. Raises OSError."""
        Anchor.create(self._path, self._store_key, self._store_id, own, lineage.own, audit).close()
