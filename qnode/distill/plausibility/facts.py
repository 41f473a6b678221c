"""The inputs of the checks of a block: its counts, the link's parameters, and derived values."""

from dataclasses import dataclass
from functools import cached_property
from typing import Final

from qnode.config import LinkParameters
from qnode.distill.block_counts import BlockCounts
from qnode.distill.counts import Pair, TagCounts

# A detector counts as live for at least this fraction: smaller values are rounding errors.
LEAST_LIVE: Final = 0.005


@dataclass(frozen=True)
class Facts:
    """One block at one link. ``z``: the number of standard deviations allowed for chance."""

    counts: BlockCounts
    link: LinkParameters
    z: float

    @property
    def p_z(self) -> float:
        """The probability that Alice sends Z."""
        return self.link.source.p_z

    @property
    def p_x(self) -> float:
        """The probability that Alice sends |+>."""
        return 1.0 - self.link.source.p_z

    @property
    def mu_ratio(self) -> tuple[float, float]:
        """The least and most that mu2/mu1 may be within the calibration."""
        (mu1, mu2), (off1, off2) = self.link.source.mu, self.link.source.mu_uncertainty
        return mu2 * (1.0 - off2) / (mu1 * (1.0 + off1)), mu2 * (1.0 + off2) / (mu1 * (1.0 - off1))

    @cached_property
    def live_slots(self) -> float:
        """Slots of the span that were not cut; 0 if unknown."""
        tags = self.counts.tags
        return float(sum(tags.live_slots)) if tags is not None else self.counts.n_slots

    @property
    def live_s(self) -> float:
        """The same in seconds."""
        return self.live_slots / self.link.source.qubit_rate_hz

    def clicked_slots(self, tags: TagCounts) -> tuple[float, float]:
        """Return the slots in which the Z arm clicked, and the X arm: cross clicks are announced as one."""
        half = 0.5 * tags.cross_clicks
        return sum(tags.z_clicks) + half, sum(tags.x_clicks) + half

    def tags_per_click(self, tags: TagCounts) -> float:
        """Return how many tags there are for one in a gate."""
        inside = sum(self.clicked_slots(tags))
        return (inside + tags.out_of_gate) / inside if inside else 1.0

    def occupancies(self, tags: TagCounts) -> tuple[float, float] | None:
        """Return the fractions of live time for which the declared dead time keeps either detector blind.

        Clicks outside gates are taken to be shared in proportion. None where no dead time is declared.
        """
        dead_time_s = self.link.receiver.dead_time_s
        if dead_time_s <= 0.0 or self.live_s <= 0.0:
            return None
        z_slots, x_slots = self.clicked_slots(tags)
        per_click = dead_time_s * self.tags_per_click(tags) / self.live_s
        if self.link.receiver.dead_time == "joint":
            return per_click * (z_slots + x_slots), per_click * (z_slots + x_slots)
        return per_click * z_slots, per_click * x_slots

    @cached_property
    def light(self) -> tuple[float, float]:
        """The mean detections a signal qubit makes in the Z and in the X arm while they are live.

        An estimate, for the bend of click probabilities at high light alone.
        """
        if self.live_slots <= 0.0:
            return 0.0, 0.0
        counts, (mu1, mu2), (p1, p2) = self.counts, self.link.source.mu, self.link.source.p
        brighter = mu1 / (p1 * mu1 + p2 * mu2)
        occupied = None
        if counts.tags is not None:
            clicked, occupied = self.clicked_slots(counts.tags), self.occupancies(counts.tags)
        else:
            plus = 0.0 if counts.n_z_plus is None else counts.n_z_plus.total
            clicked = (counts.n_z.total + plus, counts.x.central + (counts.boundary or counts.x.boundary))
        z, x = (
            min(1.0, brighter * slots / self.live_slots / max(LEAST_LIVE, 1.0 - blind))
            for slots, blind in zip(clicked, occupied or (0.0, 0.0), strict=True)
        )
        return z, x

    def per_probability(self, counts: Pair) -> Pair:
        """Return counts by intensity over how often each is sent."""
        return Pair(counts.signal / self.link.source.p[0], counts.decoy / self.link.source.p[1])
