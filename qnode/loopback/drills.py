"""Drills: simulated attacks by Eve, with start, end, and the effects that no tag can reveal.

A drill is two changes of the simulation's schedule, one at the start of the attack and one at its end.
"""

import json
from collections.abc import Sequence
from typing import Any

import msgspec.structs
from msgspec import Struct

from qnode.config import LinkParameters
from qnode.errors import ConfigError
from qnode.loopback.prepare import LoopbackConfig
from qnode.plan.forecast import forecast
from qnode.simulate.parameters import Change, ScheduledChange, Settings

# The attack begins shortly after the third block opened, so the second block is not affected. It ends shortly
# before the last attacked block closes.
FROM_BLOCKS = 2.05
LESS_BLOCKS = 0.1
BLOCKS_WITH_EVE = 3


class Drill(Struct, frozen=True, kw_only=True):
    """One attack. ``name`` is for the command line; ``does`` and ``unseen`` are sentences of the page.

    ``unseen``: the part that the tags cannot reveal, and the assumption that covers it.
    """

    name: str
    title: str
    does: str
    change: Change
    unseen: str


def drills(link: LinkParameters) -> tuple[Drill, ...]:
    """Return every drill; drills with other intensities change those of ``link`` in proportion."""
    signal, decoy = link.source.mu
    return (
        Drill(
            name="intercept-resend",
            title="Intercept and resend",
            does="Eve measures one qubit in ten, in Z or X with equal probability, and resends the result.",
            change=Change(eve_intercept=0.10),
            unseen="Nothing. The bound on the phase error contains the errors that Eve causes, and so "
            "shortens the key by Eve's knowledge, even if no limit is exceeded.",
        ),
        Drill(
            name="photon-number-splitting",
            title="Photon-number splitting",
            does="Eve keeps one photon of every pulse with several photons, sends the rest on with little "
            "loss, and blocks single photons, so that signal pulses arrive as often as before.",
            change=Change(eve_pns=1.0),
            unseen="Nothing. The decoy method bounds the one-photon share. It relies on the intensities, "
            "which are measured at the source.",
        ),
        Drill(
            name="damping",
            title="Damping towards |+>",
            does="Eve damps the qubits towards |+> with strength 0.1. The visibility does not change, "
            "although the phase error grows by half the strength.",
            change=Change(eve_damping=0.10),
            unseen="Nothing in the modes with asymmetry, which bound it. Mode `visibility` sees only the "
            "errors in Z: it reproduces published figures and is not a proof.",
        ),
        Drill(
            name="added-loss",
            title="Added loss",
            does="Eve removes half of the light.",
            change=Change(eve_added_loss_db=3.0),
            unseen="All of it, without harm: the proof gives the whole channel to Eve, and lost photons make "
            "no key.",
        ),
        Drill(
            name="blinding",
            title="Blinding",
            does="Bright light prevents the detectors from counting photons. Eve measures every qubit, and "
            "makes a detector click with a brighter pulse that repeats the result. Eve knows the whole key.",
            change=Change(eve_blinding=True),
            unseen="A more careful blinding: see the next drill.",
        ),
        Drill(
            name="careful-blinding",
            title="Careful blinding",
            does="Eve blinds the detectors, but imitates an honest receiver: its light in wrong bins, its "
            "visibility, the clicks in boundary slots, noise, jitter and the share of each intensity. One "
            "difference remains: each pulse is made for one arm, so both detectors never click in one slot.",
            change=Change(eve_careful_blinding=True),
            unseen="Blinding with an occasional pulse to both arms looks like an honest link in every tag. "
            "So does blinding for a part of a block only; the assumptions of each key state the size of this "
            "part. It is an assumption that the detectors count photons. A monitored bias current can "
            "verify it.",
        ),
        Drill(
            name="steering",
            title="Steering by wavelength",
            does="Eve measures every qubit and resends the result as faint as it was, at a wavelength at "
            "which Bob's splitter sends all light into the arm of Eve's basis: Z results reach only the Z "
            "arm, X results only the X arm. Eve knows the whole key.",
            change=Change(eve_steering=True),
            unseen="A splitter whose share varies slightly with the wavelength changes every balance only "
            "slightly. It is an assumption that it divides all light equally. A narrow filter enforces it.",
        ),
        Drill(
            name="time-shift",
            title="Time shift",
            does="Eve sends each qubit 120 ps earlier or later, at random, to exploit detectors whose "
            "efficiency changes in time.",
            change=Change(eve_time_shift_ps=120.0),
            unseen="A shift well inside the gates (20 ps changes no count by 1 %). Eve learns nothing from "
            "it as long as one detector counts both bits of Z with one efficiency. This is an assumption.",
        ),
        Drill(
            name="after-gate",
            title="Light after the gates",
            does="A fifth of the light comes a quarter of a slot late. At that time a detector that is gated "
            "in hardware no longer counts photons, but bright light controls it.",
            change=Change(eve_after_gate=0.2),
            unseen="A few late clicks among those from jitter. The detectors of this link are not gated, so "
            "they behave equally inside and after a gate. This is an assumption about the receiver.",
        ),
        Drill(
            name="dead-time",
            title="Dead time",
            does="Eve sends 300,000 bright pulses a second between the gates into the X arm. Each pulse "
            "makes the detector click and keeps it dead for the next qubits.",
            change=Change(eve_burst_hz=3e5),
            unseen="A tenth as many pulses pass every check. Pulses inside the gates count as clicks, "
            "together with their errors. A dead detector reveals no bit, because one detector counts both "
            "bits of a basis. But Eve knows which arm is dead. It is an assumption that the dead times of "
            "the arms do not depend on the basis.",
        ),
        Drill(
            name="dead-time-z",
            title="Dead time of the Z arm",
            does="Eve sends the same pulses into the Z arm.",
            change=Change(eve_burst_hz=3e5, eve_burst_arm="z"),
            unseen="As before.",
        ),
        Drill(
            name="bright-decoy",
            title="Decoy 50 % too bright",
            does=f"The transmitter sends a decoy of {1.5 * decoy:.3g} photons instead of {decoy:.3g}.",
            change=Change(mu_sent=(signal, _half_more(decoy))),
            unseen="Small errors of the ratio, which `mu_uncertainty` covers.",
        ),
        Drill(
            name="swapped-intensities",
            title="Intensities swapped",
            does="The transmitter sends the decoy intensity as signal, and the signal intensity as decoy.",
            change=Change(mu_sent=(decoy, signal)),
            unseen="Nothing.",
        ),
        Drill(
            name="bright-source",
            title="Both intensities 50 % too bright",
            does="The transmitter sends both intensities 50 % brighter than configured.",
            change=Change(mu_sent=(_half_more(signal), _half_more(decoy))),
            unseen="A common scale of both intensities looks like less loss. It is an assumption that the "
            "intensities are measured at the source, with the accuracy of `mu_uncertainty`.",
        ),
    )


