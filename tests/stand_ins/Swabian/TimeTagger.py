"""The calls of Swabian Instruments' library that the driver makes, with their documented results.

The serial number says what happens: ``HANG``, ``CRASH``, ``MISSED``, ``ERROR``, ``FULL`` at the fourth
reading, ``STUCK`` levels; other devices send 2000 tags a second in each channel.
"""

import os
import time

import numpy as np

TIME_TAG, ERROR, OVERFLOW_BEGIN, OVERFLOW_END, MISSED_EVENTS = range(5)
STARTED_S = time.monotonic() - 3600.0  # the device has run for an hour


def _now_ps() -> int:
    return int((time.monotonic() - STARTED_S) * 1e12)


class TimeTagger:
    """The device."""

    def __init__(self, serial: str) -> None:
        self.serial = serial or "2138000ABC"
        self.levels = dict.fromkeys(range(1, 19), 0.5)
        self.overflows = 0

    def getSerial(self) -> str:
        return self.serial

    def getModel(self) -> str:
        return "Time Tagger Ultra"

    def setTriggerLevel(self, channel: int, voltage: float) -> None:
        if "STUCK" not in self.serial:
            self.levels[channel] = round(voltage * 500) / 500  # the steps of its converter

    def getTriggerLevel(self, channel: int) -> float:
        return self.levels[channel]

    def getOverflows(self) -> int:
        return self.overflows


class TimeTagStreamBuffer:
    """Tags since the last one."""

    def __init__(
        self, events: list[tuple[int, int, int, int]], until_ps: int, size: int | None = None
    ) -> None:
        self._events = sorted(events)
        self.size = len(events) if size is None else size
        self.hasOverflows = any(kind != TIME_TAG for _, _, kind, _ in events)
        self.tGetData = until_ps

    def _column(self, number: int, kind: type[np.generic]) -> "np.ndarray":
        return np.array([event[number] for event in self._events], kind)

    def getTimestamps(self) -> "np.ndarray":
        return self._column(0, np.int64)

    def getChannels(self) -> "np.ndarray":
        return self._column(1, np.int32)

    def getEventTypes(self) -> "np.ndarray":
        return self._column(2, np.uint8)

    def getMissedEvents(self) -> "np.ndarray":
        return self._column(3, np.uint16)


class TimeTagStream:
    """The stream of some channels."""

    def __init__(self, tagger: TimeTagger, n_max_events: int, channels: list[int]) -> None:
        self._tagger = tagger
        self._most = n_max_events
        self._channels = list(channels)
        self._random = np.random.default_rng(3)
        self._since_ps = _now_ps()
        self._readings = 0

    def getData(self) -> TimeTagStreamBuffer:
        self._readings += 1
        until_ps, since_ps, serial = _now_ps(), self._since_ps, self._tagger.serial
        self._since_ps = until_ps
        events: list[tuple[int, int, int, int]] = []
        for channel in self._channels:
            n = self._random.poisson((until_ps - since_ps) / 1e12 * 2000)
            events += [(int(t), channel, TIME_TAG, 0) for t in self._random.integers(since_ps, until_ps, n)]
        if self._readings == 4:
            middle = (since_ps + until_ps) // 2
            if serial == "HANG":
                time.sleep(1000)
            if serial == "CRASH":
                print("libTimeTagger: fatal USB error", flush=True)
                os.abort()
            if serial == "ERROR":
                events.append((middle, 0, ERROR, 0))
            if serial == "FULL":
                return TimeTagStreamBuffer(events, until_ps, self._most)
            if serial == "MISSED":
                self._tagger.overflows += 1
                events += [(middle, 0, OVERFLOW_BEGIN, 0), (middle + 1, 0, OVERFLOW_END, 0)]
                for channel, missed in zip([*self._channels, 7], (65535, 20, 1000), strict=True):
                    events.append((middle + 2, channel, MISSED_EVENTS, missed))
                events.append((middle + 3, self._channels[0], MISSED_EVENTS, 65535))
        return TimeTagStreamBuffer(events, until_ps)


def createTimeTagger(serial: str = "") -> TimeTagger:
    if serial == "ABSENT":
        raise RuntimeError("No Time Tagger with serial number ABSENT found")
    return TimeTagger(serial)


def freeTimeTagger(tagger: TimeTagger) -> None:
    tagger.serial = "freed"
