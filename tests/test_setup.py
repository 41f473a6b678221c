"""`qnode setup`: two sites that pass `qnode check`, or nothing."""

import stat
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from qnode import secret_files
from qnode.cli.control import qnodectl
from qnode.cli.preshared import fingerprint
from qnode.cli.setup import setup
from qnode.cli.site_file import SiteAnswers, site_text
from qnode.config import load_site
from qnode.link.tls import link_contexts
from qnode.node.check import check_site
from qnode.node.reload import read_trust
from qnode.pki.authority import Authority, make_authorities


def run(*arguments: str | Path, given: str | None = "\n" * 20) -> Result:
    return CliRunner().invoke(setup, list(map(str, arguments)), input=given, standalone_mode=False)


def content(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def lab(tmp_path: Path) -> Path:
    make_authorities(tmp_path / "lab", "lab")
    return tmp_path / "lab"


def test_two_sites_from_defaults_are_without_fault_and_trust_each_other(tmp_path: Path, lab: Path) -> None:
    alice, bob = tmp_path / "alice", tmp_path / "bob"
    state = tmp_path / "state"
    made = run("alice", "--folder", alice, "--lab", lab, "--state", state)
    assert made.exception is None, made.exception
    shared = alice / "alice" / "preshared.key"
    second = run("bob", "--folder", bob, "--lab", lab, "--state", state, "--preshared-key", shared)
    assert second.exception is None, second.exception
    for folder, role, told in ((alice, "alice", made), (bob, "bob", second)):
        found = check_site(folder / f"{role}.toml")
        assert (found.faults, found.notes) == ([], [])
        read_trust(load_site(folder / f"{role}.toml"))
        assert f"fingerprint {fingerprint(shared.read_bytes())}" in told.output
        for key in (folder / role).glob("*.key"):
            assert stat.S_IMODE(key.stat().st_mode) == 0o600
        for path in (folder, folder / "tls", folder / f"{role}.toml"):  # for the service's user
            assert path.stat().st_mode & stat.S_IROTH
        assert stat.S_IMODE((folder / role).stat().st_mode) == 0o700
    one, other = load_site(alice / "alice.toml")[0], load_site(bob / "bob.toml")[0]
    assert one.link == other.link
    assert shared.read_bytes() == (bob / "bob" / "preshared.key").read_bytes()
    assert (alice / "alice" / "store.key").read_bytes() != (bob / "bob" / "store.key").read_bytes()
    link_contexts(one.peer.tls)


def test_for_the_service_secrets_are_its_credentials_and_requests_lead_to_certificates(
    tmp_path: Path, lab: Path
) -> None:
    folder = tmp_path / "etc"
    made = run("alice", "--folder", folder, "--host", "192.0.2.1")
    assert "systemctl enable --now qnode@alice" in made.output
    signing = {"link-alice": ("node", ()), "kme-alice": ("kme", ("--host", "192.0.2.1"))}
    for name, (role, hosts) in signing.items():
        ca = "link-ca.pem" if role == "node" else "sae-ca.pem"
        (folder / "tls" / ca).write_bytes((lab / ca).read_bytes())
        request, answer = folder / "tls" / f"{name}.csr", tmp_path / "answer.pem"
        sign = ["sign", role, "kme-alice", str(request), "--lab", str(lab), "--out", str(answer), *hosts]
        key = folder / "alice" / ("peer-tls.key" if role == "node" else "etsi014-tls.key")
        install = ["install", role, "kme-alice", str(answer), "--key-file", str(key)]
        install += ["--ca", str(folder / "tls" / ca), "--to", str(folder / "tls" / f"{name}.pem")]
        for command in (sign, install):
            done = CliRunner().invoke(qnodectl, ["pki", *command], standalone_mode=False)
            assert done.exception is None, done.exception
        answer.unlink()
    assert check_site(folder / "alice.toml").faults == []
    assert load_site(folder / "alice.toml")[0].store.store_key.parent.name == "qnode@alice.service"


def test_a_page_beyond_loopback_has_certificates_of_its_own_and_lists_of_revoked_ones_are_in_place(
    tmp_path: Path, lab: Path
) -> None:
    folder = tmp_path / "etc"
    made = run("alice", "--folder", folder, "--lab", lab, "--state", tmp_path, "--page", "0.0.0.0:9410")
    assert made.exception is None, made.exception
    found = check_site(folder / "alice.toml")
    assert (found.faults, found.notes) == ([], [])
    site = load_site(folder / "alice.toml")[0]
    assert site.page is not None
    assert site.page.tls is not None
    for tls, name in ((site.peer.tls, "link"), (site.etsi014.tls, "sae"), (site.page.tls, "operator")):
        assert tls.crl == folder / "tls" / f"{name}-ca.crl"
        assert tls.crl.read_bytes() == (lab / f"{name}-ca.crl").read_bytes()
    trust = read_trust((site,))
    assert trust.page_context is not None


@pytest.mark.parametrize("page", ["127.0.0.1:9410", "unix:/run/qnode/alice/page.sock"])
def test_a_page_on_this_machine_alone_needs_no_certificates(tmp_path: Path, lab: Path, page: str) -> None:
    run("alice", "--folder", tmp_path, "--lab", lab, "--state", tmp_path, "--page", page)
    assert check_site(tmp_path / "alice.toml").faults == []
    section = load_site(tmp_path / "alice.toml")[0].page
    assert section is not None
    assert (section.listen, section.tls) == (page, None)
    assert not (tmp_path / "alice" / "page-tls.key").exists()


def test_a_list_of_revoked_certificates_that_is_not_the_labs_is_not_overwritten(
    tmp_path: Path, lab: Path
) -> None:
    folder = tmp_path / "etc"
    run("alice", "--folder", folder, "--lab", lab)
    before = content(folder)
    authority = Authority.at(lab, "sae")
    authority.renew_crl(authority.private_key())
    told = run("bob", "--folder", folder, "--lab", lab, "--preshared-key", folder / "alice" / "preshared.key")
    assert "sae-ca.crl: is there already, and not the lab's" in str(told.exception)
    assert content(folder) == before


def test_a_second_time_changes_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "etc"
    run("alice", "--folder", folder)
    before = content(folder)
    assert "set up there already, and nothing was changed" in str(run("alice", "--folder", folder).exception)
    assert content(folder) == before


def test_an_interrupt_or_a_wrong_answer_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "new" / "etc"
    assert run("alice", "--folder", folder, given="kme-alice\n").exception is not None  # input ends
    wrong = ("alice", "--folder", folder, "--page", "9410")
    assert "page.listen" in str(run(*wrong).exception)
    assert "[peer] address" not in run("alice", "--folder", folder, "--device", "x=nothing").output
    assert "expected NAME=DRIVER" in str(run("alice", "--folder", folder, "--device", "x=nothing").exception)
    short = tmp_path / "short"
    short.write_bytes(b"short")
    short.chmod(0o600)
    assert "got 5" in str(run("bob", "--folder", folder, "--preshared-key", short).exception)

    def interrupted(folder: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(secret_files, "sync_folder", interrupted)
    assert run("alice", "--folder", folder).exception is not None
    assert not folder.parent.exists()


def test_the_preshared_key_is_compared_and_wiped(tmp_path: Path) -> None:
    path = tmp_path / "preshared.key"

    def command(*arguments: str) -> Result:
        asked = ["preshared", *arguments, str(path)]
        return CliRunner().invoke(qnodectl, asked, standalone_mode=False)

    made = command("make")
    key = path.read_bytes()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert command("fingerprint").output.strip() in made.output
    assert "never overwritten" in str(command("make").exception)
    assert path.read_bytes() == key
    path.chmod(0o644)
    assert "can be read by others" in str(command("fingerprint").exception)
    path.chmod(0o600)
    inode = path.stat().st_ino
    command("wipe")
    assert (path.read_bytes(), path.stat().st_ino) == (b"", inode)


@given(st.text(max_size=30), st.text(max_size=30))
def test_whatever_is_answered_stays_a_string(name: str, address: str) -> None:
    answers = SiteAnswers(
        role="bob",
        kme_id=name,
        peer_kme_id=address,
        link=name,
        address=address,
        listen=address,
        metrics=address,
        sae_id=name,
        peer_sae_id=address,
        folder=Path("/etc/qnode"),
        fibre=address,
    )
    tables = tomllib.loads(site_text(answers))
    assert (tables["node"]["kme_id"], tables["peer"]["address"]) == (name, address)
    assert tables["etsi014"]["sae"][0] == {"sae_id": name, "kme_id": name, "peers": [address]}
    assert tables["devices"]["tdc"]["config"]["fibre"] == address
