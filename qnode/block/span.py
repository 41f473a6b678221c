"""The slots of a block."""

from dataclasses import dataclass


@dataclass(frozen=True)
class BlockSpan:
    """The slots of a block: ``first_slot`` to ``first_slot + n_slots - 1`` of an emission run."""

    run_id: int
    first_slot: int
    n_slots: int

    @property
    def end_slot(self) -> int:
        """The first slot after the block."""
        return self.first_slot + self.n_slots
