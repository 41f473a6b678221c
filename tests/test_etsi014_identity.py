"""From certificate to SAE: names, roles, maps, and who is turned away."""

import datetime
from pathlib import Path

import pytest
import structlog
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from etsi014_support import ENTRIES, A, B, D, world
from http_support import HOST, Pki

from qnode.delivery import Refusal, SaeDirectory, SaeEntry
from qnode.errors import ConfigError
from qnode.tls import certificate_names

LATER = datetime.datetime(2099, 1, 1, tzinfo=datetime.UTC)


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return Pki(Path(tmp_path_factory.mktemp("pki")))


def certificate(*names: x509.GeneralName, common_name: str | None = None) -> bytes:
    """Return a self-signed certificate (DER) with these names."""
    key = ec.generate_private_key(ec.SECP256R1())
    attributes = [x509.NameAttribute(NameOID.COMMON_NAME, common_name)] if common_name else []
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name(attributes))
        .issuer_name(x509.Name([]))
        .public_key(key.public_key())
        .serial_number(7)
        .not_valid_before(LATER.replace(year=2020))
        .not_valid_after(LATER)
    )
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)


def dns(name: str) -> x509.DNSName:
    return x509.DNSName(name)


def uri(name: str) -> x509.UniformResourceIdentifier:
    return x509.UniformResourceIdentifier(name)


@pytest.mark.parametrize(
    ("der", "names"),
    [
        (certificate(dns("sae-a")), ("sae-a",)),
        (certificate(uri("urn:sae:a"), common_name="sae-b"), ("urn:sae:a",)),
        (certificate(dns("x"), uri("urn:y"), common_name="z"), ("urn:y", "x")),
        (certificate(common_name="sae-a"), ("sae-a",)),
        (certificate(x509.RFC822Name("a@b.example"), common_name="sae-a"), ("sae-a",)),
        (certificate(), ()),
    ],
    ids=["DNS", "URI before CN", "URI and DNS", "CN alone", "CN beside a mail name", "nameless"],
)
def test_alternative_names_come_first_and_the_common_name_only_without_them(
    der: bytes, names: tuple[str, ...]
) -> None:
    assert certificate_names(der) == names


def directory(kme: str = "alice") -> SaeDirectory:
    return SaeDirectory(kme, ENTRIES, node_names=("node.bob",))


@pytest.mark.parametrize(
    ("der", "sae_id"),
    [
        (certificate(dns(A)), A),
        (certificate(common_name=A), A),
        (certificate(dns(A), dns("laptop.example"), common_name=B), A),
        (certificate(dns("encryptor-d.example"), common_name="whatever"), D),
    ],
    ids=["by sae_id", "by common name", "one of several names", "by the configured map"],
)
def test_a_certificate_finds_its_sae(der: bytes, sae_id: str) -> None:
    assert directory().caller(der).sae_id == sae_id


@pytest.mark.parametrize(
    ("der", "reason"),
    [
        (None, "no certificate"),
        (b"\x30\x00", "unreadable certificate"),
        (certificate(), "certificate of nobody registered"),
        (certificate(common_name="nobody"), "certificate of nobody registered"),
        (certificate(dns("mallory.example"), common_name=A), "certificate of nobody registered"),
        (certificate(dns(D)), "certificate of nobody registered"),
        (certificate(dns(A), dns("encryptor-d.example")), "certificate of several SAEs"),
        (certificate(dns(B)), "SAE of another site"),
        (certificate(dns("alice")), "certificate of a node"),
        (certificate(dns("bob"), dns(A)), "certificate of a node"),
        (certificate(dns("node.bob"), dns(A)), "certificate of a node"),
    ],
    ids=[
        "none",
        "not a certificate",
        "nameless",
        "unregistered",
        "common name of another behind an alternative name",
        "sae_id where the map says otherwise",
        "of two",
        "of the other site",
        "own node",
        "peer node that is also named as an SAE",
        "node by its configured name",
    ],
)
def test_other_certificates_are_unauthorised(der: bytes | None, reason: str) -> None:
    with pytest.raises(Refusal) as caught:
        directory().caller(der)
    assert (caught.value.status, caught.value.message, caught.value.reason) == (401, "not authorised", reason)


@pytest.mark.parametrize(
    ("entries", "match"),
    [
        ([SaeEntry(sae_id="x", kme_id="alice", peers=())] * 2, "x: registered twice"),
        ([SaeEntry(sae_id="x", kme_id="alice", peers=("y",))], "x: peers: .* 'y'"),
        ([SaeEntry(sae_id="x", kme_id="alice", peers=("x",))], "x: peers: .* 'x'"),
        ([SaeEntry(sae_id="alice", kme_id="alice", peers=())], "names a node"),
        (
            [
                SaeEntry(sae_id="x", kme_id="alice", peers=()),
                SaeEntry(sae_id="y", kme_id="alice", peers=(), identities=("x",)),
            ],
            "'x' belongs to x already",
        ),
    ],
    ids=["twice", "unknown peer", "own peer", "node's name", "shared identity"],
)
def test_a_contradictory_registration_is_refused(entries: list[SaeEntry], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        SaeDirectory("alice", entries)


async def test_over_tls_an_unregistered_certificate_is_401_and_takes_nothing(pki: Pki) -> None:
    with structlog.testing.capture_logs() as logs:
        async with world(pki) as place:
            leaves: dict[str, trustme.LeafCert] = {
                "certificate of nobody registered": pki.ca.issue_cert("sae-x"),
                "certificate of a node": pki.ca.issue_cert("node.bob", common_name=A),
                "SAE of another site": pki.ca.issue_cert("sae-b"),
            }
            for leaf in leaves.values():
                client = await place.client(leaf, "alice")
                for path in ("status", "enc_keys", "dec_keys"):
                    answer = await client.get(f"/api/v1/keys/{B}/{path}")
                    assert (answer.status_code, answer.json()) == (401, {"message": "not authorised"})
            assert place.supply.chunks == 1000
    refusals = [entry for entry in logs if entry["event"] == "request.refused"]
    assert {entry["reason"] for entry in refusals} <= {*leaves}
    assert sum(entry.get("not_logged", 0) for entry in refusals) + len(refusals) <= 9
    assert [(entry["client"], entry["names"]) for entry in refusals[::3]] == [
        (HOST, ["sae-x"]),
        (HOST, ["node.bob"]),
    ]


async def test_refusals_of_strangers_are_counted_and_their_lines_are_few(pki: Pki) -> None:
    with structlog.testing.capture_logs() as logs:
        async with world(pki) as place:
            client = await place.client(pki.ca.issue_cert("sae-x"), "alice")
            for _ in range(50):
                await client.get(f"/api/v1/keys/{B}/status")
            assert place.deliveries["alice"].requests_unauthorised["etsi014"] == 50
    assert len([entry for entry in logs if entry["event"] == "request.refused"]) <= 10


async def test_over_tls_alternative_and_common_names_both_work(pki: Pki) -> None:
    with structlog.testing.capture_logs():
        async with world(pki) as place:
            for leaf in (pki.ca.issue_cert("sae-a"), pki.ca.issue_cert(common_name="sae-a")):
                client = await place.client(leaf, "alice")
                assert (await client.get(f"/api/v1/keys/{B}/status")).json()["master_SAE_ID"] == A
