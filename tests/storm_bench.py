"""The emulated device of a site with faults at its port: `python tests/storm_bench.py BENCH LEDGER SEED`.

BENCH is the file of `qnode.emulate.bench`. Each line on standard input is a fault, and is answered by `ok`
when it has happened: ``noise X``, ``silent 0|1``, ``halves 0|1``, ``babble``, ``begin-again``, ``unplug``,
``plug``, ``plug-wrong``, ``forget S`` (a transmitter remembers its symbols for S seconds). The clicks of a
time-to-digital converter are written to LEDGER.
"""

import os
import random
import sys
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import numpy as np
import trio
from storm_ledger import LedgerWriter

from qnode.config import load
from qnode.emulate.beam import Beam
from qnode.emulate.bench import Bench, Device, TdcOnBench, bench_port
from qnode.emulate.open_protocol import BEGAN_AGAIN, TAGS, OpenDevice, built_frame
from qnode.emulate.open_protocol_tdc import OpenTdcEmulator, TagSupply, tag_payload
from qnode.emulate.open_protocol_transmitter import QUBIT_RATE, RING_S, RING_SLOTS, OpenTransmitterEmulator
from qnode.emulate.ports import Faults
from qnode.simulate.tdc import ReceiverEnd
from qnode.tags.types import NO_TAGS, TagBlock

LONG_RING_S = 15 * RING_S  # a busy machine may be late to look symbols up


class Remembering(OpenTdcEmulator):
    """Writes every click down before it is sent, and whether it was counted."""

    def __init__(self, end: ReceiverEnd, ledger: LedgerWriter, serial: str) -> None:
        super().__init__(_Noted(end, self), serial=serial, set_phase=end.set_phase)
        self.ledger = ledger

    def note(self, block: TagBlock) -> None:
        """Write a block down as `run` will take it."""
        counted = (block.times_ps >= self._zero_ticks) & self.running
        self.ledger.write(
            self.epoch,
            block.times_ps[counted] - self._zero_ticks,
            block.channels[counted],
            self._zero_ticks,
            int(counted.size - counted.sum()),
        )


class _Noted:
    """The clicks of ``end``, each block written down when it is taken."""

    def __init__(self, end: ReceiverEnd, device: Remembering) -> None:
        self._end, self._device = end, device

    @property
    def origin_s(self) -> float:
        return self._end.origin_s

    async def tags(self) -> AsyncGenerator[TagBlock, None]:
        async with aclosing(self._end.tags()) as blocks:
            async for block in blocks:
                assert not block.lost
                self._device.note(block)
                yield block


class _Dark:
    """No clicks, for the wrong device."""

    origin_s = 0.0

    async def tags(self) -> AsyncGenerator[TagBlock, None]:
        yield NO_TAGS


@asynccontextmanager
async def emulator(device: Device, ledger: LedgerWriter) -> AsyncIterator[OpenDevice]:
    """Run the device of the bench, the converter with its ledger."""
    if isinstance(device, TdcOnBench):
        async with device.end() as end, trio.open_nursery() as nursery:
            remembering = Remembering(end, ledger, device.serial_number)
            nursery.start_soon(remembering.run)
            yield remembering
            nursery.cancel_scope.cancel()
        return
    async with device.emulator(Beam()) as plain:
        assert isinstance(plain, OpenTransmitterEmulator)
        plain.settings[RING_SLOTS, 0] = round(LONG_RING_S * plain.settings[QUBIT_RATE, 0] / 1000)
        yield plain


async def happen(words: list[str], device: OpenDevice, faults: Faults, chance: random.Random) -> None:
    """Let one fault begin or end."""
    match words:
        case ["noise", share]:
            faults.noise = float(share)
        case ["silent", on]:
            faults.silent = on == "1"
        case ["halves", on]:
            faults.halves = on == "1"
        case ["babble"]:
            await faults.babble(babble(device, chance))
        case ["begin-again"] if isinstance(device, OpenTdcEmulator):
            await device.begin_again()
        case ["begin-again"]:
            if device.running:
                await device.start((device.epoch + 1) % (1 << 32))
                await device.tell(BEGAN_AGAIN, "slots are counted from 0")
        case ["unplug"]:
            faults.unplug()
        case ["plug"]:
            faults.plug()
        case ["plug-wrong"]:
            dark: TagSupply = _Dark()
            faults.plug(OpenTdcEmulator(dark, serial="another"))
        case ["forget", after_s] if isinstance(device, OpenTransmitterEmulator):
            device.settings[RING_SLOTS, 0] = round(float(after_s) * device.settings[QUBIT_RATE, 0] / 1000)
        case _:
            raise ValueError(f"unknown fault: {words}")


def babble(device: OpenDevice, chance: random.Random) -> bytes:
    """Return random bytes with whole frames among them: tags already counted, and those of another start."""
    ticks, inputs = np.arange(3, dtype=np.int64), np.zeros(3, np.uint32)
    old = built_frame(TAGS, 0, tag_payload(device.epoch, 0, ticks, inputs, 2))
    other = built_frame(TAGS, 0, tag_payload(device.epoch ^ 1, 10**6, ticks, inputs, 2))
    return chance.randbytes(700) + old + chance.randbytes(30) + other + chance.randbytes(700)


async def run(device: Device, ledger: LedgerWriter, seed: int) -> None:
    """Serve until the end of standard input."""
    faults, chance = Faults(seed), random.Random(seed)
    async with emulator(device, ledger) as present, bench_port(device.port, present, faults):
        print("ok", flush=True)
        async with trio.lowlevel.FdStream(os.dup(sys.stdin.fileno())) as stdin:
            rest = b""
            async for piece in stdin:
                *lines, rest = (rest + piece).split(b"\n")
                for line in lines:
                    await happen(line.decode().split(), present, faults, chance)
                    print("ok", flush=True)


def main() -> None:
    """Run the bench's only device."""
    [device] = load(Path(sys.argv[1]), Bench).device
    trio.run(run, device, LedgerWriter(Path(sys.argv[2])), int(sys.argv[3]))


if __name__ == "__main__":
    main()
