"""The emulated devices of one site in one process: `python -m qnode.emulate.bench FILE`.

The file lists the devices, each with its kind, its port and its part of the physics:

    [[device]]
    kind = "open-transmitter"
    port = "tcp://127.0.0.1:4711"   # or a path, which becomes a link to a pseudo-terminal
    fibre = "/run/user/1000/fibre.sock"

A further kind of device is a struct with ``port`` and ``emulator()``, in `Device`. Those with the same
``fibre`` share one `Beam`. The process ends when its standard input does.
"""

import math
import os
import sys
from abc import abstractmethod
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Annotated

import structlog
import trio
from msgspec import Struct

from qnode.config import LinkParameters, ReceiverParameters, SourceParameters, load
from qnode.config.description import FRACTION, Described, Limits, check_limits
from qnode.emulate.beam import Beam
from qnode.emulate.open_protocol_tdc import OpenTdcEmulator
from qnode.emulate.open_protocol_transmitter import OpenTransmitterEmulator
from qnode.emulate.optilab_bcb4 import OptilabBcb4Emulator
from qnode.emulate.oz_dd100 import OzDd100Emulator
from qnode.emulate.ports import Emulator, Faults, pty_port, tcp_port
from qnode.emulate.scpi import ScpiEmulator
from qnode.emulate.tdc1 import Tdc1Emulator
from qnode.errors import ConfigError, QnodeError, first_of
from qnode.simulate.fibre_address import fibre_at
from qnode.simulate.parameters import SimulationParameters
from qnode.simulate.tdc import ReceiverEnd, open_receiver

TCP_PREFIX = "tcp://127.0.0.1:"


class BenchDevice(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field="kind"):
    """An emulated device and its port."""

    port: Annotated[str, Described("tcp://127.0.0.1:PORT, or the path of a link to a pseudo-terminal")]
    serial_number: Annotated[str, Described("serial number that the device reports")]
    fibre: Annotated[str, Described("address of the simulated fibre")]

    @abstractmethod
    def emulator(self, beam: Beam) -> AbstractAsyncContextManager[Emulator]:
        """Run the emulator, ``beam`` is Alice's light before its fibre; gives what serves its port."""


class _Optics(BenchDevice, frozen=True, kw_only=True):
    """A device at an end of the simulated fibre; the tables are the same at both ends."""

    source: SourceParameters = SourceParameters()
    simulation: SimulationParameters = SimulationParameters()


class TransmitterOnBench(_Optics, frozen=True, kw_only=True, tag="open-transmitter"):
    """Alice's transmitter, of the open device protocol."""

    @asynccontextmanager
    async def emulator(self, beam: Beam) -> AsyncIterator[Emulator]:
        """Run the transmitter; dark until it is started."""
        device = OpenTransmitterEmulator(
            fibre_at(self.fibre), self.simulation, self.source, beam=beam, serial=self.serial_number
        )
        async with trio.open_nursery() as nursery:
            nursery.start_soon(device.run)
            yield device
            nursery.cancel_scope.cancel()


class _Receiver(_Optics, frozen=True, kw_only=True):
    """Bob's detectors before a time-to-digital converter."""

    receiver_p_z: Annotated[float, Described("as `link.receiver.p_z`", "fraction", limits=FRACTION)] = 0.5

    def __post_init__(self) -> None:
        check_limits(self)

    def end(self) -> AbstractAsyncContextManager[ReceiverEnd]:
        """Let the detectors click from now on."""
        link = LinkParameters(source=self.source, receiver=ReceiverParameters(p_z=self.receiver_p_z))
        return open_receiver(fibre_at(self.fibre), self.simulation, link)


class TdcOnBench(_Receiver, frozen=True, kw_only=True, tag="open-tdc"):
    """Bob's time-to-digital converter, of the open device protocol."""

    @asynccontextmanager
    async def emulator(self, beam: Beam) -> AsyncIterator[Emulator]:
        """Run detectors and converter."""
        async with self.end() as end:
            device = OpenTdcEmulator(end, serial=self.serial_number, set_phase=end.set_phase)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(device.run)
                yield device
                nursery.cancel_scope.cancel()


class Tdc1OnBench(_Receiver, frozen=True, kw_only=True, tag="s-fifteen-tdc1"):
    """Bob's time tagger, an S-Fifteen TDC1; its ticks of 2 ns need bins further apart than that."""

    @asynccontextmanager
    async def emulator(self, beam: Beam) -> AsyncIterator[Emulator]:
        """Run detectors and time tagger."""
        async with self.end() as end:
            device = Tdc1Emulator(end.tags)
            device.identity = f"TDC1 {self.serial_number}"
            async with trio.open_nursery() as nursery:
                nursery.start_soon(device.run)
                yield device
                nursery.cancel_scope.cancel()


