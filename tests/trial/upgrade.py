"""An upgrade from release 0.1.0 and back, one site at a time, with the real code of both and no key lost.

Release 0.1.0 is commit bac72f2 of this repository, installed into a virtual environment of its own. It makes
the sites' files, secrets and certificates; the present version uses them as they are. Encryptors fetch keys
at both sites in every combination of versions, and keys that one site gave before a restart are fetched at
the other one after it. At the end the present version runs at both sites again, and verifies its audit.

    python tests/trial/upgrade.py [--keys 60]

It needs the repository's history and pip, and takes some minutes. It prints a line for each step, and ends
with 1 if a key was lost, differs, or came twice.
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import venv
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any, TypeVar

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import httpx
import msgspec
from archives import unpack
from daemons_support import ROLES, SMALL_LINK, STOP_S, Encryptor, encryptors, eventually

from qnode.choices import Role
from qnode.loopback.prepare import Endpoints, LinkEndpoints, SaeEndpoint, SiteEndpoints

TOP = Path(__file__).resolve().parent.parent.parent
COMMIT = "bac72f2"
OLD, NEW = "0.1.0", "present"
SPEED = 2.0
T = TypeVar("T")
MOST_BROKEN = 20
PATIENCE_S = 900.0  # the old version may have to compile its kernels
LINK: dict[str, Any] = {
    **SMALL_LINK,
    "link": {
        **SMALL_LINK["link"],
        # As docs/operations.md asks before an upgrade.
        "source": {**SMALL_LINK["link"]["source"], "mu_uncertainty": [0.0, 0.0]},
        "estimation": {**SMALL_LINK["link"]["estimation"], "asymmetry_bound": "joint"},
    },
}
PREPARE = """
import json, sys
from pathlib import Path
from qnode.loopback.prepare import Staging, parse_loopback_config, prepare, write_endpoints
config = parse_loopback_config(json.loads(sys.argv[2]), "trial")
write_endpoints(prepare(Path(sys.argv[1]), config, Staging(float(sys.argv[3]))))
"""


def install_old(folder: Path) -> Path:
    """Install release 0.1.0, with the dependencies of this environment; return its interpreter."""
    archive = subprocess.run(["git", "-C", str(TOP), "archive", COMMIT], capture_output=True, check=True)
    with tarfile.open(fileobj=BytesIO(archive.stdout)) as code:
        unpack(code, folder / "code")
    venv.create(folder / "venv")
    python = folder / "venv" / "bin" / "python"
    (site,) = (folder / "venv").glob("lib/python3.*/site-packages")
    (here,) = Path(sys.prefix).glob("lib/python3.*/site-packages")
    (site / "dependencies.pth").write_text(f"{here}\n")
    command = [*(sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet")]
    command += ["--no-deps", "--no-build-isolation", "--no-index", str(folder / "code")]
    subprocess.run(command, check=True)
    return python


class Trial:
    """Two sites in one folder, each run by either version."""

    def __init__(self, folder: Path, old: Path) -> None:
        self._folder, self._python = folder, {OLD: str(old), NEW: sys.executable}
        command = [str(old), "-P", "-c", PREPARE, str(folder / "data"), json.dumps(LINK), str(SPEED)]
        subprocess.run(command, check=True, env=self._environment(OLD))
        told = json.loads((folder / "data" / "endpoints.json").read_text())
        sites = msgspec.convert(told["sites"], dict[str, SiteEndpoints])
        saes = msgspec.convert(told["saes"], list[SaeEndpoint])
        links = [LinkEndpoints("small", sites, saes)]
        self.endpoints = Endpoints(version=1, ca=told["ca"], sites=sites, saes=saes, links=links)
        self.site_files = {role: folder / "data" / role / "site.toml" for role in ROLES}
        self._processes: dict[Role, subprocess.Popen[bytes]] = {}
        self.version: dict[Role, str] = {}

    def _environment(self, version: str) -> dict[str, str]:

        paths = {} if version == OLD else {"PYTHONPATH": f"{TOP}:{TOP / 'drivers'}"}
        inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        return inherited | paths

    def start(self, role: Role, version: str) -> None:
        """Start a site with a version."""
        if version == NEW:
            checked = self.run(NEW, "qnode", "check", str(self.site_files[role]))
            assert checked.returncode == 0, checked.stdout
        command = [self._python[version], "-P", "-m", "qnode", "run", "--config", str(self.site_files[role])]
        with (self._folder / f"{role}.log").open("ab") as log:
            self._processes[role] = subprocess.Popen(
                command, stdout=log, stderr=log, env=self._environment(version)
            )
        self.version[role] = version

    def stop(self, role: Role) -> None:
        """Stop a site as its service would."""
        self._processes[role].terminate()
        assert self._processes[role].wait(STOP_S) == 0, self.log(role)[-3000:]

    def end(self) -> None:
        """Kill what still runs."""
        for process in self._processes.values():
            process.kill()
            process.wait(STOP_S)

    def run(self, version: str, module: str, *words: str) -> "subprocess.CompletedProcess[str]":
        """Run a command of a version."""
        command = [self._python[version], "-P", "-m", module, *words]
        return subprocess.run(
            command, capture_output=True, text=True, check=False, env=self._environment(version)
        )

    def log(self, role: Role) -> str:
        """Return all that a site has logged."""
        return (self._folder / f"{role}.log").read_text(errors="replace")

    def status(self, role: Role) -> dict[str, Any] | None:
        """Return the status of a site by its own version's `qnodectl`; None while it does not run."""
        assert self._processes[role].poll() is None, self.log(role)[-3000:]
        socket = self.endpoints.sites[role].control_socket
        done = self.run(self.version[role], "qnode.cli.control", "--socket", socket, "status", "--json")
        return json.loads(done.stdout) if done.returncode in (0, 1) and done.stdout else None

    def figures(self, role: Role) -> dict[str, int]:
        """Return the counts of a running site."""
        status = eventually(lambda: self.status(role), f"{role} answers", within_s=PATIENCE_S)
        return dict(status["keys"])

    def wait_for_link(self) -> str:
        """Wait until both sites have met, and return the peer's version as Alice's site tells it."""

        def met() -> str | None:
            told = [self.status(role) for role in ROLES]
            if any(one is None or one["peer"]["connection"]["state"] != "connected" for one in told):
                return None
            return str((told[0] or {})["peer"].get("software"))

        return eventually(met, "the sites meet", within_s=PATIENCE_S)


