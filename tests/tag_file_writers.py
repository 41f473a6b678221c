"""Tag files as the descriptions of their formats have them, record by record, without the readers."""

import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

INPUT, SYNC, MARKER = "input", "sync", "marker"
LONGEST_COUNT = 2**25 - 1


@dataclass(frozen=True)
class Event:
    """What a device saw: a click of input ``number`` from 1 on, a sync, or a marker 1 to 15.

    ``ticks``: of the device's clock (T2) or syncs (T3), since the start. ``dtime``: since the sync (T3).
    """

    kind: str
    number: int
    ticks: int
    dtime: int = 0


def header(values: dict[str, int | float | str]) -> bytes:
    """Return the header of a ``.ptu`` file."""
    content = b"PQTTTR\0\0" + b"1.0.00\0\0"
    for name, value in values.items():
        tag = name.encode().ljust(32, b"\0") + struct.pack("<i", -1)
        match value:
            case int():
                content += tag + struct.pack("<Iq", 0x10000008, value)
            case float():
                content += tag + struct.pack("<Id", 0x20000008, value)
            case str():
                text = value.encode() + b"\0" * (8 - len(value) % 8)
                content += tag + struct.pack("<IQ", 0x4001FFFF, len(text)) + text
    return content + b"Header_End".ljust(32, b"\0") + struct.pack("<iIq", -1, 0xFFFF0008, 0)


def _special(channel: int, rest: int) -> int:
    return 1 << 31 | channel << 25 | rest


@dataclass
class PtuKind:
    """How a device writes events: ``record`` of an event within a wrap, and what tells of wraps."""

    record_type: int
    wrap: int
    record: Callable[[Event, int], int]
    overflows: Callable[[int], Iterable[int]]
    is_t3: bool = False
    ticks_s: float = 1e-12
    dtime_s: float = 4e-12
    most_ticks_apart: int = 10**9
    dtimes: int = 1
    inputs: int = 64
    has_sync: bool = field(default=True)

    def content(self, events: Iterable[Event], records_said: int | None = None) -> tuple[bytes, int]:
        """Return a file and the number of its records; ``records_said`` is what its header says instead."""
        words: list[int] = []
        wraps = 0
        for event in events:
            there, within = divmod(event.ticks, self.wrap)
            words += self.overflows(there - wraps)
            words.append(self.record(event, within))
            wraps = there
        values: dict[str, int | float | str] = {
            "HW_Type": "Emulated Harp",
            "Measurement_Mode": 3 if self.is_t3 else 2,
            "Measurement_SubMode": 0,
            "TTResultFormat_BitsPerRecord": 32,
            "MeasDesc_Resolution": self.dtime_s,
            "MeasDesc_GlobalResolution": self.ticks_s,
            "TTResultFormat_TTTRRecType": self.record_type,
            "TTResult_NumberOfRecords": len(words) if records_said is None else records_said,
        }
        return header(values) + struct.pack(f"<{len(words)}I", *words), len(words)


def _t2_record(event: Event, within: int) -> int:
    if event.kind == INPUT:
        return (event.number - 1) << 25 | within
    return _special(0 if event.kind == SYNC else event.number, within)


def _t3_record(event: Event, within: int) -> int:
    if event.kind == INPUT:
        return (event.number - 1) << 25 | event.dtime << 10 | within
    return _special(event.number, within)


def _picoharp_t2_record(event: Event, within: int) -> int:
    if event.kind == MARKER:  # the low bits of its time are lost
        return 15 << 28 | (within & ~15) | event.number
    return event.number << 28 | within


def _picoharp_t3_record(event: Event, within: int) -> int:
    if event.kind == MARKER:
        return 15 << 28 | event.number << 16 | within
    return event.number << 28 | event.dtime << 16 | within


