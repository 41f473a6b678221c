"""The decision about a block: its number of secret bits, or the reason for its discard.

Both sites decide from the same numbers with the same code, and must agree.
"""

import math

import msgspec.structs

from qnode.block.outcome import BlockLost, Reason
from qnode.choices import TagBits
from qnode.config import LinkParameters
from qnode.distill.block_counts import BlockCounts
from qnode.distill.counts import Pair, XCounts
from qnode.distill.estimation import inputs_from_block, visibility_error
from qnode.distill.keylength import Assumption, Assumptions, KeyLength, estimate, stated
from qnode.distill.plausibility import examine, unseen_blinding
from qnode.distill.reconcile import MIN_BLOCK_BITS
from qnode.distill.verify import tag_bits_for
from qnode.errors import FieldError
from qnode.units import BULK_BYTES

# The amplification seed of a larger block would exceed a message of the link.
MOST_SIFTED_BITS = 60_000_000
# The keep mask of a block with more announced clicks, most of them not sifted, would also exceed it.
MOST_ANNOUNCED_CLICKS = 8 * BULK_BYTES


def verification_bits(link: LinkParameters, n_z: int) -> TagBits:
    """Return the length of the verification tag: as configured, longer if eps_cor requires it."""
    needed = tag_bits_for(n_z, link.estimation.eps_cor)
    return max(needed, link.reconciliation.verification_bits)


def check_size(n_z: int, link: LinkParameters) -> None:
    """Raise `BlockLost` for a block that is too small to give key, or too large for the messages.

    The bound on secret bits never exceeds the sifted bits, so this loses nothing.
    """
    least = max(MIN_BLOCK_BITS, link.block.minimum_secret_bits)
    if n_z < least:
        raise BlockLost(Reason.TOO_FEW_BITS, f"{n_z} sifted bits, at least {least} are needed")
    if n_z > MOST_SIFTED_BITS:
        raise BlockLost(Reason.TOO_MANY_BITS, f"{n_z} sifted bits, at most {MOST_SIFTED_BITS} fit a message")


def check_clicks(n_clicks: int) -> None:
    """Raise `BlockLost` for a block with so many announced clicks that it could not be sifted."""
    if n_clicks > MOST_ANNOUNCED_CLICKS:
        raise BlockLost(
            Reason.TOO_MANY_BITS,
            f"{n_clicks} clicks announced, at most {MOST_ANNOUNCED_CLICKS} fit a message",
        )


def sample_leak_bits(n_bits: int, link: LinkParameters) -> int:
    """Return the bits disclosed by a sample: its own, and under ``both`` its error count, which Bob uses."""
    extra = math.ceil(math.log2(n_bits + 1)) if link.reconciliation.leak_count == "both" else 0
    return n_bits + extra


def assumptions(result: KeyLength, link: LinkParameters) -> Assumptions:
    """Return the assumptions of a block's key: those of the estimator, and those of the protocol."""
    found = {**result.assumptions, **stated(Assumption.COMPUTATIONAL_KEY_CONTROL)}
    if link.reconciliation.leak_count == "alice":
        found |= stated(Assumption.PUBLIC_ERROR_POSITIONS)
    if link.receiver.dead_time == "joint":
        found.pop(Assumption.INDEPENDENT_DEAD_TIME, None)
        if link.receiver.dead_time_s <= 0.0:
            found |= stated(Assumption.UNCHECKED_JOINT_DEAD_TIME)
    return found


def check_qber(qber_z: float, link: LinkParameters) -> None:
    """Raise `BlockLost` if ``qber_z`` exceeds the configured limit."""
    if qber_z > link.block.qber_z_limit:
        raise BlockLost(Reason.QBER_Z, f"{qber_z:.2%} is above the limit {link.block.qber_z_limit:.2%}")


