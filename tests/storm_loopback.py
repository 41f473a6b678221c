"""A storm of faults at the devices of a whole link: two daemons, real drivers, emulated devices.

    python tests/storm_loopback.py --of-each 10 --seed 1 [--folder FOLDER]

At random times, on the transmitter's TCP port and on the time-to-digital converter's pseudo-terminal: noise,
silence, half frames, babble, a count that begins again, unplugging, the wrong device on the port, `kill -9`
of the device's process, a stopped process; none longer than its limit. Meanwhile two encryptors move keys.

Then both daemons are the same processes as before; each failure of a device was that of a fault of its own;
each unplugged device was in use again within 5 s of its return; clicks are sifted and new keys come; all keys
are equal and none was delivered twice; each tag is at its place in the device's count: none is counted twice,
and each one is received or counted as lost. Prints what was seen; exit 1 if anything was wrong.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from daemons_support import ROLES, SMALL_LINK, Sites, alter, eventually
from exchange_support import Exchange
from fault_soak import drain
from storm_ledger import Account, account

from qnode.config import Role, convert, load
from qnode.devices.status import DeviceStatus
from qnode.emulate.bench import Bench
from qnode.loopback.prepare import LoopbackConfig, Staging, prepare
from qnode.operate.status.model import NodeStatus

# How long each fault lasts, in seconds. A driver gives up a device that does not answer for 2 s.
LIMITS_S = {
    "noise": (0.2, 3.0),
    "silence": (0.1, 1.4),
    "halves": (0.1, 1.5),
    "babble": (0.0, 0.0),
    "begin-again": (0.0, 0.0),
    "unplug": (0.1, 4.0),
    "wrong device": (0.5, 4.0),
    "kill": (0.0, 1.0),
    "stop": (0.2, 4.0),
}
AWAY = ("unplug", "wrong device", "kill")
RETURN_LIMIT_S = 5.0
# A failure is noticed this long after its fault at the latest: four questions, and the time between two.
NOTICED_S = 5.0
PAUSE_S = (0.2, 3.0)
LOOK_S = 0.2
BLOCKS_AFTER = 2
# A third of the tags of the small link: a block takes 4 s, and a busy machine keeps up with them.
STORM_LINK = {**SMALL_LINK, "simulation": {**SMALL_LINK["simulation"], "attenuation_db": 27.0}}
DEVICES: dict[Role, str] = {"alice": "transmitter", "bob": "tdc"}


class EmulatedSites(Sites):
    """Two daemons whose devices are behind ports; Bob's driver also writes down what it yields."""

    def __init__(self, folder: Path) -> None:
        self.data, self._logs = folder / "data", folder / "logs"
        self._logs.mkdir()
        config = convert(STORM_LINK, LoopbackConfig, where="the small link")
        prepared = prepare(self.data, config, Staging(1.0, emulated=True))
        self.site_files, self.endpoints = prepared.site_files, prepared.endpoints
        self.benches = prepared.benches
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.driver_ledger = folder / "driver.tags"
        self._install_driver(folder / "installed")
        alter(self.site_files["bob"], devices__tdc__driver="storm-tdc")

    def _install_driver(self, folder: Path) -> None:
        """Put the driver into the path of Python, as an installed package of its own would be."""
        described = folder / "qnode_storm-1.dist-info"
        described.mkdir(parents=True)
        (described / "METADATA").write_text("Metadata-Version: 2.1\nName: qnode-storm\nVersion: 1\n")
        (described / "entry_points.txt").write_text("[qnode.drivers]\nstorm-tdc = storm_driver:OpenTdc\n")
        path = [str(folder), str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
        os.environ["PYTHONPATH"] = os.pathsep.join(part for part in path if part)
        os.environ["STORM_LEDGER"] = str(self.driver_ledger)


class BenchProcess:
    """The emulated device of a site, in a process that takes faults, and is killed and started again."""

    def __init__(self, bench_file: Path, folder: Path, name: str, seed: int) -> None:
        self.ledgers: list[Path] = []
        self._file, self._folder, self._name, self._seed = bench_file, folder, name, seed
        self.start()

    def start(self) -> None:
        """Start the process; returns when its port is there."""
        self.ledgers.append(self._folder / f"{self._name}-{len(self.ledgers)}.tags")
        program = [sys.executable, str(Path(__file__).with_name("storm_bench.py"))]
        self.process = subprocess.Popen(
            [*program, str(self._file), str(self.ledgers[-1]), str(self._seed + len(self.ledgers))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self._answered()

    def tell(self, words: str) -> None:
        """Let a fault begin or end; returns when it has happened."""
        assert self.process.stdin is not None
        self.process.stdin.write(words.encode() + b"\n")
        self.process.stdin.flush()
        self._answered()

    def kill(self) -> None:
        """End the process as a power cut would; its name goes with it, like a real device's does."""
        self.process.kill()
        self.process.wait()
        [device] = load(self._file, Bench).device
        if device.port.startswith("/"):
            Path(device.port).unlink(missing_ok=True)

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            self.process.wait(10.0)
        except subprocess.TimeoutExpired:
            self.kill()

    def _answered(self) -> None:
        assert self.process.stdout is not None
        answer = self.process.stdout.readline()
        assert answer == b"ok\n", f"the bench of {self._name} has ended"


@dataclass
class Happened:
    """A fault at a device: from when to when (Unix seconds), and when the device was in use afterwards."""

    kind: str
    began_s: float
    ended_s: float
    used_s: float = 0.0


class Watch(threading.Thread):
    """Looks at a daemon again and again. ``failures``: when its device failed, with the reason."""

    def __init__(self, sites: Sites, role: Role) -> None:
        super().__init__(daemon=True)
        self.failures: dict[float, str] = {}
        self._sites, self._role = sites, role
        self._over = threading.Event()

    def run(self) -> None:
        while not self._over.wait(LOOK_S):
            status = self._sites.status(self._role)
            device = self.device(status) if status else None
            if device is not None and device.failing_since is not None:
                self.failures.setdefault(device.failing_since, device.state.because)

    def stop(self) -> None:
        """Look no more."""
        self._over.set()
        self.join()

    def device(self, status: NodeStatus) -> DeviceStatus:
        """Return the status of the site's device."""
        return next(one for one in status.devices if one.name == DEVICES[self._role])

    def used_since(self) -> float | None:
        """Return since when the device is in use; None if it is not."""
        status = self._sites.status(self._role)
        device = self.device(status) if status else None
        return device.state.since if device is not None and device.well else None


@dataclass
class Seen:
    """What the storm brought."""

    happened: dict[Role, list[Happened]] = field(default_factory=dict)
    failures: dict[Role, dict[float, str]] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)


def storm_at(watch: Watch, bench: BenchProcess, kinds: list[str], chance: random.Random) -> list[Happened]:
    """Let the faults happen one after the other at a site, each when its device is in use."""
    happened = []
    for kind in kinds:
        time.sleep(chance.uniform(*PAUSE_S))
        fault = Happened(kind, time.time(), 0.0)
        for_s = chance.uniform(*LIMITS_S[kind])
        hold(kind, for_s, bench, chance)
        fault.ended_s = time.time()

        def used(fault: Happened = fault) -> float | None:
            since_s = watch.used_since()
            if since_s is None or (fault.kind in AWAY and since_s < fault.ended_s):
                return None  # of those that were away, the failure may not have been noticed yet
            return since_s

        fault.used_s = eventually(used, f"{watch.name}: in use after {kind}")
        happened.append(fault)
    return happened


def hold(kind: str, for_s: float, bench: BenchProcess, chance: random.Random) -> None:
    """Let one fault begin and end."""
    switches = {
        "noise": (f"noise {chance.choice((0.0001, 0.001, 0.01))}", "noise 0"),
        "silence": ("silent 1", "silent 0"),
        "halves": ("halves 1", "halves 0"),
        "unplug": ("unplug", "plug"),
    }
    if kind in switches:
        begin, end = switches[kind]
        bench.tell(begin)
        time.sleep(for_s)
        bench.tell(end)
    elif kind == "wrong device":
        bench.tell("unplug")
        bench.tell("plug-wrong")
        time.sleep(for_s)
        bench.tell("unplug")
        bench.tell("plug")
    elif kind == "kill":
        bench.kill()
        time.sleep(for_s)
        bench.start()
    elif kind == "stop":
        bench.process.send_signal(signal.SIGSTOP)
        time.sleep(for_s)
        bench.process.send_signal(signal.SIGCONT)
    else:
        bench.tell(kind)


def storm(sites: EmulatedSites, benches: dict[Role, BenchProcess], of_each: int, seed: int) -> Seen:
    """Let all faults happen, half of each kind at either site, at both sites at once."""
    seen, chance = Seen(), random.Random(seed)
    plans: dict[Role, list[str]] = {role: [] for role in ROLES}
    for kind in LIMITS_S:
        first = chance.randrange(2)
        for number in range(of_each):
            plans[ROLES[(first + number) % 2]].append(kind)
    watches = {role: Watch(sites, role) for role in ROLES}
    for watch in watches.values():
        watch.start()
    with ThreadPoolExecutor(len(ROLES)) as threads:
        running = {}
        for role, plan in plans.items():
            chance.shuffle(plan)
            own = random.Random(chance.random())
            running[role] = threads.submit(storm_at, watches[role], benches[role], plan, own)
        for role, one in running.items():
            seen.happened[role] = one.result()
    time.sleep(NOTICED_S)
    for role, watch in watches.items():
        eventually(watch.used_since, f"the device of {role} in use after the storm")
        watch.stop()
        seen.failures[role] = watch.failures
    return seen


def check_devices(seen: Seen) -> None:
    """Print how the devices came back; each failure must be that of a fault of its own site."""
    back_s = sorted(
        fault.used_s - fault.ended_s
        for faults in seen.happened.values()
        for fault in faults
        if fault.kind in AWAY
    )
    if back_s:
        p90_s = back_s[int(0.9 * (len(back_s) - 1))]
        print(
            f"{len(back_s)} returns of a device, in use again after {back_s[0]:.2f} to {back_s[-1]:.2f} s, "
            f"median {median(back_s):.2f} s, 90 % {p90_s:.2f} s"
        )
    seen.wrong += [
        f"in use only {late_s:.1f} s after its return" for late_s in back_s if late_s > RETURN_LIMIT_S
    ]
    for role in ROLES:
        faults, failures = seen.happened[role], seen.failures[role]
        for at_s, because in failures.items():
            if not any(f.began_s <= at_s <= max(f.ended_s, f.used_s) + NOTICED_S for f in faults):
                seen.wrong.append(f"{role}: failed at {at_s:.1f} without a fault of its own: {because}")
        print(f"{role}: {len(faults)} faults, {len(failures)} failures of the device")


def check_tags(counted: Account, status: NodeStatus, wrong: list[str]) -> None:
    """Print the account of the tags; the node must not have more than its driver."""
    print(
        f"tags: {counted.clicks} clicks = {counted.received} received + {counted.lost} counted as lost + "
        f"{counted.after_end} after the last block of an opening + {counted.not_counted} while nothing was "
        f"started; {counted.openings} openings"
    )
    totals = status.totals
    print(f"tags in the node: {totals.tags}, {totals.tags_lost} lost, {totals.tags_dropped} dropped")
    wrong += counted.wrong
    if totals.tags > counted.received or totals.tags_lost > counted.lost:
        wrong.append("the node has counted more tags than its driver gave it")


def run(folder: Path, of_each: int, seed: int) -> list[str]:
    """Run link and storm; return what was wrong."""
    sites = EmulatedSites(folder)
    benches: dict[Role, BenchProcess] = {}
    began_s = time.monotonic()
    try:
        for role in ROLES:
            benches[role] = BenchProcess(sites.benches[role], folder, role, seed)
        sites.start(*ROLES)
        sites.wait_until_serving(*ROLES)
        exchange = Exchange(sites.endpoints)
        with ThreadPoolExecutor(1) as threads:
            moving = threads.submit(exchange.run)
            try:
                eventually(lambda: exchange.fetched, "the first key")
                started_s = time.monotonic()
                seen = storm(sites, benches, of_each, seed)
                print(f"the storm took {time.monotonic() - started_s:.0f} s")
                wait_for_new_keys(sites, exchange)
            finally:
                exchange.stop()
            moving.result()
        status = sites.status("bob")
        assert status is not None
        seen.wrong += [f"{role} has ended" for role in ROLES if sites.processes[role].poll() is not None]
        left, different = drain(sites)
        codes = sites.stop(*ROLES)
    finally:
        for bench in benches.values():
            bench.close()
        for process in sites.processes.values():
            process.kill()
    seen.wrong += different + [f"exit code {code}" for code in codes if code]
    seen.wrong += [f"{role}: a traceback in its log" for role in ROLES if "Traceback" in sites.log(role)]
    seen.wrong += keys_wrong(exchange)
    check_devices(seen)
    check_tags(account(benches["bob"].ledgers, sites.driver_ledger), status, seen.wrong)
    print(f"blocks: {status.block.accepted} accepted, discarded {status.block.discarded}")
    print(
        f"keys: {len(exchange.assigned)} assigned, {len(exchange.fetched)} fetched, equal; {left} taken last"
    )
    print(f"{time.monotonic() - began_s:.0f} s in all")
    return seen.wrong


def wait_for_new_keys(sites: EmulatedSites, exchange: Exchange) -> None:
    """Wait until clicks were sifted again, and keys of blocks that began after the storm have come."""
    before = sites.status("bob")
    assert before is not None
    ended_s = time.monotonic()

    def sifted() -> bool:
        now = sites.status("bob")
        return now is not None and now.totals.sifted_bits > before.totals.sifted_bits

    eventually(sifted, "clicks sifted after the storm")
    sifted_s = time.monotonic() - ended_s

    def accepted() -> bool:
        now = sites.status("bob")
        return now is not None and now.block.accepted >= before.block.accepted + BLOCKS_AFTER

    eventually(accepted, "blocks after the storm")
    fetched = len(exchange.fetched)
    eventually(lambda: len(exchange.fetched) > fetched, "a key after the storm")
    print(f"sifted {sifted_s:.1f} s and a key {time.monotonic() - ended_s:.1f} s after the storm")


def keys_wrong(exchange: Exchange) -> list[str]:
    """Return what was wrong with the keys that were moved."""
    wrong = [f"different bits: {key_id}" for key_id in exchange.different]
    wrong += [f"lost: {key_id}" for key_id in exchange.refused]
    wrong += ["assigned twice"] * (len(exchange.assigned) - len(set(exchange.assigned)))
    wrong += ["fetched twice"] * (len(exchange.fetched) - len(set(exchange.fetched)))
    return wrong + ["assigned, not fetched"] * len(set(exchange.assigned) ^ set(exchange.fetched))


def main() -> int:
    """Print what was seen; return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--of-each", type=int, default=10, help="faults of each kind (default 10)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="new folder that keeps logs and tags; default: none does")
    options = parser.parse_args()
    if options.folder:
        options.folder.mkdir()
        wrong = run(options.folder, options.of_each, options.seed)
    else:
        with tempfile.TemporaryDirectory() as folder:
            wrong = run(Path(folder), options.of_each, options.seed)
    print(f"{len(wrong)} wrong" + "".join(f"\n  {one}" for one in wrong[:20]))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
