"""PicoQuant MultiHarp, PicoHarp 330, HydraHarp and TimeHarp 260, through snAPI in a process of its own."""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any, ClassVar, Final, Literal

import numpy as np
import trio
from msgspec import Struct

from qnode.config.description import Described, Limits, check_limits
from qnode.devices.child import FIRST_ANSWER_LIMIT_S, Child, open_child
from qnode.devices.protocols import DeviceIdentity
from qnode.devices.tag_channels import TagChannels
from qnode.devices.tag_rates import TagRates
from qnode.errors import DeviceError, TransientDeviceError
from qnode.tags.formats.ptu_records import T2_BITS, Words, decode_t2
from qnode.tags.tag_time import signed_64
from qnode.tags.types import TagBlock

DEVICE: Final = "PicoQuant"
LIBRARY: Final = "qnode_drivers.picoquant_library:PicoQuantLibrary"
REMEDY: Final = "pip install 'qnode[picoquant]'"
PERIOD_S: Final = 0.05
READ_LIMIT_S: Final = 4.0  # a source is silent for less than 5 s
LONGEST_SILENCE_S: Final = 4.0  # overflows are records too: the time goes on in the dark
MOST_RECORDS: Final = 1 << 22
HOLD_TIME_MS: Final = 2  # for overflows without a tag; the device then sends 16 records at a time
SYNC: Final = 0
MOST_INPUT: Final = 64
_LEVEL: Final = Limits(-1500, 1500)


class PicoQuantConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A device of PicoQuant on this machine's USB or PCIe."""

    channels: Annotated[TagChannels, Described("inputs of the detectors: {z = 1, x = 2}; 0: the sync input")]
    serial: Annotated[str, Described("serial number of the device; default: the only one")] = ""
    reference: Annotated[Literal["internal", "external"], Described("source of the 10 MHz reference")] = (
        "internal"
    )
    z_level_mv: Annotated[
        int | None, Described("trigger level of the Z input; default: snAPI's", "mV", limits=_LEVEL)
    ] = None
    x_level_mv: Annotated[
        int | None, Described("trigger level of the X input; default: snAPI's", "mV", limits=_LEVEL)
    ] = None
    edge: Annotated[Literal["rising", "falling"], Described("edge of the pulses, with a trigger level")] = (
        "falling"
    )

    def __post_init__(self) -> None:
        check_limits(self)
        self.channels.check_inputs(SYNC, MOST_INPUT)

    def levels_mv(self) -> dict[str, int]:
        """Return the trigger levels that are set, by input."""
        wanted = ((self.channels.z, self.z_level_mv), (self.channels.x, self.x_level_mv))
        return {str(number): level for number, level in wanted if level is not None}


