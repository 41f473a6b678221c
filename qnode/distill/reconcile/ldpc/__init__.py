"""LDPC: reconciliation in one to three round trips, whatever the length of the block.

The block is interleaved and cut into frames of about 1e5 bits. Alice discloses the syndromes of each frame
over a quasi-cyclic irregular code, Bob decodes the difference to his own, and for the frames that do not
decode he asks for more: rows are split, so that what was disclosed before keeps its worth (``code``). Forty
check parities a frame, sent with the first answer, keep a wrongly decoded frame from spoiling the block.

What is counted: every syndrome bit and every check parity that Alice sends. The decoder sees only the
difference of the syndromes, which is the syndrome of the error string, and the check is linear too: which
frames Bob asks for, and how much of them, follows from the error string alone. ``leak_count`` means here
what it means for Cascade.
"""

from qnode.distill.reconcile.base.interface import Method
from qnode.distill.reconcile.ldpc.alice import LdpcResponder
from qnode.distill.reconcile.ldpc.bob import LdpcCorrector

LDPC = Method("ldpc", LdpcResponder, LdpcCorrector)
