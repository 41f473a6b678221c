"""A library that does what the tests of `qnode.devices.child` ask for."""

import ctypes
import os
import sys
import time
from typing import Any

import numpy as np


class MisbehavingLibrary:
    """An adapter with a method for each way to misbehave."""

    def __init__(self) -> None:
        self.calls = 0

    def pid(self) -> dict[str, Any]:
        self.calls += 1
        return {"pid": os.getpid(), "calls": self.calls, "environment": dict(os.environ)}

    def arrays(self, n: int) -> dict[str, Any]:
        return {"n": n, "times": np.arange(n, dtype=np.int64), "kinds": np.full(n, 7, np.uint8)}

    def sleep(self, seconds: float) -> dict[str, Any]:
        time.sleep(seconds)
        return {"slept": seconds}

    def hang_with_the_lock(self) -> None:
        ctypes.PyDLL(None).sleep(1000)

    def crash(self) -> None:
        print("\x1b[0;31mERR about to crash\x1b[0m\n\x07\x1b[0m", file=sys.stderr, flush=True)
        ctypes.string_at(0)

    def leave(self) -> None:
        os._exit(3)

    def fail(self) -> None:
        raise RuntimeError("no device with this serial number")

    def babble(self, n_bytes: int) -> dict[str, Any]:
        os.write(1, b"to stdout\n")
        sys.stdout.write("x" * n_bytes + "\nlast words\n")
        sys.stdout.flush()
        return {"done": True}

    def send(self, data: bytes) -> None:
        os.write(int(sys.argv[1]), data)

    def close(self) -> None:
        pass
