"""Emulator of a transmitter that speaks the open device protocol: Alice's end of the simulated fibre."""

import math
import struct
import time
from collections.abc import Callable
from contextlib import aclosing
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import trio
from msgspec.structs import replace

from qnode.config import SourceParameters
from qnode.emulate.beam import Beam
from qnode.emulate.open_protocol import (
    BEGAN_AGAIN,
    GET,
    LOOK_UP,
    NOT_NOW,
    OUT_OF_RANGE,
    READ,
    STOPPED,
    TRANSMITTER,
    OpenDevice,
    Refusal,
    Setting,
)
from qnode.simulate.drift import laser_power
from qnode.simulate.fibre_address import FibreAddress
from qnode.simulate.generator import KNOT_S
from qnode.simulate.parameters import Change, SimulationParameters
from qnode.simulate.transmitter import TransmitterEnd, open_transmitter, site_offset_s
from qnode.units import transmission

QUBIT_RATE, BIN_SPACING, P_Z, PROBABILITY, LEVEL, LASER, INTERLOCK, RING_SLOTS, BIAS, POWER = range(1, 11)
BIAS_LIMITS: Final = (-10_000_000, 10_000_000)  # microvolts
NOMINAL_POWER_W: Final = 1e-6  # with the nominal intensities
ONE: Final = 1 << 32
UNKNOWN: Final = 15
SLOTS_IN_ANSWER: Final = 2016
MOST_SLOTS_READ: Final = 1 << 16
RING_S: Final = 4
PATTERN: Final = (QUBIT_RATE, BIN_SPACING, P_Z, PROBABILITY, LEVEL)

Slots = npt.NDArray[np.int64]


