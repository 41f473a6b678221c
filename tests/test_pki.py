"""Certificates that `qnodectl pki` makes: real TLS handshakes with them, and what is wrong with a file."""

import shutil
import ssl
import stat
import subprocess
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import pkcs12
from cryptography.x509.oid import NameOID
from hypothesis import given, settings
from hypothesis import strategies as st

from qnode import secret_files
from qnode.cli.control import qnodectl
from qnode.config import TlsFiles
from qnode.errors import ConfigError
from qnode.http import TlsSettings, server_context
from qnode.link.tls import link_contexts
from qnode.pki.authority import Authority, certificate_pem, make_authorities
from qnode.pki.inspection import Expected, certificate_faults, describe_certificate, inspect_file
from qnode.pki.keys import KEY_KINDS, KeyKind, PrivateKey, key_pem, make_key, public_bytes
from qnode.pki.request import make_request
from qnode.pki.roles import ROLES, RoleName, alternative_names
from qnode.secret_files import NewFile, write_files
from qnode.tls import certificate_names

NOW = datetime.now(UTC)


def run(*arguments: str | Path, code: int | None = 0, given: str | None = None) -> Result:
    result = CliRunner().invoke(qnodectl, ["pki", *map(str, arguments)], input=given, standalone_mode=False)
    failed = result.exception is not None
    if code is None:
        assert failed, result.output
    else:
        assert not failed, result.exception
        assert result.return_value == code, result.output
    return result


def refusal(*arguments: str | Path, given: str | None = None) -> str:
    return str(run(*arguments, code=None, given=given).exception)


@pytest.fixture
def lab(tmp_path: Path) -> Path:
    make_authorities(tmp_path / "lab", "lab")
    return tmp_path / "lab"


@cache
def rsa_key() -> PrivateKey:
    """Make one RSA key for all certificates: each takes up to a second of computing."""
    return make_key("rsa")


def issue(lab: Path, role: RoleName, name: str, kind: KeyKind = "ec", *hosts: str, days: float = 365) -> Path:
    """Write certificate and key, and return the path of the certificate."""
    authority = Authority.at(lab, ROLES[role].authority)
    key = rsa_key() if kind == "rsa" else make_key(kind)
    certificate = authority.issue(
        authority.private_key(), ROLES[role], name, key.public_key(), hosts=hosts, days=days
    )
    path = lab.parent / f"{role}-{name}.pem"
    write_files(
        [NewFile(path, certificate_pem(certificate)), NewFile(path.with_suffix(".key"), key_pem(key))]
    )
    return path


def shake_hands(server: ssl.SSLContext, client: ssl.SSLContext, host: str | None = None) -> bytes:
    """Shake hands in memory, and return what the server sees of the client; raises ssl.SSLError."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    one = server.wrap_bio(to_server, to_client, server_side=True)
    other = client.wrap_bio(to_client, to_server, server_hostname=host)
    waiting = {one, other}
    for _ in range(10):
        for end in list(waiting):
            try:
                end.do_handshake()
                waiting.discard(end)
            except ssl.SSLWantReadError:
                continue
        if not waiting:
            break
    assert not waiting, "the handshake does not end"
    return one.getpeercert(binary_form=True) or b""


def link_files(lab: Path, certificate: Path, crl: Path | None = None) -> TlsFiles:
    key = certificate.with_suffix(".key")
    return TlsFiles(ca=lab / "link-ca.pem", certificate=certificate, key=key, crl=crl)


def delivery(lab: Path, certificate: Path, crl: Path | None = None, ca: str = "sae") -> ssl.SSLContext:
    """Return the context of the node's own key delivery interface, or of its page."""
    key = certificate.with_suffix(".key")
    return server_context(
        TlsSettings(certificate=certificate, key=key, client_ca=lab / f"{ca}-ca.pem", crl=crl)
    )


def encryptor(lab: Path, certificate: Path, ca: str = "sae") -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=lab / f"{ca}-ca.pem")
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    context.load_cert_chain(certificate, certificate.with_suffix(".key"))
    return context


