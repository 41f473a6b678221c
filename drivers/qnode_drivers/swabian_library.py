"""Swabian Instruments' library, in its own process: one Time Tagger and its stream of tags."""

import importlib
import importlib.util
import time
from typing import Any


class SwabianLibrary:
    """Calls the library as its documentation says; the package is ``swabian-timetagger``."""

    def __init__(self) -> None:
        is_from_pip = importlib.util.find_spec("Swabian") is not None  # else by the maker's installer
        self._library: Any = importlib.import_module("Swabian.TimeTagger" if is_from_pip else "TimeTagger")
        self._tagger: Any = None
        self._stream: Any = None
        self._most_tags = 0

    def open(
        self, serial: str, thresholds_v: dict[str, float], inputs: list[int], most_tags: int
    ) -> dict[str, Any]:
        """Connect, set thresholds (by input), and stream the inputs; negative inputs are falling edges."""
        self._tagger = self._library.createTimeTagger(serial)
        for name, voltage in thresholds_v.items():
            self._tagger.setTriggerLevel(int(name), voltage)
        self._most_tags = most_tags
        self._stream = self._library.TimeTagStream(self._tagger, most_tags, inputs)
        return {
            "model": str(self._tagger.getModel()),
            "serial": str(self._tagger.getSerial()),
            "thresholds_v": {name: float(self._tagger.getTriggerLevel(int(name))) for name in thresholds_v},
        }

    def read(self) -> dict[str, Any]:
        """Return the tags since the last call, as the library has them."""
        data = self._stream.getData()
        return {
            "times_ps": data.getTimestamps(),
            "inputs": data.getChannels(),
            "kinds": data.getEventTypes(),
            "missed": data.getMissedEvents(),
            "until_ps": int(data.tGetData),
            "at_s": time.time(),
            "is_full": int(data.size) >= self._most_tags,
            "overflows": int(self._tagger.getOverflows()),
        }

    def close(self) -> None:
        """Disconnect."""
        self._stream = None
        if self._tagger is not None:
            self._library.freeTimeTagger(self._tagger)
            self._tagger = None
