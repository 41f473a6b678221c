"""Every alert by its real fault: real daemons, scraped by a real Prometheus with the shipped rules.

    python tests/trial/alerts.py [--factor 20] [SCENE ...]

Each fault is brought about, its alerts must fire; it is ended, they must clear. On a well link nothing else
may fire. Times of the rules (`for:`, ranges, the limit of QkdNoNewKey) are divided by --factor in a copy;
what is counted stays as it is. Scenes: plain, attack, dry, devices, stalls, agents (all by default). Needs
Debian's package prometheus. An hour on a machine that does other things as well. Exit 1 if an alert of the
scenes did not fire and clear, or if one fired on a well link; of all scenes every alert must have been seen.
"""

import argparse
import contextlib
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import structlog
import trio

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE)]

import http_support  # noqa: E402
from alert_sites import SLOW, VALID_DAYS, EmulatedSites, Lab, SlowSites, knock  # noqa: E402
from alert_watch import PATIENCE_S, RULES, Watch, prometheus  # noqa: E402
from daemons_support import ROLES, Sites, encryptors, eventually  # noqa: E402
from storm_bench import LONG_RING_S  # noqa: E402
from storm_loopback import BenchProcess  # noqa: E402
from test_agent_daemons import pair  # noqa: E402

from qnode.emulate.open_protocol_transmitter import RING_S  # noqa: E402

SIMULATED = tuple(("QkdSimulatedKeys", role) for role in ROLES)
PADS = 12
FIRST_KEY_S = 600.0
# Longer than the transmitter remembers its symbols, and shorter than anybody at either site waits.
STALL_S, BETWEEN_STALLS_S = 6.0, 2.0


@contextlib.contextmanager
def running(watch: Watch, sites: Sites, *, key: bool = True) -> Iterator[None]:
    """Run both daemons and scrape them; with ``key`` from their first key on."""
    try:
        sites.start(*ROLES)
        sites.wait_until_serving(*ROLES)
        if key:
            eventually(lambda: has_key(sites), "the first key", within_s=FIRST_KEY_S)
        places = {role: urlsplit(sites.endpoints.sites[role].metrics_url).netloc for role in ROLES}
        watch.scrape("qnode", **places)
        yield
    finally:
        watch.scrape("qnode")
        for process in sites.processes.values():
            process.send_signal(signal.SIGCONT)
            process.kill()
            process.wait()


def has_key(sites: Sites) -> bool:
    """Tell whether a block has given key at both sites."""
    statuses = [sites.status(role) for role in ROLES]
    return all(status is not None and status.block.accepted for status in statuses)


def plain(watch: Watch, folder: Path, factor: float) -> None:
    """A well link; then its daemons, its files and its encryptors have faults."""
    sites = SlowSites(folder)
    lab = Lab(sites)
    with running(watch, sites):
        watch.quiet(2400 / factor, *SIMULATED)
        alice = sites.endpoints.sites["alice"]
        sae, _ = encryptors(sites.endpoints)
        recorder: list[subprocess.Popen[bytes]] = []

        def record() -> None:
            command = [sys.executable, "-m", "qnode", "record", "--site", alice.control_socket]
            recorder.append(subprocess.Popen([*command, "--out", str(folder / "recording")]))

        watch.case(
            "qnode record", ("QkdRecorded", "alice"), begin=record, end=lambda: recorder[0].terminate()
        )
        recorder[0].wait()
        nobody = "00000000-0000-4000-8000-000000000000"
        watch.case(
            "an encryptor asks for keys that are not there",
            ("QkdSaeRefused", "alice"),
            begin=lambda: [sae.fetch([nobody]) for _ in range(40)],
        )
        watch.case(
            "a client without a certificate",
            ("QkdStrangers", "alice"),
            begin=lambda: knock(alice.url, 200),
        )

        def drain() -> None:
            if left := min(sae.stored(), 128):
                sae.post("enc_keys", {"number": left})

        watch.case("an encryptor takes every key", ("QkdKeysLow", "alice"), keep=drain)
        for days, name in ((20.0, "30Days"), (5.0, "7Days"), (0.5, "1Day")):
            watch.case(
                f"a certificate with {days:g} days left",
                (f"QkdCertificateExpiresIn{name}", "alice"),
                begin=lambda days=days: lab.certify(days),  # type: ignore[misc]
                end=lambda: lab.certify(VALID_DAYS),
            )
        watch.case(
            "a CRL with 5 days left",
            ("QkdCertificateExpiresIn7Days", "alice"),
            begin=lambda: lab.revoke_nothing(5.0),
            end=lambda: lab.revoke_nothing(VALID_DAYS),
        )
        watch.case(
            "a CRL that is none",
            ("QkdNodeTroubled", "alice"),
            begin=lambda: lab.reload(crl=b"no CRL\n"),
            end=lambda: lab.revoke_nothing(VALID_DAYS),
        )
        watch.case(
            "SIGSTOP of bob's daemon",
            ("QkdNodeDown", "bob"),
            begin=lambda: sites.processes["bob"].send_signal(signal.SIGSTOP),
            end=lambda: sites.processes["bob"].send_signal(signal.SIGCONT),
        )
        watch.case(
            "alice's daemon killed",
            *(("QkdNodeDown", "alice"), ("QkdPeerDisconnected", "bob"), ("QkdNodeTroubled", "bob")),
            begin=lambda: sites.kill("alice"),
            end=lambda: sites.start("alice"),
        )
        watch.case("simulated devices", SIMULATED[0], known=True, end=lambda: watch.scrape("qnode"))


