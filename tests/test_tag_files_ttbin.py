"""Swabian's files are read by the maker's package: here a stand-in with its documented calls."""

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from qnode_drivers.tag_file import TagFileTdc, TdcConfig
from tag_files_support import read, tags_of

from qnode.devices.tag_channels import TagChannels
from qnode.errors import ConfigError
from qnode.tags.formats import open_tag_file

CONFIGURATION = {"hardware": "Time Tagger Ultra", "serial": "1234", "channels": {"trigger": 0.5}, "some": [1]}
# Time, channel, type (0: a tag, 1 to 3: errors and overflows, 4: missed events), missed events.
EVENTS = [
    (5, 1, 0, 0),
    (7, -2, 0, 0),
    (8, 0, 2, 0),
    (9, 1, 4, 300),
    (9, 0, 3, 0),
    (10**17, 18, 0, 0),
    (4, 1, 4, 7),
]


class Events:
    def __init__(self, events: list[tuple[int, int, int, int]]) -> None:
        self._columns = list(zip(*events, strict=True)) or [()] * 4

    def getTimestamps(self) -> "np.ndarray[Any, Any]":  # noqa: N802
        return np.array(self._columns[0], np.int64)

    def getChannels(self) -> "np.ndarray[Any, Any]":  # noqa: N802
        return np.array(self._columns[1], np.int32)

    def getEventTypes(self) -> "np.ndarray[Any, Any]":  # noqa: N802
        return np.array(self._columns[2], np.uint8)

    def getMissedEvents(self) -> "np.ndarray[Any, Any]":  # noqa: N802
        return np.array(self._columns[3], np.uint16)


class FileReader:
    """As the package does, it opens a damaged file as one of no tags and no configuration."""

    def __init__(self, path: str) -> None:
        self._content = Path(path).read_text()
        self._left = [*EVENTS] if self._content == "tags" else []
        self._is_asked = False

    def getConfiguration(self) -> dict[str, Any]:  # noqa: N802
        return CONFIGURATION if self._content == "tags" else json.loads("")

    def hasData(self) -> bool:  # noqa: N802
        return bool(self._left) or not self._is_asked

    def getData(self, n_events: int) -> Events:  # noqa: N802
        self._is_asked = True
        given, self._left = self._left[:n_events], self._left[n_events:]
        return Events(given)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "tags.ttbin"
    path.write_text("tags")
    return path


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> None:
    library: Any = ModuleType("Swabian.TimeTagger")
    library.FileReader = FileReader
    monkeypatch.setitem(sys.modules, "Swabian", ModuleType("Swabian"))
    monkeypatch.setitem(sys.modules, "Swabian.TimeTagger", library)


@pytest.mark.usefixtures("package")
@pytest.mark.parametrize("most_records", [1, 3, 100])
def test_tags_of_both_edges_are_read_and_missed_events_are_counted(path: Path, most_records: int) -> None:
    file = open_tag_file(path)
    assert tags_of(read(file, most_records)) == [(5, 1), (7, -2), (10**17, 18)]
    assert (file.format, file.device, file.facts["serial"]) == ("ttbin", "Time Tagger Ultra 1234", "1234")
    assert (file.summary.records, file.summary.lost, file.facts["trigger"]) == (7, 307, 0.5)


@pytest.mark.usefixtures("package")
@pytest.mark.parametrize("most_tags", [1, 100])
async def test_the_driver_tells_each_loss_once_also_after_the_last_tag(
    path: Path, monkeypatch: pytest.MonkeyPatch, most_tags: int
) -> None:
    monkeypatch.setattr("qnode_drivers.tag_file.MOST_TAGS", most_tags)
    monkeypatch.setattr("qnode.tags.file_tags._RECORDS_AT_ONCE", 1)
    config = TdcConfig(file=path, channels=TagChannels(z=1, x=18), began_at_s=0.0)
    async with TagFileTdc.open(config) as tdc:
        blocks = [block async for block in tdc.tags()]
    assert [block.times_ps.tolist() for block in blocks if block.times_ps.size] == [[0], [10**17 - 5]]
    assert sum(block.lost for block in blocks) == 307


@pytest.mark.usefixtures("package")
@pytest.mark.parametrize("most_records", [1, 3, 100])
def test_the_reading_ends_at_an_error_in_the_stream_of_the_device(
    path: Path, most_records: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules[__name__], "EVENTS", [*EVENTS[:5], (9, 0, 1, 0), *EVENTS[5:]])
    file = open_tag_file(path)
    assert tags_of(read(file, most_records)) == [(5, 1), (7, -2)]
    assert (file.summary.records, file.summary.lost) == (5, 300)
    assert file.summary.truncated == "record 5 is an error in the device's stream, at which its time jumps"


@pytest.mark.usefixtures("package")
def test_what_the_package_cannot_read_further_is_read_up_to_there(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    get_data = FileReader.getData

    def until_damage(reader: FileReader, n_events: int) -> Events:
        if len(reader._left) < 6:
            raise RuntimeError("checksum is wrong")
        return get_data(reader, n_events)

    monkeypatch.setattr(FileReader, "getData", until_damage)
    file = open_tag_file(path)
    assert tags_of(read(file, 2)) == [(5, 1), (7, -2)]
    assert file.summary.truncated == "Swabian's package reads no further than record 2: checksum is wrong"


@pytest.mark.usefixtures("package")
def test_a_damaged_file_is_refused(path: Path) -> None:
    path.write_text("else")
    with pytest.raises(ConfigError, match=r"package cannot read it as \.ttbin"):
        open_tag_file(path)


def test_without_the_package_the_error_says_what_to_install(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "Swabian", None)
    with pytest.raises(ConfigError, match=r"pip install 'qnode\[swabian\]'"):
        open_tag_file(path)