@pytest.mark.parametrize("kind", KEY_KINDS)
def test_nodes_and_encryptors_shake_hands_with_certificates_of_each_kind_of_key(
    tmp_path: Path, kind: KeyKind
) -> None:
    lab = tmp_path / "lab"
    make_authorities(lab, "lab", key_kind=kind)
    alice, bob = issue(lab, "node", "kme-alice", kind), issue(lab, "node", "kme-bob", kind)
    listening, calling = link_contexts(link_files(lab, alice)), link_contexts(link_files(lab, bob))
    assert certificate_names(shake_hands(listening.server, calling.client)) == ("kme-bob",)
    kme = issue(lab, "kme", "kme-alice", kind, "127.0.0.1", "alice.example")
    sae = issue(lab, "sae", "encryptor", kind)
    for host in ("127.0.0.1", "alice.example"):
        assert certificate_names(shake_hands(delivery(lab, kme), encryptor(lab, sae), host)) == ("encryptor",)


def test_no_certificate_is_accepted_in_another_role(lab: Path) -> None:
    node, peer = issue(lab, "node", "kme-alice"), issue(lab, "node", "kme-bob")
    kme, sae = issue(lab, "kme", "kme-alice", "ec", "127.0.0.1"), issue(lab, "sae", "encryptor")
    agent = issue(lab, "agent", "agent")
    page, operator = issue(lab, "page", "kme-alice", "ec", "127.0.0.1"), issue(lab, "operator", "anna")
    at_link = link_contexts(link_files(lab, node)).server
    for stranger in (kme, sae, agent, page, operator):
        with pytest.raises(ssl.SSLError):
            shake_hands(at_link, link_contexts(link_files(lab, stranger)).client)
    for stranger in (peer, kme, agent, page, operator):
        with pytest.raises(ssl.SSLError):
            shake_hands(delivery(lab, kme), encryptor(lab, stranger), "127.0.0.1")
    for stranger in (node, sae, agent, page, operator):
        with pytest.raises(ssl.SSLError):
            shake_hands(delivery(lab, stranger), encryptor(lab, sae), "127.0.0.1")
    assert shake_hands(delivery(lab, page, ca="operator"), encryptor(lab, operator, "operator"), "127.0.0.1")
    for stranger in (node, kme, sae, agent, page):
        with pytest.raises(ssl.SSLError):
            shake_hands(delivery(lab, page, ca="operator"), encryptor(lab, stranger, "operator"), "127.0.0.1")


def test_a_revoked_certificate_and_its_earlier_ones_are_refused_and_others_are_not(lab: Path) -> None:
    kme, lost, kept = (issue(lab, "kme", "kme", "ec", "127.0.0.1"), lab.parent / "lost", lab.parent / "kept")
    run("issue", "sae", "lost", "--lab", lab, "--out", lost)
    run("issue", "sae", "kept", "--lab", lab, "--out", kept)
    shutil.copy(f"{lost}.pem", earlier := lab.parent / "earlier.pem")
    shutil.copy(f"{lost}.key", lab.parent / "earlier.key")
    run("renew", f"{lost}.pem", "--lab", lab)
    crl = lab / "sae-ca.crl"
    server = delivery(lab, kme, crl)
    shake_hands(server, encryptor(lab, Path(f"{lost}.pem")), "127.0.0.1")
    run("revoke", f"{lost}.pem", "--lab", lab)
    server = delivery(lab, kme, crl)
    for revoked in (Path(f"{lost}.pem"), earlier):
        with pytest.raises(ssl.SSLError):
            shake_hands(server, encryptor(lab, revoked), "127.0.0.1")
    shake_hands(server, encryptor(lab, Path(f"{kept}.pem")), "127.0.0.1")
    run("crl", "--lab", lab)
    found = x509.load_pem_x509_crl(crl.read_bytes())
    assert len(found) == 2
    assert found.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number == 3
    assert "is revoked" in refusal("renew", f"{lost}.pem", "--lab", lab)


