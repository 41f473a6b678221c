"""The bits that the correction of a block disclosed."""

from dataclasses import dataclass

from qnode.block.decision import sample_leak_bits
from qnode.config import LinkParameters


@dataclass(frozen=True)
class Disclosed:
    """The disclosure of correction by ``method``: Alice's ``parities``, and ``leak_bits`` for lambda_EC."""

    parities: int = 0
    leak_bits: int = 0
    method: str = ""

    def and_sample(self, n_bits: int, link: LinkParameters) -> "Disclosed":
        """Add a disclosed sample of ``n_bits``."""
        return Disclosed(self.parities + n_bits, self.leak_bits + sample_leak_bits(n_bits, link), self.method)

    def and_reconciled(self, parities: int, leak_bits: int, method: str) -> "Disclosed":
        """Add the disclosure of a finished correction."""
        return Disclosed(self.parities + parities, self.leak_bits + leak_bits, method)
