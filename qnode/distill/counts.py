"""The public record of one block: detections by basis, class and intensity (security reference).

Index 0 of a pair is the signal intensity mu1, index 1 the decoy mu2.
"""

from typing import Annotated, Final

import msgspec
from msgspec import Meta

# The number of equal parts of a block's span in which the steadiness of its rates is checked.
SPAN_PARTS: Final = 16

_Count = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]
_ByPart = Annotated[tuple[_Count, ...], Meta(min_length=SPAN_PARTS, max_length=SPAN_PARTS)]


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


class TagCounts(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Counts of Bob's tags of a block beside the announced clicks; sent before Alice discloses anything.

    ``cross_clicks``: slots with clicks at both detectors; ``double_clicks``: slots with several at one.
    Each of them is announced as one click. ``out_of_gate``: tags outside every gate, while locked.
    ``too_close``: tags within the declared dead time after another one. The last three
    have `SPAN_PARTS` entries, one for each part of the span: its slots that were not cut, and its announced
    clicks of each arm; slot s of a span of n slots from f on lies in part (s - f) * SPAN_PARTS // n.
    """

    cross_clicks: _Count
    double_clicks: _Count
    out_of_gate: _Count
    too_close: _Count
    live_slots: _ByPart
    z_clicks: _ByPart
    x_clicks: _ByPart
