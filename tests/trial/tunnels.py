#!/usr/bin/env python3
"""Two agents and a real tunnel under traffic, for an hour: what a change of key costs, and what faults do.

    python tests/trial/tunnels.py --kind wireguard --period 30 --seconds 3600 --rate-mbit 200
    python tests/trial/tunnels.py --kind wireguard --period 30 --faults

Two network namespaces, joined by a cable for the tunnel and another one for the agents' line; in each the
encryptor, a key manager and `qnode agent run`. Through the tunnel go probes with sequence numbers, 100 a
second, and iperf3 both ways. A summary is printed; exit status 1 if something was not as it must be. Needs
root, iperf3, tcpdump and the encryptor.
"""

import argparse
import json
import math
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

import tomli_w
import trustme

HERE: Final = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE)]

from tunnel_faults import faults, run_fault, with_losses  # noqa: E402
from tunnel_figures import Event, captured, events, figures, processor_s, traffic  # noqa: E402
from tunnel_sites import KINDS, Kind, Site  # noqa: E402

LINE_PORT: Final = 7500
KME_PORT: Final = 8443
PROBE_PORT: Final = 7600
PROBES_A_SECOND: Final = 100
FIRST_KEY_LIMIT_S: Final = 120.0
DIFFER_P99_S: Final = 1.0


