"""The public record of one block: all figures that both sites know, and from which they decide."""

import math

from msgspec import Struct

from qnode.distill.counts import Pair, TagCounts, XCounts
from qnode.distill.keylength import binary_entropy


class BlockCounts(Struct, frozen=True, kw_only=True):
    """The public record of one verified block. ``alice_parities``: disclosed by Alice in reconciliation.

    ``method``: the method of reconciliation; may be empty. ``n_slots``: of its span; 0 if unknown. ``late``:
    late bits of the corrected key, by intensity. ``n_z_plus`` (clicks of the Z arm on |+>), ``boundary`` (all
    clicks in boundary slots) and ``tags`` are None if the peer speaks protocol 1, which lacks them; then
    ``late`` is None too, because that protocol's ledger does not count it.
    """

    n_z: Pair
    m_z: Pair
    x: XCounts
    alice_parities: int
    reconciliation_leak_bits: int
    method: str = ""
    n_slots: float = 0.0
    late: Pair | None = None
    n_z_plus: Pair | None = None
    boundary: float | None = None
    tags: TagCounts | None = None

    @property
    def qber_z(self) -> float:
        """Error rate of the sifted key."""
        return self.m_z.total / self.n_z.total if self.n_z.total else 0.0

    @property
    def lambda_ec_bits(self) -> int:
        """Everything disclosed about the sifted key before verification.

        The two error counts are disclosed (they enter the bound on empty qubits), and the two counts of late
        bits if they are taken: each at most ceil(log2(n_Z + 1)) bits.
        """
        n_counts = 2 if self.late is None else 4
        return self.reconciliation_leak_bits + n_counts * math.ceil(math.log2(self.n_z.total + 1))

    @property
    def f_ec(self) -> float:
        """Alice's parities over the Shannon limit; 0 for a block without errors."""
        return self.alice_parities / self.shannon_bits if self.shannon_bits else 0.0

    @property
    def shannon_bits(self) -> float:
        """The Shannon limit of the disclosure: n_Z h(QBER)."""
        return self.n_z.total * binary_entropy(self.qber_z)