class AttenuatorOnBench(BenchDevice, frozen=True, kw_only=True, tag="oz-dd100"):
    """An OZ Optics DD-100 behind Alice's transmitter; as it comes, at its most."""

    working_db: Annotated[
        float,
        Described("attenuation at which the mean photon numbers are right", limits=Limits(0.0, 20.0)),
    ] = 20.0

    def __post_init__(self) -> None:
        check_limits(self)

    @asynccontextmanager
    async def emulator(self, beam: Beam) -> AsyncIterator[Emulator]:
        """Run the attenuator."""
        device = OzDd100Emulator(self.serial_number)
        device.attenuation_db = device.limits_db[1]

        def attenuate() -> None:
            beam.attenuator_db = (device.attenuation_db or 0.0) - self.working_db
            beam.note_change()

        device.moved = attenuate
        attenuate()
        yield device


class PowerMeterOnBench(BenchDevice, frozen=True, kw_only=True, tag="scpi-power-meter"):
    """A power meter at a tap behind Alice's attenuator: 1 µW when the mean photon numbers are right."""

    @asynccontextmanager
    async def emulator(self, beam: Beam) -> AsyncIterator[Emulator]:
        """Run the power meter."""
        yield ScpiEmulator(
            f"QNODE,EMULATED POWER METER,{self.serial_number},1.0",
            {"MEAS:POW?": lambda: f"{beam.power_behind_w():.6E}"},
        )


class BiasControllerOnBench(BenchDevice, frozen=True, kw_only=True, tag="optilab-bcb4"):
    """An Optilab BCB-4 at the modulator that makes the bins, whose best bias is that of the least light."""

    half_wave_v: Annotated[
        float,
        Described(
            "change of the bias that leads from the least to the most light", "V", limits=Limits(0.1, 10.0)
        ),
    ] = 5.0

    def __post_init__(self) -> None:
        check_limits(self)

    @asynccontextmanager
    async def emulator(self, beam: Beam) -> AsyncIterator[Emulator]:
        """Run the bias controller."""
        device = OptilabBcb4Emulator(firmware=f"1.3.3 {self.serial_number}")
        best_v = self.half_wave_v / 2.0
        device.half_wave_v, device.maximum_v = self.half_wave_v, best_v - self.half_wave_v

        def bias() -> None:
            beam.biases_rad[self.serial_number] = math.pi * (device.bias_v - best_v) / self.half_wave_v
            beam.note_change()

        device.moved = bias
        bias()
        yield device


Device = (
    TransmitterOnBench
    | TdcOnBench
    | Tdc1OnBench
    | AttenuatorOnBench
    | PowerMeterOnBench
    | BiasControllerOnBench
)


class Bench(Struct, frozen=True, forbid_unknown_fields=True):
    """The devices of one site."""

    device: list[Device]


@asynccontextmanager
async def bench_port(port: str, emulator: Emulator, faults: Faults | None = None) -> AsyncIterator[None]:
    """Put an emulator behind its port, with ``faults`` if there are to be some."""
    if port.startswith(TCP_PREFIX):
        async with tcp_port(emulator, faults, port=int(port.removeprefix(TCP_PREFIX))):
            yield
        return
    async with pty_port(emulator, faults) as terminal:
        link = trio.Path(port)
        await link.unlink(missing_ok=True)
        await link.symlink_to(terminal)
        yield


async def run_bench(bench: Bench) -> None:
    """Serve all devices for ever.

    Raises:
        DeviceError: a device cannot have its end of the fibre.
        OSError: it cannot have its port.
    """
    beams = defaultdict[str, Beam](Beam)
    async with trio.open_nursery() as nursery:
        for device in bench.device:
            nursery.start_soon(_serve, device, beams[device.fibre])


async def _serve(device: Device, beam: Beam) -> None:
    async with device.emulator(beam) as emulator, bench_port(device.port, emulator):
        await trio.sleep_forever()


async def _run_until_eof(bench: Bench) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run_bench, bench)
        async with trio.lowlevel.FdStream(os.dup(sys.stdin.fileno())) as stdin:
            async for _ in stdin:
                pass
        nursery.cancel_scope.cancel()


def main() -> int:
    """Run the bench of the file that the command line names; return the exit status."""
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    try:
        bench = load(Path(sys.argv[1]), Bench)
    except (IndexError, ConfigError) as error:
        print(f"qnode.emulate.bench: expected a file: {error}", file=sys.stderr)
        return 64
    status = 0
    try:
        trio.run(_run_until_eof, bench)
    except* (QnodeError, OSError) as error:
        print(f"qnode.emulate.bench: {first_of(error)}", file=sys.stderr)
        status = 1
    except* KeyboardInterrupt:
        pass
    return status


if __name__ == "__main__":
    sys.exit(main())
