"""Two other key servers of ETSI GS QKD 014 at pinned commits, installed and run as their makers show.

next-door-key-simulator: two servers in Python (Flask), which keep keys in memory and send each new key to the
other over HTTPS. easy-kme: one server in Python (FastAPI) behind nginx, keys in one JSON file; it has no
second site. Neither authenticates keys, and neither has keys of a link: both draw random numbers.
"""

import os
import re
import shutil
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Final

import trustme
from measure_delivery_load import Encryptor, Load, Running

from qnode.addresses import free_ports

HOST: Final = "127.0.0.1"
MOST_KEYS: Final = 128
"""The most of one call, of every server."""
_START_S, _STOP_S, _POLL_S = 60.0, 5.0, 0.05


class NotHere(Exception):
    """A key server that cannot be had or run on this machine; the text says why."""


@dataclass(frozen=True)
class CertificateFiles:
    """Certificates of one server and its encryptors: files (certificate, key) by name, authority.

    ``verified``: whether clients verify the server's, which the makers' clients do not, and for easy-kme
    cannot: its scripts make the server a certificate for clients.
    """

    authority: Path
    files: Mapping[str, tuple[Path, Path]]
    verified: bool = True

    def context(self, name: str) -> ssl.SSLContext:
        """Return the context of a client with the certificate ``name``."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        if not self.verified:
            context.verify_mode = ssl.CERT_NONE
        context.load_verify_locations(self.authority)
        context.load_cert_chain(*self.files[name])
        return context


def p256_certificates(folder: Path, names: Sequence[str]) -> CertificateFiles:
    """Make certificates on the curve P-256, like those of qnode, by one authority."""
    folder.mkdir(exist_ok=True)
    authority = trustme.CA(key_type=trustme.KeyType.ECDSA)
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    files = {}
    for name in names:
        hosts = name.replace("_", "-"), HOST, "localhost"
        made = authority.issue_cert(*hosts, common_name=name, key_type=trustme.KeyType.ECDSA)
        files[name] = folder / f"{name}.pem", folder / f"{name}.key"
        files[name][0].write_bytes(b"".join(one.bytes() for one in made.cert_chain_pems))
        files[name][1].write_bytes(made.private_key_pem.bytes())
        files[name][1].chmod(0o600)
    return CertificateFiles(folder / "ca.pem", files)


class Peer:
    """One key server of another maker."""

    name: ClassVar[str]
    repository: ClassVar[str]
    commit: ClassVar[str]
    keeps_last_keys_only: ClassVar[bool] = False
    """Whether a new `enc_keys` of a pair drops the keys of the one before."""
    keeps_connections: ClassVar[bool] = True
    most_connections_of_many: ClassVar[int] = sys.maxsize
    """At more connections it cannot be asked for more than one key a call."""

    def __init__(self, folder: Path, clone: Path | None) -> None:
        """Install it into ``folder``; ``clone``: a repository that has the commit, None to fetch it.

        Raises:
            NotHere: that is not possible.
        """
        self.folder, self.source = folder, folder / "source"
        self.source.mkdir(parents=True)
        if clone is None:
            clone = folder / "clone"
            _run(
                "git",
                "clone",
                "--quiet",
                "--no-checkout",
                f"https://github.com/{self.repository}",
                str(clone),
            )
        archive = folder / "source.tar"
        _run("git", "-C", str(clone), "archive", "--output", str(archive), self.commit)
        _run("tar", "-xf", str(archive), "-C", str(self.source))
        _run(sys.executable, "-m", "venv", str(folder / "venv"))
        self.python = str(folder / "venv" / "bin" / "python")
        wanted = str(self.source / "requirements.txt")
        _run(self.python, "-m", "pip", "install", "--quiet", "--requirement", wanted)
        self._makers = self.makers_certificates()
        self._p256 = p256_certificates(folder / "p256", list(self._makers.files))

    def certificates(self, load: Load) -> CertificateFiles:
        """Return the certificates that ``load`` wants."""
        return self._p256 if load.p256 else self._makers

    @property
    def version(self) -> str:
        """The commit."""
        return self.commit[:12]

    def makers_certificates(self) -> CertificateFiles:
        """Make certificates by the makers' scripts; raises NotHere."""
        raise NotImplementedError

    def running(self, load: Load) -> AbstractContextManager[Running]:
        """Run it for such a load; raises NotHere."""
        raise NotImplementedError

    def started(self, command: Sequence[str], **variables: str) -> "subprocess.Popen[bytes]":
        """Start one of its processes in its source, with these variables; its errors go to a file."""
        plain = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        with (self.folder / "errors").open("ab") as errors:
            return subprocess.Popen(
                command, cwd=self.source, env=plain | variables, stdout=subprocess.DEVNULL, stderr=errors
            )


def _run(*command: str, cwd: Path | None = None, said: str = "") -> None:
    plain = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    try:
        done = subprocess.run(
            command, cwd=cwd, env=plain, input=said, capture_output=True, text=True, check=False
        )
    except OSError as error:
        raise NotHere(f"{command[0]}: {error.strerror}") from None
    if done.returncode:
        lines = [line for line in done.stderr.strip().splitlines() if line.strip()] or ["nothing said"]
        raise NotHere(f"{' '.join(command[:4])} ...: {lines[-1]}")


