"""The public record of one block: what was detected, by basis, class and intensity (docs: security model).

Index 0 of a pair is the signal intensity mu1, index 1 the decoy mu2.
"""

import msgspec


class Pair(msgspec.Struct, frozen=True, array_like=True):
    """One count (or one parameter) for each intensity."""

    signal: float
    decoy: float

    @property
    def total(self) -> float:
        """Both intensities together."""
        return self.signal + self.decoy


class XCounts(msgspec.Struct, frozen=True):
    """X-arm clicks by slot class, per intensity of the qubit that carries the light (one X detector).

    ``c_plus``: central slot, Alice sent |+> (dark port: errors). ``c_z``: central slot, Alice sent Z.
    ``e_same``: boundary slot between equal Z states. ``e_plus``: boundary slot of (0,+) or (+,1).
    ``e_dark``: boundary slot of (0,1), where no light is expected.
    """

    c_plus: Pair
    c_z: Pair
    e_same: Pair
    e_plus: Pair
    e_dark: Pair

    @property
    def central(self) -> float:
        """All clicks in central slots that are counted."""
        return self.c_plus.total + self.c_z.total

    @property
    def boundary(self) -> float:
        """All clicks in boundary slots that are counted."""
        return self.e_same.total + self.e_plus.total + self.e_dark.total
