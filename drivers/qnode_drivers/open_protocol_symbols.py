"""Look-up of sent symbols in the ring of a transmitter that speaks the open device protocol."""

from dataclasses import dataclass, field
from typing import Final

import numpy as np
import trio

from qnode.errors import DeviceError, TransientDeviceError
from qnode.tags.open_protocol import ByteArray, ScannedFrame
from qnode.tags.types import UNKNOWN_SYMBOL, Codes, Slots
from qnode_drivers.open_protocol import (
    MOST_SLOTS_ASKED,
    MOST_SLOTS_READ,
    SYMBOL_ANSWERS,
    Kind,
    frame,
    look_up,
    read_range,
    read_symbols,
)
from qnode_drivers.open_protocol_port import OpenProtocolPort

SILENCE_S: Final = 0.5  # without an answer for so long, what is missing is asked for again
ATTEMPTS: Final = 4
_NUMBERS: Final = range(16, 256)  # of requests; the others are those of the port
_NO_SYMBOL_YET: Final = 253


@dataclass(eq=False)
class _Asked:
    """One request, the place of its answer, and what has come of it."""

    kind: Kind
    payload: bytes
    epoch: int
    first: int
    codes: Codes
    is_range: bool
    missing: int = field(init=False)

    def __post_init__(self) -> None:
        self.missing = self.codes.size


class SymbolReader:
    """Asks for symbols, some requests at a time, one batch after another."""

    def __init__(self, port: OpenProtocolPort, window: int) -> None:
        self._port = port
        self._window = min(window, len(_NUMBERS))
        self._turn = trio.Lock()
        self._open: dict[int, _Asked] = {}
        self._heard = trio.Event()
        self._next_number = 0
        self._token = trio.lowlevel.current_trio_token()
        port.on_data = self._take
        port.on_failure = self._wake

    def symbols(self, epoch: int, slots: Slots) -> Codes:
        """Return the symbols of ``slots``, in any order; in a worker thread.

        Raises:
            DeviceError: the device has failed.
            TransientDeviceError: it does not answer.
        """
        places, ascending = None, slots
        if slots[0] < 0 or (np.diff(slots) <= 0).any():
            ascending, places = np.unique(slots, return_inverse=True)
        codes = np.full(ascending.size, UNKNOWN_SYMBOL, np.uint8)
        first = int(np.searchsorted(ascending, 0))
        if first < ascending.size:
            codes[first:] = _NO_SYMBOL_YET
            requests = _requests(epoch, ascending[first:], codes[first:])
            trio.from_thread.run(self._ask, requests, trio_token=self._token)
        return codes if places is None else codes[places]

    async def _ask(self, requests: list[_Asked]) -> None:
        async with self._turn:
            for first in range(0, len(requests), self._window):
                batch = requests[first : first + self._window]
                for _ in range(ATTEMPTS):
                    await self._exchange(batch)
                    batch = [one for one in batch if one.missing]
                    if not batch:
                        break
                else:
                    raise TransientDeviceError(f"no symbols within {ATTEMPTS * SILENCE_S:g} s")

    async def _exchange(self, batch: list[_Asked]) -> None:
        """Send requests and wait until all are answered, or until nothing has come for a while."""
        self._port.check()
        data = []
        for one in batch:
            number = _NUMBERS[self._next_number]
            self._next_number = (self._next_number + 1) % len(_NUMBERS)
            self._open[number] = one
            data.append(frame(one.kind, number, one.payload))
        try:
            with trio.move_on_after(SILENCE_S):
                await self._port.send(b"".join(data))
            while self._open:
                self._heard = trio.Event()
                with trio.move_on_after(SILENCE_S) as silent:
                    await self._heard.wait()
                self._port.check()
                if silent.cancelled_caught:
                    return
        finally:
            self._open.clear()

    def _wake(self) -> None:
        self._heard.set()

    def _take(self, data: ByteArray, one: ScannedFrame) -> None:
        """Put an answer where it belongs; one that nobody waits for any more is dropped."""
        asked = self._open.get(one.request)
        if one.kind not in SYMBOL_ANSWERS or asked is None or one.kind != asked.kind | 0x80:
            return
        answer = read_symbols(data[one.start : one.start + one.length])
        place = 0 if answer is None else answer.first - asked.first
        if answer is None or not (
            0 <= place <= asked.codes.size - answer.codes.size
            and (asked.is_range or answer.codes.size == asked.codes.size)
        ):
            raise DeviceError("the device answers with other symbols than it was asked for")
        part = asked.codes[place : place + answer.codes.size]
        asked.missing -= int(np.count_nonzero(part == _NO_SYMBOL_YET))
        part[:] = answer.codes if answer.epoch == asked.epoch else UNKNOWN_SYMBOL  # it began again
        if not asked.missing:
            del self._open[one.request]
        self._heard.set()


def _requests(epoch: int, slots: Slots, codes: Codes) -> list[_Asked]:
    """Cut ascending ``slots`` into requests: by range where they are neighbours, by list elsewhere."""
    if int(slots[-1] - slots[0]) == slots.size - 1:
        return [
            _Asked(
                Kind.READ,
                read_range(epoch, int(slots[at]), min(MOST_SLOTS_READ, slots.size - at)),
                epoch,
                int(slots[at]),
                codes[at : at + MOST_SLOTS_READ],
                is_range=True,
            )
            for at in range(0, slots.size, MOST_SLOTS_READ)
        ]
    requests, far = [], np.flatnonzero(np.diff(slots) >= 1 << 32) + 1
    for near, place in zip(np.split(slots, far), np.split(codes, far), strict=True):
        for at in range(0, near.size, MOST_SLOTS_ASKED):
            some = near[at : at + MOST_SLOTS_ASKED]
            part = place[at : at + MOST_SLOTS_ASKED]
            requests.append(
                _Asked(Kind.LOOK_UP, look_up(epoch, some), epoch, int(some[0]), part, is_range=False)
            )
    return requests