def check_visibility(x: XCounts, link: LinkParameters) -> None:
    """Raise `BlockLost` if the interferometer's error rate exceeds its limit, or is unknown."""
    e_vis = visibility_error(x, link.source.p_z)
    if e_vis is None:
        raise BlockLost(
            Reason.E_VIS, "no click of a Z state in the central slot: the interferometer arm is blind"
        )
    if e_vis > link.block.e_vis_limit:
        raise BlockLost(Reason.E_VIS, f"{e_vis:.2%} is above the limit {link.block.e_vis_limit:.2%}")


def check_plausible(counts: BlockCounts, link: LinkParameters) -> None:
    """Raise `BlockLost` for implausible counts, with the name of the first failed check as reason."""
    failed = [finding for finding in examine(counts, link) if not finding.plausible]
    if failed:
        others = ", ".join(finding.check for finding in failed[1:])
        raise BlockLost(failed[0].check, f"{failed[0]}{f'; also outside: {others}' if others else ''}")


def key_length(counts: BlockCounts, link: LinkParameters) -> KeyLength:
    """Return the key length of a block by the configured estimator, without the limits.

    Raises:
        BlockLost: the counts contradict the source.
    """
    estimation = link.estimation
    # Protocol 1 has only the counts for the bound by classes, and credits empty qubits unconditionally.
    first_protocol = counts.boundary is None
    try:
        inputs = inputs_from_block(
            n_z=counts.n_z,
            m_z=counts.m_z,
            x=counts.x,
            mu=Pair(*link.source.mu),
            mu_uncertainty=Pair(*link.source.mu_uncertainty),
            p=Pair(*link.source.p),
            p_z=link.source.p_z,
            lambda_ec=counts.lambda_ec_bits,
            eps_sec=estimation.eps_sec,
            eps_cor=estimation.eps_cor,
            statistics=estimation.statistics,
            x_mode=estimation.x_mode,
            vacuum_rule=estimation.vacuum_rule,
            asymmetry_bound="joint" if first_protocol else estimation.asymmetry_bound,
            n_z_plus=counts.n_z_plus,
            boundary=counts.boundary,
            error_positions_public=not first_protocol and link.reconciliation.leak_count == "alice",
            verification_bits=verification_bits(link, int(counts.n_z.total)),
        )
        return estimate(inputs, estimation.estimator)
    except FieldError as refused:
        raise BlockLost(Reason.CONTRADICTION, str(refused)) from None


def judge(counts: BlockCounts, link: LinkParameters) -> KeyLength:
    """Return the key length of a block, without a check of its plausibility.

    Raises:
        BlockLost: a limit is exceeded, too little key remains, or the counts contradict the source.
    """
    check_qber(counts.qber_z, link)
    check_visibility(counts.x, link)
    result = key_length(counts, link)
    if result.asymmetry_bound is not None:
        upper = result.asymmetry_upper
        if upper is None or upper > link.block.asymmetry_limit:
            found = "unknown" if upper is None else f"{upper:.3f}"
            raise BlockLost(Reason.ASYMMETRY, f"upper bound {found}, limit {link.block.asymmetry_limit:.3f}")
    if result.length < link.block.minimum_secret_bits:
        raise BlockLost(
            Reason.KEY_LENGTH,
            f"{result.length} secret bits, below the minimum {link.block.minimum_secret_bits}: QBER_Z "
            f"{counts.qber_z:.2%}, phase error up to {result.phi_z_upper:.1%}, "
            f"{counts.lambda_ec_bits} of {counts.n_z.total:.0f} bits disclosed",
        )
    return result


def decide(counts: BlockCounts, link: LinkParameters, *, recorded: bool = False) -> KeyLength:
    """Return the key length of a verified block; ``recorded``: at either site, which its assumptions state.

    Raises:
        BlockLost: the counts are not plausible, a limit is exceeded, or too little key remains.
    """
    check_plausible(counts, link)
    result = judge(counts, link)
    added = Assumption.DETECTORS_COUNT_PHOTONS.stated(share=unseen_blinding(counts, link))
    if recorded:
        added |= stated(Assumption.RECORDED)
    return msgspec.structs.replace(result, assumptions={**result.assumptions, **added})