def test_an_operators_certificate_is_packed_for_a_browser_behind_a_passphrase(tmp_path: Path) -> None:
    lab, anna = tmp_path / "lab", tmp_path / "anna"
    run("init", "lab", "--lab", lab)
    run("issue", "operator", "anna", "--lab", lab, "--out", anna)
    run("issue", "operator", "other", "--lab", lab, "--out", tmp_path / "other")
    pack = ("browser", f"{anna}.pem")
    assert "does not belong" in refusal(*pack, tmp_path / "other.key", given="secret\nsecret\n")
    made = run(*pack, f"{anna}.key", given="secret\nsecret\n")
    packed = anna.with_suffix(".p12")
    assert "secret" not in made.output
    assert stat.S_IMODE(packed.stat().st_mode) == 0o600
    with pytest.raises(ValueError, match="password"):
        pkcs12.load_key_and_certificates(packed.read_bytes(), b"other")
    key, certificate, _ = pkcs12.load_key_and_certificates(packed.read_bytes(), b"secret")
    assert certificate == x509.load_pem_x509_certificate(anna.with_suffix(".pem").read_bytes())
    assert key is not None
    assert public_bytes(key.public_key()) == public_bytes(certificate.public_key())


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
@pytest.mark.parametrize("kind", KEY_KINDS)
def test_openssl_accepts_each_certificate_for_its_purpose_alone(tmp_path: Path, kind: KeyKind) -> None:
    lab = tmp_path / "lab"
    make_authorities(lab, "lab", key_kind=kind)
    for role in ROLES.values():
        path = issue(lab, role.name, f"name-{role.name}", kind)
        for purpose, usage in (("sslserver", "server"), ("sslclient", "client")):
            command = ["openssl", "verify", "-x509_strict", "-crl_check", "-purpose", purpose]
            command += ["-CAfile", str(lab / f"{role.authority}-ca.pem")]
            command += ["-CRLfile", str(lab / f"{role.authority}-ca.crl"), str(path)]
            ended = subprocess.run(command, capture_output=True, check=False)
            assert (ended.returncode == 0) == (f"{usage}" in describe_certificate_of(path)), ended.stderr


def describe_certificate_of(path: Path) -> str:
    text = describe_certificate(x509.load_pem_x509_certificate(path.read_bytes()))
    return text.split("(")[1].split(",")[0]


def test_each_fault_is_said_in_one_line(lab: Path) -> None:
    path = issue(lab, "sae", "encryptor", days=10)
    chain = x509.load_pem_x509_certificates(path.read_bytes())
    trusted = x509.load_pem_x509_certificates((lab / "sae-ca.pem").read_bytes())
    right = Expected(ROLES["sae"], "encryptor", trusted, key=public_bytes(chain[0].public_key()))
    assert certificate_faults(chain, right, NOW) == []

    def fault(expected: Expected, at: datetime = NOW) -> str:
        (found,) = certificate_faults(chain, expected, at)
        return found

    assert fault(right, NOW + timedelta(days=11)).startswith("expired on ")
    assert fault(Expected(), NOW - timedelta(days=1)).startswith("not yet valid before ")
    assert fault(Expected(role=ROLES["node"])).startswith("wrong role: ")
    assert fault(Expected(key=public_bytes(make_key("ec")))).startswith("key does not belong")
    assert fault(Expected(name="other")) == "name missing: expected other, it names encryptor"
    other = x509.load_pem_x509_certificates((lab / "link-ca.pem").read_bytes())
    assert fault(Expected(anchors=other)).startswith(
        "chain broken: the certificate of its issuer, CN=lab sae CA"
    )


def test_keys_that_others_read_or_that_are_weak_or_encrypted_are_named(tmp_path: Path) -> None:
    path = tmp_path / "key"
    write_files([NewFile(path, key_pem(make_key("ec")), 0o640)])
    assert f"run chmod 600 {path}" in inspect_file(path, Expected()).faults[0]
    short = rsa.generate_private_key(public_exponent=65537, key_size=1024)
    write_files([NewFile(path, key_pem(short))], replace=True)
    assert inspect_file(path, Expected()).faults == ["weak: an RSA key of 1024 bits; at least 2048"]
    write_files([NewFile(path, key_pem(make_key("ec"), b"secret"))], replace=True)
    assert "is encrypted" in inspect_file(path, Expected()).faults[0]
    path.write_bytes(b"\x00nothing")
    assert "expected certificates in PEM" in inspect_file(path, Expected()).faults[0]


