"""What the power meter measures, and where: the Modbus registers of Siemens' SENTRON PAC4200.

Each value is a 32-bit float in two registers, high word first. Function codes 3 and 4 read the same ones.
A read must begin with the first register of a value and end with the last one of a value; else the meter
answers with an exception.
"""

import struct
from collections.abc import Sequence
from itertools import pairwise
from typing import Final, NamedTuple


class Quantity(NamedTuple):
    """One measured quantity; ``register``: the first of its two, as in the manual and in a request."""

    name: str
    register: int


_PHASES: Final = ("l1", "l2", "l3")
QUANTITIES: Final[tuple[Quantity, ...]] = (
    *(Quantity(f"voltage_{phase}_n_v", 1 + 2 * n) for n, phase in enumerate(_PHASES)),
    *(Quantity(f"voltage_{pair}_v", 7 + 2 * n) for n, pair in enumerate(("l1_l2", "l2_l3", "l3_l1"))),
    *(Quantity(f"current_{phase}_a", 13 + 2 * n) for n, phase in enumerate(_PHASES)),
    *(Quantity(f"apparent_power_{phase}_va", 19 + 2 * n) for n, phase in enumerate(_PHASES)),
    *(Quantity(f"active_power_{phase}_w", 25 + 2 * n) for n, phase in enumerate(_PHASES)),
    Quantity("frequency_hz", 55),
    Quantity("voltage_l_n_mean_v", 57),
    Quantity("voltage_l_l_mean_v", 59),
    Quantity("current_mean_a", 61),
    Quantity("apparent_power_va", 63),
    Quantity("active_power_w", 65),
    Quantity("reactive_power_var", 67),
    Quantity("power_factor", 69),
)
NAMES: Final = tuple(quantity.name for quantity in QUANTITIES)


class RegisterBlock(NamedTuple):
    """Registers that one request reads."""

    first: int
    length: int


def _blocks() -> tuple[RegisterBlock, ...]:
    """Return the runs of neighbouring quantities: a request reads no register whose use is reserved."""
    firsts = [quantity.register for quantity in QUANTITIES]
    begins = [firsts[0], *(after for before, after in pairwise(firsts) if after != before + 2)]
    ends = [*(before + 2 for before, after in pairwise(firsts) if after != before + 2), firsts[-1] + 2]
    return tuple(RegisterBlock(begin, end - begin) for begin, end in zip(begins, ends, strict=True))


BLOCKS: Final = _blocks()


def to_registers(value: float) -> tuple[int, int]:
    """Return the two registers of a value."""
    high, low = struct.unpack(">HH", struct.pack(">f", value))
    return high, low


def from_registers(registers: Sequence[int]) -> tuple[float, ...]:
    """Return the values in a block of registers.

    Raises:
        ValueError: they are no whole number of values, or one is no 16-bit number.
    """
    try:
        raw = struct.pack(f">{len(registers)}H", *registers)
        return struct.unpack(f">{len(registers) // 2}f", raw)
    except struct.error as error:
        raise ValueError(f"{len(registers)} registers: {error}") from None