def attack(watch: Watch, folder: Path, factor: float) -> None:
    """Dark from the start; later one qubit in three is measured and sent again; later blinding."""
    times = [at / factor for at in (0.0, 5500.0, 8000.0, 14000.0, 20000.0, 23000.0)]
    changes: list[dict[str, Any]] = [
        {"source_on": False},
        {"source_on": True},
        {"eve_intercept": 0.33},
        {"eve_intercept": 0.0},
        {"eve_blinding": True},
        {"eve_blinding": False},
    ]
    sites = SlowSites(folder, *({"at_s": at, **change} for at, change in zip(times, changes, strict=True)))
    with running(watch, sites, key=False):
        watch.case("no light from the start", ("QkdNoLock", "bob"), ("QkdNoKeyYet", "bob"))
        watch.case(
            "intercept and resend, one qubit in three",
            *(("QkdQberHigh", "bob"), ("QkdBlocksDiscarded", "bob"), ("QkdNoNewKey", "bob")),
        )
        watch.case("blinded detectors", ("QkdCountsImplausible", "bob"))


def dry(watch: Watch, folder: Path, factor: float) -> None:
    """A pre-shared key of few one-time pads, and an attack, so that no block adds to them for a while."""
    attacked = {"at_s": 0.0, "eve_intercept": 0.33}, {"at_s": 2400 / factor, "eve_intercept": 0.0}
    sites = SlowSites(folder, *attacked, pads=PADS)
    with running(watch, sites, key=False):
        alerts = [("QkdAuthenticationPadsLow", role) for role in ROLES]
        watch.case(f"a pre-shared key of {PADS} pads a direction, and no block that adds any", *alerts)


def devices(watch: Watch, folder: Path, factor: float) -> None:
    """Devices behind ports: unplugged, with a loose cable, with noise on the line."""
    sites = EmulatedSites(folder)
    with benches_of(sites, folder) as benches, running(watch, sites, key=False):
        bench = benches["bob"]
        watch.case(
            "the time tagger unplugged",
            ("QkdDeviceDown", "bob"),
            begin=lambda: bench.tell("unplug"),
            end=lambda: bench.tell("plug"),
        )

        def loose() -> None:
            for words in ("unplug", "plug"):
                bench.tell(words)
                time.sleep(3.0)

        watch.case("a loose cable", ("QkdDeviceRestarts", "bob"), keep=loose)
        watch.case(
            "noise on the serial line",
            ("QkdTagsLost", "bob"),
            begin=lambda: bench.tell("noise 0.0001"),
            end=lambda: bench.tell("noise 0"),
        )