def _stop(processes: Sequence["subprocess.Popen[bytes]"]) -> None:
    for process in processes:
        process.terminate()
    for process in processes:
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


class NextDoor(Peer):
    """next-door-key-simulator: one encryptor a site.

    Each site looks for the other every 15 s, and answers nothing meanwhile. If the other waits for this
    one at that moment, both wait for ever: so each measurement is a start of its own and ends before.
    """

    name = "next-door-key-simulator"
    repository = "CreepPork/next-door-key-simulator"
    commit = "800efac955750c44e0a161d9c6db506ce93da994"
    keeps_last_keys_only = True
    keeps_connections = False
    _KEY_GENERATION_S = "0.01"  # the makers' 30 s give 128 keys, the most of one call, after an hour only
    # Keys of this size come from its pool. Those of 256 bits are drawn in the call: a pool that is filled
    # meanwhile would cost as much, and hold its lock.
    _POOL_KEY_BITS = "128"

    def makers_certificates(self) -> CertificateFiles:
        """Make them by its script: RSA, 4096 bits."""
        folder = self.source / "certs"
        _run("bash", str(folder / "generate.sh"), said="Y\n")
        names = re.findall(
            r"(KME_ID|ATTACHED_SAE_ID)=(\S+)", (self.source / "docker-compose.yml").read_text()
        )
        self.ids = dict(zip(("kme-1", "sae-1", "kme-2", "sae-2"), (one for _, one in names), strict=True))
        files = {
            self.ids[short]: (folder / f"{short}.crt.pem", folder / f"{short}.key.pem") for short in self.ids
        }
        return CertificateFiles(folder / "ca.crt.pem", files, verified=False)

    @contextmanager
    def running(self, load: Load) -> Iterator[Running]:
        """Run both sites, the slave's first: it is there when the other looks for it at its start."""
        with_files = self.certificates(load)
        ports = dict(zip("12", free_ports(2), strict=True))
        processes = []
        try:
            for site, other in (("2", "1"), ("1", "2")):
                certificate, key = with_files.files[self.ids[f"kme-{site}"]]
                sae_certificate, _ = with_files.files[self.ids[f"sae-{site}"]]
                process = self.started(
                    [self.python, "app.py"],
                    HOST=HOST,
                    PORT=str(ports[site]),
                    KME_ID=self.ids[f"kme-{site}"],
                    ATTACHED_SAE_ID=self.ids[f"sae-{site}"],
                    DEFAULT_KEY_SIZE=self._POOL_KEY_BITS,
                    MAX_KEY_COUNT="100000",
                    MAX_KEYS_PER_REQUEST=str(MOST_KEYS),
                    MAX_KEY_SIZE="1024",
                    MIN_KEY_SIZE="32",
                    KEY_GEN_SEC_TO_GEN=self._KEY_GENERATION_S,
                    OTHER_KMES=f"https://{HOST}:{ports[other]}",
                    CA_FILE=str(with_files.authority),
                    KME_CERT=str(certificate),
                    KME_KEY=str(key),
                    SAE_CERT=str(sae_certificate),
                    PYTHONUNBUFFERED="1",
                )
                processes.append(process)
                wait_listening(ports[site], process, self.folder / "errors")
            sae_1, sae_2 = (
                Encryptor(
                    f"https://{HOST}:{ports[own]}",
                    self.ids[f"sae-{peer}"],
                    with_files.context(self.ids[f"sae-{own}"]),
                )
                for own, peer in (("1", "2"), ("2", "1"))
            )
            yield Running(lambda: [process.pid for process in processes], [(sae_1, sae_2)])
        finally:
            _stop(processes)


def wait_listening(port: int, process: "subprocess.Popen[bytes]", errors: Path) -> None:
    """Return when somebody listens on a port of this machine; it gets no connection.

    Raises:
        NotHere: the process ended, or a minute passed.
    """
    listening = f"{int.from_bytes(bytes(map(int, HOST.split('.'))), 'little'):08X}:{port:04X}"
    deadline_s = time.monotonic() + _START_S
    while time.monotonic() < deadline_s:
        for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[1] == listening and fields[3] == "0A":
                return
        if process.poll() is not None:
            lines = errors.read_text(errors="replace").strip().splitlines()
            raise NotHere(f"it ended: {lines[-1] if lines else process.returncode}")
        time.sleep(_POLL_S)
    raise NotHere(f"nobody listens on port {port} after {_START_S:g} s")


