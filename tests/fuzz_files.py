"""Targets: files that an operator hands over."""

import io
import struct
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from fuzz_target import Target, in_file
from keys_support import Site, preshared

from qnode.audit.export import Wanted, json_lines, selected
from qnode.audit.export_file import ExportSource, is_export
from qnode.audit.file import FileSource, anchored_head
from qnode.audit.verify import AuditUnreadable, verify
from qnode.config import load, load_site
from qnode.config.saes import read_saes
from qnode.errors import ConfigError, StoreError
from qnode.keys import read_backup
from qnode.loopback.prepare import LoopbackConfig
from qnode.pki.inspection import Expected, inspect_file
from qnode.tags.formats import FORMATS, open_tag_file

TOP = Path(__file__).parent.parent
KEY = bytes(32)


# Files


def _configuration(data: bytes) -> None:
    load_site(in_file(data, "site.toml"))


def _seeds_of_configuration() -> Iterable[bytes]:
    for name in ("alice", "bob"):
        yield _plain_configuration(name)


def _loopback(data: bytes) -> None:
    load(in_file(data, "loopback.toml"), LoopbackConfig)


def _seeds_of_loopback() -> Iterable[bytes]:
    for name in ("emulated", "turin"):
        yield _plain_configuration(name)


def _plain_configuration(name: str) -> bytes:
    lines = (TOP / "config" / f"{name}.toml").read_text().splitlines()
    plain = (line.partition(" #")[0] for line in lines if not line.startswith("#"))
    return "\n".join(plain).encode()


def _saes(data: bytes) -> None:
    read_saes(in_file(data, "saes.toml"))


def _tag_file(data: bytes) -> None:
    """Read a file, whose format the first byte names, or the file itself."""
    if not data:
        return
    names = (None, *FORMATS)
    name = names[data[0] % len(names)]
    n_bytes = 0
    for block in open_tag_file(in_file(data[1:], f"tags.{name or 'dat'}"), name).blocks(1 << 10):
        n_bytes += block.times_ps.nbytes + block.marker_times_ps.nbytes
        assert block.times_ps.shape == block.channels.shape
        assert n_bytes < 100_000 + 2000 * len(data)


_KNOWN_BY_CONTENT = ("a0", "a2", "csv", "npy", "ptu")


def _seeds_of_tag_files() -> Iterable[bytes]:
    times = np.array([5, 1000, 2500, 70_000, 10**7, 10**9], np.int64)
    qutag = bytes(40) + b"".join(struct.pack("<qh", int(t), 1 + i % 4) for i, t in enumerate(times))
    words = [int(t) << 5 | 1 << i % 4 for i, t in enumerate(times)]
    contents = {
        "qutag": qutag,
        "tdc1": b"".join(struct.pack("<I", word & 0xFFFFFFFF) for word in words),
        "a1": b"".join(struct.pack("<Q", word << 5) for word in words),
        "a1-swapped": b"".join(
            struct.pack("<II", (word << 5) >> 32, word << 5 & 0xFFFFFFFF) for word in words
        ),
        "a0": b"".join(b"%08x\n%08x\n" % (word << 5 & 0xFFFFFFFF, (word << 5) >> 32) for word in words),
        "a2": b"".join(b"%016x\n" % (word << 5) for word in words),
        "csv": b"time_ps,channel\n" + b"".join(b"%d,%d\n" % (t, 1 + i % 4) for i, t in enumerate(times)),
        "npy": _npy(times),
        "ptu": _ptu(),
    }
    for name, content in contents.items():
        yield bytes([1 + FORMATS.index(name)]) + content
        if name in _KNOWN_BY_CONTENT:
            yield bytes([0]) + content
    packed = io.BytesIO()
    np.savez_compressed(packed, times_ps=times, channels=np.ones(6, np.int16))
    yield bytes([1 + FORMATS.index("npy")]) + packed.getvalue()


def _npy(times: Any) -> bytes:
    rows = np.zeros(len(times), [("time", "<i8"), ("channel", "<i2")])
    rows["time"], rows["channel"] = times, 1
    content = io.BytesIO()
    np.save(content, rows)
    return content.getvalue()