@contextlib.contextmanager
def benches_of(sites: EmulatedSites, folder: Path) -> Iterator[dict[str, BenchProcess]]:
    """Run the emulated devices of both sites."""
    benches: dict[str, BenchProcess] = {}
    try:
        for role in ROLES:
            benches[role] = BenchProcess(sites.benches[role], folder, role, 1)
        yield benches
    finally:
        for one in benches.values():
            one.close()


def stalls(watch: Watch, folder: Path, factor: float) -> None:
    """A link of emulated devices: the transmitter goes on and forgets while Alice's daemon stands still."""
    sites = EmulatedSites(folder, SLOW["simulation"]["attenuation_db"])
    dropped = {("QkdClicksDropped", role) for role in ROLES}
    with benches_of(sites, folder) as benches, running(watch, sites):

        def stall() -> None:
            for word, then_s in ((signal.SIGSTOP, STALL_S), (signal.SIGCONT, BETWEEN_STALLS_S)):
                sites.processes["alice"].send_signal(word)
                time.sleep(then_s)

        watch.case(
            f"alice's daemon stands still for {STALL_S:g} s, and her transmitter forgets after {RING_S} s",
            *sorted(dropped),
            begin=lambda: benches["alice"].tell(f"forget {RING_S}"),
            keep=stall,
            end=lambda: benches["alice"].tell(f"forget {LONG_RING_S}"),
        )


def agents(watch: Watch, folder: Path, factor: float) -> None:
    """Two agents beside encryptors: one is killed, then their key managers have no key."""
    trio.run(_agents, watch, folder, factor)


async def _agents(watch: Watch, folder: Path, factor: float) -> None:
    http_support.LIMIT_S = PATIENCE_S * 10
    async with pair(folder, longest_s=1200 / factor) as made:
        ends = made.sites
        try:
            for end in ends.values():
                end.start()
            await made.new_key(2)
            places = {f"agent-{name}": f"127.0.0.1:{end.metrics_port}" for name, end in ends.items()}
            watch.scrape("qnode-agent", **places)
            in_thread: Callable[..., Any] = trio.to_thread.run_sync
            await in_thread(watch.quiet, 600 / factor)
            await in_thread(
                lambda: watch.case(
                    "an agent killed",
                    ("QkdAgentDown", "agent-a"),
                    begin=lambda: ends["a"].stop(signal.SIGKILL),
                    end=lambda: ends["a"].start(),
                )
            )

            def give(chunks: int) -> None:
                made.kmes.supply.chunks = chunks

            await in_thread(
                lambda: watch.case(
                    "the key managers have no key",
                    *(("QkdAgentHolding", "agent-a"), ("QkdAgentStarved", "agent-a")),
                    begin=lambda: give(0),
                    end=lambda: give(100_000),
                )
            )
        finally:
            watch.scrape("qnode-agent")


SCENES: dict[str, Callable[[Watch, Path, float], None]] = {
    one.__name__: one for one in (plain, attack, dry, devices, stalls, agents)
}


def main() -> int:
    """Run the scenes; return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("scenes", nargs="*", metavar="SCENE", choices=[[], *SCENES], help="default: all")
    parser.add_argument("--factor", type=float, default=20.0, help="by which times of the rules are divided")
    parser.add_argument("--folder", type=Path, help="new folder that keeps logs; default: none does")
    wanted = parser.parse_args()
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    with contextlib.ExitStack() as opened:
        folder = wanted.folder or Path(opened.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(exist_ok=True)
        watch = opened.enter_context(prometheus(folder / "prometheus", wanted.factor))
        for job in ("qnode", "qnode-agent"):
            watch.scrape(job)
        for name in wanted.scenes or SCENES:
            print(f"== {name}", flush=True)
            (folder / name).mkdir()
            try:
                SCENES[name](watch, folder / name, wanted.factor)
            except (AssertionError, OSError, httpx.HTTPError) as error:
                watch.wrong.append(f"{name}: {error}")
    alerts = re.findall(r"- alert: (\w+)", RULES.read_text())
    seen = {one.alert for one in watch.seen}
    print(f"{len(seen)} of {len(alerts)} alerts fired and cleared (times divided by {wanted.factor:g})")
    if not wanted.scenes:
        watch.wrong += [f"not seen: {name}" for name in alerts if name not in seen]
    for fault in watch.wrong:
        print(fault)
    return 1 if watch.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
