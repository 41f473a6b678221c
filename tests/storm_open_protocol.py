"""A storm of faults between a time tagger of the open device protocol and its driver.

    python tests/storm_open_protocol.py [--rounds 10] [--port usb] [--seed 1]

Each round has one of each fault, in random order: noise, silence, half pieces, babble, reset, unplugging,
the wrong device, dropped frames, a full buffer, a counter that begins again. The driver is opened again after
each failure, as the node does. Every tag must come at its place in the device's count: so none is wrong, none
comes twice, and each lost one is counted. Prints what was seen; exit 1 if a tag was not where it should be.
"""

import argparse
import itertools
import random
import sys
from collections import Counter
from contextlib import aclosing
from dataclasses import dataclass, field

import numpy as np
import trio
from open_protocol_support import SteadySupply, at_port
from qnode_drivers.open_protocol_tdc import OpenTdc, OpenTdcConfig

from qnode.devices.conformance_checks import promise
from qnode.emulate.open_protocol import TAGS, built_frame
from qnode.emulate.open_protocol_tdc import OpenTdcEmulator, tag_payload
from qnode.emulate.ports import Faults
from qnode.errors import DeviceError
from qnode.tags.types import TagBlock

KINDS = (
    "noise",
    "silence",
    "halves",
    "babble",
    "reset",
    "unplug",
    "wrong device",
    "dropped frames",
    "full buffer",
    "counter",
)
QUIET_BLOCKS = 20
PATIENCE_S = 60.0


class Remembering(OpenTdcEmulator):
    """Remembers every tag that it counts: by epoch, its time by the device, its input and its true time."""

    def __init__(self, supply: SteadySupply) -> None:
        super().__init__(supply)
        self.counted: dict[int, list[tuple[int, int, int]]] = {}

    def _record(self, block: TagBlock) -> None:
        zero, counted = self._zero_ticks, self.counted.setdefault(self.epoch, [])
        for time, channel in zip(block.times_ps.tolist(), block.channels.tolist(), strict=True):
            if time >= zero:
                counted.append((time - zero, channel, time))
        super()._record(block)


@dataclass
class Seen:
    """What came through: of each opening its epoch and its blocks, and why it ended."""

    openings: list[tuple[int, list[TagBlock]]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def check(self, device: Remembering) -> tuple[int, int]:
        """Compare with what the device counted; return tags and lost tags.

        Raises:
            AssertionError: a tag is not at its place.
        """
        times = Counter[tuple[int, int]]()
        tags = lost = 0
        for epoch, blocks in self.openings:
            counted, place = device.counted.get(epoch, []), 0
            for block in blocks:
                place += block.lost
                got = list(zip(block.times_ps.tolist(), block.channels.tolist(), strict=True))
                expected = counted[place : place + len(got)]
                promise(got == [one[:2] for one in expected], f"tags from {place} on are not those counted")
                times.update((one[2], one[1]) for one in expected)
                place += len(got)
                tags, lost = tags + len(got), lost + block.lost
        given = Counter(
            tag
            for block in device.supply.blocks  # type: ignore[attr-defined]
            for tag in zip(block.times_ps.tolist(), block.channels.tolist(), strict=True)
        )
        promise(times <= given, "a click came twice")
        return tags, lost


async def storm(port: str, rounds: int, seed: int) -> tuple[Seen, Remembering]:
    """Let the faults happen, and go on until tags come quietly again."""
    device = Remembering(SteadySupply(20_000, 0.005))
    faults, seen, over = Faults(seed), Seen(), trio.Event()
    chance = random.Random(seed)
    async with at_port(device, port, faults=faults) as address, trio.open_nursery() as nursery:
        nursery.start_soon(_happen, device, faults, chance, rounds, over)
        while not await _use(address, device, seen, over):  # noqa: ASYNC110 (a pause between attempts)
            await trio.sleep(0.02)
        nursery.cancel_scope.cancel()
    return seen, device


async def _happen(
    device: Remembering, faults: Faults, chance: random.Random, rounds: int, over: trio.Event
) -> None:
    for kind in itertools.chain.from_iterable(chance.sample(KINDS, len(KINDS)) for _ in range(rounds)):
        await trio.sleep(chance.uniform(0.05, 0.4))
        if kind == "noise":
            faults.noise = 0.01
        elif kind == "silence":
            faults.silent = True
        elif kind == "halves":
            faults.halves = True
        elif kind == "babble":
            await faults.babble(_babble(device, chance))
        elif kind == "reset":
            faults.reset()
        elif kind == "unplug":
            faults.unplug()
        elif kind == "wrong device":
            faults.unplug()
            faults.plug(OpenTdcEmulator(SteadySupply(), serial="another"))
        elif kind == "dropped frames":
            device.drop_frames = 5
        elif kind == "full buffer":
            device.overflow_tags = 777
        else:
            await device.begin_again()
        await trio.sleep(chance.uniform(0.05, 0.5))
        faults.noise, faults.silent, faults.halves = 0.0, False, False
        if kind in ("unplug", "wrong device"):
            faults.unplug()
            faults.plug()
    over.set()


def _babble(device: Remembering, chance: random.Random) -> bytes:
    """Return random bytes with old frames among them: of this epoch, already counted, and of another."""
    ticks, inputs = np.arange(3, dtype=np.int64), np.zeros(3, np.uint32)
    old = built_frame(TAGS, 0, tag_payload(device.epoch, 0, ticks, inputs, 2))
    other = built_frame(TAGS, 0, tag_payload(device.epoch ^ 1, 10**6, ticks, inputs, 2))
    return chance.randbytes(700) + old + chance.randbytes(30) + other + chance.randbytes(700)


async def _use(address: str, device: Remembering, seen: Seen, over: trio.Event) -> bool:
    """Take tags until the device fails; True when they came quietly after the storm."""
    blocks: list[TagBlock] = []
    quiet = 0
    try:
        with trio.fail_after(PATIENCE_S):
            config = OpenTdcConfig(address=address, serial_number=device.serial)
            async with OpenTdc.open(config) as tdc, aclosing(tdc.tags()) as tags:
                async for block in tags:
                    if not blocks:
                        assert tdc._stream is not None
                        seen.openings.append((tdc._stream.epoch, blocks))
                    blocks.append(block)
                    quiet += over.is_set()
                    if quiet >= QUIET_BLOCKS:
                        return True
    except* DeviceError as group:
        seen.failures += [str(error) for error in group.exceptions]
    return False


def main() -> int:
    """Print what was seen; return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--port", choices=["pty", "tcp", "usb"], default="usb")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    seen, device = trio.run(storm, options.port, options.rounds, options.seed)
    try:
        tags, lost = seen.check(device)
    except AssertionError as broken:
        print(f"{options.port}: {broken}")
        return 1
    for why, number in Counter(seen.failures).most_common():
        print(f"{number:5} x {why}")
    print(
        f"{options.port}: {len(seen.openings)} openings with {tags} tags, and {lost} lost ones, all counted"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
