"""Alert rules and Grafana board against a real Prometheus that scrapes a loopback.

Checks the rules (`promtool check rules`), runs the tests of every alert (`promtool test rules`), then lets
a Prometheus scrape both sites of a loopback with the rules loaded, and asks it every query of the board. A
query that fails is wrong; so is one without an answer, but for figures that a well link does not have. Needs
Debian's package prometheus (promtool and the server; the server need not run as a service).

    python tests/trial/telemetry.py --seconds 60
"""

import argparse
import contextlib
import json
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx

TOP = Path(__file__).resolve().parent.parent.parent
PATIENT_S = 300.0
SCRAPE_S = 1
# What a short loopback lacks: agents, controllers, discarded blocks, a database, a plan, an hour of use.
MAY_BE_EMPTY = (
    "qkd_agent",
    "qnode-agent",
    "qkd_controller",
    "qkd_blocks_discarded",
    "qkd_telemetry",
    "qkd_planned",
    "qkd_keys_last",
)


def promtool(*arguments: str) -> bool:
    """Run promtool; return whether it is content."""
    done = subprocess.run(["promtool", *arguments], cwd=TOP, capture_output=True, text=True, check=False)
    print(f"promtool {' '.join(arguments)}: {'ok' if done.returncode == 0 else done.stdout + done.stderr}")
    return done.returncode == 0


@contextlib.contextmanager
def running(*command: str) -> Iterator[None]:
    """Run a command, and end it afterwards."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.terminate()
        process.wait()


def eventually(what: str, ask: Any) -> Any:
    """Return what ``ask`` returns as soon as it is true."""
    deadline_s = time.monotonic() + PATIENT_S
    while True:
        with contextlib.suppress(httpx.HTTPError, OSError, ValueError):
            if found := ask():
                return found
        if time.monotonic() > deadline_s:
            sys.exit(f"not within {PATIENT_S:g} s: {what}")
        time.sleep(0.5)


def ask(url: str, query: str) -> tuple[str, list[Any]]:
    """Return what is wrong with a query, and its result."""
    answer = httpx.get(f"{url}/api/v1/query", params={"query": query}, trust_env=False).json()
    if answer["status"] != "success":
        return str(answer.get("error")), []
    result: list[Any] = answer["data"]["result"]
    return "", result


def ask_all(url: str) -> list[str]:
    """Ask every query of the board; return what is wrong."""
    board = json.loads((TOP / "config" / "grafana-qnode.json").read_text())
    wrong, asked, answered = [], 0, 0
    for panel in board["panels"]:
        for target in panel.get("targets", []):
            query = target["expr"]
            for variable in ("job", "instance", "link"):
                query = query.replace(f"${variable}", ".*")
            fault, result = ask(url, query)
            asked, answered = asked + 1, answered + bool(result)
            if fault or (not result and not any(part in query for part in MAY_BE_EMPTY)):
                wrong.append(f"{panel['title']}: {query}: {fault or 'no answer'}")
    print(f"board: {asked} queries asked, {answered} with an answer")
    for variable in board["templating"]["list"]:
        if variable["type"] == "query":
            selector = variable["definition"].removeprefix("label_values(").rpartition(",")[0]
            fault, result = ask(url, selector.replace("$job", ".*").replace("$instance", ".*"))
            if fault or not result:
                wrong.append(f"variable {variable['name']}: {fault or 'no answer'}")
    return wrong


def main() -> None:
    """Run all checks; exit with 1 if one of them finds something."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="how long Prometheus scrapes")
    parser.add_argument("--speed", default="20", help="of the loopback")
    wanted = parser.parse_args()
    well = promtool("check", "rules", "config/prometheus-rules.yml")
    well &= promtool("test", "rules", "tests/prometheus-rules_test.yml")
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as opened:
        folder = Path(name)
        opened.enter_context(
            running(
                sys.executable, "-m", "qnode", "loopback", "--data-dir", str(folder), "--speed", wanted.speed
            )
        )
        endpoints = folder / "endpoints.json"
        sites = eventually("both sites serve", lambda: json.loads(endpoints.read_text())["sites"])
        targets = [httpx.URL(site["metrics_url"]).netloc.decode() for site in sites.values()]
        configuration = folder / "prometheus.yml"
        scrape = [{"job_name": "qnode", "static_configs": [{"targets": targets}]}]
        configuration.write_text(
            json.dumps(
                {
                    "global": {"scrape_interval": f"{SCRAPE_S}s", "evaluation_interval": f"{SCRAPE_S}s"},
                    "rule_files": [str(TOP / "config" / "prometheus-rules.yml")],
                    "scrape_configs": scrape,
                }
            )
        )
        with socket.create_server(("127.0.0.1", 0)) as free:
            address = f"127.0.0.1:{free.getsockname()[1]}"
        url = f"http://{address}"
        opened.enter_context(
            running(
                "prometheus",
                f"--config.file={configuration}",
                f"--storage.tsdb.path={folder / 'prometheus'}",
                f"--web.listen-address={address}",
            )
        )
        eventually("a block gave key", lambda: ask(url, "qkd_last_block_timestamp_seconds")[1])
        time.sleep(wanted.seconds)
        wrong = ask_all(url)
        _, firing = ask(url, 'ALERTS{alertstate="firing"}')
        print("firing:", ", ".join(sorted({one["metric"]["alertname"] for one in firing})) or "none")
    for fault in wrong:
        print(fault)
    sys.exit(0 if well and not wrong else 1)


if __name__ == "__main__":
    main()
