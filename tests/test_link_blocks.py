"""The table of blocks of real daemons: the same public figures at both sites, recorded over a restart."""

import csv
import io
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from daemons_support import PATIENCE_S, ROLES, Sites, eventually, qnodectl, two_sites

# The first process on a machine also compiles the kernels, which takes minutes on a slow one.
pytestmark = [pytest.mark.link, pytest.mark.timeout(600)]


def rows_of(text: str) -> dict[int, dict[str, str]]:
    """Return the rows of a table by block."""
    rows = list(csv.DictReader(io.StringIO(text)))
    by_block = {int(row["block_id"]): row for row in rows}
    assert len(by_block) == len(rows)
    return by_block


@contextmanager
def recording(sites: Sites, table: Path) -> Iterator[None]:
    """Run `qnode record` beside Bob, and end it as an operator would."""
    socket = sites.endpoints.sites["bob"].control_socket
    command = [sys.executable, "-m", "qnode", "record", "--site", socket, "--blocks", str(table)]
    with subprocess.Popen(command) as process:
        try:
            yield
        finally:
            process.terminate()
            assert process.wait(PATIENCE_S) == 0


def accepted_in(table: Path) -> set[int]:
    rows = rows_of(table.read_text()) if table.exists() else {}
    return {block_id for block_id, row in rows.items() if row["outcome"] == "accepted"}


def test_both_sites_show_the_same_blocks_and_a_recording_outlives_a_restart(tmp_path: Path) -> None:
    table = tmp_path / "blocks.csv"
    with two_sites(tmp_path) as sites, recording(sites, table):
        sites.start(*ROLES)
        sites.wait_until_serving(*ROLES)
        eventually(lambda: len(accepted_in(table)) >= 2, "two blocks before the restart")
        assert sites.stop(*ROLES) == [0, 0]
        before = accepted_in(table)
        sites.start(*ROLES)
        sites.wait_until_serving(*ROLES)
        eventually(lambda: len(accepted_in(table)) > len(before) + 3, "blocks after the restart")
        at_alice, at_bob = (
            rows_of(qnodectl(sites.endpoints.sites[role].control_socket, "blocks", "--csv").stdout)
            for role in ROLES
        )
    recorded = rows_of(table.read_text())
    # What Bob shows has only blocks since the restart; the last of them may have come after the last look.
    assert not before & set(at_bob)
    assert before <= set(recorded)
    written = set(at_bob) & set(recorded)
    assert len(written) >= 3
    assert all(recorded[block_id] == at_bob[block_id] for block_id in written)
    both = [block_id for block_id in at_alice if at_alice[block_id]["outcome"] == "accepted"]
    both = [block_id for block_id in both if at_bob.get(block_id, {}).get("outcome") == "accepted"]
    # Of a block whose commit the restart cut, the store remembers what makes its key alone.
    both = [block_id for block_id in both if at_bob[block_id]["phi_z_upper"]]
    assert len(both) >= 2
    for block_id in both:
        alice, bob = at_alice[block_id], at_bob[block_id]
        # A check may have a limit on one side alone, or none without a declared dead time.
        plain = {name: value for name, value in bob.items() if not name.startswith("check_")}
        assert "" not in {value for name, value in plain.items() if name != "detail"}
        assert bob["check_cross_clicks"] == alice["check_cross_clicks"] != ""
        assert {**alice, "decided_at_s": ""} == {**bob, "decided_at_s": ""}
