"""The public figures of a decided block: one row of the table of blocks.

A row has only data that crossed the classical channel, or follows from such data: counts, lengths, bounds. It
has no bit of a key and no seed.
"""

from typing import Final

from msgspec import Struct

from qnode.distill.check_table import Finding

# The number of rows that a node keeps; also the largest number in one answer.
KEPT_BLOCKS: Final = 4096
LONGEST_DETAIL_CHARACTERS: Final = 300
ACCEPTED: Final = "accepted"


class DecidedBlock(Struct, frozen=True, kw_only=True):
    """A block with or without key. None: the block did not reach the step of this figure.

    ``decided_at_s`` is Unix time. ``outcome``: `accepted` or the counted reason, which ``detail`` explains.
    ``span_s``: tag time it covers. ``n_z``, ``m_z``: sifted bits and errors among them, by Alice's intensity;
    ``c_plus`` .. ``e_dark``: clicks of the X arm by class (`qnode.distill.counts.XCounts`); ``n_z_plus``,
    ``boundary``, ``late``: as in `qnode.distill.block_counts.BlockCounts`; from ``cross_clicks`` on as in
    `TagCounts`. ``checks``: the results of the plausibility checks. ``alice_parities``: disclosed by Alice in
    correction; ``lambda_ec_bits``: the whole disclosure. ``estimator``, ``x_mode``, ``eps_sec``, ``eps_cor``:
    the configuration of the decision. ``phi_z_upper``: bound on the phase error rate; ``secret_bits``: before
    the authentication pool's refill; ``recorded``: whether its tags or symbols were recorded at either site.
    """

    block_id: int
    decided_at_s: float
    outcome: str
    detail: str = ""
    span_s: float | None = None
    n_z_signal: int | None = None
    n_z_decoy: int | None = None
    m_z_signal: int | None = None
    m_z_decoy: int | None = None
    c_plus_signal: int | None = None
    c_plus_decoy: int | None = None
    c_z_signal: int | None = None
    c_z_decoy: int | None = None
    e_same_signal: int | None = None
    e_same_decoy: int | None = None
    e_plus_signal: int | None = None
    e_plus_decoy: int | None = None
    e_dark_signal: int | None = None
    e_dark_decoy: int | None = None
    n_z_plus_signal: int | None = None
    n_z_plus_decoy: int | None = None
    boundary: int | None = None
    late_signal: int | None = None
    late_decoy: int | None = None
    cross_clicks: int | None = None
    double_clicks: int | None = None
    out_of_gate: int | None = None
    too_close: int | None = None
    alice_parities: int | None = None
    lambda_ec_bits: int | None = None
    f_ec: float | None = None
    reconciliation: str | None = None
    estimator: str
    x_mode: str
    eps_sec: float
    eps_cor: float
    phi_z_upper: float | None = None
    secret_bits: int = 0
    recorded: bool | None = None
    checks: tuple[Finding, ...] = ()

    @property
    def n_z(self) -> int | None:
        """Sifted bits of both intensities."""
        return _sum(self.n_z_signal, self.n_z_decoy)

    @property
    def qber_z(self) -> float | None:
        """Error rate of the sifted key."""
        n_z, m_z = self.n_z, _sum(self.m_z_signal, self.m_z_decoy)
        return m_z / n_z if n_z and m_z is not None else None


def _sum(signal: int | None, decoy: int | None) -> int | None:
    return None if signal is None or decoy is None else signal + decoy
