"""What tests of tag files compare."""

import numpy as np

from qnode.tags.formats import TagFile, TagFileBlock


def read(file: TagFile, most_records: int = 1 << 20) -> TagFileBlock:
    """Return all tags and markers of a file as one block."""
    blocks = list(file.blocks(most_records))
    return TagFileBlock(
        np.concatenate([np.empty(0, np.int64), *(block.times_ps for block in blocks)]),
        np.concatenate([np.empty(0, np.int16), *(block.channels for block in blocks)]),
        np.concatenate([np.empty(0, np.int64), *(block.marker_times_ps for block in blocks)]),
        np.concatenate([np.empty(0, np.int16), *(block.marker_numbers for block in blocks)]),
    )


def tags_of(block: TagFileBlock) -> list[tuple[int, int]]:
    return list(zip(block.times_ps.tolist(), block.channels.tolist(), strict=True))


def markers_of(block: TagFileBlock) -> list[tuple[int, int]]:
    return list(zip(block.marker_times_ps.tolist(), block.marker_numbers.tolist(), strict=True))
