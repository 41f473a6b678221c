"""Alice's side: discloses syndromes, counts them, and refuses requests that no honest run makes."""

import numpy as np
import numpy.typing as npt

from qnode.choices import LeakCount
from qnode.distill.bits import Bits
from qnode.distill.reconcile.base.interface import leaked_bits
from qnode.distill.reconcile.ldpc.code import Code, make_code
from qnode.distill.reconcile.ldpc.frames import CHECK_OCTETS, frame_check, make_cut
from qnode.distill.reconcile.ldpc.interleave import Interleaver
from qnode.distill.reconcile.ldpc.message import Kind, decode_extend, decode_start, kind_of
from qnode.distill.reconcile.ldpc.rate import check_estimate, piece_limit, row_limit
from qnode.distill.reconcile.ldpc.syndrome import piece_syndromes
from qnode.errors import ProtocolError


class LdpcResponder:
    """Answer one block's requests (see ``Responder``)."""

    def __init__(self, key: Bits, seed: bytes, qber_estimate: float, leak_count: LeakCount) -> None:
        check_estimate(qber_estimate)  # only a check: Bob's request states the amount
        self._cut = cut = make_cut(key.n_bits)
        self._seed = seed
        self._leak_count: LeakCount = leak_count
        self._frames = cut.split(Interleaver.draw(seed, cut.n_words).apply(key.words))
        self._code: Code | None = None
        self._n_pieces: npt.NDArray[np.int64] = np.zeros(cut.n_frames, np.int64)
        self._disclosed_bits = 0
        self._refused = False

    @property
    def disclosed_bits(self) -> int:
        """Parities disclosed so far."""
        return self._disclosed_bits

    @property
    def leaked_bits(self) -> int:
        """``disclosed_bits`` under the chosen ``LeakCount``."""
        return leaked_bits(self._disclosed_bits, self._leak_count)

    def takes_long(self, message: bytes) -> bool:
        """Return whether an answer takes long: always (see ``Responder``)."""
        return True

    def respond(self, message: bytes) -> bytes:
        """Answer one request (see ``Responder``)."""
        if self._refused:
            raise ProtocolError("reconciliation: a request after a refused one")
        self._refused = True  # until this request is checked
        if kind_of(message) is Kind.START:
            response = self._start(decode_start(message))
        else:
            response = self._extend(decode_extend(message))
        self._refused = False
        return response

    def _start(self, n_rows: int) -> bytes:
        limit = row_limit(self._cut)
        if self._code is not None:
            raise ProtocolError("reconciliation: a second START")
        if not 1 <= n_rows <= limit:
            raise ProtocolError(f"reconciliation: {n_rows} rows asked; 1 to {limit} are possible")
        self._code = make_code(n_rows, self._cut.n_columns, self._cut.lifting)
        syndromes = [
            self._disclose(self._code, frame, self._code.n_rows) for frame in range(self._cut.n_frames)
        ]
        checks = [frame_check(words, self._seed, frame) for frame, words in enumerate(self._frames)]
        self._disclosed_bits += 8 * CHECK_OCTETS * len(checks)
        return b"".join(syndromes + checks)

    def _extend(self, wanted: dict[int, int]) -> bytes:
        code = self._code
        if code is None:
            raise ProtocolError("reconciliation: an EXTEND before START")
        limit = piece_limit(self._cut, code)
        for frame, n_pieces in wanted.items():
            if frame >= self._cut.n_frames:
                raise ProtocolError(f"reconciliation: frame {frame} of {self._cut.n_frames}")
            if not self._n_pieces[frame] < n_pieces <= limit:
                raise ProtocolError(
                    f"reconciliation: {n_pieces} pieces asked of a frame that gave {self._n_pieces[frame]}"
                    f" and may give {limit}"
                )
        return b"".join(self._disclose(code, frame, n_pieces) for frame, n_pieces in wanted.items())

    def _disclose(self, code: Code, frame: int, n_pieces: int) -> bytes:
        syndromes = piece_syndromes(code, self._frames[frame], int(self._n_pieces[frame]), n_pieces)
        self._n_pieces[frame] = n_pieces
        self._disclosed_bits += 64 * syndromes.size
        return syndromes.tobytes()
