"""`qnode check`: all faults of a site's file at once, and nothing is touched."""

import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trustme
from daemons_support import alter

from qnode.cli.check import tell_findings
from qnode.cli.exits import EXIT_USAGE
from qnode.config import load_site
from qnode.config_checks import Findings
from qnode.errors import ConfigError
from qnode.loopback.prepare import LoopbackConfig, Staging, prepare
from qnode.node.check import check_site
from qnode.node.reload import read_again, read_trust

NOW = datetime.now(UTC)


@pytest.fixture
def site_file(tmp_path: Path) -> Path:
    return prepare(tmp_path / "data", LoopbackConfig(), Staging()).site_files["alice"]


def tree(folder: Path) -> dict[Path, tuple[int, int, bytes]]:
    """Return all that a check could have changed."""
    return {
        path: (path.stat().st_mode, path.stat().st_mtime_ns, path.read_bytes())
        for path in folder.rglob("*")
        if path.is_file()
    }


def run(path: Path) -> tuple[int, list[str]]:
    command = [sys.executable, "-m", "qnode", "check", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.stderr == ""
    return done.returncode, done.stdout.splitlines()


def test_a_file_that_is_right_is_said_to_be_and_nothing_is_touched(site_file: Path) -> None:
    before = tree(site_file.parent.parent)
    code, lines = run(site_file)
    assert (code, lines) == (0, [f"{site_file}: nothing is wrong"])
    assert tree(site_file.parent.parent) == before


def test_control_characters_in_what_was_found_are_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    found = Findings(faults=["the certificate names \x1b[2Jeve"], notes=["a name with \r in it"])
    assert tell_findings(Path("site.toml"), found) == EXIT_USAGE
    told = capsys.readouterr().out
    assert "names \\x1b[2Jeve" in told
    assert "name with \\r in" in told


def test_every_fault_is_named_at_once(site_file: Path) -> None:
    data = site_file.parent.parent
    alter(
        site_file,
        node__kme_id="kme-alise",
        link__source__qubit_rate=1,
        link__source__mu=[0.2, 0.5],
        link__source__p_z=2.0,
        link__receiver__gate_width_ps="wide",
        etsi014__listen="8443",
        etsi014__stock_per_pair=-1,
        skip__listen="8444",
        etsi004__listen="25575",
        etsi014__tls__crl=str(data / "missing.pem"),
        peer__address="nowhere",
        store__anchor=str(data / "alice" / "store" / "anchor"),
        store__path=None,
        operate__log_level="loud",
        devices__tdc={"driver": "simulated-tdd"},
        etsi014__sae=[
            {"sae_id": "a", "kme_id": "kme-alise", "peers": ["b"], "identity": []},
            {"sae_id": "a", "kme_id": "kme-bbo", "peers": []},
        ],
    )
    (data / "tls" / "link-alice.key").chmod(0o644)
    (data / "tls" / "kme-alice.pem").write_bytes((data / "tls" / "kme-bob.pem").read_bytes())
    code, lines = run(site_file)
    assert code == 64
    told = "\n".join(lines)
    for expected in (
        "[link.source] unknown key qubit_rate, did you mean qubit_rate_hz?",
        "[link.receiver] gate_width_ps: expected `float`, got `str` (got 'wide')",
        "[etsi014.sae[0]] unknown key identity, did you mean identities?",
        "[operate] log_level: expected debug or info or warning or error (got 'loud')",
        "[store] path: is missing",
        "etsi014.listen: expected host:port, got '8443'",
        "skip.listen: expected host:port, got '8444'",
        "etsi004.listen: expected host:port, got '25575'",
        "peer.address: expected host:port, got 'nowhere'",
        "[devices.tdc] ",
        "[etsi014.sae] a: registered twice",
        "[etsi014.sae] a: kme_id: expected 'kme-alise' or 'kme-bob', got 'kme-bbo'",
        "peer.tls.key: ",
        "can be read by others; run chmod 600",
        "names kme-alice, but the peer expects kme-alise (node.kme_id)",
        "does not belong to the key",
        "missing.pem: cannot be read: No such file or directory",
    ):
        assert expected in told, told
    assert lines[-1].startswith(f"{site_file}: ")
    assert lines[-1].endswith(" faults")


def test_impossible_values_are_all_named_once_types_are_right(site_file: Path) -> None:
    alter(site_file, link__source__mu=[0.2, 0.5], link__source__p_z=2.0, etsi014__stock_per_pair=-1)
    found = check_site(site_file).faults
    assert [fault.partition(":")[0] for fault in found] == [
        "link.source.mu",
        "link.source.p_z",
        "link.source.mu_uncertainty",
        "etsi014.stock_per_pair",
    ]


def test_a_health_test_that_never_fires_is_a_fault_and_refused_by_a_reload(site_file: Path) -> None:
    configs = load_site(site_file)
    alter(site_file, randomness={"device": "transmitter", "min_entropy_bits": 0.01})
    (fault,) = check_site(site_file).faults
    assert "[randomness]" in fault
    assert "513 of 512 samples, that is never" in fault
    with pytest.raises(ConfigError, match="that is never"):
        read_again(site_file, configs, read_trust(configs))


def test_what_a_start_would_find_in_secrets_and_folders_is_found(site_file: Path) -> None:
    data = site_file.parent.parent
    (data / "alice" / "store.key").write_bytes(b"short")
    (data / "preshared.key").write_bytes(b"short")
    alter(site_file, store__anchor=str(data / "alice" / "store" / "anchor"))
    found = "\n".join(check_site(site_file).faults)
    assert "store.key: expected 32 bytes, got 5" in found
    assert "preshared.key: expected at least 96 bytes, got 5" in found
    assert "must lie outside the store's folder" in found
    alter(site_file, store__path=str(data / "preshared.key" / "keys.sqlite"))
    assert "preshared.key is no folder" in "\n".join(check_site(site_file).faults)


def test_the_pre_shared_key_of_a_store_that_exists_is_not_missed(site_file: Path) -> None:
    data = site_file.parent.parent
    (data / "alice" / "store" / "keys.sqlite").touch()
    (data / "preshared.key").unlink()
    assert check_site(site_file).faults == []


def test_expiry_is_a_fault_once_it_has_come_and_a_note_in_the_month_before(site_file: Path) -> None:
    tls = site_file.parent.parent / "tls"
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tls / "link-ca.pem"))
    issued = authority.issue_cert(
        "kme-alice", not_before=NOW - timedelta(days=90), not_after=NOW + timedelta(days=20)
    )
    (tls / "link-alice.pem").write_bytes(issued.cert_chain_pems[0].bytes())
    (tls / "link-alice.key").write_bytes(issued.private_key_pem.bytes())
    found = check_site(site_file)
    assert found.faults == []
    (note,) = found.notes
    assert note.startswith("peer.tls.certificate: certificate of ")
    assert "expires in 20.0 days" in note or "expires in 19.9 days" in note or "19.99" in note
    (fault,) = check_site(site_file, (NOW + timedelta(days=21)).timestamp()).faults
    assert "has expired" in fault
    faults = check_site(site_file, (NOW - timedelta(days=91)).timestamp()).faults
    assert any(fault.startswith("peer.tls.certificate: ") and "is not valid yet" in fault for fault in faults)


