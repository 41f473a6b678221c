"""Clients of other makers against a running loopback, as their makers mean them to be used.

    python tests/consumers.py [NAME ...] [--arnika FILE]

`qnode loopback` runs a small simulated link. Each of the named clients (all) is installed at a pinned version
into an environment of its own, in a temporary folder (network; the package index), and does what its makers
show. Prints one line a step, and ends with 1 if one is not as expected. A step may expect that a client
fails: then its text says why, and that the fault is not the node's. What cannot be had here is told: "none".
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import UUID

import consumers_wireguard
from consumers_etsi014 import ETSI_CLIENT, QKDSEC
from consumers_support import (
    KEYS_AT_START,
    Consumer,
    Environment,
    NotHere,
    Place,
    Unexpected,
    expect,
    free_port,
    json_in,
    loopback,
)
from consumers_wireguard import ARNIKA, WG_QROTATOR
from daemons_support import eventually

from qnode.loopback.prepare import SaeEndpoint

# skip-qkd: Cisco SKIP.

SKIP = Consumer("skip-qkd", ("skip-qkd==1.0.0", "sslpsk3==2.1.0"))
_SKIP_CLIENT = """
import json, sys
from skip_qkd import MTLSConfig, PSKConfig, SkipQKDClient
address, name, ca, cert, key, call, *words = sys.argv[1:]
files = MTLSConfig(ca_file=ca, cert_file=cert, key_file=key)
with SkipQKDClient(server_address=address, server_id=name, mtls_config=files) as client:
    print(json.dumps(getattr(client, call)(*[int(w) if w.isdigit() and len(w) < 9 else w for w in words])))
