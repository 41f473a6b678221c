"""The page of drills, made from Bob's table of blocks of each run. This module starts no run."""

from collections.abc import Callable, Sequence
from typing import Any

from msgspec import Struct

from qnode.choices import LockState
from qnode.config import LinkParameters
from qnode.distill.counts import Pair, XCounts
from qnode.distill.estimation import visibility_error
from qnode.loopback.drills import Drill, as_toml, drill_schedule
from qnode.loopback.markdown import (
    E_VIS,
    NOTHING,
    PHI,
    QBER,
    SECRET,
    Case,
    beside_the_model,
    compared_keys,
    table,
    where_key_ends,
)
from qnode.operate.blocks.row import ACCEPTED, DecidedBlock

# Below this share of a block Eve counts as absent: the start of a block is known to a second or two.
PRESENT = 0.03
BLOCKS_AFTER_EVE = 2  # shown
KEY_BITS = 256

_HOW = (
    "Each run has two daemons on one machine, simulated hardware behind the driver interface, and a fresh "
    "folder. The figures of blocks are those of Bob's own table (`qnodectl blocks`). The column `with Eve` "
    f"is the share of a block's time in which the attack went on. Below {PRESENT:.0%} Eve counts as absent, "
    "because the start of a block is known to a second or two. The seed is fixed, but Alice's symbols are "
    "new in every run. t2, rho and t4 are values of the plausibility checks. t2 and rho are the two balances "
    "of the receiver, each one half without an attack: the response of the X arm to |->, and how often |+> "
    "arrives. t4 is the bit error rate of the boundary slots. docs/plausibility.md lists all checks with "
    "their possible causes."
)


class BlockOfDrill(Struct, frozen=True, kw_only=True):
    """A decided block; ``with_eve``: the share of its time in which the attack went on."""

    row: DecidedBlock
    until_s: float
    with_eve: float

    @property
    def attacked(self) -> bool:
        """Whether the block was attacked."""
        return self.with_eve >= PRESENT

    @property
    def accepted(self) -> bool:
        """Whether it gave key."""
        return self.row.outcome == ACCEPTED


class DrillRun(Struct, frozen=True, kw_only=True):
    """A run of a drill. ``broken``: the reason why it did not reach its end; empty if it did."""

    drill: Drill
    from_s: float
    until_s: float
    blocks: Sequence[BlockOfDrill] = ()
    broken: str = ""


class Verdict(Struct, frozen=True, kw_only=True):
    """The reaction of the node to a drill.

    ``check``: the reason for the first discard of an attacked block, and ``detail`` its text; None if no
    attacked block was discarded. ``after_blocks``: the number of attacked blocks up to and including that
    one. ``accepted``, ``secret_bits``: of the attacked blocks. ``again``: the first block with key after the
    attack. ``waited``: its number among the blocks after the attack, from 1; None without such a block.
    """

    check: str | None
    detail: str
    after_blocks: int | None
    attacked: int
    accepted: int
    secret_bits: int
    again: int | None
    waited: int | None


def blocks_of_drill(
    rows: Sequence[DecidedBlock], locked_s: float, from_s: float, until_s: float
) -> list[BlockOfDrill]:
    """Return the blocks of a run in order; the first began at ``locked_s``, and there is no gap between them.

    A block that was discarded before it was announced completely covers no time, and is left out. A block
    that was not decided at the end of the run, although later blocks were, counts as long as the block before
    it.
    """
    blocks: list[BlockOfDrill] = []
    began_s, last_id, span_s = locked_s, 0, 0.0
    for row in sorted(rows, key=lambda row: row.block_id):
        began_s += (row.block_id - last_id - 1) * span_s
        last_id = row.block_id
        if not row.span_s:
            continue
        span_s = row.span_s
        ended_s = began_s + row.span_s
        present_s = min(ended_s, until_s) - max(began_s, from_s)
        blocks.append(BlockOfDrill(row=row, until_s=ended_s, with_eve=max(present_s, 0.0) / row.span_s))
        began_s = ended_s
    return blocks


