"""Bit strings packed into words, and products of them: what sifting, correction and amplification work on."""

from qnode.distill.bits.array import Bits

__all__ = ["Bits"]