def authority_with_intermediate() -> tuple[list[x509.Certificate], ec.EllipticCurvePrivateKey]:
    """Return an operator's chain, intermediate and root, and the intermediate's key."""
    keys = [ec.generate_private_key(ec.SECP256R1()) for _ in range(2)]
    names = [x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]) for name in ("root", "intermediate")]
    made = []
    for own, issuer in ((0, 0), (1, 0)):
        made.append(
            x509.CertificateBuilder(names[issuer], names[own], keys[own].public_key(), 7 + own)
            .not_valid_before(NOW - timedelta(days=1))
            .not_valid_after(NOW + timedelta(days=100))
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .sign(keys[issuer], hashes.SHA256())
        )
    return [made[1], made[0]], keys[1]


def test_a_certificate_of_an_operators_own_authority_is_installed_with_its_chain(tmp_path: Path) -> None:
    (intermediate, root), key = authority_with_intermediate()
    run("request", "node", "kme-alice", "--key", "ed25519", "--out", tmp_path / "node")
    request = x509.load_pem_x509_csr((tmp_path / "node.csr").read_bytes())
    builder = x509.CertificateBuilder(intermediate.subject, request.subject, request.public_key(), 99)
    builder = builder.not_valid_before(NOW - timedelta(days=1)).not_valid_after(NOW + timedelta(days=90))
    for extension in request.extensions:
        builder = builder.add_extension(extension.value, extension.critical)
    own = builder.sign(key, hashes.SHA256())
    (tmp_path / "ca.pem").write_bytes(certificate_pem(root))
    (tmp_path / "answer.pem").write_bytes(certificate_pem(own))
    arguments: tuple[str | Path, ...] = (
        "install",
        "node",
        "kme-alice",
        tmp_path / "answer.pem",
        "--key-file",
        tmp_path / "node.key",
    )
    arguments = (*arguments, "--ca", tmp_path / "ca.pem", "--to", tmp_path / "node.pem")
    assert "chain broken: the certificate of its issuer, CN=intermediate" in refusal(*arguments)
    assert not (tmp_path / "node.pem").exists()
    (tmp_path / "answer.pem").write_bytes(certificate_pem(own, intermediate))
    run(*arguments)
    files = TlsFiles(
        ca=tmp_path / "ca.pem", certificate=tmp_path / "node.pem", key=tmp_path / "node.key", crl=None
    )
    contexts = link_contexts(files)
    assert certificate_names(shake_hands(contexts.server, contexts.client)) == ("kme-alice",)


def test_a_request_is_signed_for_the_names_that_the_signer_has_said_only(lab: Path) -> None:
    path = lab.parent / "greedy.csr"
    path.write_bytes(make_request(make_key("ec"), ROLES["kme"], "kme-alice", ["encryptor-bob"]))
    assert "also asks for encryptor-bob" in refusal("sign", "kme", "kme-alice", path, "--lab", lab)
    run("sign", "kme", "kme-alice", path, "--host", "encryptor-bob", "--lab", lab)
    damaged = path.read_bytes().replace(b"M", b"N", 3)
    path.write_bytes(damaged)
    assert "greedy.csr" in refusal("sign", "kme", "kme-alice", path, "--lab", lab)


def test_a_renewed_certificate_has_the_key_the_names_and_the_role_of_the_old_one(lab: Path) -> None:
    old = issue(lab, "kme", "urn:kme:1", "rsa", "192.0.2.1", "alice.example", days=1)
    before = x509.load_pem_x509_certificate(old.read_bytes())
    run("renew", old, "--lab", lab)
    after = x509.load_pem_x509_certificate(old.read_bytes())
    assert after.not_valid_after_utc > before.not_valid_after_utc
    assert after.public_key() == before.public_key()
    for kind in (x509.SubjectAlternativeName, x509.ExtendedKeyUsage):
        assert after.extensions.get_extension_for_class(kind) == before.extensions.get_extension_for_class(
            kind
        )


def test_private_keys_are_for_their_owner_and_never_overwritten_unasked(tmp_path: Path) -> None:
    lab, out = tmp_path / "lab", tmp_path / "node"
    run("init", "lab", "--lab", lab)
    run("issue", "node", "kme-alice", "--lab", lab, "--out", out)
    for key in (lab / "link-ca.key", tmp_path / "node.key"):
        assert stat.S_IMODE(key.stat().st_mode) == 0o600
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert "never overwritten without --force" in refusal("issue", "node", "a", "--lab", lab, "--out", out)
    # The other commands have no --force.
    assert "never overwritten; move it away first" in refusal("init", "lab", "--lab", lab)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    run("issue", "node", "kme-alice", "--lab", lab, "--out", out, "--force")
    assert (tmp_path / "node.key").read_bytes() != before[tmp_path / "node.key"]


