"""Simulated hardware: a transmitter and a time tagger, connected by a simulated fibre.

``fibre`` in their tables is its address: the path of a private Unix socket, or ``tcp://HOST:PORT`` for a
trial on two hosts (without host: this machine). At Alice, ``fibre_peer`` is the address or network from which
Bob's end may connect; by default only this machine. TCP is not encrypted: a warning and the status state
this.

Simulated keys protect nothing: both devices declare themselves simulated.
"""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, ClassVar

from msgspec import Struct

from qnode.config import LinkParameters, ReceiverParameters, SourceParameters
from qnode.config_description import FRACTION, Described, check_limits
from qnode.devices.protocols import DeviceIdentity, EmissionRun
from qnode.simulate.fibre_address import FibreAddress, fibre_at
from qnode.simulate.parameters import Change, SimulationParameters
from qnode.simulate.tdc import ReceiverEnd, open_receiver
from qnode.simulate.transmitter import TransmitterEnd, open_transmitter
from qnode.tags.types import Codes, Slots, TagBlock


class TransmitterConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Alice's simulated source. The tables `source` and `simulation` are the same as on Bob's side."""

    fibre: Annotated[
        str,
        Described(
            "address of the simulated fibre: the path of a socket, or tcp://HOST:PORT with Alice's address"
        ),
    ]
    fibre_peer: Annotated[
        str | None,
        Described(
            "with tcp: the address or network from which Bob's end may connect; default: this machine only"
        ),
    ] = None
    source: SourceParameters = SourceParameters()
    simulation: SimulationParameters = SimulationParameters()

    def __post_init__(self) -> None:
        fibre_at(self.fibre, self.fibre_peer)


class TdcConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Bob's simulated detectors and time tagger. The tables are the same as on Alice's side."""

    fibre: Annotated[str, Described("the same address as at Alice")]
    source: SourceParameters = SourceParameters()
    receiver_p_z: Annotated[float, Described("as `link.receiver.p_z`", "fraction", limits=FRACTION)] = 0.5
    simulation: SimulationParameters = SimulationParameters()

    def __post_init__(self) -> None:
        check_limits(self)
        fibre_at(self.fibre)


def _serial(simulation: SimulationParameters, fibre: FibreAddress) -> str:
    """Return the properties of one simulated device, and whether others can read its fibre."""
    return f"seed-{simulation.seed}" + (" fibre in the clear" if fibre.in_the_clear else "")


class SimulatedTransmitter:
    """Alice's qubit source, and Alice's end of the simulated fibre."""

    Config: ClassVar[type[Struct]] = TransmitterConfig

    def __init__(self, end: TransmitterEnd, serial: str) -> None:
        self._end = end
        self._identity = DeviceIdentity("simulated transmitter", serial, simulated=True)

    @classmethod
    @asynccontextmanager
    async def open(cls, config: TransmitterConfig) -> AsyncIterator["SimulatedTransmitter"]:
        """Begin a run and listen for the receiver; at the end the light is switched off.

        Raises:
            DeviceError: the socket's folder is open to others, or another transmitter uses the address.
        """
        fibre = fibre_at(config.fibre, config.fibre_peer)
        async with open_transmitter(fibre, config.simulation, config.source) as end:
            yield cls(end, _serial(config.simulation, fibre))

    @property
    def identity(self) -> DeviceIdentity:
        """The identity that the device reports."""
        return self._identity

    def runs(self) -> AsyncGenerator[EmissionRun, None]:
        """Yield the present emission run, then each later one."""
        return self._end.runs()

    def symbols(self, run_id: int, slots: Slots) -> Codes:
        """Return the symbols sent in ``slots``; `UNKNOWN_SYMBOL` for other runs than the present one."""
        return self._end.symbols(run_id, slots)

    async def change(self, change: Change) -> None:
        """Change laser, fibre or Eve, from the first slot on that the receiver has not yet generated."""
        await self._end.change(change)


class SimulatedTdc:
    """Bob's time-to-digital converter, with the detectors and the fibre before it."""

    Config: ClassVar[type[Struct]] = TdcConfig

    def __init__(self, end: ReceiverEnd, serial: str) -> None:
        self._end = end
        self._identity = DeviceIdentity("simulated TDC", serial, simulated=True)

    @classmethod
    @asynccontextmanager
    async def open(cls, config: TdcConfig) -> AsyncIterator["SimulatedTdc"]:
        """Start at tag time zero and follow the transmitter, even if it starts later."""
        link = LinkParameters(source=config.source, receiver=ReceiverParameters(p_z=config.receiver_p_z))
        fibre = fibre_at(config.fibre)
        async with open_receiver(fibre, config.simulation, link) as end:
            yield cls(end, _serial(config.simulation, fibre))

    @property
    def identity(self) -> DeviceIdentity:
        """The identity that the device reports."""
        return self._identity

    @property
    def paced(self) -> bool:
        """True at real time only."""
        return self._end.paced

    @property
    def origin_s(self) -> float:
        """Bob's wall-clock time at tag time zero."""
        return self._end.origin_s

    def tags(self) -> AsyncGenerator[TagBlock, None]:
        """Yield tag blocks of at most 32 seconds and 2^20 tags."""
        return self._end.tags()
