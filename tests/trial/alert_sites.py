"""Sites for the trial of the alerts: with a schedule, with emulated devices, with certificates of any age."""

import contextlib
import os
import socket
import ssl
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from daemons_support import SMALL_LINK, Sites, alter, qnodectl

from qnode.config import convert
from qnode.loopback.prepare import LoopbackConfig, Staging, prepare
from qnode.pki.authority import certificate_pem, new_authority
from qnode.pki.keys import key_pem, make_key
from qnode.pki.roles import ROLES as CERTIFICATE_ROLES
from qnode.pki.roles import RoleName
from qnode.secret_files import write_secret

# A fifth of the tags of the small link: a block takes 6 s, and a busy machine keeps up with it.
SLOW = {**SMALL_LINK, "simulation": {**SMALL_LINK["simulation"], "attenuation_db": 29.0}}
VALID_DAYS = 90.0


class SlowSites(Sites):
    """Two daemons in real time, with changes of the simulation by schedule and some one-time pads."""

    def __init__(self, folder: Path, *schedule: dict[str, Any], pads: int | None = None) -> None:
        self.data, self._logs = folder / "data", folder / "logs"
        self._logs.mkdir()
        tables = {**SLOW, "simulation": {**SLOW["simulation"], "schedule": list(schedule)}}
        if pads is not None:
            self.data.mkdir(mode=0o700)
            write_secret(self.data / "preshared.key", os.urandom(64 + 2 * 16 * pads))
        prepared = prepare(self.data, convert(tables, LoopbackConfig, where="the slow link"), Staging(1.0))
        self.site_files, self.endpoints = prepared.site_files, prepared.endpoints
        self.processes: dict[str, subprocess.Popen[bytes]] = {}


class EmulatedSites(Sites):
    """Two daemons whose devices are behind ports; ``attenuation_db``: by default there is too little light.

    ``benches``: the files of the devices by site.
    """

    def __init__(self, folder: Path, attenuation_db: float = 60.0) -> None:
        self.data, self._logs = folder / "data", folder / "logs"
        self._logs.mkdir()
        tables = {**SLOW, "simulation": {**SLOW["simulation"], "attenuation_db": attenuation_db}}
        staging = Staging(1.0, emulated=True)
        prepared = prepare(self.data, convert(tables, LoopbackConfig, where="the emulated link"), staging)
        self.site_files, self.endpoints = prepared.site_files, prepared.endpoints
        self.benches = prepared.benches
        self.processes: dict[str, subprocess.Popen[bytes]] = {}


class Lab:
    """The authority of key delivery at Alice, with a certificate and a CRL of any age."""

    def __init__(self, sites: Sites) -> None:
        self._sites, self._tls = sites, sites.data / "tls"
        self._key = make_key("ec")
        self._ca = new_authority(self._tls, "trial", "sae", self._key, days=3650, at=self._begun(0.0))
        for site in ("alice", "bob"):
            self._issue(f"kme-{site}", "kme", VALID_DAYS)
        for end in sites.endpoints.saes:
            self._issue(end.sae_id, "sae", VALID_DAYS)
        (self._tls / "etsi014-ca.pem").write_bytes(certificate_pem(self._ca.certificate))
        self._crl = self._tls / "etsi014.crl"
        self._crl.write_bytes(self._ca.signed_crl(self._key, [], 1, VALID_DAYS, datetime.now(UTC)))
        alter(sites.site_files["alice"], etsi014__tls__crl=str(self._crl))

    def certify(self, days_left: float) -> None:
        """Give Alice's key manager a certificate of 90 days of which so many are left, and reload."""
        self._issue("kme-alice", "kme", days_left)
        self.reload()

    def revoke_nothing(self, days_left: float) -> None:
        """Put an empty list in place that was signed for 90 days of which so many are left, and reload."""
        self.reload(crl=self._ca.signed_crl(self._key, [], 2, VALID_DAYS, self._begun(days_left)))

    def reload(self, crl: bytes | None = None) -> None:
        """Have Alice's daemon read its files again."""
        if crl is not None:
            self._crl.write_bytes(crl)
        qnodectl(self._sites.endpoints.sites["alice"].control_socket, "reload")

    def _issue(self, name: str, role: RoleName, days_left: float) -> None:
        own, hosts = make_key("ec"), ("127.0.0.1", "localhost") if role == "kme" else ()
        issued = self._ca.issue(
            self._key,
            CERTIFICATE_ROLES[role],
            name,
            own.public_key(),
            hosts=hosts,
            days=VALID_DAYS,
            at=self._begun(days_left),
        )
        write_secret(self._tls / f"{name}.pem", certificate_pem(issued))
        write_secret(self._tls / f"{name}.key", key_pem(own))

    def _begun(self, days_left: float) -> datetime:
        return datetime.now(UTC) - timedelta(days=VALID_DAYS - days_left)


def knock(url: str, times: int) -> None:
    """Connect so many times as somebody without a certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    place = urlsplit(url)
    for _ in range(times):
        with (
            contextlib.suppress(OSError),
            socket.create_connection((place.hostname, place.port), timeout=10.0) as bare,
            context.wrap_socket(bare) as stream,
        ):
            stream.recv(1)
