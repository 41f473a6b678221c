"""The calls of PicoQuant's snAPI that the driver makes, with their documented results.

The device is a MultiHarp of 5 ps with two inputs. It sends 2000 tags a second in each, and overflows. The
serial number says what happens at the fourth reading: ``HANG``, ``CRASH``, ``FULL``, ``OVERRUN``,
``GARBAGE``, ``SILENT``; ``ABSENT`` is not there, ``OLD`` is an old HydraHarp.
"""

import os
import time
from enum import Enum
from typing import Any

import numpy as np

UNIT_PS = 5
WRAP = 1 << 25
OVERFLOW = 0x8000_0000 | 63 << 25


class MeasMode(Enum):
    Histogram = 0
    T2 = 2


class RefSource(Enum):
    Internal = 0
    External_10MHZ = 1


class Device:
    """Settings."""

    def __init__(self, parent: "snAPI") -> None:
        self.parent = parent
        self.done: list[tuple[Any, ...]] = []

    def setSyncEdgeTrig(self, syncTrigLvl: int = -50, syncTrigEdge: int = 1) -> bool:
        self.done.append(("sync", syncTrigLvl, syncTrigEdge))
        return True

    def setInputEdgeTrig(self, channel: int = -1, trigLvl: int = -50, trigEdge: int = 1) -> bool:
        self.done.append((channel, trigLvl, trigEdge))
        return -1200 <= trigLvl <= 1200

    def setOflCompression(self, holdtime: int = 2) -> bool:
        return holdtime <= 255


class Raw:
    """The records of T2 mode, block by block."""

    def __init__(self, parent: "snAPI") -> None:
        self.parent = parent
        self.random = np.random.default_rng(4)
        self.began_s = 0.0
        self.sent_ticks = self.sent_wraps = self.readings = self.size = 0
        self.finished = False

    def startBlock(self, acqTime: int = 1000, size: int = 134217728, savePTU: bool = False) -> bool:
        self.began_s, self.size = time.monotonic(), size
        return acqTime == 0 and not savePTU

    def isFinished(self) -> bool:
        return self.finished

    def stopMeasure(self) -> None:
        self.finished = True

    def getBlock(self) -> "np.ndarray":
        self.readings += 1
        serial = self.parent.serial
        if self.readings >= 4:
            if serial == "HANG":
                time.sleep(1000)
            if serial == "CRASH":
                print("mhlib: lost the device", flush=True)
                os.abort()
            if serial == "FULL":
                return np.full(self.size, OVERFLOW, np.uint32)
            if serial == "GARBAGE":
                return np.array([OVERFLOW | 1, 0xA000_0000], np.uint32)
            if serial == "SILENT":
                return np.empty(0, np.uint32)
            self.finished = serial == "OVERRUN"
        return self._records(int((time.monotonic() - self.began_s) * 1e12) // UNIT_PS)

    def _records(self, until: int) -> "np.ndarray":
        n = self.random.poisson((until - self.sent_ticks) * UNIT_PS * 1e-12 * 4000)
        ticks = np.sort(self.random.integers(self.sent_ticks, until, n))
        self.sent_ticks = until
        records = []
        for tick in [*ticks.tolist(), until]:
            wraps, rest = divmod(tick, WRAP)
            if wraps > self.sent_wraps:
                records.append(OVERFLOW | (wraps - self.sent_wraps))
                self.sent_wraps = wraps
            records.append(int(self.random.integers(0, 2)) << 25 | rest)
        return np.array(records[:-1], np.uint32)


class snAPI:
    """The library."""

    def __init__(self, systemIni: str | None = None) -> None:
        print("snAPI: a line of its log on the standard output", flush=True)
        self.serial = "1045483"
        self.deviceConfig: Any = {}
        self.device = Device(self)
        self.raw = Raw(self)

    def getDevice(self, *dev: str) -> bool:
        self.serial = dev[0] if dev else self.serial
        return self.serial != "ABSENT"

    def initDevice(self, measMode: MeasMode = MeasMode.T2, refSrc: RefSource = RefSource.Internal) -> bool:
        self.deviceConfig = {
            "Model": "HydraHarp 400" if self.serial == "OLD" else "MultiHarp 150 4P",
            "ID": self.serial,
            "Version": "1.0",
            "BaseResolution": 5.0,
            "NumChans": 4,
            "RefSource": refSrc.value,
        }
        return measMode is MeasMode.T2

    def closeDevice(self, allDevices: bool = True) -> None:
        self.deviceConfig = {}
