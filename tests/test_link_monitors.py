"""Real daemons with a monitored source: an attack that no count shows discards every block at both sites."""

from pathlib import Path

import pytest
from daemons_support import PATIENCE_S, ROLES, Sites, alter, eventually, look_at, qnodectl, two_sites

from qnode.operate.status.model import NodeStatus

# The first process on a machine also compiles the kernels, which takes minutes on a slow one.
pytestmark = [pytest.mark.link, pytest.mark.timeout(600)]

SEEDED_FROM_S = 20.0  # simulated: 5 s of wall time
ENOUGH_BLOCKS = 25  # more than begin between two readings: the last of them began under the attack
OUTPUT = {
    "monitor": "output_power",
    "device": "transmitter",
    "reading": "power_w",
    "least": 0.95e-6,
    "most": 1.05e-6,
    "noise": 1e-9,
}


def both(sites: Sites) -> dict[str, NodeStatus]:
    looks = {role: look_at(sites.endpoints.sites[role].control_socket) for role in ROLES}
    return {role: status for role, status in looks.items() if status is not None}


def test_laser_seeding_is_seen_by_the_power_monitor_and_gives_no_key(tmp_path: Path) -> None:
    """Both intensities grow by a third: their ratio, and so every check of counts, stays as it was."""
    seeded = [{"at_s": SEEDED_FROM_S, "source_attenuation_db": -1.25}]
    with two_sites(tmp_path) as sites:
        alter(
            sites.site_files["alice"],
            monitors={"readings": {"output": OUTPUT}},
            devices__transmitter__config__simulation__schedule=seeded,
        )
        alter(sites.site_files["bob"], devices__tdc__config__simulation__schedule=seeded)
        sites.start(*ROLES)
        sites.wait_until_serving(*ROLES)

        def discarded() -> dict[str, NodeStatus] | None:
            seen = both(sites)
            enough = [one.block.discarded.get("output_power", 0) >= ENOUGH_BLOCKS for one in seen.values()]
            return seen if len(enough) == len(ROLES) and all(enough) else None

        seen = eventually(discarded, "blocks lost at both sites", within_s=2 * PATIENCE_S)
        checks = qnodectl(sites.endpoints.sites["alice"].control_socket, "checks")
        assert sites.stop(*ROLES) == [0, 0]
    alice, bob = seen["alice"], seen["bob"]
    assert not alice.monitors["readings.output"].plausible
    assert bob.monitors == {}
    (alarm,) = (one for one in alice.alarms if one.name == "monitor.tripped")
    assert "laser seeding" in alarm.text
    assert bob.block.last_discard is not None
    assert "laser seeding" in bob.block.last_discard.detail
    # Counts alone would have given key.
    assert all(one.plausible for one in bob.quantum.checks)
    assert checks.returncode == 1
