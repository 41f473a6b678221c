"""Decided blocks as these tests show them."""

from typing import Any

from msgspec.structs import replace

from qnode.distill.check_table import Finding
from qnode.operate.blocks.row import DecidedBlock

ACCEPTED_BLOCK = DecidedBlock(
    block_id=812,
    decided_at_s=1_799_999_959.25,
    outcome="accepted",
    span_s=24.0,
    n_z_signal=838_861,
    n_z_decoy=209_715,
    m_z_signal=13_000,
    m_z_decoy=3_987,
    c_plus_signal=30_000,
    c_plus_decoy=8_800,
    c_z_signal=510_000,
    c_z_decoy=127_000,
    e_same_signal=128_000,
    e_same_decoy=32_000,
    e_plus_signal=128_001,
    e_plus_decoy=32_001,
    e_dark_signal=1_300,
    e_dark_decoy=330,
    n_z_plus_signal=838_000,
    n_z_plus_decoy=209_000,
    boundary=1_290_000,
    late_signal=419_000,
    late_decoy=104_000,
    cross_clicks=56,
    double_clicks=0,
    out_of_gate=160_000,
    too_close=0,
    alice_parities=139_958,
    lambda_ec_bits=140_000,
    f_ec=1.12,
    reconciliation="cascade",
    estimator="eur",
    x_mode="visibility",
    eps_sec=1e-10,
    eps_cor=1e-15,
    phi_z_upper=0.045,
    secret_bits=238_112,
    recorded=False,
    checks=(Finding("cross_clicks", 56.0, 12.5, 160.5),),
)


def accepted_block(block_id: int, **changes: Any) -> DecidedBlock:
    return replace(ACCEPTED_BLOCK, block_id=block_id, **changes)


def lost_block(block_id: int, reason: str = "link", detail: str = "") -> DecidedBlock:
    """Return a block that was cut off before it was sifted."""
    return DecidedBlock(
        block_id=block_id,
        decided_at_s=1_799_999_960.0,
        outcome=reason,
        detail=detail,
        estimator="eur",
        x_mode="visibility",
        eps_sec=1e-10,
        eps_cor=1e-15,
    )
