"""A real Prometheus with the shipped alert rules, their times divided by a factor, and what it saw."""

import contextlib
import json
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

RULES = Path(__file__).resolve().parent.parent.parent / "config" / "prometheus-rules.yml"
SCRAPE_S = 2
PATIENCE_S = 900.0
LOOK_S = 0.5
_SECONDS = {"s": 1, "m": 60, "h": 3600}


def quicker(rules: str, factor: float) -> str:
    """Return the rules with every `for:`, every range and the limit of QkdNoNewKey divided by ``factor``.

    What is counted stays as it is, and so do the days of certificates.
    """

    def divided(found: re.Match[str]) -> str:
        ms = round(1000 * int(found[2]) * _SECONDS[found[3]] / factor)
        return f"{found[1]}{ms}ms{found[4]}"

    rules = re.sub(r"(for: )(\d+)([smh])($)", divided, rules, flags=re.MULTILINE)
    rules = re.sub(r"(\[)(\d+)([smh])(\])", divided, rules)
    return rules.replace("> 3600", f"> {3600 / factor:g}")


@dataclass(frozen=True)
class Seen:
    """An alert that fired so long after its fault began, and cleared so long after the fault ended."""

    alert: str
    instance: str
    fault: str
    fired_s: float
    cleared_s: float


class Watch:
    """The alerts of a Prometheus at ``url`` that scrapes what `scrape` says. ``wrong``: what went wrong."""

    def __init__(self, url: str, targets: Path) -> None:
        self._url, self._targets = url, targets
        self.seen: list[Seen] = []
        self.wrong: list[str] = []

    def scrape(self, job: str, **addresses: str) -> None:
        """Scrape these addresses, by the name of their instance, and no others of the job."""
        groups = [{"targets": [one], "labels": {"instance": name}} for name, one in addresses.items()]
        path = self._targets / f"{job}.json"
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(groups))
        partial.replace(path)

    def firing(self) -> set[tuple[str, str]]:
        """Return the alerts that fire, each with its instance."""
        query = {"query": 'ALERTS{alertstate="firing"}'}
        answer = httpx.get(f"{self._url}/api/v1/query", params=query, trust_env=False, timeout=30.0).json()
        found: list[dict[str, Any]] = answer["data"]["result"]
        return {(one["metric"]["alertname"], one["metric"]["instance"]) for one in found}

    def case(
        self,
        fault: str,
        *alerts: tuple[str, str],
        begin: Callable[[], object] = lambda: None,
        keep: Callable[[], object] = lambda: None,
        end: Callable[[], object] = lambda: None,
        known: bool = False,
    ) -> None:
        """Bring a fault about, see its alerts fire, end it, and see them clear.

        ``keep`` is called again and again until they fire. Alerts: each with its instance. ``known``: they
        fire already, for the fault has been there.
        """
        print(f"{fault} ...", flush=True)
        expected = set(alerts)
        if not known and (early := self.firing() & expected):
            self.wrong.append(f"before {fault}: {early} fire already")
        began_s = time.monotonic()
        begin()
        fired = self._until(lambda firing: firing & expected, expected, keep)
        ended_s = time.monotonic()
        end()
        cleared = self._until(lambda firing: expected - firing, set(fired), lambda: None)
        for one in alerts:
            if one in fired and one in cleared:
                self.seen.append(Seen(*one, fault, fired[one] - began_s, cleared[one] - ended_s))
                print(f"  {one[0]} at {one[1]}: fired after {fired[one] - began_s:.0f} s", end="")
                print(f", cleared after {cleared[one] - ended_s:.0f} s", flush=True)
            else:
                self.wrong.append(
                    f"{fault}: {one[0]} at {one[1]} did not {'clear' if one in fired else 'fire'}"
                )
                print(f"  {self.wrong[-1]}; firing: {sorted(self.firing())}", flush=True)

    def quiet(self, for_s: float, *known: tuple[str, str]) -> None:
        """See that for a time no alert fires but those known."""
        deadline_s = time.monotonic() + for_s
        while time.monotonic() < deadline_s:
            if unknown := self.firing() - set(known):
                self.wrong.append(f"on a well link: {unknown}")
                print(f"  {self.wrong[-1]}", flush=True)
                return
            time.sleep(LOOK_S)

    def _until(
        self,
        choose: Callable[[set[tuple[str, str]]], set[tuple[str, str]]],
        expected: set[tuple[str, str]],
        keep: Callable[[], object],
    ) -> dict[tuple[str, str], float]:
        """Return when each of ``expected`` was first chosen; without those that were not in time."""
        when: dict[tuple[str, str], float] = {}
        deadline_s = time.monotonic() + PATIENCE_S
        while expected - set(when) and time.monotonic() < deadline_s:
            keep()
            for one in choose(self.firing()) & expected:
                when.setdefault(one, time.monotonic())
            time.sleep(LOOK_S)
        return when


@contextlib.contextmanager
def prometheus(folder: Path, factor: float) -> Iterator[Watch]:
    """Run a Prometheus with the quicker rules."""
    folder.mkdir()
    (folder / "rules.yml").write_text(quicker(RULES.read_text(), factor))
    subprocess.run(["promtool", "check", "rules", str(folder / "rules.yml")], check=True, stdout=sys.stderr)
    scrapes = [
        {
            "job_name": job,
            "file_sd_configs": [{"files": [str(folder / f"{job}.json")], "refresh_interval": "2s"}],
        }
        for job in ("qnode", "qnode-agent")
    ]
    interval = f"{SCRAPE_S}s"
    configuration = {
        "global": {"scrape_interval": interval, "scrape_timeout": interval, "evaluation_interval": "1s"},
        "rule_files": [str(folder / "rules.yml")],
        "scrape_configs": scrapes,
    }
    (folder / "prometheus.yml").write_text(json.dumps(configuration))
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = [
        "prometheus",
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address={address}",
    ]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        url = f"http://{address}"
        deadline_s = time.monotonic() + PATIENCE_S
        while True:
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(f"{url}/-/ready", trust_env=False).status_code == 200:
                    break
            if process.poll() is not None or time.monotonic() > deadline_s:
                sys.exit(f"Prometheus does not run: {(folder / 'log').read_text()[-2000:]}")
            time.sleep(LOOK_S)
        yield Watch(url, folder)
    finally:
        process.terminate()
        process.wait()