def _ptu() -> bytes:
    """Return a HydraHarp T2 file of four tags."""
    values: dict[str, tuple[int, bytes]] = {
        "TTResultFormat_TTTRRecType": (0x10000008, struct.pack("<q", 0x01010204)),
        "MeasDesc_GlobalResolution": (0x20000008, struct.pack("<d", 1e-12)),
        "MeasDesc_Resolution": (0x20000008, struct.pack("<d", 1e-12)),
        "TTResult_NumberOfRecords": (0x10000008, struct.pack("<q", 5)),
        "TTResultFormat_BitsPerRecord": (0x10000008, struct.pack("<q", 32)),
    }
    content = b"PQTTTR\0\0" + b"1.0.00\0\0"
    for name, (kind, value) in values.items():
        content += name.encode().ljust(32, b"\0") + struct.pack("<iI", -1, kind) + value
    content += b"Header_End".ljust(32, b"\0") + struct.pack("<iIq", -1, 0xFFFF0008, 0)
    return content + struct.pack("<5I", 100, 1 << 25 | 200, 1 << 31 | 63 << 25 | 1, 2 << 25 | 7, 9)


def _audit_export(data: bytes) -> None:
    path = in_file(data, "audit.jsonl")
    is_export(path)
    verify(ExportSource(path, None))


def _seeds_of_audit_export() -> Iterable[bytes]:
    with tempfile.TemporaryDirectory() as folder:
        site = Site(Path(folder), "alice")
        with site.open() as store:
            store.load_preshared(preshared(20))
        with FileSource(site.path, None) as audit:
            yield "".join(json_lines(selected(audit, Wanted()))).encode()


def _seeds_of_anchor() -> Iterable[bytes]:
    with tempfile.TemporaryDirectory() as folder:
        site = Site(Path(folder), "alice")
        with site.open() as store:
            store.load_preshared(preshared(20))
        yield site.anchor.read_bytes()


def _anchor(data: bytes) -> None:
    anchored_head(in_file(data, "anchor"))


def _backup(data: bytes) -> None:
    with in_file(data, "backup").open("rb") as file:
        read_backup(file)


def _seeds_of_backup() -> Iterable[bytes]:
    with tempfile.TemporaryDirectory() as folder, Site(Path(folder), "alice").open() as store:
        store.load_preshared(preshared(20))
        with store.save_backup({}, "qnode") as content:
            yield content.read()


def _certificate_file(data: bytes) -> None:
    inspect_file(in_file(data, "given.pem"), Expected())


def _seeds_of_certificate_files() -> Iterable[bytes]:
    import datetime

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives import serialization as s
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = Ed25519PrivateKey.from_private_bytes(KEY)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "kme-a")])
    begins, ends = (datetime.datetime(year, 1, 1, tzinfo=datetime.UTC) for year in (2025, 2045))
    names = x509.SubjectAlternativeName([x509.DNSName("kme-a"), x509.UniformResourceIdentifier("urn:kme:a")])
    builder = x509.CertificateBuilder(name, name, key.public_key(), 77, begins, ends)
    yield builder.add_extension(names, critical=False).sign(key, None).public_bytes(s.Encoding.PEM)
    request = x509.CertificateSigningRequestBuilder(name).add_extension(names, critical=False)
    yield request.sign(key, None).public_bytes(s.Encoding.PEM)
    crl = x509.CertificateRevocationListBuilder(name, begins, ends)
    yield crl.sign(key, None).public_bytes(s.Encoding.PEM)
    yield key.private_bytes(s.Encoding.PEM, s.PrivateFormat.PKCS8, s.NoEncryption())
    assert hashes


TARGETS: dict[str, Target] = {
    "configuration": Target(_configuration, (ConfigError,), _seeds_of_configuration),
    "loopback": Target(_loopback, (ConfigError,), _seeds_of_loopback),
    "saes": Target(_saes, (ConfigError,), lambda: [b'[[sae]]\nsae_id = "a"\npeers = ["b"]\n']),
    "tags": Target(_tag_file, (ConfigError,), _seeds_of_tag_files),
    "audit": Target(_audit_export, (AuditUnreadable,), _seeds_of_audit_export),
    "anchor": Target(_anchor, (AuditUnreadable,), _seeds_of_anchor),
    "backup": Target(_backup, (StoreError,), _seeds_of_backup),
    "certificates": Target(_certificate_file, (), _seeds_of_certificate_files),
}
