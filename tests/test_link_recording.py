"""Real daemons recorded while they make key: who is told, and what the recordings give when distilled."""

import csv
import io
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from daemons_support import PATIENCE_S, ROLES, Sites, alter, events_of, eventually, qnodectl, two_sites

from qnode.config import Role
from qnode.distill.keylength import Assumption
from qnode.tags.site_recording import open_site_recording

# The first process on a machine also compiles the kernels, which takes minutes on a slow one.
pytestmark = [pytest.mark.link, pytest.mark.timeout(600)]

QNODE = [sys.executable, "-m", "qnode"]


def serving(sites: Sites) -> Sites:
    sites.start(*ROLES)
    sites.wait_until_serving(*ROLES)
    return sites


@contextmanager
def recording(sites: Sites, role: Role, folder: Path) -> Iterator[None]:
    """Record one site, and end it as an operator would."""
    socket = sites.endpoints.sites[role].control_socket
    command = [*QNODE, "record", "--site", socket, "--out", str(folder)]
    with subprocess.Popen(command) as process:
        try:
            yield
        finally:
            process.terminate()
            code = process.wait(PATIENCE_S)
        assert code == 0


def is_recorded(sites: Sites, role: Role) -> bool:
    status = sites.status(role)
    return status is not None and status.recorded_since is not None


def says(sites: Sites, role: Role, recorded: bool) -> bool:
    return says_recorded(sites, role) is recorded


def says_recorded(sites: Sites, role: Role) -> bool | None:
    """Tell whether the last block's key says that it was recorded; None before the first."""
    status = sites.status(role)
    if status is None or status.block.last is None:
        return None
    return Assumption.RECORDED.value in status.block.last.assumptions


def accepted(sites: Sites, role: Role) -> dict[int, dict[str, str]]:
    """Return the site's accepted blocks by number."""
    table = qnodectl(sites.endpoints.sites[role].control_socket, "blocks", "--csv").stdout
    rows = csv.DictReader(io.StringIO(table))
    return {int(row["block_id"]): row for row in rows if row["outcome"] == "accepted"}


def distilled(*folders: Path) -> dict[int, dict[str, Any]]:
    """Distil what was recorded, as an operator would."""
    command = [*QNODE, "distill", *map(str, folders), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE_S)
    assert done.returncode == 0, done.stderr
    return {row["block"]: row for row in json.loads(done.stdout)["blocks"]}


def blocks_in(folder: Path) -> list[int]:
    """Return the numbers of the blocks that a recording holds whole."""
    return [block.block_id for block in open_site_recording(folder).manifest.blocks]


def test_what_both_sites_recorded_distils_to_the_blocks_that_they_made(tmp_path: Path) -> None:
    at_alice, at_bob = tmp_path / "alice.rec", tmp_path / "bob.rec"
    with two_sites(tmp_path) as sites:
        serving(sites)
        eventually(lambda: accepted(sites, "bob"), "a block before the recordings")
        with recording(sites, "alice", at_alice):
            eventually(lambda: is_recorded(sites, "alice"), "Alice is recorded")
            with recording(sites, "bob", at_bob):
                eventually(lambda: is_recorded(sites, "bob"), "Bob is recorded")
                since = max(accepted(sites, "bob"), default=0)
                eventually(lambda: max(accepted(sites, "bob"), default=0) >= since + 6, "six blocks")
        both = set(blocks_in(at_alice)) & set(blocks_in(at_bob))
        eventually(lambda: max(accepted(sites, "bob"), default=0) > max(both), "what was recorded is decided")
        live = accepted(sites, "bob")
    rows = distilled(at_bob, at_alice)
    # Where few tags came before the first of them, the clock was found only in it.
    assert both - {min(both)} <= set(rows) <= both
    assert len(set(rows) & set(live)) >= 3
    for number in set(rows) & set(live):
        row, was = rows[number], live[number]
        n_z = int(was["n_z_signal"]) + int(was["n_z_decoy"])
        m_z = int(was["m_z_signal"]) + int(was["m_z_decoy"])
        assert row["lost"] == ""
        assert row["sifted_bits"] == pytest.approx(n_z, rel=0.01)
        assert row["qber_z"] * row["sifted_bits"] == pytest.approx(m_z, abs=max(3.0, 0.05 * m_z))
        assert row["seconds"] == pytest.approx(float(was["span_s"]))


def test_keys_of_blocks_recorded_at_one_site_say_so_at_both(tmp_path: Path) -> None:
    with two_sites(tmp_path) as sites:
        serving(sites)
        for role in ROLES:
            eventually(partial(says, sites, role, False), f"a block of {role}'s")
        for recorded in ROLES:
            with recording(sites, recorded, tmp_path / recorded):
                for role in ROLES:
                    eventually(partial(says, sites, role, True), f"{role} knows it")
                shown = qnodectl(sites.endpoints.sites[recorded].control_socket, "status").stdout
                assert "BEING RECORDED" in shown
            for role in ROLES:
                eventually(partial(says, sites, role, False), f"{role}'s keys are its own")
            socket = sites.endpoints.sites[recorded].control_socket
            (ended,) = [event for event in events_of(socket) if event["event"] == "recording.ended"]
            assert ended["symbols" if recorded == "alice" else "tags"] > 0
            assert "BEING RECORDED" not in qnodectl(socket, "status").stdout


def test_a_site_is_not_recorded_unless_its_file_says_so(tmp_path: Path) -> None:
    with two_sites(tmp_path) as sites:
        alter(sites.site_files["bob"], operate__allow_recording=None)
        sites.start("bob")
        sites.wait_until_serving("bob")
        socket = sites.endpoints.sites["bob"].control_socket
        command = [*QNODE, "record", "--site", socket, "--out", str(tmp_path / "r")]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE_S)
        assert done.returncode == 1
        (line,) = done.stderr.splitlines()
        assert "allow_recording = true" in line
        assert not [event for event in events_of(socket) if event["event"].startswith("recording")]
