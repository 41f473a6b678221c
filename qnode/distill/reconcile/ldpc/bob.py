"""Bob's side: requests the syndromes of all frames at once, decodes, and requests more for failed frames."""

import numpy as np

from qnode.choices import LeakCount
from qnode.distill.bits import Bits
from qnode.distill.reconcile.base.interface import ReconciliationFailed, ReconciliationStatistics, leaked_bits
from qnode.distill.reconcile.ldpc.code import make_code
from qnode.distill.reconcile.ldpc.decoder import Decoder
from qnode.distill.reconcile.ldpc.frames import CHECK_OCTETS, frame_check, make_cut
from qnode.distill.reconcile.ldpc.interleave import Interleaver
from qnode.distill.reconcile.ldpc.message import encode_extend, encode_start
from qnode.distill.reconcile.ldpc.rate import (
    check_estimate,
    estimate_qber,
    extended,
    is_hopeless,
    piece_limit,
    pieces_for,
    row_limit,
)
from qnode.distill.reconcile.ldpc.syndrome import Words, piece_syndromes, rest_syndromes
from qnode.errors import ProtocolError


class LdpcCorrector:
    """Correct one block (see ``Corrector``)."""

    def __init__(self, key: Bits, seed: bytes, qber_estimate: float, leak_count: LeakCount) -> None:
        check_estimate(qber_estimate)
        self._cut = cut = make_cut(key.n_bits)
        self._seed = seed
        self._leak_count: LeakCount = leak_count
        self._interleaver = Interleaver.draw(seed, cut.n_words)
        self._frames = cut.split(self._interleaver.apply(key.words))
        self._n_rows = min(pieces_for(cut, qber_estimate), row_limit(cut))
        self._code = make_code(self._n_rows, cut.n_columns, cut.lifting)
        self._decoder = Decoder(self._code)
        # For each frame not yet corrected: the differences of its syndromes, piece by piece as disclosed, and
        # the number of pieces after the present request.
        nothing: Words = np.empty((0, cut.column_words), np.uint64)
        self._differences = dict.fromkeys(range(cut.n_frames), nothing)
        self._wanted = dict.fromkeys(range(cut.n_frames), self._code.n_rows)
        self._checks: list[bytes] = []
        self._disclosed_bits = 0
        self._rounds = 0
        self._n_errors = 0
        self._request_bytes = 0
        self._response_bytes = 0
        self._corrected: Bits | None = None

    @property
    def corrected(self) -> Bits:
        """The corrected block (see ``Corrector``)."""
        if self._corrected is None:
            raise RuntimeError("reconciliation has not finished")
        return self._corrected

    @property
    def statistics(self) -> ReconciliationStatistics:
        """The costs so far."""
        return ReconciliationStatistics(
            disclosed_bits=self._disclosed_bits,
            leaked_bits=leaked_bits(self._disclosed_bits, self._leak_count),
            rounds=self._rounds,
            corrected_errors=0 if self._corrected is None else self._n_errors,
            request_bytes=self._request_bytes,
            response_bytes=self._response_bytes,
        )

    def start(self) -> bytes:
        """Return the first request: the syndromes of every frame."""
        return self._send(encode_start(self._n_rows))

    def takes_long(self, message: bytes) -> bool:
        """Return whether an answer takes long to process: always (see ``Corrector``)."""
        return True

    def receive(self, message: bytes) -> bytes | None:
        """Take an answer, return the next request (see ``Corrector``)."""
        self._take(message)
        self._wanted = {}
        for frame in tuple(self._differences):
            self._correct(frame)
        if self._wanted:
            return self._send(encode_extend(self._wanted))
        words = self._interleaver.undo(self._cut.join(self._frames))
        n_bits = self._cut.n_bits
        self._corrected = Bits.from_bytes(words.tobytes()[: (n_bits + 7) // 8], n_bits)
        return None

    def _take(self, message: bytes) -> None:
        """Add the answer to the differences; keep the checks, which come with the first."""
        n_new = {frame: n - self._differences[frame].shape[0] for frame, n in self._wanted.items()}
        n_checks = 0 if self._checks else self._cut.n_frames
        n_syndrome_octets = 8 * self._cut.column_words * sum(n_new.values())
        n_octets = n_syndrome_octets + n_checks * CHECK_OCTETS
        if len(message) != n_octets:
            raise ProtocolError(f"reconciliation: an answer of {len(message)} octets in place of {n_octets}")
        self._response_bytes += n_octets
        self._rounds += 1
        self._disclosed_bits += 8 * n_octets
        syndromes = np.frombuffer(message[:n_syndrome_octets], np.uint64).reshape(-1, self._cut.column_words)
        for frame, n in n_new.items():
            before = self._differences[frame]
            own = piece_syndromes(self._code, self._frames[frame], before.shape[0], self._wanted[frame])
            self._differences[frame] = np.concatenate((before, own ^ syndromes[:n]))
            syndromes = syndromes[n:]
        for begin in range(n_syndrome_octets, n_octets, CHECK_OCTETS):
            self._checks.append(message[begin : begin + CHECK_OCTETS])

    def _correct(self, frame: int) -> None:
        """Decode one frame if that has a chance; if it fails, note the number of pieces to request."""
        code = self._code
        n_pieces = self._differences[frame].shape[0]
        differences = rest_syndromes(code, self._differences[frame])
        qber = estimate_qber(code, differences)
        if not is_hopeless(self._cut, n_pieces, qber):
            errors = self._decoder.decode(differences, n_pieces, self._cut.n_known(frame))
            if errors is not None and self._agrees(frame, errors):
                self._frames[frame] ^= errors
                self._n_errors += int(np.bitwise_count(errors).sum())
                del self._differences[frame]
                return
        if n_pieces >= piece_limit(self._cut, code):
            raise ReconciliationFailed(
                f"frame {frame} of {self._cut.n_frames} does not decode with as many bits disclosed as it has"
            )
        self._wanted[frame] = extended(self._cut, code, n_pieces, qber)

    def _agrees(self, frame: int, errors: Words) -> bool:
        """Return whether the frame without ``errors`` passes Alice's check."""
        return frame_check(self._frames[frame] ^ errors, self._seed, frame) == self._checks[frame]

    def _send(self, request: bytes) -> bytes:
        self._request_bytes += len(request)
        return request
