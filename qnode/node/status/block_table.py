"""The table of decided blocks of a node: making and selecting rows."""

import time
from collections import deque

import msgspec.structs
from msgspec import Struct

from qnode.config import LinkParameters
from qnode.distill.block_counts import BlockCounts
from qnode.distill.check_table import Finding
from qnode.distill.counts import Pair, XCounts
from qnode.distill.keylength import Assumption, KeyLength
from qnode.keys import BlockRecord
from qnode.operate.blocks.row import ACCEPTED, KEPT_BLOCKS, LONGEST_DETAIL_CHARACTERS, DecidedBlock
from qnode.operate.events.line import printable


class KnownOfBlock(Struct, frozen=True, kw_only=True):
    """The known figures of a block: its span, its public counts after sifting and after verification."""

    span_s: float | None = None
    n_z: Pair | None = None
    x: XCounts | None = None
    verified: BlockCounts | None = None
    checks: tuple[Finding, ...] = ()


class BlockTable:
    """The latest decided blocks, in the order of decision."""

    def __init__(self, link: LinkParameters, kept: int = KEPT_BLOCKS) -> None:
        self._link = link
        self._blocks: deque[DecidedBlock] = deque(maxlen=kept)

    def accepted(self, block_id: int, known: KnownOfBlock, result: KeyLength) -> None:
        """Add a block that gave key."""
        self._blocks.append(_row(block_id, ACCEPTED, "", known, result, self._link))

    def resumed(self, block_id: int, record: BlockRecord) -> None:
        """Add a block that gave key before this process started, from the record of the store."""
        row = _row(block_id, ACCEPTED, "", KnownOfBlock(), None, self._link)
        self._blocks.append(
            msgspec.structs.replace(
                row,
                estimator=record.estimator,
                x_mode=record.x_mode,
                eps_sec=record.eps_sec,
                eps_cor=record.eps_cor,
                secret_bits=record.secret_bits,
                recorded=record.recorded,
            )
        )

    def lost(self, block_id: int, reason: str, detail: str, known: KnownOfBlock) -> None:
        """Add a block that gave no key."""
        self._blocks.append(_row(block_id, reason, detail, known, None, self._link))

    def latest(self, count: int, after: int | None = None) -> list[DecidedBlock]:
        """Return the latest ``count`` blocks, oldest first: of those decided after block ``after``, if given.

        If ``after`` is not among the kept blocks, all of them were decided after it. Numbers do not show the
        order: a block may be lost while an earlier one is still distilled, and a new store counts from 1.
        """
        blocks = list(self._blocks)
        for place in range(len(blocks) - 1, -1, -1):
            if blocks[place].block_id == after:
                del blocks[: place + 1]
                break
        return blocks[-count:] if count > 0 else []


def _row(
    block_id: int,
    outcome: str,
    detail: str,
    known: KnownOfBlock,
    result: KeyLength | None,
    link: LinkParameters,
) -> DecidedBlock:
    verified, x, estimation = known.verified, known.x, link.estimation
    pairs = {
        "n_z": known.n_z,
        "m_z": verified.m_z if verified else None,
        "c_plus": x.c_plus if x else None,
        "c_z": x.c_z if x else None,
        "e_same": x.e_same if x else None,
        "e_plus": x.e_plus if x else None,
        "e_dark": x.e_dark if x else None,
        "n_z_plus": verified.n_z_plus if verified else None,
        "late": verified.late if verified else None,
    }
    counts = {f"{name}_signal": int(pair.signal) for name, pair in pairs.items() if pair is not None}
    counts |= {f"{name}_decoy": int(pair.decoy) for name, pair in pairs.items() if pair is not None}
    if verified is not None and verified.boundary is not None:
        counts["boundary"] = int(verified.boundary)
    if verified is not None and verified.tags is not None:
        for name in ("cross_clicks", "double_clicks", "out_of_gate", "too_close"):
            counts[name] = getattr(verified.tags, name)
    return DecidedBlock(
        block_id=block_id,
        decided_at_s=round(time.time(), 3),
        outcome=outcome,
        # The text may come from the peer; made printable, it fits into one line of any table.
        detail=printable(detail)[:LONGEST_DETAIL_CHARACTERS],
        span_s=known.span_s,
        **counts,
        alice_parities=verified.alice_parities if verified else None,
        lambda_ec_bits=verified.lambda_ec_bits if verified else None,
        f_ec=verified.f_ec if verified else None,
        reconciliation=verified.method if verified else None,
        estimator=estimation.estimator,
        x_mode=estimation.x_mode,
        eps_sec=estimation.eps_sec,
        eps_cor=estimation.eps_cor,
        phi_z_upper=result.phi_z_upper if result else None,
        secret_bits=result.length if result else 0,
        recorded=Assumption.RECORDED in result.assumptions if result else None,
        checks=known.checks,
    )
