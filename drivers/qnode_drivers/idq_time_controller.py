"""IDQ Time Controller (ID900, ID1000): SCPI over ZeroMQ, tags through the maker's DataLinkTarget service.

The device sends tags at the end of an acquisition, so the driver lets it make short ones in a row. Their
times begin again each time; the acquisitions follow each other exactly.
"""

import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Annotated, Any, ClassVar, Final, Literal

import msgspec
import numpy as np
import trio
from msgspec import Struct

from qnode.config.description import Described, Limits, check_limits
from qnode.devices.device_clock import DeviceClock
from qnode.devices.protocols import DeviceIdentity
from qnode.devices.scpi import check_identity_text
from qnode.devices.settings import figure
from qnode.devices.tag_channels import TagChannels
from qnode.devices.tag_rates import TagRates
from qnode.devices.transport import Transport, check_address, open_transport
from qnode.devices.transport.lines import Lines
from qnode.errors import DeviceError, TransientDeviceError
from qnode.tags.tag_time import signed_64
from qnode.tags.types import TagBlock
from qnode.units import PS_PER_S

ANSWER_LIMIT_S: Final = 5.0
LONGEST_SILENCE_S: Final = 4.0
LEAVING_S: Final = 3.0
LONGEST_LATE_S: Final = 2.0
DEAD_TIME_PS: Final = 40_000  # between two acquisitions, at least
ERRORS_PERIOD_S: Final = 1.0
LEVEL_TOLERANCE_V: Final = 0.01
_LEVEL: Final = Limits(-5.0, 5.0)


class IdqConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The Time Controller at ``address``, and the service that receives its tags."""

    address: Annotated[str, Described("the device: zmq://HOST:5555")]
    channels: Annotated[TagChannels, Described("inputs 1 to 4 of the detectors: {z = 1, x = 2}")]
    service: Annotated[str, Described("the DataLinkTarget service, on this host")] = "zmq://127.0.0.1:6060"
    stream_port: Annotated[
        int,
        Described(
            "TCP port of the service for the tags of input 1; the next ones follow",
            "number",
            limits=Limits(1024, 65532, text="1024 to 65532"),
        ),
    ] = 4242
    z_threshold_v: Annotated[float, Described("threshold of the Z input", limits=_LEVEL)] = 0.5
    x_threshold_v: Annotated[float, Described("threshold of the X input", limits=_LEVEL)] = 0.5
    edge: Annotated[Literal["rising", "falling"], Described("edge of the pulses")] = "rising"
    acquisition_s: Annotated[
        float, Described("one of the short acquisitions, after which tags come", limits=Limits(0.2, 1.0))
    ] = 0.2
    identity: Annotated[
        str, Described("a text in the answer to *IDN?, such as the serial number; another device is refused")
    ] = "ID"

    def __post_init__(self) -> None:
        check_limits(self)
        check_address(self.address, "zmq")
        check_address(self.service, "zmq")
        self.channels.check_inputs(1, 4)


class IdqTimeController:
    """A Time Controller that makes acquisitions in a row."""

    Config: ClassVar[type[Struct]] = IdqConfig
    paced = True

    def __init__(self, config: IdqConfig, device: "_Device", streams: dict[int, Transport]) -> None:
        self.identity = DeviceIdentity("unknown", "unknown")
        self.origin_s = 0.0
        self._config = config
        self._device = device
        self._streams = streams
        self._width_ps = round(config.acquisition_s * PS_PER_S)
        self._period_ps = self._width_ps + DEAD_TIME_PS
        self._clocks = {number: self._new_clock() for number in self.inputs}
        self._rates = TagRates()

    @classmethod
    @asynccontextmanager
    async def open(cls, config: IdqConfig) -> AsyncIterator["IdqTimeController"]:
        """Set up the device, let the service stream its tags, and begin; at the end the device is stopped.

        Raises:
            DeviceError: it is another device, a setting reads back differently, or the service refuses.
        """
        host = check_address(config.address).host_and_port()[0]
        async with AsyncExitStack() as stack:
            device = _Device(await stack.enter_async_context(open_transport(config.address)))
            service = _Service(await stack.enter_async_context(open_transport(config.service)))
            tagger = cls(config, device, {})
            said = await device.ask("*IDN?")
            check_identity_text(device.name, said, config.identity)
            fields = [field.strip() for field in said.split(",")]
            serial = fields[2] if len(fields) > 2 else said.strip()
            tagger.identity = DeviceIdentity("IDQ Time Controller", serial or "unknown")
            names = {number: f"qnode-{host}-{number}" for number in tagger.inputs}
            stack.push_async_callback(tagger._leave, service, names)
            await tagger._set_up()
            await service.stop_earlier(names)
            for number, name in names.items():
                port = config.stream_port + number - 1
                await service.ask(
                    f"start-stream --id {name} --address {host} --channel {number} --stream-port {port}"
                )
                place = f"zmq://{check_address(config.service).host_and_port()[0]}:{port}?socket=pair"
                tagger._streams[number] = await stack.enter_async_context(open_transport(place, secret=True))
                await device.ask(f"RAW{number}:SEND ON")
            await device.ask("REC:PLAY")
            tagger.origin_s = time.time()
            yield tagger

    @property
    def inputs(self) -> tuple[int, int]:
        """The inputs of the detectors, Z first."""
        return self._config.channels.z, self._config.channels.x

    async def tags(self) -> AsyncGenerator[TagBlock, None]:
        """Yield the tags of each acquisition.

        Raises:
            DeviceGone, TransientDeviceError: device or service are gone or silent, or an acquisition is
                missing.
        """
        number, lost, asked_at_s = 0, 0, trio.current_time()
        while True:
            times, inputs = [], []
            for one, stream in self._streams.items():
                times.append(await self._message(one, stream, number))
                inputs.append(np.full(times[-1].shape[0], one, np.int16))
            if trio.current_time() - asked_at_s >= ERRORS_PERIOD_S:
                lost, asked_at_s = await self._errors(), trio.current_time()
            times_ps, numbers = np.concatenate(times), np.concatenate(inputs)
            began_ps, number = signed_64(number * self._period_ps), number + 1
            order = np.argsort(times_ps - np.int64(began_ps), kind="stable")
            until_ps = signed_64(began_ps + self._period_ps)
            yield self._rates.see(
                self._config.channels.block(times_ps[order], numbers[order], until_ps, lost)
            )
            lost = 0

    async def readings(self) -> dict[str, float]:
        """Return rates since the last readings, and the errors that the device counted."""
        await trio.lowlevel.checkpoint()
        return self._rates.readings()

    async def _message(self, one: int, stream: Transport, number: int) -> "np.ndarray":
        """Return the times of input ``one`` in acquisition ``number``, counted from the first."""
        message = None
        with trio.move_on_after(LONGEST_SILENCE_S):
            message = await stream.receive()
        if message is None:
            raise TransientDeviceError(
                f"{self._device.name}: silent for {LONGEST_SILENCE_S:g} s, expected the tags of input {one} "
                f"every {self._config.acquisition_s:g} s: is the DataLinkTarget service connected to it?"
            )
        if len(message) % 8:
            raise TransientDeviceError(
                f"{self._device.name}: {len(message)} bytes of tags came, expected 8 for each"
            )
        times_ps = np.frombuffer(message, "<u8")
        if times_ps.shape[0] and int(times_ps.max()) > self._period_ps:
            raise TransientDeviceError(
                f"{self._device.name}: a tag of input {one} lies beyond the end of its acquisition of "
                f"{self._width_ps} ps: RAW{one} has a reference, or something else is set"
            )
        if not self._clocks[one].agrees((number + 1) * self._period_ps / PS_PER_S, trio.current_time()):
            raise TransientDeviceError(
                f"{self._device.name}: tags of input {one} came before their time: more than one message for "
                "an acquisition"
            )
        return times_ps.astype(np.int64) + np.int64(signed_64(number * self._period_ps))

    def _new_clock(self) -> DeviceClock:
        period_s = self._period_ps / PS_PER_S
        return DeviceClock(
            most_early_s=period_s / 2,
            most_late_s=0.75 * period_s,
            longest_late_s=LONGEST_LATE_S,
            because="an acquisition is missing",
        )

    async def _errors(self) -> int:
        """Return how many acquisition errors the device counted since the last call."""
        errors = 0
        for number in self.inputs:
            counted = round(await self._device.number(f"RAW{number}:ERRORS?"))
            if counted > 0:
                await self._device.ask(f"RAW{number}:ERRORS:CLEAR")
                errors += counted
        return errors

    async def _set_up(self) -> None:
        """Set inputs and acquisitions, and read back what matters."""
        device, config = self._device, self._config
        edge = config.edge.upper()
        for number, level_v in zip(self.inputs, (config.z_threshold_v, config.x_threshold_v), strict=True):
            await device.ask(f"INPU{number}:ENAB ON;COUP DC;EDGE {edge};THRE {level_v:g}V")
            await device.confirm(f"INPU{number}:THRE?", level_v, LEVEL_TOLERANCE_V)
            await device.confirm_word(f"INPU{number}:EDGE?", edge)
            await device.ask(f"DELA{number}:VALU 0;LINK INPU{number}")
            block = f"TSCO{number + 4}"
            await device.ask(f"{block}:FIR:LINK DELA{number}")
            await device.ask(f"{block}:OPIN ONLYFIR;OPOU ONLYFIR;WIND:ENAB OFF")
            await device.ask(f"RAW{number}:STOP:LINK {block}")
            await device.ask(f"RAW{number}:REF:LINK NONE")
            await device.confirm_word(f"RAW{number}:REF:LINK?", "NONE")
            await device.ask(f"RAW{number}:ERRORS:CLEAR")
        for command in ("REC:TRIG:ARM:MODE MANUal", "REC:ENABle ON", "REC:STOP", "REC:NUM INF"):
            await device.ask(command)
        await device.ask(f"REC:PWID {self._width_ps};PPER {self._period_ps}")
        await device.confirm("REC:PWID?", self._width_ps, 0)
        await device.confirm("REC:PPER?", self._period_ps, 0)

    async def _leave(self, service: "_Service", names: dict[int, str]) -> None:
        with trio.move_on_after(LEAVING_S, shield=True), suppress(DeviceError):
            await self._device.ask("REC:STOP")
            for number in names:
                await self._device.ask(f"RAW{number}:SEND OFF")
            await service.stop_earlier(names)


class _Device:
    """The device: each command is answered, also a setting."""

    def __init__(self, port: Transport) -> None:
        self.name = f"IDQ Time Controller at {port.address}"
        self._lines = Lines(port, command_end=b"")
        self._lock = trio.Lock()

    async def ask(self, command: str) -> str:
        async with self._lock:
            said = (await self._lines.ask(command, limit_s=ANSWER_LIMIT_S)).strip()
        if "SCPI_ERR" in said:
            raise DeviceError(f"{self.name}: refused {command!r}: {said[:80]}")
        return said

    async def number(self, question: str) -> float:
        """Return the number in an answer, without its unit (V, or TB for picoseconds)."""
        return figure(self.name, question, (await self.ask(question)).rstrip("VTB "))

    async def confirm(self, question: str, wanted: float, near: float) -> None:
        """Compare a figure with what was set."""
        got = await self.number(question)
        if not abs(got - wanted) <= near:
            raise DeviceError(f"{self.name}: {question} reads back as {got:g}, expected {wanted:g}")

    async def confirm_word(self, question: str, wanted: str) -> None:
        """Compare a word with what was set; the device may shorten it to four letters."""
        got = await self.ask(question)
        if got.upper()[:4] != wanted[:4]:
            raise DeviceError(f"{self.name}: {question} reads back as {got!r}, expected {wanted}")


class _Service:
    """The DataLinkTarget service: text commands, answers in JSON."""

    def __init__(self, port: Transport) -> None:
        self._name = f"DataLinkTarget service at {port.address}"
        self._port = port

    async def ask(self, command: str) -> Any:
        said = None
        with trio.move_on_after(ANSWER_LIMIT_S):
            await self._port.discard()
            await self._port.send(command.encode())
            said = await self._port.receive()  # a whole message, of several lines
        if said is None:
            raise TransientDeviceError(f"{self._name}: no answer to {command!r} within {ANSWER_LIMIT_S:g} s")
        try:
            answer = msgspec.json.decode(said) if said.strip() else None
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise TransientDeviceError(f"{self._name}: answered {said[:80]!r}, expected JSON") from None
        if isinstance(answer, dict) and "error" in answer:
            error = answer["error"]
            why = error.get("description", "no reason given") if isinstance(error, dict) else error
            raise DeviceError(f"{self._name}: refused {command!r}: {str(why)[:200]}")
        return answer

    async def stop_earlier(self, names: dict[int, str]) -> None:
        """Stop the streams of these names, which an earlier opening may have left."""
        running = await self.ask("list")
        for name in names.values():
            if isinstance(running, list) and name in running:
                await self.ask(f"stop --id {name}")
