"""Certificates, authorities and CRLs: who is trusted by which files, what is refused, what expires."""

import datetime
import re
import ssl
from datetime import UTC
from pathlib import Path
from typing import Any

import pytest
import structlog
import trio
import trustme
from http_support import HOST, Pki, read_all, respond, running
from link_room import tls_files
from msgspec.structs import replace

from qnode.config import SiteConfig, load
from qnode.errors import ConfigError
from qnode.http import TlsSettings, server_context
from qnode.link.tls import link_contexts
from qnode.node.status.link_figures import LinkFigures
from qnode.node.status.site_figures import SiteFigures
from qnode.operate.status.model import Validity
from qnode.operate.status.screen import status_lines
from qnode.tls_files import validities, weakness
from qnode.tls_validity import DAY_S

P_256 = bytes.fromhex("06082a8648ce3d030107")  # its object identifier in DER
CONFIG = Path(__file__).parent.parent / "config"


async def app(_scope: Any, _receive: Any, send: Any) -> None:
    await respond(send, 200, b"let in")


async def asks(pki: Pki, settings: TlsSettings, leaf: trustme.LeafCert, *, with_chain: bool) -> str:
    """Return what a client that presents ``leaf`` gets: "let in", or why not."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    pki.ca.configure_trust(context)
    chain = leaf.cert_chain_pems if with_chain else leaf.cert_chain_pems[:1]
    presented = pki.folder / "presented.pem"
    presented.write_bytes(b"".join(pem.bytes() for pem in [leaf.private_key_pem, *chain]))
    context.load_cert_chain(presented)
    with structlog.testing.capture_logs() as logs:
        async with running(app, settings) as server:
            tcp = await trio.open_tcp_stream(HOST, server.port)
            stream = trio.SSLStream(tcp, context, server_hostname=HOST, https_compatible=True)
            try:
                await stream.send_all(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
                if (await read_all(stream)).endswith(b"let in"):
                    return "let in"
            except trio.BrokenResourceError:
                pass
            finally:
                await trio.aclose_forcefully(stream)
    return str(next(log["reason"] for log in logs if log["event"] == "http.handshake_failed"))


@pytest.mark.parametrize("with_chain", [False, True])
async def test_an_issuing_authority_alone_lets_its_clients_in_and_no_others(
    tmp_path: Path, with_chain: bool
) -> None:
    pki = Pki(tmp_path)
    issuing, sibling = pki.ca.create_child_ca(), pki.ca.create_child_ca()
    ca = tmp_path / "issuing.pem"
    issuing.cert_pem.write_to_path(str(ca))
    settings = replace(pki.settings(), client_ca=ca)
    assert await asks(pki, settings, issuing.issue_cert("sae"), with_chain=with_chain) == "let in"
    for stranger in (sibling.issue_cert("sae"), pki.ca.issue_cert("sae"), trustme.CA().issue_cert("sae")):
        refused = await asks(pki, settings, stranger, with_chain=with_chain)
        assert refused in (
            "unable to get local issuer certificate",
            "self-signed certificate in certificate chain",
        )


def test_a_private_key_that_the_service_was_not_given_is_named_as_missing(tmp_path: Path) -> None:
    unit = (CONFIG.parent / "systemd" / "qnode@.service").read_text()
    (default,) = re.findall(r"^SetCredential=page-tls-key:(.*)$", unit, re.MULTILINE)
    key = tmp_path / "page-tls-key"
    key.write_text(default)
    with pytest.raises(ConfigError, match="page-tls-key: the service has no such file: put the private key"):
        server_context(replace(Pki(tmp_path).settings(), key=key))


async def test_an_issuing_authority_alone_is_held_against_its_crl(tmp_path: Path) -> None:
    pki = Pki(tmp_path)
    issuing = pki.ca.create_child_ca()
    (tmp_path / "issuing").mkdir()
    of_issuing = Pki(tmp_path / "issuing")
    of_issuing.ca = issuing
    ca = tmp_path / "issuing.pem"
    issuing.cert_pem.write_to_path(str(ca))
    good, revoked = issuing.issue_cert("good"), issuing.issue_cert("bad")
    of_issuing.revoke(revoked)
    settings = replace(pki.settings(), client_ca=ca, crl=of_issuing.folder / "crl.pem")
    assert await asks(pki, settings, good, with_chain=False) == "let in"
    assert await asks(pki, settings, revoked, with_chain=False) == "certificate revoked"


def test_the_link_accepts_an_issuing_authority_alone(tmp_path: Path) -> None:
    root = trustme.CA()
    issuing = root.create_child_ca()
    ours = link_contexts(tls_files(tmp_path, issuing, "kme-alice"))
    theirs = link_contexts(tls_files(tmp_path, issuing, "kme-bob"))
    (tmp_path / "other").mkdir()
    strange = link_contexts(tls_files(tmp_path / "other", root.create_child_ca(), "kme-bob"))
    shake(ours.server, theirs.client)
    with pytest.raises(ssl.SSLCertVerificationError):
        shake(ours.server, strange.client)


def shake(server: ssl.SSLContext, client: ssl.SSLContext) -> None:
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [client.wrap_bio(down, up), server.wrap_bio(up, down, server_side=True)]
    for _ in range(3):
        for end in ends:
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue


def read(settings: TlsSettings) -> None:
    """Read all files of a role, as a start and a reload do."""
    server_context(settings)
    validities("etsi014.tls", ca=settings.client_ca, certificate=settings.certificate, crl=settings.crl)


def test_damage_that_shows_late_is_refused_by_file_as_well(tmp_path: Path) -> None:
    pki = Pki(tmp_path)
    pki.revoke()
    settings = pki.settings(crl=True)
    assert settings.client_ca is not None
    assert settings.crl is not None
    spoiled = [
        (
            "ca.pem",
            settings.client_ca,
            "CERTIFICATE",
            b"\xa0\x03\x02\x01\x02",
            b"\xa0\x03\x02\x01\x06",
        ),  # the version
        (
            "crl.pem",
            settings.client_ca,
            "CERTIFICATE",
            P_256,
            P_256[:-1] + b"\x7f",
        ),  # a curve that nobody knows
        ("crl.pem", settings.crl, "X509 CRL", b"\x02\x01\x01\x30", b"\x02\x01\x05\x30"),  # the version
        ("server.pem", settings.certificate, "CERTIFICATE", b"\x17\x0d", b"\x16\x0d"),  # a time that is none
    ]
    for named, path, kind, good, bad in spoiled:
        whole = path.read_bytes()
        der = ssl.PEM_cert_to_DER_cert(whole.decode().replace("X509 CRL", "CERTIFICATE"))
        assert good in der
        pem = ssl.DER_cert_to_PEM_cert(der.replace(good, bad, 1)).replace("CERTIFICATE", kind)
        path.write_text(pem)
        with pytest.raises(ConfigError, match=re.escape(named)):
            read(settings)
        path.write_bytes(whole)


def held(**changes: Any) -> Validity:
    values: dict[str, Any] = {
        "kind": "crl",
        "file": "peer.tls.crl",
        "subject": "CN=a",
        "begins_at": 0.0,
        "expires_at": 10 * DAY_S,
    }
    return Validity(**(values | changes))


def test_what_holds_is_not_replaced_by_what_does_not() -> None:
    now = DAY_S
    expired, early = held(expires_at=now), held(begins_at=now + 1)
    assert "has expired" in (weakness([held()], [expired], now) or "")
    assert "not valid yet" in (weakness([held()], [early], now) or "")
    assert weakness([expired], [expired], now) is None  # it is no worse than before
    assert weakness([expired], [early], now) is None
    assert weakness([], [expired], now) is None


def test_the_crl_of_an_authority_that_is_still_trusted_must_not_go_missing() -> None:
    authorities = [held(kind="certificate", file="peer.tls.ca", subject=name) for name in ("CN=a", "CN=b")]
    crls = [held(), held(subject="CN=b")]
    old = authorities + crls
    assert "peer.tls.crl: CRL of CN=b is missing" in (weakness(old, authorities + crls[:1], 0.0) or "")
    assert weakness(old, authorities[:1] + crls[:1], 0.0) is None  # the authority went as well
    assert weakness(old, authorities, 0.0) is None  # CRLs are no longer used at all


def test_each_file_says_how_long_it_holds(tmp_path: Path) -> None:
    pki = Pki(tmp_path)
    ends = datetime.datetime(2031, 5, 6, tzinfo=UTC)
    pki.write("server", pki.ca.issue_cert(HOST, common_name="kme", not_after=ends))
    pki.revoke()
    settings = pki.settings(crl=True)
    found = validities(
        "etsi014.tls", ca=settings.client_ca, certificate=settings.certificate, crl=settings.crl
    )
    by_file = {one.file: one for one in found}
    assert set(by_file) == {"etsi014.tls.certificate", "etsi014.tls.ca", "etsi014.tls.crl"}
    assert by_file["etsi014.tls.certificate"].expires_at == ends.timestamp()
    assert "CN=kme" in by_file["etsi014.tls.certificate"].subject
    assert by_file["etsi014.tls.crl"].expires_at == datetime.datetime(2099, 1, 1, tzinfo=UTC).timestamp()


def site_figures() -> SiteFigures:
    config = load(CONFIG / "alice.toml", SiteConfig)
    return SiteFigures(config.node, [LinkFigures(config)])


def test_what_expires_is_an_alarm_a_week_before_and_stands_in_the_status() -> None:
    figures = site_figures()
    ends_s = 2_000_000_000.0
    year = held(
        kind="certificate", file="peer.tls.certificate", begins_at=ends_s - 365 * DAY_S, expires_at=ends_s
    )
    daily = held(begins_at=ends_s - 20 * DAY_S, expires_at=ends_s - 19 * DAY_S)
    figures.certificates = [year, daily]

    def alarms(at: float) -> dict[str, str]:
        figures.look_at_certificates(at)
        return {alarm.name: alarm.text for alarm in figures.status().alarms}

    assert alarms(daily.begins_at + DAY_S / 3) == {}  # a CRL that is made anew each day is no news by day
    assert set(alarms(daily.begins_at + DAY_S * 2 / 3)) == {"certificate.expiring"}
    told = alarms(ends_s - 6 * DAY_S)
    assert told["certificate.expiring"] == (
        "peer.tls.certificate: certificate of CN=a, expires 2033-05-18 03:33 UTC"
    )
    assert told["certificate.expired"].startswith("peer.tls.crl: CRL of CN=a, expired 2033-04-29")
    assert set(alarms(ends_s)) == {"certificate.expired"}
    status = replace(figures.status(), at=ends_s - 60 * DAY_S, certificates=[year])
    (line,) = [line for line in status_lines(status) if line.startswith("  tls")]
    assert line.split() == ["tls", "ok", "peer.tls.certificate", "expires", "in", "60", "d", "0", "h"]


def test_a_fresh_daily_crl_does_not_hide_a_certificate_that_expires_soon() -> None:
    figures = site_figures()
    now_s = 2_000_000_000.0
    expiring = held(kind="certificate", file="peer.tls.certificate", expires_at=now_s + 3 * DAY_S)
    daily = held(begins_at=now_s, expires_at=now_s + DAY_S)
    status = replace(figures.status(), at=now_s, certificates=[daily, expiring])
    (line,) = [line for line in status_lines(status) if line.startswith("  tls")]
    assert line.split() == ["tls", "WARN", "peer.tls.certificate", "expires", "in", "3", "d", "0", "h"]
