"""Eve's drills: what she does, from when until when, and what no tag can tell of it.

A drill is two changes of the simulation's schedule, one when she begins and one when she stops.
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

# She comes a little after the third block opened, so that the second has nothing of her, and goes a little
# before the last one with her closes.
FROM_BLOCKS = 2.05
LESS_BLOCKS = 0.1
BLOCKS_WITH_EVE = 3


class Drill(Struct, frozen=True, kw_only=True):
    """One attack. ``name`` is for the command line, ``does`` and ``unseen`` are sentences of the page.

    ``unseen``: what stays invisible to the tags, and the assumption that stands for it.
    """

    name: str
    title: str
    does: str
    change: Change
    unseen: str


def drills(link: LinkParameters) -> tuple[Drill, ...]:
    """Return every drill, the ones with other intensities in proportion to those of ``link``."""
    signal, decoy = link.source.mu
    return (
        Drill(
            name="intercept-resend",
            title="Intercept and resend",
            does="She measures one qubit in ten, in Z or X with equal chances, and sends on what she found.",
            change=Change(eve_intercept=0.10),
            unseen="Nothing: the errors that she makes are in the bound on the phase error, and shorten the "
            "key by what she learns also where no limit is passed.",
        ),
        Drill(
            name="photon-number-splitting",
            title="Photon-number splitting",
            does="She keeps one photon of every pulse with several, sends the rest on with little loss, and "
            "blocks single photons, so that signal pulses arrive as often as before.",
            change=Change(eve_pns=1.0),
            unseen="Nothing: the decoy method bounds the one-photon share. It stands on the intensities, "
            "which are measured at the source.",
        ),
        Drill(
            name="damping",
            title="Damping towards |+>",
            does="She damps the qubits towards |+> with strength 0.1. The visibility stays clean, although "
            "the phase error grows by half the strength.",
            change=Change(eve_damping=0.10),
            unseen="Nothing in the modes with asymmetry, which bound it. Mode `visibility` does not see it "
            "but for the errors in Z: it reproduces published figures and is not a proof.",
        ),
        Drill(
            name="added-loss",
            title="Added loss",
            does="She takes out half of the light.",
            change=Change(eve_added_loss_db=3.0),
            unseen="All of it, and it does no harm: the whole channel is hers in the proof, and what does "
            "not arrive makes no key.",
        ),
        Drill(
            name="blinding",
            title="Blinding",
            does="Bright light keeps the detectors from counting photons. She measures every qubit and makes "
            "a detector click by a brighter pulse where she found it. She knows the whole key.",
            change=Change(eve_blinding=True),
            unseen="A blinder who takes more care: see the next drill.",
        ),
        Drill(
            name="careful-blinding",
            title="Careful blinding",
            does="She blinds, but fakes an honest receiver: its light in wrong bins, its visibility, the "
            "clicks in boundary slots, noise, jitter and the share of each intensity. One thing is amiss: "
            "each pulse is made for one arm, so that both detectors never click in one slot.",
            change=Change(eve_careful_blinding=True),
            unseen="A blinder who now and then sends a pulse to both arms looks like an honest link in "
            "every tag, and so does one who blinds for a part of a block only: how large a part stands in "
            "the assumptions of each key. That the detectors count photons is an assumption; a watched "
            "bias current is what tests it.",
        ),
        Drill(
            name="steering",
            title="Steering by wavelength",
            does="She measures every qubit and sends on what she found, as faint as it was, at a wavelength "
            "at which Bob's splitter sends all of it into the arm of her basis: Z results only reach the Z "
            "arm, X results only the X arm. She knows the whole key.",
            change=Change(eve_steering=True),
            unseen="A splitter whose share differs a little with the wavelength moves every balance by "
            "little. That it divides all light alike is an assumption; a narrow filter stands for it.",
        ),
        Drill(
            name="time-shift",
            title="Time shift",
            does="She sends each qubit 120 ps earlier or later, at random, for detectors whose efficiency "
            "changes in time.",
            change=Change(eve_time_shift_ps=120.0),
            unseen="A shift well inside the gates (20 ps changes no count by 1 %). It tells her nothing as "
            "long as one detector counts both bits of Z with one efficiency: an assumption.",
        ),
        Drill(
            name="after-gate",
            title="Light after the gates",
            does="A fifth of the light comes a quarter of a slot late, where a detector that is gated in "
            "hardware no longer counts photons but obeys bright light.",
            change=Change(eve_after_gate=0.2),
            unseen="Few late clicks among those that jitter makes. The detectors of this link are not gated, "
            "so that they are the same after a gate as in it: an assumption of the receiver.",
        ),
        Drill(
            name="dead-time",
            title="Dead time",
            does="300,000 bright pulses a second between the gates, into the X arm: each makes the detector "
            "click and keeps it dead for the qubits that follow.",
            change=Change(eve_burst_hz=3e5),
            unseen="A tenth as many pulses pass every check. Pulses inside the gates are counted as clicks, "
            "and their errors with them. A dead detector tells her no bit, as one detector counts both bits "
            "of a basis; but which arm is dead she knows. That the dead times of the arms do not depend "
            "on the basis is an assumption.",
        ),
        Drill(
            name="dead-time-z",
            title="Dead time of the Z arm",
            does="The same pulses into the Z arm.",
            change=Change(eve_burst_hz=3e5, eve_burst_arm="z"),
            unseen="As before.",
        ),
        Drill(
            name="bright-decoy",
            title="A decoy half as bright again",
            does=f"The transmitter sends a decoy of {1.5 * decoy:.3g} photons, not {decoy:.3g}.",
            change=Change(mu_sent=(signal, _half_more(decoy))),
            unseen="Small errors of the ratio, which `mu_uncertainty` covers.",
        ),
        Drill(
            name="swapped-intensities",
            title="Intensities swapped",
            does="What is said to be a signal is a decoy, and the other way round.",
            change=Change(mu_sent=(decoy, signal)),
            unseen="Nothing of a swap.",
        ),
        Drill(
            name="bright-source",
            title="Both intensities half as bright again",
            does="The transmitter sends both intensities half as bright again.",
            change=Change(mu_sent=(_half_more(signal), _half_more(decoy))),
            unseen="A common scale of both looks like less loss. The intensities are measured at the source: "
            "an assumption, and `mu_uncertainty` says how well.",
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
    """Return how long a block of the honest link takes.

    Raises:
        ConfigError: there is none.
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
    """Return when Eve begins and stops, in whole seconds of simulated time; by default from block 3 on.

    Raises:
        ConfigError: she would stop before she begins, or the link gives no blocks to count by.
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
    """Return the changes that begin and end a drill: what she changed is as without her again."""
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
    """Return the lines of a loopback file that ask for ``schedule``."""
    tables = []
    for change in schedule:
        given = _given(change)
        values = {"at_s": given.pop("at_s"), **given}
        # What JSON says of a number, a word, a truth or a list of numbers, TOML says in the same way.
        lines = [f"{name} = {json.dumps(value)}" for name, value in values.items()]
        tables.append("\n".join(["[[simulation.schedule]]", *lines]))
    return "\n\n".join(tables)
