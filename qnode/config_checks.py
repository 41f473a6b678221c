"""Checks of the files that a configuration names: finds every error at once, and changes nothing."""

import os
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from qnode.config import TlsFiles
from qnode.errors import ConfigError
from qnode.secret_files import read_secret
from qnode.tls_files import CREDENTIALS, certificates_in, crls_in, load_own, load_trust, validities
from qnode.tls_validity import DAY_S

NOTE_S = 30 * DAY_S


@dataclass
class Findings:
    """``faults``: errors that prevent a working as configured. ``notes``: further remarks."""

    faults: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @contextmanager
    def gather(self, where: str = "") -> Iterator[None]:
        """Record a ConfigError as a fault; ``where``: its place, if the message does not name it."""
        try:
            yield
        except ConfigError as error:
            self.faults.append(f"{where}: {error}" if where else str(error))


def check_tls(findings: Findings, where: str, files: TlsFiles, now_s: float) -> None:
    """Check the TLS files of a role: own certificate and key, trusted authorities, and expiry."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    known = len(findings.faults)
    with findings.gather(where):
        if is_there(findings, f"{where}.key", files.key):
            load_own(context, files.certificate, files.key)
        else:
            certificates_in(files.certificate)
    with findings.gather():
        if os.access(files.key, os.R_OK):  # otherwise already reported
            read_secret(files.key, f"{where}.key")
    with findings.gather(where):
        load_trust(context, files.ca, files.crl)
    if len(findings.faults) > known:
        return
    authorities = certificates_in(files.ca)
    issuers = {crl.issuer for crl in crls_in(files.crl, authorities)} if files.crl is not None else None
    for authority in authorities:
        if issuers is not None and authority.subject not in issuers:
            named = authority.subject.rfc4514_string()
            findings.notes.append(
                f"{where}.crl: has no CRL of {named}: certificates that it issued itself are refused"
            )
    for one in validities(where, ca=files.ca, certificate=files.certificate, crl=files.crl):
        when = f"{datetime.fromtimestamp(one.expires_at, UTC):%Y-%m-%d %H:%M} UTC"
        if one.expired(now_s):
            findings.faults.append(f"{one} has expired ({when}); renew it")
        elif one.begins_at > now_s:
            findings.faults.append(f"{one} is not valid yet; look at this machine's clock, or make it again")
        elif one.expires_within(NOTE_S, now_s):
            findings.notes.append(f"{one} expires in {one.left_s(now_s) / DAY_S:.1f} days ({when})")


def is_there(findings: Findings, where: str, path: Path) -> bool:
    """Return whether a secret can be checked: a credential exists only inside the running service."""
    if path.is_relative_to(CREDENTIALS) and not os.access(path, os.R_OK):
        findings.notes.append(f"{where}: not looked at, as systemd hands {path} over at start")
        return False
    return True