def _collected(most: int) -> Callable[[int], Iterable[int]]:
    """Overflow records that carry a count: as many as it holds, and a single one now and then as 0."""

    def overflows(n: int) -> Iterable[int]:
        while n > 0:
            count = min(n, most)
            yield _special(63, 0 if count == 1 and n % 2 else count)
            n -= count

    return overflows


def _single(*words: int) -> Callable[[int], Iterable[int]]:
    """Overflow records of one wrap each; what else is in them means nothing."""
    return lambda n: (words[i % len(words)] for i in range(n))


def _hydraharp_t2(record_type: int, ticks_s: float = 1e-12) -> PtuKind:
    return PtuKind(
        record_type, 2**25, _t2_record, _collected(LONGEST_COUNT), ticks_s=ticks_s, most_ticks_apart=2**51
    )


def _t3(record_type: int, overflows: Callable[[int], Iterable[int]], most_apart: int) -> PtuKind:
    return PtuKind(
        record_type, 1024, _t3_record, overflows, True, 1.2495520355952392e-08,
        most_ticks_apart=most_apart, dtimes=2**15, has_sync=False,
    )  # fmt: skip


PTU_KINDS = {
    "hydraharp-2-t2": _hydraharp_t2(0x01010204),
    "multiharp-t2": _hydraharp_t2(0x00010207, 5e-12),
    "timeharp-pico-t2": _hydraharp_t2(0x00010206, 2.5e-11),
    "timeharp-nano-t2": _hydraharp_t2(0x00010205, 2.5e-10),
    "third-of-a-nanosecond-t2": _hydraharp_t2(0x00010207, 1e-9 / 3),
    "hydraharp-1-t2": PtuKind(
        0x00010204, 33_552_000, _t2_record, _single(_special(63, 0), _special(63, 1234)),
        most_ticks_apart=20 * 33_552_000,
    ),
    "picoharp-t2": PtuKind(
        0x00010203, 210_698_240, _picoharp_t2_record, _single(15 << 28),
        ticks_s=4e-12, most_ticks_apart=10 * 210_698_240, inputs=4,
    ),
    "hydraharp-2-t3": _t3(0x01010304, _collected(1023), 10**7),
    "multiharp-t3": _t3(0x00010307, _collected(1023), 10**7),
    "timeharp-pico-t3": _t3(0x00010306, _collected(1023), 10**7),
    "timeharp-nano-t3": _t3(0x00010305, _collected(1023), 10**7),
    "hydraharp-1-t3": _t3(0x00010304, _single(_special(63, 0), _special(63, 17)), 10**4),
    "picoharp-t3": PtuKind(
        0x00010303, 2**16, _picoharp_t3_record, _single(15 << 28), True, 1.0003e-8,
        most_ticks_apart=10**6, dtimes=2**12, inputs=4, has_sync=False,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Pattern:
    """An event of an S-Fifteen device: inputs that fired, or a rollover. ``ticks``: since the start."""

    ticks: int
    inputs: frozenset[int]
    is_rollover: bool = False

    @property
    def low_bits(self) -> int:
        return sum(1 << number - 1 for number in self.inputs) | self.is_rollover << 4


def a1_content(events: Iterable[Pattern], form: str) -> bytes:
    """Return a file of TDC2 words, 54 bits of time above 10 others, in one of the forms of ``readevents``."""
    content = b""
    for event in events:
        word = (
            event.ticks % 2**54 << 10 | 0x20 | event.low_bits
        )  # bit 5 is set now and then, and means nothing
        high, low = divmod(word, 2**32)
        content += {
            "a1": struct.pack("<II", low, high),
            "a1-swapped": struct.pack("<II", high, low),
            "a0": f"{low:08x}\n{high:08x}\n".encode(),
            "a2": f"{word:016x}\n".encode(),
        }[form]
    return content


def tdc1_content(events: Iterable[Pattern]) -> bytes:
    """Return a file of TDC1 words: 27 bits of time above 5 others."""
    return b"".join(struct.pack("<I", event.ticks % 2**27 << 5 | event.low_bits) for event in events)
