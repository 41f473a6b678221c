"""``python tests/tag_file_speed.py``: reading tag files beside other readers, and one larger than memory.

Every reader gives what ours gives: picoseconds and channel of each tag. Where its package gives less by
itself (ticks, overflows among the tags, patterns), that is a row of its own. Seconds are of the processor,
in all threads, of the best of three; files are in the page cache. Readers that are not installed are left
out (ptufile, tttrlib, fpfind, S15lib; nothing is installed here).
"""

import argparse
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from independent_readers import READERS

from qnode.tags.formats import TagFileBlock, open_tag_file, write_tag_file

TRIALS = 3
MOST_SLOW = 300_000  # tags that a reader in plain Python is given
SLOW = ("S15lib.instruments.usb_counter_fpga",)
MEGABYTE = 1 << 20
# Name, format, tags a second, sync period.
FILES = (
    ("PTU T2, 1 Mcps", "ptu", 1e6, None),
    ("PTU T2, 50 kcps", "ptu", 5e4, None),
    ("PTU T3, 1 Mcps, 80 MHz", "ptu", 1e6, 12_495.52),
    ("quTAG", "qutag", 1e6, None),
    ("S-Fifteen a1", "a1", 1e6, None),
    ("S-Fifteen TDC1", "tdc1", 1e6, None),
)


def made(folder: Path, number: int, n_tags: int) -> Path:
    """Write a file of random tags on four inputs."""
    _, name, rate_hz, period_ps = FILES[number]
    path = folder / f"{number}.{name}"
    random = np.random.default_rng(number)
    times = np.cumsum(random.exponential(1e12 / rate_hz, n_tags)).astype(np.int64)
    channels = random.integers(1, 5, n_tags).astype(np.int16)
    write_tag_file(path, [TagFileBlock(times, channels)], name, period_ps)
    return path


def best_s(work: Callable[[], object]) -> float:
    """Return the processor's seconds of the best trial."""
    seconds = []
    for _ in range(TRIALS):
        start = time.process_time()
        work()
        seconds.append(time.process_time() - start)
    return min(seconds)


def ours(path: Path, name: str) -> tuple[int, int]:
    """Read the whole file; return the number of tags and of records."""
    file = open_tag_file(path, name)
    n_tags = sum(block.times_ps.shape[0] for block in file.blocks())
    return n_tags, file.summary.records


def row(what: str, who: str, n_tags: int, n_records: int, seconds: float, our_rate: float) -> None:
    """Print a line of the table; ``our_rate``: tags a second."""
    rate = n_tags / seconds
    ratio = f"{our_rate / rate:8.1f}" if our_rate else ""
    figures = f"{rate / 1e6:9.1f} {n_records / seconds / 1e6:10.1f} {seconds / n_tags * 1e9:9.2f} {ratio}"
    print(f"{what:24} {who:34} {figures}", flush=True)


def compare(folder: Path, n_tags: int) -> None:
    """Print the table of speeds."""
    columns = f"{'Mtags/s':>9} {'Mrecords/s':>10} {'ns/tag':>9} {'ours is':>8} times as fast"
    print(f"{'file':24} {'reader':34} {columns}")
    for number, (what, name, _, _) in enumerate(FILES):
        path = made(folder, number, n_tags)
        ours(path, name)  # compiles
        _, n_records = ours(path, name)
        seconds = best_s(lambda path=path, name=name: ours(path, name))  # type: ignore[misc]
        our_rate = n_tags / seconds
        row(what, "qnode", n_tags, n_records, seconds, 0.0)
        for reader in READERS:
            library = reader.library() if name in reader.formats else None
            if library is None:
                continue
            n, place = n_tags, path
            if reader.package in SLOW and n > MOST_SLOW:
                n, place = MOST_SLOW, path.with_suffix(".part")
                place.write_bytes(path.read_bytes()[: 4 * MOST_SLOW])
            who = f"{reader.package.split('.')[0]} {reader.version()}"
            share = n / n_tags
            read_s = best_s(lambda: reader.read(library, place, name))  # noqa: B023 - called at once
            row("", who, n, round(n_records * share), read_s, our_rate)
            if reader.records is not None:
                records_s = best_s(lambda: reader.records(library, place))  # type: ignore[misc] # noqa: B023
                row("", f"{who}, its records", n, round(n_records * share), records_s, our_rate)
        path.unlink()


def read_large(folder: Path, gib: float) -> None:
    """Read files of so many GiB, mostly a hole, each in a process of its own; print its memory and speed."""
    columns = f"{'memory before, most (MiB)':>28} {'Mrecords/s':>11} {'GB/s':>6}"
    print(f"\n{f'file of {gib:g} GiB':24} {columns}")
    for number, (what, name, _, _) in enumerate(FILES):
        path = made(folder, number, 1_000)
        os.truncate(path, round(gib * (1 << 30)))
        process = os.fork()
        if process == 0:
            _measure(path, name, what)
            os._exit(0)
        _, status = os.waitpid(process, 0)
        path.unlink()
        if status:
            sys.exit(f"{what}: the reader ended with {status}")


def _measure(path: Path, name: str, what: str) -> None:
    def most_mib() -> float:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

    before = most_mib()
    start = time.process_time()
    _, n_records = ours(path, name)
    seconds = time.process_time() - start
    speed = f"{n_records / seconds / 1e6:11.1f} {path.stat().st_size / seconds / 1e9:6.2f}"
    print(f"{what:24} {before:21.0f} {most_mib():6.0f} {speed}", flush=True)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tags", type=int, default=20_000_000, help="tags in a file of the comparison")
    parser.add_argument("--gib", type=float, default=30.0, help="size of the large files; 0: none")
    parser.add_argument("--folder", type=Path, help="where the files are made (not in memory)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        compare(Path(folder), options.tags)
        if options.gib:
            read_large(Path(folder), options.gib)


if __name__ == "__main__":
    main()