class OpenTransmitterEmulator(OpenDevice):
    """Emits into the simulated ``fibre`` between START and STOP; `run` is its light source.

    `RING_SLOTS` of its settings: how far its record reaches back. ``end``: the light, None in the dark.
    ``beam``: what other instruments do to the light.
    """

    kind = TRANSMITTER

    def __init__(
        self,
        fibre: FibreAddress,
        simulation: SimulationParameters,
        source: SourceParameters,
        *,
        beam: Beam | None = None,
        serial: str = "E-TX-1",
        simulated: bool = True,
    ) -> None:
        super().__init__("emulated open transmitter", serial, simulated=simulated)
        self._beam = beam or Beam()
        self._beam.power_w = self.power_w
        self._fibre = fibre
        self._simulation = simulation
        self._source = source
        self.end: TransmitterEnd | None = None
        self._wanted = False
        self._turned = trio.Event()  # the light was wanted, or not any more, or it came on or went out
        self.settings = {
            (QUBIT_RATE, 0): 1000 * source.qubit_rate_hz,
            (BIN_SPACING, 0): round(1000 * source.bin_spacing_ps),
            (P_Z, 0): round(source.p_z * ONE),
            (PROBABILITY, 0): round(source.p[0] * ONE),
            (PROBABILITY, 1): round(source.p[1] * ONE),
            (LEVEL, 0): ONE,
            (LEVEL, 1): round(source.mu[1] / source.mu[0] * ONE),
            (LASER, 0): 0,
            (INTERLOCK, 0): 1,
            (RING_SLOTS, 0): RING_S * source.qubit_rate_hz,
            (BIAS, 0): 0,
            (BIAS, 1): BIAS_LIMITS[0],
            (BIAS, 2): BIAS_LIMITS[1],
            (POWER, 0): 0,
        }
        self.limits = {name: (0, ONE) for name in self.settings if name[0] in PATTERN}
        self.limits |= {(QUBIT_RATE, 0): (10**6, 10**13), (BIN_SPACING, 0): (1000, 10**9), (LASER, 0): (0, 1)}
        self.limits[BIAS, 0] = BIAS_LIMITS

    async def run(self) -> None:
        """Emit whenever the host wants it, for ever."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.watch_host)
            nursery.start_soon(self._emit)

    async def _emit(self) -> None:
        while True:
            await self._until(lambda: self._wanted)
            async with open_transmitter(self._fibre, self._simulation, self._present_source()) as end:
                changed = self._beam.changed
                await end.change(self._change(end))
                self._turn(end)
                try:
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(self._watch_runs, end)
                        nursery.start_soon(self._follow_beam, end, changed)
                        await self._until(lambda: not self._wanted)
                        nursery.cancel_scope.cancel()
                finally:
                    self.end = None
            self._turn(None)

    async def start(self, epoch: int) -> None:
        """Begin a run with slot 0."""
        await self.stop()
        self._wanted = True
        self._note_turn()
        await self._until(lambda: self.end is not None)
        await super().start(epoch)

    async def stop(self) -> None:
        """End the run: nothing is emitted."""
        await super().stop()
        self._wanted = False
        self._note_turn()
        await self._until(lambda: self.end is None)

    async def make_safe(self) -> None:
        """Switch the laser off."""
        self.settings[LASER, 0] = 0

    async def open_interlock(self) -> None:
        """Open the interlock: light and run end, and the host is told."""
        self.settings[INTERLOCK, 0] = 0
        await self.stop()
        await self.make_safe()
        await self.tell(STOPPED, "the interlock is open")

    def check_settings(self, wanted: dict[Setting, int]) -> None:
        """Refuse a pattern during emission, and the laser with an open interlock."""
        super().check_settings(wanted)
        if self.running and any(name in PATTERN for name, _ in wanted):
            raise Refusal(NOT_NOW, "stop the emission first")
        if wanted.get((LASER, 0)) and not self.settings[INTERLOCK, 0]:
            raise Refusal(NOT_NOW, "the interlock is open")

    async def settings_changed(self) -> None:
        """Switch the light as the laser was set, and move the modulator with its bias."""
        if self.end is not None:
            await self.end.change(self._change(self.end))

    async def _follow_beam(self, end: TransmitterEnd, changed: trio.Event) -> None:
        while True:
            await changed.wait()
            changed = self._beam.changed
            await end.change(self._change(end))

    def _change(self, end: TransmitterEnd) -> Change:
        """Return what the settings change at ``end``; what they never did stays as it is scheduled."""
        half_wave_v = self._simulation.modulator_half_wave_v
        bias_rad = math.pi * self.settings.get((BIAS, 0), 0) * 1e-6 / half_wave_v
        wanted: dict[str, Any] = {
            "source_on": bool(self.settings[LASER, 0]),
            "modulator_bias_rad": bias_rad + sum(self._beam.biases_rad.values()),
            "attenuator_db": self._beam.attenuator_db,
        }
        present = end.changed
        return Change(**{name: value for name, value in wanted.items() if value != getattr(present, name)})

    def power_w(self) -> float:
        """Return the power at the monitor, before any attenuator."""
        if self.end is None or not self.settings[LASER, 0]:
            return 0.0
        settings = self.end.in_force
        if not settings.source_on:
            return 0.0
        power = laser_power(self._simulation.drift, self.end.world_s)
        return NOMINAL_POWER_W * power * transmission(settings.source_attenuation_db)

    def position(self) -> int:
        """Return how many slots were sent, by the time of day."""
        if self.end is None:
            return 0
        passed_s = time.time() - self.end.emission_run.started_at_s
        return max(0, int(passed_s * self._rate_hz))

    def sent_slots(self) -> int:
        """Return how many slots of the run Bob's end may have seen: the newest end of the ring."""
        if self.end is None:
            return 0
        alice_s = self.end.present_world().next_knot * KNOT_S + site_offset_s(self._simulation, "alice")
        return int((alice_s - self.end.emission_run.started_at_s) * self._rate_hz)

    async def answer(self, kind: int, payload: bytes) -> list[bytes]:
        """Return the payloads of the answers; those of a READ are several."""
        if kind == GET and (POWER, 0) in self.settings:
            self.settings[POWER, 0] = round(self.power_w() * 1e15)
        if kind == LOOK_UP:
            epoch, count, _, first = struct.unpack_from("<IHHQ", payload)
            steps = np.frombuffer(payload, "<u4", offset=16)
            if steps.size != count:
                raise Refusal(OUT_OF_RANGE, "the list is shorter than it says")
            return self._answers(epoch, first, first + np.cumsum(steps, dtype=np.int64))
        if kind == READ:
            epoch, count, first = struct.unpack_from("<IIQ", payload)
            if not 0 < count <= MOST_SLOTS_READ or first >= 1 << 63:
                raise Refusal(OUT_OF_RANGE, f"1 to {MOST_SLOTS_READ} slots at once")
            return self._answers(epoch, first, first + np.arange(count, dtype=np.int64))
        return await super().answer(kind, payload)

    @property
    def _rate_hz(self) -> int:
        return self.settings[QUBIT_RATE, 0] // 1000

    def _answers(self, epoch: int, first: int, slots: Slots) -> list[bytes]:
        """Return symbols, two in a byte, in as many answers as they need."""
        codes = self._looked_up(epoch, slots)
        if codes.size % 2:
            codes = np.append(codes, np.uint8(0))
        packed = (codes[0::2] | codes[1::2] << 4).tobytes()
        answers = []
        for at in range(0, slots.size, SLOTS_IN_ANSWER):
            count = min(SLOTS_IN_ANSWER, slots.size - at)
            head = struct.pack("<IHHQ", self.epoch, count, 0, first + at)
            answers.append(head + packed[at // 2 : (at + count + 1) // 2])
        return answers

    def _looked_up(self, epoch: int, slots: Slots) -> npt.NDArray[np.uint8]:
        end, head = self.end, self.sent_slots()
        if end is None or epoch != self.epoch:
            return np.full(slots.size, UNKNOWN, np.uint8)
        # States and intensities have the same bits on the wire.
        symbols = end.symbols(end.emission_run.run_id, slots)
        kept = (slots < head) & (slots >= head - self.settings[RING_SLOTS, 0]) & (symbols < UNKNOWN)
        return np.where(kept, symbols, np.uint8(UNKNOWN))

    async def _watch_runs(self, end: TransmitterEnd) -> None:
        """Tell the host when slots are counted anew: Bob's end joined from another time."""
        async with aclosing(end.runs()) as runs:
            await anext(runs)
            async for _ in runs:
                self.epoch = (self.epoch + 1) % (1 << 32)
                await self.tell(BEGAN_AGAIN, "slots are counted anew")

    def _present_source(self) -> SourceParameters:
        return replace(
            self._source,
            qubit_rate_hz=self._rate_hz,
            bin_spacing_ps=self.settings[BIN_SPACING, 0] / 1000,
            p_z=self.settings[P_Z, 0] / ONE,
            p=(self.settings[PROBABILITY, 0] / ONE, 1.0 - self.settings[PROBABILITY, 0] / ONE),
        )

    def _turn(self, end: TransmitterEnd | None) -> None:
        self.end = end
        self._note_turn()

    def _note_turn(self) -> None:
        self._turned.set()
        self._turned = trio.Event()

    async def _until(self, holds: Callable[[], bool]) -> None:
        while not holds():
            await self._turned.wait()
