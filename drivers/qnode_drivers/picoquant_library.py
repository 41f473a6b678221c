"""PicoQuant's library snAPI, in its own process: one device in T2 mode and the block of its records."""

import importlib
import time
from typing import Any

import numpy as np


class PicoQuantLibrary:
    """Calls snAPI as its documentation says."""

    def __init__(self) -> None:
        self._library: Any = importlib.import_module("snAPI.Main")
        self._api: Any = None
        self._most_records = 0

    def open(
        self,
        serial: str,
        reference: str,
        levels_mv: dict[str, int],
        edges: dict[str, int],
        hold_time_ms: int,
        most_records: int,
    ) -> dict[str, Any]:
        """Initialise the device in T2 mode, set levels and edges (by input, 0 is the sync), and start."""
        api = self._api = self._library.snAPI()
        _require(api.getDevice(serial) if serial else api.getDevice(), f"found no device {serial}".strip())
        source = self._library.RefSource.External_10MHZ if reference == "external" else None
        mode = self._library.MeasMode.T2
        _require(
            api.initDevice(mode) if source is None else api.initDevice(mode, source), "initDevice failed"
        )
        for name, level in levels_mv.items():
            number, edge = int(name), edges[name]
            if number == 0:
                done = api.device.setSyncEdgeTrig(level, edge)
            else:
                done = api.device.setInputEdgeTrig(number - 1, level, edge)
            _require(done, f"refused the trigger level {level} mV of input {number}")
        api.device.setOflCompression(hold_time_ms)  # not all devices have it
        self._most_records = most_records
        _require(api.raw.startBlock(0, most_records), "startBlock failed")
        config = api.deviceConfig
        return {
            "started_s": time.time(),
            "model": str(config["Model"]),
            "serial": str(config["ID"]),
            "version": str(config["Version"]),
            "resolution_ps": float(config["BaseResolution"]),
            "inputs": int(config["NumChans"]),
        }

    def read(self) -> dict[str, Any]:
        """Return the records since the last call, and whether the measurement has ended."""
        is_finished = bool(self._api.raw.isFinished())
        records = np.asarray(self._api.raw.getBlock(), np.uint32)
        return {
            "records": records,
            "is_finished": is_finished,
            "is_full": records.shape[0] >= self._most_records,
        }

    def close(self) -> None:
        """Stop and let go of the device."""
        if self._api is not None:
            self._api.raw.stopMeasure()
            self._api.closeDevice()


def _require(done: Any, otherwise: str) -> None:
    if not done:
        raise RuntimeError(otherwise)
