"""Bit strings packed in 64-bit words: the form in which sifted bits travel through distillation.

Bit ``i`` is bit ``i % 64`` of word ``i // 64``; the unused bits of the last word are zero, so that two equal
strings have equal words and equal bytes.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint64]


@dataclass(frozen=True, eq=False, repr=False)
class Bits:
    """A bit string of ``n_bits`` bits in ``words`` (uint64, shape ``(ceil(n_bits / 64),)``, tail zero)."""

    words: Words
    n_bits: int

    def __post_init__(self) -> None:
        assert self.words.dtype == np.uint64
        assert self.words.shape == ((self.n_bits + 63) // 64,)

    def __repr__(self) -> str:
        return f"Bits(n_bits={self.n_bits})"  # never the bits: they are key material

    def __len__(self) -> int:
        return self.n_bits

    @classmethod
    def pack(cls, bits: npt.NDArray[np.uint8]) -> "Bits":
        """Pack ``bits`` (uint8 zeros and ones, shape ``(n,)``)."""
        words = np.zeros((bits.shape[0] + 63) // 64, np.uint64)
        words.view(np.uint8)[: (bits.shape[0] + 7) // 8] = np.packbits(bits, bitorder="little")
        return cls(words, bits.shape[0])

    @classmethod
    def from_bytes(cls, data: bytes, n_bits: int) -> "Bits":
        """Take ``ceil(n_bits / 8)`` little-endian bytes; bits beyond ``n_bits`` are cleared.

        Raises:
            ValueError: ``data`` has another length.
        """
        if len(data) != (n_bits + 7) // 8:
            raise ValueError(f"{n_bits} bits need {(n_bits + 7) // 8} bytes, got {len(data)}")
        padded = np.zeros(((n_bits + 63) // 64) * 8, np.uint8)
        padded[: len(data)] = np.frombuffer(data, np.uint8)
        words = padded.view(np.uint64)
        if n_bits % 64:
            words[-1] &= np.uint64((1 << (n_bits % 64)) - 1)
        return cls(words, n_bits)

    def to_bytes(self) -> bytes:
        """Return ``ceil(n_bits / 8)`` little-endian bytes."""
        return self.words.tobytes()[: (self.n_bits + 7) // 8]

    def unpack(self) -> npt.NDArray[np.uint8]:
        """Return the bits as uint8 zeros and ones, shape ``(n_bits,)``."""
        return np.unpackbits(self.words.view(np.uint8), count=self.n_bits, bitorder="little")

    def equals(self, other: "Bits") -> bool:
        """Compare length and content."""
        return self.n_bits == other.n_bits and bool(np.array_equal(self.words, other.words))