def test_credentials_that_systemd_hands_over_are_no_faults_outside_the_service(site_file: Path) -> None:
    handed_over = "/run/credentials/qnode@none.service/key"
    alter(site_file, peer__tls__key=handed_over, store__store_key=handed_over)
    found = check_site(site_file)
    assert found.faults == []
    assert [note.partition(":")[0] for note in found.notes] == ["peer.tls.key", "store.store_key"]


@pytest.mark.parametrize("content", [b"[node\n", b"\xff\xfe", b"x = " + 100_000 * b"["])
def test_what_is_not_toml_is_one_fault(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "site.toml"
    path.write_bytes(content)
    (fault,) = check_site(path).faults
    assert fault.startswith(f"{path}: not TOML")


@pytest.mark.parametrize("role", ["alice", "bob"])
def test_every_key_of_a_site_file_of_release_0_1_0_is_known(role: str) -> None:
    # As that release shipped it; its certificates are not on this machine.
    found = check_site(Path(__file__).parent / "fixtures" / "site_files_0.1.0" / f"{role}.toml").faults
    assert [fault for fault in found if "cannot be read: No such file" not in fault] == []


def test_a_bound_that_release_0_1_0_offered_is_refused_with_its_successors(tmp_path: Path) -> None:
    shipped = Path(__file__).parent / "fixtures" / "site_files_0.1.0" / "alice.toml"
    file = tmp_path / "alice.toml"
    file.write_text(shipped.read_text() + '\n[link.estimation]\nasymmetry_bound = "reference"\n')
    fault = next(one for one in check_site(file).faults if "asymmetry_bound" in one)
    assert 'use "shares" (the default), or "joint" with a peer of protocol 1' in fault


def test_a_file_of_loopback_is_named_as_such() -> None:
    shipped = Path(__file__).parent.parent / "config" / "turin.toml"
    assert check_site(shipped).faults == ["this is a file of qnode loopback, not of a site: it has no [node]"]
