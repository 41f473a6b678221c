"""LDPC: error correction in one to three round trips for any length of the block.

The block is interleaved and divided into frames of about 1e5 bits. Alice discloses the syndromes of each
frame over a quasi-cyclic irregular code, and Bob decodes the difference from Bob's own. For frames that do
not decode, Bob requests more: rows are split, so that earlier disclosures stay useful (``code``). Forty check
parities per frame, sent with the first answer, prevent a wrongly decoded frame from damaging the block.

**Disclosure.** Every syndrome bit and every check parity that Alice sends is counted. The decoder uses only
the difference of the syndromes, which is the syndrome of the error string, and the check is linear too. So
the frames that Bob requests, and their parts, follow from the error string alone. ``leak_count`` has the same
meaning as for Cascade.
"""

from qnode.distill.reconcile.base.interface import Method
from qnode.distill.reconcile.ldpc.alice import LdpcResponder
from qnode.distill.reconcile.ldpc.bob import LdpcCorrector

LDPC = Method("ldpc", LdpcResponder, LdpcCorrector)
