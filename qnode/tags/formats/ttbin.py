"""Swabian Instruments' ``.ttbin``, read by the maker's package (extra ``swabian``); the format is its own.

A falling edge of input n has the channel -n. The package reads all files of a sequence one after the other.
What its files say of tags that the device lost is counted. An error in the device's stream ends the reading.
"""

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np

from qnode.errors import ConfigError
from qnode.tags.formats.model import TagFile, TagFileBlock, TagFileSummary

_TAG: Final = 0  # the type of an event that is a tag
_ERROR: Final = 1
_MISSED: Final = 4
_DEVICE_KEYS: Final = ("hardware", "model", "serial")


def open_ttbin(path: Path) -> TagFile:
    """Return the reader of a ``.ttbin`` file."""
    try:
        library: Any = importlib.import_module("Swabian.TimeTagger")
    except ImportError as error:
        raise ConfigError(
            f"{path}: only Swabian's package reads .ttbin: pip install 'qnode[swabian]' ({error})"
        ) from None
    facts = _facts(path, library)

    def read(most_records: int, summary: TagFileSummary) -> Iterator[TagFileBlock]:
        reader = library.FileReader(str(path))
        while not summary.truncated:
            try:
                if not reader.hasData():
                    return
                events = reader.getData(most_records)
            except (RuntimeError, ValueError) as error:
                summary.truncated = (
                    f"Swabian's package reads no further than record {summary.records}: {error}"
                )
                return
            kinds = np.asarray(events.getEventTypes())
            if not kinds.shape[0]:
                return
            if (kinds == _ERROR).any():
                kinds = kinds[: int(np.argmax(kinds == _ERROR))]
                summary.truncated = (
                    f"record {summary.records + kinds.shape[0]} is an error in the device's stream, at which "
                    "its time jumps"
                )
            n = kinds.shape[0]
            summary.records += n
            summary.lost += int(
                np.asarray(events.getMissedEvents())[:n][kinds == _MISSED].sum(dtype=np.int64)
            )
            is_tag = kinds == _TAG
            times = np.asarray(events.getTimestamps())[:n][is_tag].astype(np.int64)
            yield TagFileBlock(times, np.asarray(events.getChannels())[:n][is_tag].astype(np.int16))

    device = " ".join(str(facts[key]) for key in _DEVICE_KEYS if key in facts)
    return TagFile(path, "ttbin", device, 1.0, read, facts)


def _facts(path: Path, library: Any) -> dict[str, int | float | str]:
    """Return the plain values of the device's configuration.

    The package opens a damaged file without an error, as one without tags and without a configuration.
    """
    try:
        configuration = library.FileReader(str(path)).getConfiguration()
    except (RuntimeError, ValueError) as error:
        raise ConfigError(f"{path}: Swabian's package cannot read it as .ttbin: {error}") from None
    found: dict[str, int | float | str] = {}
    for values in [configuration, *configuration.values()]:
        for key, value in values.items() if isinstance(values, dict) else ():
            if isinstance(value, int | float | str):
                found.setdefault(key, value)
    return found
