"""S-Fifteen TDC1: a time tagger of 2 ns with four inputs on a USB serial line."""

import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Annotated, ClassVar, Final, Literal

import trio
from msgspec import Struct

from qnode.config.description import Described, Limits, check_limits
from qnode.devices.protocols import DeviceIdentity
from qnode.devices.scpi import check_identity_text
from qnode.devices.settings import figure
from qnode.devices.tag_channels import TagChannels
from qnode.devices.tag_rates import TagRates
from qnode.devices.transport import Transport, check_address, open_transport
from qnode.devices.transport.lines import Lines
from qnode.errors import DeviceError, TransientDeviceError
from qnode.tags.types import TagBlock
from qnode.units import PS_PER_S
from qnode_drivers.s_fifteen_stream import Tdc1Stream

GATHERING_S: Final = 0.05
MOST_GATHERED_BYTES: Final = 1 << 20
LONGEST_SILENCE_S: Final = 4.0  # it sends a word every 0.27 s or more often
LEAVING_S: Final = 2.0
QUIET_S: Final = 0.2
LONGEST_BABBLE_S: Final = 5.0
LEVEL_TOLERANCE_V: Final = 0.05
LEVELS_V: Final = {"NIM": (-3.3, 0.0), "TTL": (0.0, 3.3)}  # what `level?` may answer
REFERENCES: Final = {"auto": 0, "external": 1, "internal": 2}