class EasyKme(Peer):
    """easy-kme: one server for both encryptors, behind nginx.

    Each call reads all keys from its file, and `enc_keys` writes them all; it makes no new ones when they are
    used up. So a call costs as much as it has keys, and a measurement of `number` keys a call needs many.
    """

    name = "easy-kme"
    repository = "krich11/easy-kme"
    commit = "8ece4ad62ae7c1c7802835c92f2db5e0c773b696"
    most_connections_of_many = 10
    SAES: ClassVar = ("SAE_001", "SAE_002")
    _POOL_AS_SHIPPED = 1000
    _CALLS_OF_MANY = 24

    def makers_certificates(self) -> CertificateFiles:
        """Make them by its scripts: RSA, 2048 bits, the authority's 4096."""
        folder = self.source / "certs"
        tools = folder / "tools"
        _run("bash", "reset-certs.sh", cwd=tools, said="y")  # the repository has a list of earlier ones
        for script in ("create-ca.sh", "create-kme.sh", "create-sae-test-certs.sh"):
            _run("bash", script, cwd=tools)
        files = {"KME_LAB_001": (folder / "kme" / "kme.crt", folder / "kme" / "kme.key")}
        for number, name in enumerate(self.SAES, 1):
            files[name] = folder / "sae" / f"sae{number}.crt", folder / "sae" / f"sae{number}.key"
        for certificate, _ in files.values():
            if not certificate.is_file():
                raise NotHere(f"its scripts made no {certificate.name}")
        return CertificateFiles(folder / "ca" / "ca.crt", files, verified=False)

    @contextmanager
    def running(self, load: Load) -> Iterator[Running]:
        """Run nginx and the server."""
        with_files = self.certificates(load)
        port, inner_port = free_ports(2)
        data = self.folder / "data"
        shutil.rmtree(data, ignore_errors=True)
        n_keys = max(self._POOL_AS_SHIPPED, self._CALLS_OF_MANY * load.number if load.number > 1 else 0)
        certificate, key = with_files.files["KME_LAB_001"]
        processes = []
        try:
            nginx = self._nginx()
            # Its own start is the same with port 8000, which may be taken.
            command = [
                self.python,
                "-m",
                "uvicorn",
                "src.main:app",
                "--host",
                HOST,
                "--port",
                str(inner_port),
            ]
            server = self.started(
                command,
                DATA_DIR=str(data),
                KEY_POOL_SIZE=str(n_keys),
                KME_CERT_PATH=str(certificate),
                KME_KEY_PATH=str(key),
                CA_CERT_PATH=str(with_files.authority),
                REQUIRE_CLIENT_CERT="true",
            )
            processes.append(server)
            wait_listening(inner_port, server, self.folder / "errors")
            prefix = self._nginx_files(with_files, port, inner_port)
            proxy = self.started([nginx, "-p", str(prefix), "-c", str(prefix / "nginx.conf")])
            processes.append(proxy)
            wait_listening(port, proxy, self.folder / "errors")
            saes = [
                Encryptor(f"https://{HOST}:{port}", peer, with_files.context(own))
                for own, peer in (self.SAES, self.SAES[::-1])
            ]
            yield Running(lambda: [server.pid, proxy.pid, *_children(proxy.pid)], [(saes[0], saes[1])])
        finally:
            _stop(processes)

    def _nginx(self) -> str:
        """Return the program; without one here, Debian's package is unpacked, not installed."""
        found = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
        if found:
            return found
        unpacked = self.folder / "nginx-package"
        if not unpacked.is_dir():
            packages = self.folder / "packages"
            packages.mkdir(exist_ok=True)
            _run("apt-get", "download", "nginx", cwd=packages)
            for package in packages.glob("nginx_*.deb"):
                _run("dpkg", "-x", str(package), str(unpacked))
        return str(unpacked / "usr" / "sbin" / "nginx")

    def _nginx_files(self, with_files: CertificateFiles, port: int, inner_port: int) -> Path:
        """Write the makers' site for nginx with the ports and files of this run; return its folder."""
        prefix = self.folder / "nginx"
        prefix.mkdir(exist_ok=True)
        certificate, key = with_files.files["KME_LAB_001"]
        site = (self.source / "nginx.conf").read_text()
        for pattern, new in (
            (r"listen 8443 ssl;", f"listen {HOST}:{port} ssl;"),
            (r"http://127\.0\.0\.1:8000", f"http://{HOST}:{inner_port}"),
            (r"ssl_certificate \S+;", f"ssl_certificate {certificate};"),
            (r"ssl_certificate_key \S+;", f"ssl_certificate_key {key};"),
            (r"ssl_client_certificate \S+;", f"ssl_client_certificate {with_files.authority};"),
        ):
            site, n_changed = re.subn(pattern, new, site)
            if not n_changed:
                raise NotHere(f"its nginx.conf has no {pattern}")
        paths = "".join(
            f"{kind}_temp_path {prefix}/{kind};\n"
            for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        user = "user root;\n" if os.getuid() == 0 else ""
        (prefix / "nginx.conf").write_text(
            f"daemon off;\n{user}worker_processes auto;\npid {prefix}/pid;\nerror_log {prefix}/errors;\n"
            f"events {{ worker_connections 768; }}\n"
            f"http {{\naccess_log {prefix}/access;\n{paths}{site}\n}}\n"
        )
        return prefix


def _children(pid: int) -> list[int]:
    return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


PEERS: Final = (NextDoor, EasyKme)