def first_lock_s(events: Sequence[dict[str, Any]]) -> float:
    """Return the tag time of Bob's first lock; 0 if the events no longer contain it."""
    locks = (event for event in events if event.get("event") == "quantum.lock")
    return next(
        (float(event["tag_time_s"]) for event in locks if event.get("state") == LockState.LOCKED), 0.0
    )


def verdict(run: DrillRun) -> Verdict:
    """Return the reaction of the node to a drill."""
    attacked = [block for block in run.blocks if block.attacked]
    found = next((place for place, block in enumerate(attacked) if not block.accepted), None)
    discarded = None if found is None else attacked[found].row
    after = [block for block in run.blocks if attacked and block.until_s > attacked[-1].until_s]
    again = next((block.row.block_id for block in after if block.accepted), None)
    return Verdict(
        check=None if discarded is None else discarded.outcome,
        detail="" if discarded is None else discarded.detail,
        after_blocks=None if found is None else found + 1,
        attacked=len(attacked),
        accepted=sum(block.accepted for block in attacked),
        secret_bits=sum(block.row.secret_bits for block in attacked),
        again=again,
        waited=None if again is None else again - attacked[-1].row.block_id,
    )


def drill_page(
    made: str, config: str, link: LinkParameters, runs: Sequence[DrillRun], intercepted: Sequence[Case]
) -> str:
    """Return `docs/eve.md`; ``config`` names the loopback file."""
    parts = [
        "# Simulated attacks, and their effect on the node",
        made,
        _HOW,
        "Each drill is a schedule of the simulation. One command runs a drill; `--drill-from` and "
        "`--drill-until` (seconds of simulated time) change its times:",
        f"```sh\nqnode loopback --config {config} --speed max --drill blinding\n```",
        "The lines under each drill have the same effect in a loopback file, after its `[simulation]` table.",
        "## All drills",
        _summary(runs),
        "A key is 256 bits here, before the refill of the authentication pool. If blocks are accepted during "
        "a drill, either the key length accounts for the attack, or the tags cannot reveal it. The section "
        "of each drill says which. An attack during a small part of a block affects the counts in proportion "
        "to that part only.",
    ]
    for run in runs:
        parts += _section(run, link)
    if intercepted:
        parts += _intercepted(intercepted)
    return "\n\n".join(part for part in parts if part) + "\n"


def _intercepted(cases: Sequence[Case]) -> list[str]:
    return [
        "## Key over the intercepted fraction",
        "The table shows key and error rates over the fraction of intercepted qubits, measured and (in "
        "brackets) by the analytic model. Secret bits are per second of tag time. If Eve intercepts all "
        "qubits, each error rate grows by 25 percentage points.",
        beside_the_model("intercepted", cases, (QBER, E_VIS, PHI, SECRET)),
        where_key_ends(cases),
        compared_keys(cases),
    ]


