"""The account of the tags at both ends of a device's port."""

from pathlib import Path

import numpy as np
from storm_ledger import Account, LedgerWriter, account

Piece = tuple[int, int, int]  # first tag, tags, lost before them


def accounted(folder: Path, *pieces: Piece) -> Account:
    """Return the account of a device that counted 100 tags, and of a driver that yielded ``pieces``."""
    times = np.arange(100, dtype=np.int64) * 10**7
    channels = (times // 10**7 % 2).astype(np.int8)
    device, driver = LedgerWriter(folder / "device"), LedgerWriter(folder / "driver")
    for first in range(0, 100, 25):
        device.write(7, times[first : first + 25], channels[first : first + 25], 10**6, uncounted=3)
    for first, tags, lost in pieces:
        driver.write(7, times[first : first + tags], channels[first : first + tags], lost)
    return account([folder / "device"], folder / "driver")


def test_each_click_is_received_or_lost_or_came_after_the_end(tmp_path: Path) -> None:
    found = accounted(tmp_path, (0, 40, 0), (50, 20, 10))
    assert found.wrong == []
    assert (found.clicks, found.not_counted) == (112, 12)
    assert (found.received, found.lost, found.after_end, found.openings) == (60, 10, 30, 1)


def test_a_tag_that_came_twice_is_found(tmp_path: Path) -> None:
    assert "from 40 on" in accounted(tmp_path, (0, 40, 0), (39, 20, 0)).wrong[0]


def test_a_tag_that_was_lost_uncounted_is_found(tmp_path: Path) -> None:
    assert "from 49 on" in accounted(tmp_path, (0, 40, 0), (50, 20, 9)).wrong[0]


def test_more_tags_than_the_device_has_counted_are_found(tmp_path: Path) -> None:
    assert accounted(tmp_path, (0, 100, 0), (0, 5, 0)).wrong
    assert accounted(tmp_path, (0, 100, 5)).wrong


def test_a_record_cut_by_the_end_of_its_process_is_left_out(tmp_path: Path) -> None:
    accounted(tmp_path, (0, 40, 0))
    device = tmp_path / "device"
    device.write_bytes(device.read_bytes()[:-1])
    assert account([device], tmp_path / "driver").clicks == 84