class Ledger:
    """What encryptors got: each key once at each site, and the same at both."""

    def __init__(self, endpoints: Endpoints) -> None:
        self._ends = encryptors(endpoints)
        self.given: dict[str, bytes] = {}
        self.fetched: dict[str, bytes] = {}
        self.waiting: list[tuple[Encryptor, list[str]]] = []
        self.all_given: list[tuple[Encryptor, list[str]]] = []
        self.twice = 0
        self.broken = 0

    def give(self, number: int) -> None:
        """Have each site give keys to its encryptor as master."""
        for master, slave in itertools.permutations(self._ends, 2):
            for _ in range(-(-number // 8)):
                keys = self._patiently(partial(master.assign, min(8, number)))
                self.twice += len(keys.keys() & self.given.keys())
                self.given |= keys
                self.waiting.append((slave, list(keys)))
                self.all_given.append((slave, list(keys)))

    def fetch(self) -> None:
        """Have the slaves fetch all that waits, at the other site; and ask once more for some of it."""
        for slave, key_ids in self.waiting:
            keys = self._patiently(partial(slave.fetch_soon, key_ids))
            self.twice += len(keys.keys() & self.fetched.keys())
            self.fetched |= keys
            again = self._patiently(partial(slave.fetch, key_ids[:1]))
            self.twice += again.status_code == 200
        self.waiting.clear()

    def _patiently(self, ask: Callable[[], T]) -> T:
        """Ask again after an answer that broke off, as encryptors do; nobody has seen its keys."""
        while True:
            try:
                return ask()
            except httpx.TransportError as error:
                self.broken += 1
                if self.broken > MOST_BROKEN:
                    raise
                print(f"  an answer broke off: {error}")

    def different(self) -> int:
        """Return the number of keys that are not the same at both sites."""
        return sum(self.given.get(key_id) != key for key_id, key in self.fetched.items())


def main() -> int:
    """Run the trial."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--keys", type=int, default=60, help="keys that each site gives in each step")
    n_keys = parser.parse_args().keys
    with tempfile.TemporaryDirectory(prefix="qnode-upgrade-") as name:
        folder = Path(name)
        trial = Trial(folder, install_old(folder / "old"))
        try:
            return run(trial, n_keys)
        except BaseException:
            for role in ROLES:
                print(f"--- {role}\n{trial.log(role)[-4000:]}")
            raise
        finally:
            trial.end()


def put_back(trial: Trial, ledger: Ledger, n_keys: int) -> None:
    """Back Alice's site up while keys are delivered, lose its disk, and put the backup back."""
    site_file, endpoints = trial.site_files["alice"], trial.endpoints.sites["alice"]
    backup = site_file.with_name("backup.tar")
    command = ["--socket", endpoints.control_socket, "backup", "save", str(backup)]
    with ThreadPoolExecutor(1) as others:
        giving = others.submit(ledger.give, n_keys)
        saved = trial.run(NEW, "qnode.cli.control", *command)
        giving.result()
    assert saved.returncode == 0, saved.stderr
    print(f"  {saved.stdout.strip()}")
    ledger.fetch()
    trial.stop("alice")
    for path in [*site_file.parent.glob("store/*"), *site_file.parent.glob("anchor*")]:
        path.unlink()
    command = ["backup", "restore", str(backup), "--config", str(site_file)]
    done = trial.run(NEW, "qnode.cli.control", *command)
    assert done.returncode == 0, done.stderr
    trial.start("alice", NEW)
    trial.wait_for_link()
    for slave, key_ids in ledger.all_given:
        ledger.twice += slave.fetch(key_ids).status_code == 200
    ledger.give(n_keys)
    ledger.fetch()
    print(f"alice's disk lost and put back: {len(ledger.given)} keys given so far, none of them again")


def roll_back(trial: Trial, one: Role) -> None:
    """Roll a stopped site back, as docs/operations.md says."""
    while True:
        done = trial.run(NEW, "qnode.cli.control", "rollback", str(trial.site_files[one]))
        if "are not settled" not in done.stderr:
            break
        print(f"  {done.stderr.strip().splitlines()[-1]}")
        trial.start(one, NEW)
        trial.wait_for_link()
        trial.stop(one)
    assert done.returncode == 0, done.stderr
    print(f"  {done.stdout.strip()}")


def run(trial: Trial, n_keys: int) -> int:
    """Go through all combinations of versions; return the exit status."""
    ledger = Ledger(trial.endpoints)
    for role in ROLES:
        trial.start(role, OLD)
    steps: list[tuple[str, Role | None, str]] = [
        ("both at 0.1.0", None, OLD),
        ("alice upgraded", "alice", NEW),
        ("bob upgraded", "bob", NEW),
        ("alice back", "alice", OLD),
        ("bob back", "bob", OLD),
        ("alice upgraded again", "alice", NEW),
        ("bob upgraded again", "bob", NEW),
    ]
    print(f"{'step':21} alice    bob      software of bob          kept   void delivered  given  fetched")
    for what, one, version in steps:
        if one is not None:
            # What is given now waits for its slave until both sites run again.
            ledger.give(n_keys)
            trial.stop(one)
            if version == OLD:
                roll_back(trial, one)
            trial.start(one, version)
        peer = trial.wait_for_link()
        ledger.fetch()
        ledger.give(n_keys)
        ledger.fetch()
        found = {role: trial.figures(role) for role in ROLES}
        kept = sum(found["alice"][key] for key in ("available_own", "available_peer", "assigned"))
        void = sum(keys["void_total"] for keys in found.values())
        delivered = sum(keys["delivered_total"] for keys in found.values())
        print(
            f"{what:21} {trial.version['alice']:8} {trial.version['bob']:8} {peer:24} {kept:4}  {void:5} "
            f"{delivered:9}  {len(ledger.given):5}  {len(ledger.fetched):7}"
        )
    put_back(trial, ledger, n_keys)
    lost = len(ledger.given.keys() - ledger.fetched.keys())
    bad = ledger.different()
    for role in ROLES:
        socket = trial.endpoints.sites[role].control_socket
        done = trial.run(NEW, "qnode.cli.control", "--socket", socket, "audit", "verify")
        print(f"{role}: {done.stdout.splitlines()[0]}")
        lost += done.returncode
    print(f"given {len(ledger.given)}, fetched {len(ledger.fetched)}, lost {lost}, ", end="")
    print(f"different {bad}, twice {ledger.twice}, answers that broke off {ledger.broken}")
    return 1 if lost or bad or ledger.twice else 0


if __name__ == "__main__":
    sys.exit(main())