class Tdc1Config(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The TDC1 at ``address``."""

    address: Annotated[str, Described("serial:///dev/serial/by-id/NAME, or tcp://HOST:PORT")]
    channels: Annotated[TagChannels, Described("inputs 1 to 4 of the detectors: {z = 1, x = 2}")]
    levels: Annotated[Literal["NIM", "TTL"], Described("signals at the inputs")] = "NIM"
    threshold_v: Annotated[
        float | None,
        Described(
            "threshold; its sign is that of the pulses; default: of `levels`", limits=Limits(-3.3, 3.3)
        ),
    ] = None
    reference: Annotated[
        Literal["auto", "external", "internal"], Described("source of the 10 MHz reference")
    ] = "auto"
    identity: Annotated[
        str, Described("a text in the answer to *IDN?, such as the serial number; another device is refused")
    ] = ""

    def __post_init__(self) -> None:
        check_address(self.address, "serial", "tcp")
        self.channels.check_inputs(1, 4)
        check_limits(self)


class SFifteenTdc1:
    """A TDC1 that streams."""

    Config: ClassVar[type[Struct]] = Tdc1Config
    paced = True

    def __init__(self, port: Transport, name: str, identity: DeviceIdentity, channels: TagChannels) -> None:
        self._name = name
        self.identity = identity
        self.origin_s = 0.0
        self._port = port
        self._stream = Tdc1Stream(channels)
        self._first_blocks: list[TagBlock] = []
        self._rates = TagRates()

    @classmethod
    @asynccontextmanager
    async def open(cls, config: Tdc1Config) -> AsyncIterator["SFifteenTdc1"]:
        """Set up the device and start its stream; at the end the stream is stopped.

        Raises:
            DeviceError: it is no TDC1, another one than configured, or a setting reads back differently.
        """
        async with open_transport(config.address, secret=True) as port:
            try:
                device = await cls._started(port, config)
                yield device
            finally:
                with trio.move_on_after(LEAVING_S, shield=True), suppress(DeviceError):
                    await _quieten(port, config.address)

    @classmethod
    async def _started(cls, port: Transport, config: Tdc1Config) -> "SFifteenTdc1":
        await _quieten(port, config.address)
        lines = Lines(port, line_end=b"\r\n", command_end=b"\r\n")
        name = f"S-Fifteen TDC1 at {config.address}"
        said = await _ask(lines, "*IDN?")
        check_identity_text(name, said, "TDC1")
        check_identity_text(name, said, config.identity)
        level_v = await _set_up(lines, name, config)
        device = cls(port, name, DeviceIdentity("S-Fifteen TDC1", said), config.channels)
        polarity = "NEG" if level_v < 0 else "POS"
        start = f"INPKT;{polarity} {level_v:g};time 0;timestamp;counts?;"
        port.transcript.note_sent(start.encode() + b"\r\n")
        await lines.tell(start)
        await device._await_first_word()
        return device

    async def _await_first_word(self) -> None:
        """Wait until sound words have come, and note the time of day at the time zero of the stream."""
        while not self._stream.has_begun:
            self._first_blocks.append(self._rates.see(await self._fed(await self._gathered())))
        self.origin_s = time.time() - self._stream.newest_ps / PS_PER_S

    async def tags(self) -> AsyncGenerator[TagBlock, None]:
        """Yield the tags of the stream.

        Raises:
            DeviceGone: it was unplugged.
            TransientDeviceError: it is silent, or sends no words.
        """
        for block in self._first_blocks:
            yield block
        while True:
            yield self._rates.see(await self._fed(await self._gathered()))

    async def readings(self) -> dict[str, float]:
        """Return the rates since the last readings, and counts of faults since the opening."""
        await trio.lowlevel.checkpoint()
        return {**self._rates.readings(), "realignments_total": float(self._stream.realignments)}

    async def _fed(self, data: bytes) -> TagBlock:
        return await trio.to_thread.run_sync(self._stream.feed, data, trio.current_time())

    async def _gathered(self) -> bytes:
        """Return the bytes of the next 50 ms, one at least."""
        with trio.move_on_after(LONGEST_SILENCE_S) as silence:
            data = bytearray(await self._port.receive())
        if silence.cancelled_caught:
            raise TransientDeviceError(
                f"{self._name}: silent for {LONGEST_SILENCE_S:g} s, expected words also when nothing "
                "is detected"
            )
        with trio.move_on_after(GATHERING_S):
            while len(data) < MOST_GATHERED_BYTES:
                data += await self._port.receive()
        return bytes(data)


async def _quieten(port: Transport, address: str) -> None:
    """Stop a stream that still runs, and drop what it sent.

    Raises:
        TransientDeviceError: it goes on sending.
    """
    port.transcript.note_sent(b"abort\r\n")
    with trio.move_on_after(LONGEST_BABBLE_S):
        await port.send(b"\r\nabort\r\n")
        while True:
            with trio.move_on_after(QUIET_S) as quiet:
                await port.receive()
            if quiet.cancelled_caught:
                return
    raise TransientDeviceError(
        f"{address}: expected silence after 'abort', it goes on sending for {LONGEST_BABBLE_S:g} s: is it a "
        "TDC1?"
    )


async def _set_up(lines: Lines, name: str, config: Tdc1Config) -> float:
    """Set levels and reference, and return the threshold (V) that is read back.

    Raises:
        DeviceError: a setting reads back differently.
    """
    wanted_v = config.threshold_v
    if wanted_v is None:
        await lines.tell(config.levels)
        least_v, most_v = LEVELS_V[config.levels]
    else:
        await lines.tell(f"{'NEG' if wanted_v < 0 else 'POS'} {wanted_v:g}")
        least_v, most_v = wanted_v - LEVEL_TOLERANCE_V, wanted_v + LEVEL_TOLERANCE_V
    level_v = await _number(lines, name, "level?")
    if not least_v <= level_v <= most_v:
        raise DeviceError(
            f"{name}: its threshold reads back as {level_v:g} V, expected {least_v:g} to {most_v:g} V after "
            f"{config.levels if wanted_v is None else f'{wanted_v:g} V'}"
        )
    number = REFERENCES[config.reference]
    await lines.tell(f"REFCLK {number}")
    got = await _number(lines, name, "REFCLK?")
    if got != number:
        raise DeviceError(f"{name}: REFCLK reads back as {got:g}, expected {number} ({config.reference})")
    return level_v


async def _number(lines: Lines, name: str, query: str) -> float:
    """Return the number at the beginning of an answer; a unit may follow."""
    return figure(name, query, (await _ask(lines, query)).partition(" ")[0])


async def _ask(lines: Lines, query: str) -> str:
    """Ask, and record question and answer, which are no key material."""
    lines.port.transcript.note_sent(query.encode() + b"\r\n")
    said = (await lines.ask(query)).strip()
    lines.port.transcript.note_received(said.encode() + b"\r\n")
    return said