def _half_more(mean: float) -> float:
    return round(1.5 * mean, 6)


def drill_named(name: str, link: LinkParameters) -> Drill:
    """Return the drill of this name.

    Raises:
        ConfigError: there is none.
    """
    known = {drill.name: drill for drill in drills(link)}
    if name not in known:
        raise ConfigError(f"--drill: there is no {name!r}; there are {', '.join(known)}")
    return known[name]


def block_span_s(config: LoopbackConfig) -> float:
    """Return the duration of a block of the honest link in seconds.

    Raises:
        ConfigError: the link gives no block.
    """
    try:
        return forecast(config.simulation, config.link, settings=config.simulation.first_settings()).span_s
    except ValueError as error:
        raise ConfigError(f"no drill on this link: {error}") from None


def drill_times(
    config: LoopbackConfig,
    from_s: float | None = None,
    until_s: float | None = None,
    blocks: int = BLOCKS_WITH_EVE,
) -> tuple[float, float]:
    """Return start and end of the attack, in whole seconds of simulated time; by default from block 3.

    Raises:
        ConfigError: the end is before the start, or the link gives no blocks to count by.
    """
    if from_s is None or until_s is None:
        span_s = block_span_s(config)
        from_s = float(round(FROM_BLOCKS * span_s)) if from_s is None else from_s
        until_s = float(round(from_s + (blocks - LESS_BLOCKS) * span_s)) if until_s is None else until_s
    if not 0.0 <= from_s < until_s:
        raise ConfigError(f"--drill-until: expected a time after {from_s:g} s, got {until_s:g} s")
    return from_s, until_s


def drill_schedule(
    drill: Drill, link: LinkParameters, from_s: float, until_s: float
) -> tuple[ScheduledChange, ScheduledChange]:
    """Return the changes that begin and end a drill; the end restores the settings from before."""
    before = msgspec.structs.asdict(Settings(mu_sent=link.source.mu))
    changed = _given(drill.change)
    restored = {name: before[name] for name in changed if name != "eve_burst_arm"}
    return ScheduledChange(at_s=from_s, **changed), ScheduledChange(at_s=until_s, **restored)


def _given(change: Change) -> dict[str, Any]:
    return {name: value for name, value in msgspec.structs.asdict(change).items() if value is not None}


def with_schedule(config: LoopbackConfig, *changes: ScheduledChange) -> LoopbackConfig:
    """Return ``config`` with these scheduled changes and no others."""
    simulation = msgspec.structs.replace(config.simulation, schedule=changes)
    return msgspec.structs.replace(config, simulation=simulation)


def as_toml(schedule: Sequence[ScheduledChange]) -> str:
    """Return the lines of a loopback file for ``schedule``."""
    tables = []
    for change in schedule:
        given = _given(change)
        values = {"at_s": given.pop("at_s"), **given}
        # JSON and TOML write numbers, strings, booleans and lists of numbers in the same way.
        lines = [f"{name} = {json.dumps(value)}" for name, value in values.items()]
        tables.append("\n".join(["[[simulation.schedule]]", *lines]))
    return "\n\n".join(tables)