def test_a_folder_that_is_not_there_is_told_of_by_the_name_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "missing" / "link.pem"
    with pytest.raises(ConfigError) as raised:
        write_files([NewFile(path, b"")])
    assert str(raised.value) == f"{path}: No such file or directory"


def test_an_interrupt_leaves_all_files_as_they_were(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_files([NewFile(tmp_path / "old", b"old")])
    files = [NewFile(tmp_path / name, b"new") for name in ("old", "new", "more")]

    def interrupted(folder: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(secret_files, "sync_folder", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_files(files, replace=True)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"old": b"old"}
    monkeypatch.undo()
    with pytest.raises(ConfigError, match="missing"):
        write_files([*files, NewFile(tmp_path / "missing" / "x", b"")], replace=True)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"old": b"old"}


def test_the_authorities_key_can_have_a_passphrase_that_is_asked_for(tmp_path: Path) -> None:
    lab = tmp_path / "lab"
    run("init", "lab", "--lab", lab, "--passphrase", given="long one\nlong one\n")
    arguments = ("issue", "node", "kme-alice", "--lab", lab, "--out", tmp_path / "node")
    assert "cannot be decrypted" in refusal(*arguments, given="another\n")
    assert "long one" not in run(*arguments, given="long one\n").output


def test_hostile_names_are_shown_as_text(tmp_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "\x1b[2Jgood\nok: certificate of kme-alice")])
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), 5)
        .not_valid_before(NOW - timedelta(days=1))
        .not_valid_after(NOW + timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    path = tmp_path / "hostile.pem"
    path.write_bytes(certificate_pem(certificate))
    for shown in (run("show", path).output, run("check", path, "--name", "kme-alice", code=1).output):
        assert "\x1b" not in shown
        assert len(shown.splitlines()) == 1


@given(st.text(max_size=80))
@settings(max_examples=200, deadline=None)
def test_every_name_is_carried_as_it_is_or_refused(name: str) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    try:
        alternatives = alternative_names(name)
    except ConfigError:
        return
    subject = x509.Name([])
    certificate = (
        x509.CertificateBuilder(subject, subject, key.public_key(), 5, NOW, NOW + timedelta(days=1))
        .add_extension(alternatives, critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = certificate_pem(certificate)
    assert certificate_names(ssl.PEM_cert_to_DER_cert(pem.decode())) == (name,)


@given(
    st.binary(max_size=400),
    st.sampled_from(["CERTIFICATE", "X509 CRL", "PRIVATE KEY", "CERTIFICATE REQUEST"]),
)
@settings(max_examples=200, deadline=None)
def test_no_content_of_a_file_ends_in_anything_but_a_fault(content: bytes, kind: str) -> None:
    import base64
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file"
        text = base64.b64encode(content).decode()
        path.write_bytes(f"-----BEGIN {kind}-----\n{text}\n-----END {kind}-----\n".encode() + content)
        path.chmod(0o600)
        assert inspect_file(path, Expected()).faults


def test_a_crl_whose_issuer_is_damaged_is_told(tmp_path: Path) -> None:
    """Found by `python tests/fuzz.py certificates`: the rest of it can be read."""
    file = tmp_path / "crl.pem"
    file.write_text(
        "-----BEGIN X509 CRL-----\n"
        "MIGGMDoCAQEwBQYDK2VwMBAxDjAMBgNVBAMMBWtthS1ZFw0yNTAxMDEwMDAwMDBa\n"
        "Fw00NTAxMDEwMDAwMDBaMAUGAytlcANBAOe5Iyn6CvzUQLykl1zBp6sMmSBjNUyR\n"
        "d1j3FZvv6/LD+MitLo4i4LLIIvsiTPCm5Dg9YdlARg8dTF1fsWWb7Q0=\n"
        "-----END X509 CRL-----\n"
    )
    (fault,) = inspect_file(file, Expected()).faults
    assert "cannot be read" in fault
