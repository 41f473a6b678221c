"""The report of offline distillation: a row for each block, and the sums."""

import csv
from collections.abc import Iterable, Sequence
from typing import TextIO

import msgspec
from msgspec import Struct

from qnode.config import LinkParameters
from qnode.offline.distillation import DistilledBlock


class BlockRow(Struct, frozen=True, kw_only=True):
    """One block. Fractions, not percent; ``lost``: why it gave no key; empty if it did."""

    block: int
    first_slot: int
    slots: int
    seconds: float
    clicks: int
    sifted_bits: int
    qber_z: float | None
    f_ec: float | None
    rounds: int
    lambda_ec_bits: int | None
    phi_z_upper: float | None
    secret_bits: int
    secret_bits_per_s: float
    lost: str
    detail: str


class DistillReport(Struct, frozen=True, kw_only=True):
    """The JSON object of `qnode distill --json`: sums over the complete blocks, and the blocks.

    ``seconds`` is tag time of those blocks, ``processor_s`` the time on one core for both sides.
    """

    link: str
    simulated: bool
    tags: int
    seconds: float
    processor_s: float
    sifted_bits: int
    secret_bits: int
    sifted_bits_per_s: float
    secret_bits_per_s: float
    blocks_accepted: int
    blocks_discarded: dict[str, int]
    blocks: list[BlockRow]


def row_of(block: DistilledBlock, link: LinkParameters) -> BlockRow:
    """Return the row of one block."""
    counts, result = block.counts, block.result
    slots = block.span.end - block.span.first
    seconds = slots / link.source.qubit_rate_hz
    return BlockRow(
        block=block.number,
        first_slot=block.span.first,
        slots=slots,
        seconds=seconds,
        clicks=block.clicks,
        sifted_bits=block.sifted_bits,
        qber_z=counts.qber_z if counts else None,
        f_ec=counts.f_ec if counts else None,
        rounds=block.rounds,
        lambda_ec_bits=counts.lambda_ec_bits if counts else None,
        phi_z_upper=result.phi_z_upper if result else None,
        secret_bits=block.secret_bits,
        secret_bits_per_s=block.secret_bits / seconds,
        lost=block.lost,
        detail=block.detail,
    )


def report_of(
    rows: Sequence[BlockRow], *, link: LinkParameters, simulated: bool, tags: int, processor_s: float
) -> DistillReport:
    """Return the sums and the rows."""
    seconds = sum(row.seconds for row in rows)
    sifted, secret = sum(row.sifted_bits for row in rows), sum(row.secret_bits for row in rows)
    discarded: dict[str, int] = {}
    for row in rows:
        if row.lost:
            discarded[row.lost] = discarded.get(row.lost, 0) + 1
    return DistillReport(
        link=link.name,
        simulated=simulated,
        tags=tags,
        seconds=seconds,
        processor_s=processor_s,
        sifted_bits=sifted,
        secret_bits=secret,
        sifted_bits_per_s=sifted / seconds if seconds else 0.0,
        secret_bits_per_s=secret / seconds if seconds else 0.0,
        blocks_accepted=len(rows) - sum(discarded.values()),
        blocks_discarded=discarded,
        blocks=list(rows),
    )


def write_csv(rows: Iterable[BlockRow], file: TextIO) -> None:
    """Write a header and a line for each block; unknown values are empty."""
    writer = csv.DictWriter(file, BlockRow.__struct_fields__)
    writer.writeheader()
    for row in rows:
        writer.writerow(msgspec.structs.asdict(row))
