"""`qnode soak`: correct many made-up blocks and count those that end wrong."""

from itertools import islice
from typing import TYPE_CHECKING

import click

from qnode.cli.main import EXIT_USAGE

if TYPE_CHECKING:
    from qnode.bench.soak import SoakResult


@click.command("soak")
@click.option("--method", type=click.Choice(["cascade", "ldpc"]), default="cascade", show_default=True)
@click.option("--block", "block_bits", type=int, default=1 << 20, show_default=True, help="Bits of a block.")
@click.option("--bits", "total_bits", type=int, default=10**9, show_default=True, help="Bits in all.")
@click.option("--qber", type=float, default=0.015, show_default=True, help="Fraction of wrong bits.")
@click.option("--estimate", type=float, help="What both sides believe it to be; as it is if not given.")
@click.option("--seed", type=int, default=1, show_default=True, help="Makes blocks and errors repeatable.")
@click.option("--json", "as_json", is_flag=True, help="On stdout print one JSON object, and nothing else.")
def soak_command(
    method: str,
    block_bits: int,
    total_bits: int,
    qber: float,
    estimate: float | None,
    seed: int,
    as_json: bool,
) -> int:
    """Correct errors in many random blocks, both sides on one core, and compare.

    A wrong block is one that was taken for corrected and is not, verification aside. Exit 1 if there is one,
    or if none was corrected.
    """
    # Imported here: numerical libraries take a while, and usage errors should not wait for them.
    from qnode.bench.soak import SoakResult, soak
    from qnode.errors import FieldError

    if not 0.0 <= qber <= 0.5:
        click.echo(f"qnode: --qber: {qber} is no error fraction between 0 and 0.5", err=True)
        return EXIT_USAGE
    n_blocks = max(1, -(-total_bits // max(1, block_bits)))
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