"""


def _skip(place: Place, environment: Environment, sae: SaeEndpoint, *words: str, fails: bool = False) -> str:
    address = place.site(sae).skip_url.removeprefix("https://")
    files = (place.endpoints.ca, sae.cert, sae.key)
    call = ("python", "-c", _SKIP_CLIENT, address, sae.sae_id, *files, *words)
    return environment.run(*call, expect=1 if fails else 0)


@SKIP.step("capabilities() names this encryptor and its peer")
def _(place: Place, environment: Environment) -> str:
    found = json_in(_skip(place, environment, place.alice, "capabilities"))
    expect(found["localSystemID"] == place.alice.sae_id, found)
    expect(found["remoteSystemID"] == [place.bob.sae_id], found)
    expect(found["key"] is True and found["entropy"] is True, found)
    return f"algorithm {found['algorithm']}"


@SKIP.step("request_key() at one site and fetch_key_by_id() at the other give the same key, once")
def _(place: Place, environment: Environment) -> str:
    for size in ((), ("512",)):
        got = json_in(_skip(place, environment, place.alice, "request_key", place.bob.sae_id, *size))
        wanted = ("fetch_key_by_id", str(got["keyId"]), place.alice.sae_id)
        fetched = json_in(_skip(place, environment, place.bob, *wanted))
        expect(fetched == got, "the keys differ")
        expect(len(str(got["key"])) == (128 if size else 64), len(str(got["key"])))
        again = _skip(place, environment, place.bob, *wanted, fails=True)
        expect("Server returned error: HTTP/1.1 400" in again, again)
    return "256 and 512 bits; a second fetch is refused with 400"


@SKIP.step("entropy() gives as many bits as it asks for")
def _(place: Place, environment: Environment) -> str:
    for words, bits in (((), 256), (("128",), 128)):
        found = json_in(_skip(place, environment, place.alice, "entropy", *words))
        expect(found["minentropy"] == bits == 4 * len(str(found["randomStr"])), found["minentropy"])
    return "256 and 128 bits"


@SKIP.step("an unknown system and a wrong size are its errors")
def _(place: Place, environment: Environment) -> str:
    for words in (("request_key", "nobody"), ("request_key", place.bob.sae_id, "100")):
        printed = _skip(place, environment, place.alice, *words, fails=True)
        expect("RuntimeError: Server returned error: HTTP/1.1 400" in printed, printed)
    return "RuntimeError with 400"


@SKIP.step("its mode with a PSK alone fails before it sends anything (its fault)")
def _(place: Place, environment: Environment) -> str:
    address = place.site(place.alice).skip_url.removeprefix("https://")
    script = (
        "from skip_qkd import PSKConfig, SkipQKDClient\n"
        f"psk = PSKConfig(identity='router', psk='00' * 32)\n"
        f"SkipQKDClient(server_address={address!r}, server_id='router', psk_config=psk).capabilities()\n"
    )
    printed = environment.run("python", "-c", script, expect=1)
    expect("Cannot set verify_mode to CERT_NONE when check_hostname is enabled" in printed, printed)
    return "ValueError of ssl"


# schemathesis: requests made from the descriptions that the node serves.

SCHEMATHESIS = Consumer("schemathesis", ("schemathesis==4.32.5",))
# 503 is an answer of this interface; a request is right only with names that are registered here.
_NOT_CHECKED = "not_a_server_error,positive_data_acceptance"


def _schemathesis(url: str, place: Place, environment: Environment) -> str:
    sae = place.alice
    printed = environment.run(
        "st",
        "run",
        f"{url}/openapi.json",
        *("--tls-verify", place.endpoints.ca, "--request-cert", sae.cert, "--request-cert-key", sae.key),
        *("--exclude-checks", _NOT_CHECKED, "--suppress-health-check", "all"),
        *("--phases", "examples,coverage,fuzzing", "--max-examples", "30"),
        *("--seed", "1", "--continue-on-failure", "--generation-database", "none"),
    )
    found = re.search(r"(\d+) generated, (\d+) passed", printed)
    if found is None:
        raise Unexpected(printed[-2000:])
    return f"{found[1]} requests, {found[2]} passed"


@SCHEMATHESIS.step("every answer of ETSI GS QKD 014 is as /openapi.json says")
def _(place: Place, environment: Environment) -> str:
    return _schemathesis(place.site(place.alice).url, place, environment)


@SCHEMATHESIS.step("every answer of SKIP is as /openapi.json says")
def _(place: Place, environment: Environment) -> str:
    return _schemathesis(place.site(place.alice).skip_url, place, environment)


# stunnel: routers that speak TLS with a pre-shared key only, as docs/interfaces.md has it.

STUNNEL = Consumer("stunnel", ())


@STUNNEL.step("a client with a pre-shared key alone gets SKIP through stunnel beside the node")
def _(place: Place, environment: Environment) -> str:
    stunnel = shutil.which("stunnel")
    if stunnel is None:
        return "not run: stunnel is not on PATH"
    folder, sae = environment.folder, place.alice
    (folder / "router.psk").write_text(f"router:{bytes(range(32)).hex()}\n")
    bundle = folder / "router.pem"
    bundle.write_bytes(Path(sae.key).read_bytes() + Path(sae.cert).read_bytes())
    for path in (folder / "router.psk", bundle):
        path.chmod(0o600)
    suites = ("DHE-PSK-AES256-GCM-SHA384", "DHE-PSK-AES256-CBC-SHA384", "ECDHE-PSK-AES256-CBC-SHA384")
    front, between = free_port(), free_port()
    configuration = folder / "stunnel.conf"
    configuration.write_text(
        f"foreground = yes\npid =\n"
        f"[router]\naccept = 127.0.0.1:{front}\nconnect = 127.0.0.1:{between}\n"
        f"ciphers = {':'.join(suites)}\nsslVersion = TLSv1.2\n"
        f"PSKsecrets = {folder / 'router.psk'}\n"
        f"[node]\nclient = yes\naccept = 127.0.0.1:{between}\n"
        f"connect = {place.site(sae).skip_url.removeprefix('https://')}\ncert = {bundle}\n"
        f"CAfile = {place.endpoints.ca}\nverifyChain = yes\ncheckHost = {place.site(sae).kme_id}\n"
    )
    with (folder / "stunnel.log").open("wb") as log:
        process = subprocess.Popen([stunnel, str(configuration)], stdout=log, stderr=log)
    try:
        eventually(lambda: "Configuration successful" in (folder / "stunnel.log").read_text(), "stunnel")
        client = ["openssl", "s_client", "-quiet", "-tls1_2", "-connect", f"127.0.0.1:{front}"]
        client += ["-psk_identity", "router", "-psk", bytes(range(32)).hex()]
        for suite in suites:
            done = subprocess.run(
                [*client, "-cipher", suite],
                input=b"GET /capabilities HTTP/1.1\r\nHost: router\r\nConnection: close\r\n\r\n",
                capture_output=True,
                timeout=60,
                check=False,
            )
            expect(b"HTTP/1.1 200" in done.stdout and b'"localSystemID"' in done.stdout, done)
        return ", ".join(suites)
    finally:
        process.terminate()
        process.wait()


# QUBIP's client of ETSI GS QKD 004: one file of a repository that is no package.

QUBIP = Consumer("qubip", ())
_QUBIP_URL = "https://github.com/QUBIP/etsi-qkd-004"
_QUBIP_COMMIT = "acc76c580783b07e964ec6fd9aaf59f5f542463b"
_QUBIP_CLIENT = """
import os, sys, uuid
file, address, source, destination, ca, cert, key, stream_id, least_bps, *indices = sys.argv[1:]
os.environ.update(CLIENT_CERT_PEM=cert, CLIENT_CERT_KEY=key, SERVER_CERT_PEM=ca)
os.environ.update(QOS_KEY_CHUNK_SIZE="48", QOS_MIN_BPS=least_bps)
sys.path.insert(0, os.path.dirname(file))
import client
class Shown(client.QKDClient):
    def parse_get_key_response(self, response):
        found = super().parse_get_key_response(response)
        print("key", found[1].hex(), flush=True)
        return found
one = Shown()
one.key_stream_id = uuid.UUID(stream_id)
host, _, port = address.rpartition(":")
one.connect(host, int(port))
try:
    one.open_connect(source, destination)
    for index in indices:
        one.get_key(int(index), 1024)
    one.close()
