"""Both daemons with their controllers on a link that drifts: keys come, an operator overrides."""

from pathlib import Path
from typing import Any

import pytest
from daemons_support import SMALL_LINK, Sites, eventually, qnodectl, two_sites

from qnode.operate.status.model import ControllerStatus

# The first process on a machine also compiles the kernels, which takes minutes on a slow one.
pytestmark = [pytest.mark.link, pytest.mark.timeout(600)]

# At the start the phase is 2 rad away, and nearly half of the X clicks are errors; then it turns.
DRIFTING: dict[str, Any] = {
    **SMALL_LINK,
    "simulation": {
        **SMALL_LINK["simulation"],
        "drift": {"interferometer_turn_s": 2400.0},
        "schedule": [{"at_s": 0.0, "interferometer_phase_rad": 2.0}],
    },
    "calibration": {
        "phase": {"device": "tdc", "stretch_s": 2.0, "settle_s": 0.05, "dither_rad": 0.1, "visibility": 0.99},
        "bias": {"im1": {"device": "transmitter", "half_wave_v": 5.0, "dither_v": 0.1, "stretch_s": 2.0}},
    },
}


def controller(sites: Sites, role: str) -> ControllerStatus:
    status = sites.status(role)
    assert status is not None
    (one,) = status.controllers
    return one


def test_a_link_finds_its_phase_and_makes_keys_and_an_operator_can_hold_it(tmp_path: Path) -> None:
    with two_sites(tmp_path, tables=DRIFTING) as sites:
        sites.start("alice", "bob")
        sites.wait_until_serving("alice", "bob")

        def blocks_with_key() -> int:
            status = sites.status("bob")
            return status.block.accepted if status is not None else 0

        eventually(lambda: blocks_with_key() >= 10, "ten blocks with key")
        phase = controller(sites, "bob")
        assert phase.name == "phase"
        assert phase.best is not None
        assert phase.best == pytest.approx(-2.0, abs=1.0) or phase.best > 2.0
        eventually(lambda: controller(sites, "bob").state.state == "following", "the phase is followed")
        eventually(lambda: controller(sites, "alice").moves >= 4, "the bias is dithered")
        assert controller(sites, "alice").setting == pytest.approx(0.0, abs=0.5)

        bob = sites.endpoints.sites["bob"].control_socket
        assert "control   phase" in qnodectl(bob, "status").stdout
        held = qnodectl(bob, "calibrate", "phase", "-2.5")
        assert held.returncode == 0, held.stderr
        eventually(lambda: controller(sites, "bob").setting == -2.5, "the held phase is set")
        assert controller(sites, "bob").state.state == "held"
        refused = qnodectl(bob, "calibrate", "phase", "-25")
        assert refused.returncode == 3
        assert "expected -4 to 4 rad, got -25" in refused.stderr
        assert qnodectl(bob, "calibrate", "phase", "auto").returncode == 0
        eventually(lambda: controller(sites, "bob").setting != -2.5, "the controller goes on")
        assert sites.stop("alice", "bob") == [0, 0]
