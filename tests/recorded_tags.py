"""``python tests/recorded_tags.py FOLDER``: recorded tag files, counted and beside independent readers.

Each file of a known name has the counts that are known of it, and every file agrees tag by tag with those
readers that are installed (ptufile, tttrlib, fpfind, S15lib; nothing is installed here). It ends with 1 if
something differs.
"""

import sys
from pathlib import Path

import numpy as np
from independent_readers import READERS

from qnode.errors import ConfigError
from qnode.tags.formats import open_tag_file

# Records, wraps and tags.
KNOWN = {
    "19_qutag_80MHz_HBT_sync_filtered.qutag": (267_801, 0, 267_801),
    "200204_HH400_T2_320MHz_HBT.timeres": (409_482, 25_463, 384_019),
    "200213_HH400_T3_80MHz_HBT.timeres": (561_879, 165_553, 396_326),
    "timestamp7_c1234.Aa1.ts": (2_000, 0, 2_012),
    **{f"timestamp7_c14_rollover.A{form}.ts": (1_000, 138, 862) for form in ("a0f", "a1fX", "a2f")},
}
MOST_APART_PS = 1  # of T3: another reader's arithmetic may round a half the other way


def main(folder: Path) -> int:
    """Compare every file in the folder; return the number of differences."""
    n_wrong = n_files = 0
    for path in sorted(folder.iterdir()):
        try:
            file = open_tag_file(path)
        except ConfigError as error:
            print(f"{path.name}: not read: {error}")
            continue
        n_files += 1
        blocks = list(file.blocks())
        times = np.concatenate([block.times_ps for block in blocks])
        channels = np.concatenate([block.channels for block in blocks])
        summary = file.summary
        counts = {
            int(n): int(count) for n, count in zip(*np.unique(channels, return_counts=True), strict=True)
        }
        print(
            f"{path.name}\n  {file.format} {file.device}: {summary.records:,} records, "
            f"{times.shape[0]:,} tags {counts}, {summary.wraps:,} wraps, markers {summary.markers}, "
            f"{int(times.max() - times.min()):,} ps, {int((np.diff(times) < 0).sum()):,} steps back"
        )
        if summary.truncated:
            print(f"  {summary.truncated}")
        if path.name in KNOWN:
            is_right = (summary.records, summary.wraps, times.shape[0]) == KNOWN[path.name]
            n_wrong += not is_right
            print(f"  counts {'as known' if is_right else f'WRONG, known are {KNOWN[path.name]}'}")
        for reader in READERS:
            if file.format not in reader.formats:
                continue
            library = reader.library()
            if library is None:
                print(f"  {reader.package}: not installed")
                continue
            their_times, their_channels = reader.read(library, path, file.format)
            is_equal = times.shape == their_times.shape and bool((channels == their_channels).all())
            apart = int(np.abs(times - their_times).max()) if is_equal else -1
            n_unequal = int((times != their_times).sum()) if is_equal else -1
            is_equal &= apart <= (MOST_APART_PS if summary.wraps and file.unit_ps > 1 else 0)
            n_wrong += not is_equal
            print(
                f"  {reader.package} {reader.version()}: "
                + (f"{times.shape[0]:,} tags equal, {n_unequal} by {apart} ps" if is_equal else "DIFFERS")
            )
    if not n_files:
        print(f"{folder}: no tag files")
    return n_wrong + (n_files == 0)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    sys.exit(min(1, main(Path(sys.argv[1]))))