except client.KnownException as error:
    print("refused", error)
print("quality", one.qos)
"""


def _qubip_file(folder: Path) -> Path | None:
    """Return the client's file: QUBIP_CLIENT of the environment, or from its repository."""
    if (given := os.environ.get("QUBIP_CLIENT")) is not None:
        return Path(given)
    there = folder / "etsi-qkd-004"
    if not there.exists():
        for words in (
            ("clone", "-q", _QUBIP_URL, str(there)),
            ("-C", str(there), "checkout", "-q", _QUBIP_COMMIT),
        ):
            if subprocess.run(["git", *words], check=False, timeout=120, capture_output=True).returncode:
                return None
    return there / "client" / "client.py"


def _qubip(
    place: Place, environment: Environment, sae: SaeEndpoint, stream_id: int, least_bps: int, *indices: str
) -> str:
    file = _qubip_file(environment.folder)
    if file is None:
        raise NotHere(f"not run: {_QUBIP_URL} cannot be reached, and QUBIP_CLIENT is not set")
    files = (place.endpoints.ca, sae.cert, sae.key)
    names = (f"client://{sae.sae_id}", f"server://{sae.peer_sae_id}")
    given = (
        str(file),
        place.site(sae).etsi004_address,
        *names,
        *files,
        str(UUID(int=stream_id)),
        str(least_bps),
    )
    command = [sys.executable, "-c", _QUBIP_CLIENT, *given, *indices]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    if done.returncode:
        raise Unexpected(done.stderr[-2000:])
    return done.stdout + done.stderr


@QUBIP.step("both ends of a predefined Key_stream_ID get the same keys")
def _(place: Place, environment: Environment) -> str:
    place.wait_for_keys(KEYS_AT_START)
    indices = ("0", "1", "2", "3")
    with ThreadPoolExecutor(2) as both:
        calls = [
            both.submit(_qubip, place, environment, sae, 4, 0, *indices) for sae in (place.alice, place.bob)
        ]
        printed = [one.result() for one in calls]
    keys = [re.findall("^key ([0-9a-f]+)$", one, re.MULTILINE) for one in printed]
    expect(keys[0] == keys[1] and len(set(keys[0])) == 4 and len(keys[0][0]) == 96, printed)
    expect(all("CLOSE status: 0" in one and '"hops":0' in one for one in printed), printed)
    return f"{len(keys[0])} keys of 48 bytes"


@QUBIP.step("a Min_bps that the link cannot give gets a counter-proposal")
def _(place: Place, environment: Environment) -> str:
    printed = _qubip(place, environment, place.alice, 0, 2**31, "0")
    expect("OPEN_CONNECT status: 7" in printed and "GET_KEY failed with status: 3" in printed, printed)
    return next(line for line in printed.splitlines() if line.startswith("quality"))


CONSUMERS = (SKIP, SCHEMATHESIS, STUNNEL, QUBIP, ETSI_CLIENT, QKDSEC, ARNIKA, WG_QROTATOR)


def run(one: Consumer, place: Place, folder: Path) -> list[tuple[str, str]]:
    """Run the steps of a consumer; return for each "ok", "FAIL" or "none" (not run), and its text."""
    try:
        environment = one.install(folder / one.name)
    except NotHere as missing:
        print(f"none {one.name}: {missing}", flush=True)
        return [("none", f"{one.name}: {missing}")]
    lines = []
    for text, do in one.steps:
        try:
            how, seen = "ok", do(place, environment)
        except NotHere as missing:
            how, seen = "none", str(missing)
        except (Unexpected, AssertionError, subprocess.TimeoutExpired) as error:
            how, seen = "FAIL", str(error)
        lines.append((how, f"{one.name}: {text}: {seen}"))
        print(f"{how:4} {lines[-1][1]}", flush=True)
    return lines


def main(names: list[str]) -> bool:
    """Run the named consumers, or all, and return whether no step was other than expected."""
    chosen = [one for one in CONSUMERS if not names or one.name in names]
    unknown = set(names) - {one.name for one in CONSUMERS}
    if unknown:
        raise SystemExit(f"unknown: {', '.join(unknown)}; known: {', '.join(one.name for one in CONSUMERS)}")
    with tempfile.TemporaryDirectory() as folder, loopback(Path(folder)) as place:
        lines = [line for one in chosen for line in run(one, place, Path(folder))]
    number = {how: sum(line[0] == how for line in lines) for how in ("ok", "FAIL", "none")}
    print(f"{number['ok']} steps as expected, {number['FAIL']} not, {number['none']} not run")
    return not number["FAIL"]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--arnika", type=Path, help="an arnika that was built before")
    parsed = parser.parse_args()
    if parsed.arnika is not None and not parsed.arnika.is_file():
        parser.error(f"--arnika: {parsed.arnika} is no file")
    consumers_wireguard.arnika_binary = parsed.arnika
    sys.exit(not main(parsed.names))