class Trial:
    """Both sites with all their processes."""

    def __init__(
        self, kind: Kind, pair: tuple[Site, Site], folder: Path, arguments: argparse.Namespace
    ) -> None:
        self.kind = kind
        self.alice, self.bob = pair
        self.folder = folder
        self.arguments = arguments
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def sites(self) -> tuple[Site, Site]:
        """Alice's and Bob's."""
        return self.alice, self.bob

    def start(self, name: str, site: Site, *command: str) -> None:
        """Start a process in a site's namespace; its output goes to NAME.log."""
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                ["ip", "netns", "exec", site.namespace, *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def kill(self, name: str) -> None:
        """End a process at once."""
        self.processes[name].kill()
        self.processes[name].wait()

    def start_kme(self, site: Site) -> None:
        """Start a site's key manager."""
        program = (sys.executable, str(HERE / "small_kme.py"), str(self.folder), site.name, str(KME_PORT))
        self.start(f"kme-{site.name}", site, *program)

    def start_agent(self, site: Site) -> None:
        """Start a site's agent."""
        file = str(self.folder / f"agent-{site.name}.toml")
        self.start(
            f"agent-{site.name}", site, sys.executable, "-m", "qnode", "agent", "run", "--config", file
        )

    def log(self, name: str) -> Path:
        """Return where a process writes."""
        return self.folder / f"{name}.log"

    def set_up(self) -> None:
        """Make the agents' line, certificates and files; start key managers and agents."""
        mark = secrets.token_hex(3)
        subprocess.run(
            f"ip link add qa{mark} netns {self.alice.namespace} type veth"
            f" peer name qb{mark} netns {self.bob.namespace}".split(),
            check=True,
        )
        for site, end, number in ((self.alice, "qa", 1), (self.bob, "qb", 2)):
            site.run("ip", "link", "set", f"{end}{mark}", "name", "line")
            site.run("ip", "addr", "add", f"10.213.0.{number}/24", "dev", "line")
            site.run("ip", "link", "set", "line", "up")
        write_files(self.folder, self.sites, self.arguments.period)
        for site in self.sites:
            self.start_kme(site)
        for site in self.sites:
            self.start_agent(site)
        echo = (
            sys.executable,
            str(HERE / "tunnel_probe.py"),
            "echo",
            self.bob.tunnel_address,
            str(PROBE_PORT),
        )
        self.start("echo", self.bob, *echo)
        self.wait_for_change(0.0, FIRST_KEY_LIMIT_S)

    def wait_for_change(self, since: float, limit_s: float) -> float | None:
        """Wait until both agents have told of a change after ``since``; return when the later one did."""
        deadline = time.monotonic() + limit_s
        while time.monotonic() < deadline:
            ends = [
                min(
                    (
                        event.at
                        for event in self.told(site)
                        if event.name == "key.changed" and event.at > since
                    ),
                    default=None,
                )
                for site in self.sites
            ]
            if None not in ends:
                return max(end for end in ends if end is not None)
            time.sleep(0.5)
            if since == 0.0 and any(one.poll() is not None for one in self.processes.values()):
                break
        if since == 0.0:
            logs = "\n".join(self.log(f"agent-{site.name}").read_text()[-3000:] for site in self.sites)
            raise SystemExit(f"no first key\n{logs}")
        return None

    def told(self, site: Site) -> list[Event]:
        """Return the events in the log of a site's agent."""
        return events(self.log(f"agent-{site.name}"))

    @contextmanager
    def traffic(self, rate_mbit: float) -> Iterator[dict[str, Any]]:
        """Have traffic and probes in the tunnel, and yield what will hold the figures."""
        said: dict[str, Any] = {}
        for name, wanted in (("first", self.kind.first), ("answers", self.kind.answers)):
            self.start(name, self.alice, "tcpdump", "-i", "cable", "-n", "-tt", "-l", wanted)
        probes = self.folder / "probes.json"
        self.start(
            *("probe", self.alice, sys.executable, str(HERE / "tunnel_probe.py"), "send"),
            *(self.alice.tunnel_address, self.bob.tunnel_address),
            *(str(PROBE_PORT), str(PROBES_A_SECOND), str(probes)),
        )
        if rate_mbit:
            self.start("iperf-server", self.bob, "iperf3", "-s", "-B", self.bob.tunnel_address)
            time.sleep(1)
            protocol = ("-u", "-l", "1300") if self.arguments.udp else ()
            self.start(
                *("iperf", self.alice, "iperf3", "--bidir", "-J", *protocol),
                *("-B", self.alice.tunnel_address, "-c", self.bob.tunnel_address),
                *("-b", f"{rate_mbit}M", "-t", str(int(self.arguments.seconds)), "-i", "10"),
            )
        pids = self.daemons()
        before, began = {name: processor_s(pid) for name, pid in pids.items()}, time.time()
        try:
            yield said
        finally:
            passed = time.time() - began
            said["processor"] = {
                name: round((processor_s(pid) - before[name]) / passed, 3) for name, pid in pids.items()
            }
            said["since"], said["until"] = began, time.time()
            if rate_mbit:
                try:
                    self.processes["iperf"].wait(30)
                    said["traffic"] = traffic([json.loads(self.log("iperf").read_text())])
                except (subprocess.TimeoutExpired, ValueError) as error:
                    said["traffic"] = {"failed": str(error)[:200]}
            self.processes["probe"].terminate()
            self.processes["probe"].wait(60)
            said["probe"] = json.loads(probes.read_text())
            for name in ("first", "answers"):
                self.processes[name].terminate()
                self.processes[name].wait(60)
                said[name] = captured(self.log(name).read_text())

    def daemons(self) -> dict[str, int]:
        """Return the processes that the trial is about."""
        own = {name: one.pid for name, one in self.processes.items() if name.startswith(("kme-", "agent-"))}
        return own | {f"encryptor-{site.name}": site.daemon_pid for site in self.sites}

    def end(self) -> None:
        """End every process."""
        for process in self.processes.values():
            if process.poll() is None:
                process.terminate()
                try:
                    process.wait(10)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()


def write_files(folder: Path, sites: tuple[Site, Site], period_s: float) -> None:
    """Write certificates, the common secret of the key managers, and the agents' files."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    leaves = {"server": authority.issue_cert("127.0.0.1")}
    for site in sites:
        leaves |= {name: authority.issue_cert(name) for name in (f"sae-{site.name}", f"agent-{site.name}")}
    for name, leaf in leaves.items():
        (folder / f"{name}.pem").write_bytes(b"".join(blob.bytes() for blob in leaf.cert_chain_pems))
        leaf.private_key_pem.write_to_path(str(folder / f"{name}.key"))
        (folder / f"{name}.key").chmod(0o600)
    (folder / "supply_secret").write_bytes(secrets.token_bytes(32))
    for site, other, role in ((sites[0], sites[1], "initiator"), (sites[1], sites[0], "responder")):

        def files(name: str) -> dict[str, str]:
            pem = {"certificate": f"{name}.pem", "key": f"{name}.key", "ca": "ca.pem"}
            return {key: str(folder / file) for key, file in pem.items()}

        ends = {
            "initiator": {"connect": f"10.213.0.2:{LINE_PORT}"},
            "responder": {"listen": f"0.0.0.0:{LINE_PORT}"},
        }
        tables = {
            "agent": {
                "name": f"agent-{site.name}",
                "role": role,
                "run_dir": str(folder / f"run-{site.name}"),
            },
            "kme": {
                **files(f"sae-{site.name}"),
                "url": f"https://127.0.0.1:{KME_PORT}",
                "sae_id": f"sae-{site.name}",
                "peer_sae_id": f"sae-{other.name}",
            },
            "line": {**files(f"agent-{site.name}"), "peer_name": f"agent-{other.name}", **ends[role]},
            "rotation": {"period_s": period_s},
            "tunnel": site.tunnel_table(),
        }
        (folder / f"agent-{site.name}.toml").write_text(tomli_w.dumps(tables))


def run_changes(trial: Trial) -> dict[str, Any]:
    """Have changes under traffic for the time asked, and return the figures."""
    with trial.traffic(trial.arguments.rate_mbit) as said:
        time.sleep(trial.arguments.seconds)
    found = figures(
        trial.told(trial.alice),
        trial.told(trial.bob),
        said["probe"],
        said["first"],
        said["answers"],
        said["since"],
        said["until"],
    )
    return found | {"traffic": said.get("traffic"), "processor_share": said["processor"]}


def run_faults(trial: Trial) -> dict[str, Any]:
    """Let every fault happen, with probes in the tunnel, and return what each did."""
    seen = []
    with trial.traffic(0) as said:
        for fault in faults(trial.arguments.kme_away, trial.arguments.cut):
            time.sleep(trial.arguments.period)
            seen.append(run_fault(trial, fault))
            shown = {
                key: value for key, value in seen[-1].items() if key in ("fault", "back_after_s", "states")
            }
            print(json.dumps(shown), file=sys.stderr, flush=True)
    found = figures(
        trial.told(trial.alice),
        trial.told(trial.bob),
        said["probe"],
        said["first"],
        said["answers"],
        said["since"],
        said["until"],
    )
    return found | {"faults": with_losses(seen, said["probe"]["lost"])}


def wrong(found: dict[str, Any]) -> list[str]:
    """Return what was not as it must be."""
    faults = []
    if not found["changes"]:
        faults.append("no change was done")
    if found["keys_used_twice"]:
        faults.append(f"{found['keys_used_twice']} keys were used twice")
    if "faults" in found:
        return faults + [
            f"not back: {one['fault']}" for one in found["faults"] if one["back_after_s"] is None
        ]
    if found["changes_failed"]:
        faults.append(f"{found['changes_failed']} changes failed")
    within, chance = found["probes_lost_within_a_change"], found["probes_lost_within_a_change_by_chance"]
    if within > chance + 3 * math.sqrt(chance):  # a busy machine loses some at any time
        faults.append(f"{within} packets were lost within changes, {chance:g} by chance")
    if found["changes_with_handshakes_of_both_ends"]:
        faults.append("the responder's encryptor began a handshake during a change")
    if found["differed_s"].get("p99", 0.0) > DIFFER_P99_S:
        faults.append(f"the ends held different keys for more than {DIFFER_P99_S:g} s")
    return faults


def main() -> int:
    """Run the trial."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kind", choices=sorted(KINDS), default="wireguard")
    parser.add_argument("--period", type=float, default=30.0, help="seconds between two changes")
    parser.add_argument("--seconds", type=float, default=3600.0, help="how long")
    parser.add_argument(
        "--rate-mbit", type=float, default=200.0, help="traffic in each direction; 0: probes only"
    )
    parser.add_argument("--udp", action="store_true", help="traffic by UDP instead of TCP")
    parser.add_argument("--faults", action="store_true", help="faults instead of traffic")
    parser.add_argument("--kme-away", type=float, default=600.0, help="seconds without a key manager")
    parser.add_argument("--cut", type=float, default=120.0, help="seconds without line, fibre or cable")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--keep", type=Path, help="folder for all files, which must not exist")
    arguments = parser.parse_args()
    kind = KINDS[arguments.kind]()
    if (reason := kind.missing()) is not None:
        raise SystemExit(reason)
    os.umask(0o077)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # not without cleaning up
    with ExitStack() as stack:
        if arguments.keep is not None:
            arguments.keep.mkdir(parents=True)
            folder = arguments.keep.resolve()
        else:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        pair = stack.enter_context(kind.sites(f"qt{secrets.token_hex(3)}", folder))
        trial = Trial(kind, pair, folder, arguments)
        stack.callback(trial.end)
        trial.set_up()
        found = run_faults(trial) if arguments.faults else run_changes(trial)
    found["wrong"] = wrong(found)
    text = json.dumps(found, indent=1)
    if arguments.json is not None:
        arguments.json.write_text(text)
    print(text)
    return 1 if found["wrong"] else 0


if __name__ == "__main__":
    sys.exit(main())