def _summary(runs: Sequence[DrillRun]) -> str:
    titles = [
        "drill",
        "from",
        "first discarded for",
        "after blocks",
        "accepted with Eve",
        "keys of these",
    ]
    rows = []
    for run in runs:
        told = verdict(run)
        found = [told.check or "nothing", str(told.after_blocks or NOTHING)]
        if run.broken:
            found = ["the run broke", NOTHING]
        accepted = f"{told.accepted} of {told.attacked}"
        keys = str(told.secret_bits // KEY_BITS)
        began = "the first slot" if run.from_s == 0.0 else f"{run.from_s:.0f} s"
        rows.append([run.drill.title, began, *found, accepted, keys, _again(told)])
    return table([*titles, "key again"], rows, words=(0, 1, 2, 6))


def _again(told: Verdict) -> str:
    if told.again is None:
        return NOTHING
    return f"block {told.again}, the {_ordinal(told.waited or 0)} after the attack"


def _ordinal(number: int) -> str:
    return {1: "first", 2: "second", 3: "third"}.get(number, f"{number}th")


def _section(run: DrillRun, link: LinkParameters) -> list[str]:
    since = ", from the first slot on" if run.from_s == 0.0 else ""
    told = verdict(run)
    if run.broken:
        outcome = f"The run broke: {run.broken}."
    elif told.check is None:
        outcome = "No attacked block was discarded."
    else:
        outcome = f"First discarded for {told.check}: {told.detail}."
    parts = [f"## {run.drill.title}{since}"]
    if run.from_s:
        schedule = drill_schedule(run.drill, link, run.from_s, run.until_s)
        parts += [
            f"{run.drill.does} (`--drill {run.drill.name}`)",
            f"```toml\n{as_toml(schedule)}\n```",
        ]
    else:
        parts.append(f"The same attack with `at_s = 0.0`, until {run.until_s:.0f} s.")
    parts += [_blocks(_shown(run.blocks, told), link) if run.blocks else "", outcome]
    return [*parts, f"Not visible in the tags: {run.drill.unseen}" if run.from_s else ""]


def _shown(blocks: Sequence[BlockOfDrill], told: Verdict) -> list[BlockOfDrill]:
    """Return the blocks up to the second after the attack, and up to the first with key again."""
    last = max((place for place, block in enumerate(blocks) if block.attacked), default=-1)
    again = next((place for place, block in enumerate(blocks) if block.row.block_id == told.again), -1)
    return list(blocks[: max(last + 1 + BLOCKS_AFTER_EVE, again + 1)])


class _Column(Struct, frozen=True):
    title: str
    cell: Callable[[DecidedBlock, LinkParameters], str | None]


def _share(part: float | None, whole: float | None, digits: int = 2) -> str | None:
    return None if part is None or not whole else f"{part / whole:.{digits}%}"


def _e_vis(row: DecidedBlock, link: LinkParameters) -> str | None:
    x = _x_counts(row)
    error = visibility_error(x, link.source.p_z) if x is not None else None
    return None if error is None else f"{error:.2%}"


def _x_counts(row: DecidedBlock) -> XCounts | None:
    pairs = {}
    for name in XCounts.__struct_fields__:
        signal, decoy = getattr(row, f"{name}_signal"), getattr(row, f"{name}_decoy")
        if signal is None or decoy is None:
            return None
        pairs[name] = Pair(signal, decoy)
    return XCounts(**pairs)


def _checked(name: str) -> Callable[[DecidedBlock, LinkParameters], str | None]:
    """Return the cell with the value of a plausibility check."""

    def cell(row: DecidedBlock, _link: LinkParameters) -> str | None:
        value = next((found.value for found in row.checks if found.check == name), None)
        return None if value is None else f"{value:.3f}"

    return cell


def _counted(name: str) -> Callable[[DecidedBlock, LinkParameters], str | None]:
    """Return the cell of a count that the rows of some versions do not have."""

    def cell(row: DecidedBlock, _link: LinkParameters) -> str | None:
        value = getattr(row, name, None)
        return None if value is None else str(value)

    return cell


_COLUMNS = (
    _Column("sifted", lambda row, _: None if row.n_z is None else str(row.n_z)),
    _Column("decoy", lambda row, _: _share(row.n_z_decoy, row.n_z, 1)),
    _Column("QBER_Z", lambda row, _: None if row.qber_z is None else f"{row.qber_z:.2%}"),
    _Column("e_vis", _e_vis),
    _Column("t2", _checked("t2")),
    _Column("rho", _checked("rho")),
    _Column("t4", _checked("boundary_error")),
    _Column("cross clicks", _counted("cross_clicks")),
    _Column("out of gate", _counted("out_of_gate")),
    _Column("too close", _counted("too_close")),
)


def _blocks(blocks: Sequence[BlockOfDrill], link: LinkParameters) -> str:
    """Return the table of a run's blocks, without columns that are empty for all blocks."""
    columns = [[column.cell(block.row, link) for block in blocks] for column in _COLUMNS]
    shown = [place for place, cells in enumerate(columns) if any(cell is not None for cell in cells)]
    rows = []
    for number, block in enumerate(blocks):
        figures = [columns[place][number] or NOTHING for place in shown]
        start = [str(block.row.block_id), f"{block.until_s:.0f} s", f"{block.with_eve:.0%}"]
        rows.append([*start, *figures, str(block.row.secret_bits), block.row.outcome])
    titles = ["block", "ends at", "with Eve", *(_COLUMNS[place].title for place in shown)]
    return table([*titles, "secret bits", "outcome"], rows, words=(len(titles) + 1,))
