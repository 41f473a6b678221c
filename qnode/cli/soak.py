"""`qnode soak`: correct many synthetic blocks, or estimate many synthetic counts, and count the failures."""

from itertools import islice
from typing import TYPE_CHECKING

import click

from qnode.choices import ReconciliationMethod, choices_of
from qnode.cli.exits import EXIT_USAGE

if TYPE_CHECKING:
    from qnode.bench.keylength_soak import KeyLengthSoak
    from qnode.bench.soak import SoakResult


@click.command("soak")
@click.option(
    "--method", type=click.Choice(choices_of(ReconciliationMethod)), default="cascade", show_default=True
)
@click.option(
    "--block",
    "block_bits",
    type=click.IntRange(min=1),
    default=1 << 20,
    show_default=True,
    help="Bits of a block.",
)
@click.option(
    "--bits", "total_bits", type=click.IntRange(min=1), default=10**9, show_default=True, help="Bits in all."
)
@click.option("--qber", type=float, default=0.015, show_default=True, help="Fraction of wrong bits.")
@click.option("--estimate", type=float, help="What both sides believe it to be; as it is if not given.")
@click.option("--seed", type=int, default=1, show_default=True, help="Makes blocks and errors repeatable.")
@click.option(
    "--keylength",
    "count_sets",
    type=click.IntRange(min=1),
    metavar="N",
    help="Take N random sets of counts through the estimators instead; no bits are corrected.",
)
@click.option(
    "--estimator",
    "estimators",
    multiple=True,
    help="With --keylength: an estimator; may be given more than once. Default: all closed formulas.",
)
@click.option(
    "--processes",
    type=click.IntRange(min=1),
    help="With --keylength: how many work; all processors if left out.",
)
@click.option("--json", "as_json", is_flag=True, help="On stdout print one JSON object, and nothing else.")
def soak_command(
    method: str,
    block_bits: int,
    total_bits: int,
    qber: float,
    estimate: float | None,
    seed: int,
    count_sets: int | None,
    estimators: tuple[str, ...],
    processes: int | None,
    as_json: bool,
) -> int:
    """Correct errors in many random blocks, both sides on one core, and compare.

    A block is wrong if it counts as corrected, before verification, but still differs. Exit 1 if there is a
    wrong block, or if none was corrected.

    With --keylength, every estimator gets possible and impossible sets of counts. Each set must end in a
    refusal, or in a length from 0 to the sifted bits, and a worse block must not give more key. Otherwise
    exit 1.
    """
    if count_sets is not None:
        return _soak_key_lengths(count_sets, estimators, processes, seed, as_json)
    # Imported here: numerical libraries load slowly, and usage errors should not wait for them.
    from qnode.bench.soak import SoakResult, soak
    from qnode.errors import FieldError

    if not 0.0 <= qber <= 0.5:
        click.echo(f"qnode: --qber: {qber} is no error fraction between 0 and 0.5", err=True)
        return EXIT_USAGE
    n_blocks = -(-total_bits // block_bits)
    done = []
    try:
        for block in islice(soak(method, block_bits, qber, seed=seed, qber_estimate=estimate), n_blocks):
            done.append(block)
            if len(done) % max(1, n_blocks // 20) == 0:
                wrong = sum(one.wrong for one in done)
                click.echo(f"{len(done)} of {n_blocks} blocks, {wrong} wrong", err=True)
    except FieldError as error:
        click.echo(f"qnode: {error}", err=True)
        return EXIT_USAGE
    try:
        result = SoakResult.of(done)
    except ValueError as error:
        click.echo(f"qnode: {error}", err=True)
        return 1
    if as_json:
        import msgspec

        click.echo(msgspec.json.encode(result).decode())
    else:
        click.echo(_sentence(result))
    return 1 if result.wrong_blocks else 0


def _soak_key_lengths(
    n_sets: int, estimators: tuple[str, ...], processes: int | None, seed: int, as_json: bool
) -> int:
    # Imported here for the same reason as above.
    import msgspec

    from qnode.bench.keylength_soak import CLOSED_FORMS, KeyLengthSoak, soak_key_lengths
    from qnode.distill.keylength import ESTIMATORS

    for name in estimators:
        if name not in ESTIMATORS:
            click.echo(f"qnode: --estimator: {name!r} is none of {', '.join(ESTIMATORS)}", err=True)
            return EXIT_USAGE
    result, told = KeyLengthSoak.empty(), 0
    for result in soak_key_lengths(
        n_sets, seed=seed, estimators=estimators or CLOSED_FORMS, processes=processes
    ):
        if 20 * result.sets // n_sets > told:
            told = 20 * result.sets // n_sets
            click.echo(f"{result.sets} of {n_sets} sets, {result.failures} failures", err=True)
    click.echo(msgspec.json.encode(result).decode() if as_json else _key_length_table(result))
    return 1 if result.failures else 0


def _key_length_table(result: "KeyLengthSoak") -> str:
    columns = ("sets", "accepted", "estimates", "with_key", "refused", "crashed", "out_of_range")
    lines = [f"{'':<18}" + "".join(f"{name:>14}" for name in columns)]
    for kind, row in result.kinds.items():
        lines.append(f"{kind:<18}" + "".join(f"{getattr(row, name):>14}" for name in columns))
    for what, pairs in result.worse_pairs.items():
        lines.append(f"{what}: {pairs} worse blocks, {result.more_key.get(what, 0)} with more key")
    for field, count in sorted(result.refused_fields.items()):
        lines.append(f"refused for {field}: {count}")
    lines += result.examples
    lines.append(f"{result.sets} sets, {result.failures} failures")
    return "\n".join(lines)


def _sentence(result: "SoakResult") -> str:
    rates = [_rate(result, s) for s in (result.alice_s, result.bob_s, result.alice_s + result.bob_s)]
    return (
        f"{result.n_blocks} blocks, {result.n_bits:.4g} bits corrected, {result.wrong_blocks} wrong, "
        f"{result.failed_blocks} given up; f {result.f_ec:.4f}, {result.rounds_mean:.1f} rounds (at most "
        f"{result.rounds_max}), {result.wire_bits_per_bit:.3f} bit on the wire a bit; "
        f"Mbit/s of processor time: Alice {rates[0]}, Bob {rates[1]}, both {rates[2]}"
    )


def _rate(result: "SoakResult", seconds: float) -> str:
    return f"{result.n_bits / max(seconds, 1e-9) / 1e6:.0f}"
