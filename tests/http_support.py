"""Certificates and clients for tests of the HTTP server: real TLS over real loopback TCP."""

import datetime
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import trio
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization

from qnode.http import Application, Limits, Server, TlsSettings, serve

HOST = "127.0.0.1"
LIMIT_S = 100.0  # of a server; a trial takes longer


class Pki:
    """An authority with a server's certificate, clients' certificates and a revocation list on disk."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ca = trustme.CA()
        self.ca_file = folder / "ca.pem"
        self.ca.cert_pem.write_to_path(str(self.ca_file))
        self.write("server", self.ca.issue_cert(HOST))

    def write(self, name: str, leaf: trustme.LeafCert) -> trustme.LeafCert:
        leaf.private_key_pem.write_to_path(str(self.folder / f"{name}.key"))
        (self.folder / f"{name}.pem").write_bytes(b"".join(blob.bytes() for blob in leaf.cert_chain_pems))
        return leaf

    def settings(self, *, mutual: bool = True, crl: bool = False) -> TlsSettings:
        return TlsSettings(
            certificate=self.folder / "server.pem",
            key=self.folder / "server.key",
            client_ca=self.ca_file if mutual else None,
            crl=self.folder / "crl.pem" if crl else None,
        )

    def revoke(self, *leaves: trustme.LeafCert) -> None:
        """Write the CRL with ``leaves`` on it, always with the same date, as a hasty operator would."""
        key = serialization.load_pem_private_key(self.ca.private_key_pem.bytes(), None)
        issuer = x509.load_pem_x509_certificate(self.ca.cert_pem.bytes())
        then = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
        builder = x509.CertificateRevocationListBuilder(issuer.subject, then, then.replace(year=2099))
        for leaf in leaves:
            serial = x509.load_pem_x509_certificate(leaf.cert_chain_pems[0].bytes()).serial_number
            revoked = x509.RevokedCertificateBuilder(serial, then).build()
            builder = builder.add_revoked_certificate(revoked)
        crl = builder.sign(key, hashes.SHA256())  # type: ignore[arg-type]
        (self.folder / "crl.pem").write_bytes(crl.public_bytes(serialization.Encoding.PEM))

    def client_context(self, leaf: trustme.LeafCert | None) -> ssl.SSLContext:
        # Without the system's authorities, which take long to load.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self.ca.configure_trust(context)
        if leaf is not None:
            leaf.configure_cert(context)
        return context

    def http_client(self, leaf: trustme.LeafCert | None, port: int) -> httpx.AsyncClient:
        return httpx.AsyncClient(
            verify=self.client_context(leaf), base_url=f"https://{HOST}:{port}", trust_env=False
        )


@asynccontextmanager
async def running(
    app: Application, tls: TlsSettings | None = None, limits: Limits | None = None
) -> AsyncIterator[Server]:
    """Serve ``app`` on a free loopback port for the time of the block."""
    with trio.fail_after(LIMIT_S):
        async with trio.open_nursery() as nursery:

            async def start(task_status: trio.TaskStatus[Server] = trio.TASK_STATUS_IGNORED) -> None:
                await serve(
                    app, host=HOST, port=0, tls=tls, limits=limits or Limits(), task_status=task_status
                )

            server = await nursery.start(start)
            yield server
            nursery.cancel_scope.cancel()


async def read_all(stream: trio.abc.ReceiveStream) -> bytes:
    """Read until the other end closes, however it does."""
    data = b""
    try:
        async for chunk in stream:
            data += chunk
    except trio.BrokenResourceError:
        pass
    return data


async def speak(port: int, text: bytes) -> bytes:
    """Send ``text`` in plain TCP and return all that comes back until the server closes."""
    async with await trio.open_tcp_stream(HOST, port) as stream:
        await stream.send_all(text)
        return await read_all(stream)


async def respond(
    send: Any, status: int, body: bytes, headers: list[tuple[bytes, bytes]] | None = None
) -> None:
    """Send a small answer from a bare ASGI application."""
    length = [(b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": [*length, *(headers or [])]})
    await send({"type": "http.response.body", "body": body})