class PicoQuantTdc:
    """A device in T2 mode whose measurement runs."""

    Config: ClassVar[type[Struct]] = PicoQuantConfig
    paced = True

    def __init__(
        self, child: Child, identity: DeviceIdentity, channels: TagChannels, resolution_ps: int
    ) -> None:
        self.identity = identity
        self.origin_s = 0.0
        self._child = child
        self._channels = channels
        self._resolution_ps = resolution_ps
        self._state = np.zeros(3, np.int64)
        self._reached_ps = 0
        self._heard_at_s = trio.current_time()
        self._rates = TagRates()

    @classmethod
    @asynccontextmanager
    async def open(cls, config: PicoQuantConfig) -> AsyncIterator["PicoQuantTdc"]:
        """Initialise the device and start a measurement without end.

        Raises:
            DeviceError: no library, no device with this serial number, or one whose records are not known.
        """
        async with open_child(DEVICE, LIBRARY, REMEDY) as child:
            levels = config.levels_mv()
            said = await child.ask(
                "open",
                limit_s=FIRST_ANSWER_LIMIT_S,
                serial=config.serial,
                reference=config.reference,
                levels_mv=levels,
                edges=dict.fromkeys(levels, int(config.edge == "rising")),
                hold_time_ms=HOLD_TIME_MS,
                most_records=MOST_RECORDS,
            )
            identity = DeviceIdentity(f"PicoQuant {said['model']}", said["serial"] or "unknown")
            device = cls(child, identity, config.channels, _resolution_ps(said, config))
            device.origin_s = said["started_s"]
            yield device

    async def tags(self) -> AsyncGenerator[TagBlock, None]:
        """Yield the tags of the measurement.

        Raises:
            DeviceGone, TransientDeviceError: the library crashed or hangs, its buffer was full, the device
                stopped (its own buffer was full), or it is silent.
        """
        while True:
            await trio.sleep(PERIOD_S)
            records = await self._read()
            yield self._rates.see(await trio.to_thread.run_sync(self._block, records))

    async def readings(self) -> dict[str, float]:
        """Return the rates since the last readings."""
        await trio.lowlevel.checkpoint()
        return self._rates.readings()

    async def _read(self) -> Words:
        got = await self._child.ask("read", limit_s=READ_LIMIT_S)
        records: Words = got["records"]
        now_s = trio.current_time()
        if records.shape[0]:
            self._heard_at_s = now_s
        if got["is_full"]:
            raise TransientDeviceError(
                f"{DEVICE}: the library's buffer of {MOST_RECORDS:,} records was full, an unknown number of "
                "tags is lost: does this machine have too much to do?"
            )
        if got["is_finished"]:
            raise TransientDeviceError(
                f"{DEVICE}: the measurement has ended by itself: the device's buffer was full, or it was "
                "unplugged"
            )
        if now_s - self._heard_at_s > LONGEST_SILENCE_S:
            raise TransientDeviceError(
                f"{DEVICE}: silent for {LONGEST_SILENCE_S:g} s, expected overflows also in the dark"
            )
        return records

    def _block(self, records: Words) -> TagBlock:
        times_ps, inputs = np.empty(records.shape[0], np.int64), np.empty(records.shape[0], np.int16)
        unit = np.uint64(self._resolution_ps)
        n_tags, _, n_sound = decode_t2(
            records, unit, unit << np.uint64(T2_BITS), True, times_ps, inputs, self._state
        )
        if n_sound < records.shape[0]:
            raise TransientDeviceError(
                f"{DEVICE}: a record is none of T2 mode: bytes were lost, or the device is in another mode"
            )
        times_ps, inputs = times_ps[:n_tags], inputs[:n_tags]
        latest_ps = int(self._state[0])  # of the latest overflow
        if n_tags:
            order = np.argsort(times_ps - times_ps[0], kind="stable")
            times_ps, inputs = times_ps[order], inputs[order]
            latest_ps += max(0, signed_64(int(times_ps[-1]) - latest_ps))
        self._reached_ps += max(0, signed_64(latest_ps - self._reached_ps))
        return self._channels.block(times_ps, inputs, signed_64(self._reached_ps))


def _resolution_ps(said: dict[str, Any], config: PicoQuantConfig) -> int:
    """Return the unit of the records.

    Raises:
        DeviceError: a device whose T2 records are others, or that lacks a configured input.
    """
    resolution_ps = said["resolution_ps"]
    if said["model"].startswith("HydraHarp 400") and said["version"].startswith("1"):
        raise DeviceError(
            f"{DEVICE}: a HydraHarp 400 of version {said['version']} sends older records, which are not read"
        )
    if not (resolution_ps >= 1 and resolution_ps == int(resolution_ps)):
        raise DeviceError(
            f"{DEVICE}: {said['model']} has a resolution of {resolution_ps:g} ps, expected whole picoseconds"
        )
    most = max(config.channels.z, config.channels.x)
    if most > said["inputs"]:
        raise DeviceError(
            f"{DEVICE}: {said['model']} has {said['inputs']} inputs, channels names input {most}"
        )
    return int(resolution_ps)
