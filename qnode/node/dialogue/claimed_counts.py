"""Checks of the counts that a peer claims for a block, against the announced clicks."""

from dataclasses import dataclass

from qnode.distill.counts import TagCounts, XCounts
from qnode.distill.sifting.announced import Announced
from qnode.distill.sifting.span_parts import PartCounts
from qnode.errors import ProtocolError
from qnode.link.messages import Sifted


@dataclass
class AnnouncedClicks:
    """The number of clicks that Bob has announced, by arm and kind of slot."""

    z: int = 0
    central: int = 0
    boundary: int = 0

    @property
    def total(self) -> int:
        """The sum."""
        return self.z + self.central + self.boundary

    def add(self, announced: Announced) -> None:
        """Count further clicks."""
        n_x, boundary = announced.boundary.n_bits, announced.n_boundary
        self.central += n_x - boundary
        self.boundary += boundary
        self.z += len(announced) - n_x


def check_tags(tags: TagCounts, n_clicks: int, parts: PartCounts) -> None:
    """Refuse Bob's counts of tags if they do not fit the clicks that Alice has received.

    Raises:
        ProtocolError: naming the count.
    """
    if tags.z_clicks != parts.z_clicks or tags.x_clicks != parts.x_clicks:
        raise ProtocolError("tags: other clicks by part and arm than were announced")
    if any(live > slots for live, slots in zip(tags.live_slots, parts.slots, strict=True)):
        raise ProtocolError("tags: more live slots than a part of the span has")
    # A slot of either kind is announced as one click.
    if tags.cross_clicks + tags.double_clicks > n_clicks:
        raise ProtocolError(
            f"tags: {tags.cross_clicks} cross and {tags.double_clicks} double clicks in {n_clicks} clicks"
        )


def check_sifted(sifted: Sifted, x: XCounts, announced: AnnouncedClicks) -> None:
    """Refuse Alice's totals if they do not fit the clicks that Bob has announced.

    Raises:
        ProtocolError: naming the count.
    """
    if sifted.n_kept + sifted.dropped > announced.total:
        raise ProtocolError(
            f"dropped: {sifted.dropped} clicks, with {sifted.n_kept} kept ones more than were announced"
        )
    if x.central > announced.central or x.boundary > announced.boundary:
        raise ProtocolError("more clicks of the X arm than were announced")
    if sifted.n_z_plus is not None and sum(sifted.n_z_plus) + sifted.n_kept > announced.z:
        raise ProtocolError(f"n_z_plus: with {sifted.n_kept} kept ones more Z clicks than were announced")
    if sifted.boundary is not None and not x.boundary <= sifted.boundary <= announced.boundary:
        raise ProtocolError(
            f"boundary: {sifted.boundary}, not between the {x.boundary:.0f} of known classes "
            f"and the {announced.boundary} announced"
        )
