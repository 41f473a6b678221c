"""Bit strings packed into words, and their products: for sifting, correction and amplification."""

from qnode.distill.bits.array import Bits

__all__ = ["Bits"]
