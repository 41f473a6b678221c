"""Print how many keys one of 1,000 pairs gets, and at what load daemons of 1 and of 10,000 pairs idle.

    python tests/measure_supply.py [--keys 400000] [--pairs 1000] [--many-pairs 10000] [--beside CHECKOUT]

Both sites run as daemons over TCP and TLS, without devices, on stores that were filled before. One pair asks
over HTTPS until it gets no more; its slave fetches nothing. Idle is the processor time of both daemons over
20 s, once a stock is settled. `--beside` measures the code of another checkout as well.
"""

import argparse
import json
import os
import shutil
import signal
import ssl
import subprocess
import sys
import tempfile
import time
import tomllib
from pathlib import Path
from typing import Any

LEAST_SHARE, MOST_IDLE_RATIO = 0.75, 2.0
SETTLED_S, SETTLING_S, IDLE_S = 12.0, 240.0, 20.0
RETRIES = 8
ROLES = ("alice", "bob")


def measure(n_keys: int, n_pairs: int, many_pairs: int) -> dict[str, float]:
    """Return the keys that one pair got, and the idle load by number of pairs, in percent of a core."""
    result: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        sites = Sites(Path(folder) / "sites", n_keys)
        sites.start(n_pairs)
        sites.settle()
        result["got"] = sites.take_all()
        sites.stop()
        for name, number in (("idle_1", 1), ("idle_many", many_pairs)):
            sites.start(number)
            sites.settle()
            result[name] = sites.idle_percent()
            sites.stop()
    return result


class Sites:
    """Both sites over one prepared folder; each start is from the same full stores."""

    def __init__(self, folder: Path, n_keys: int) -> None:
        from keys_support import add_block, make_block

        from qnode.keys import open_store
        from qnode.loopback.prepare import LoopbackConfig, Staging, prepare

        prepared = prepare(folder, LoopbackConfig(), Staging(1.0))
        self._endpoints = prepared.endpoints
        self._files: dict[str, Path] = dict(prepared.site_files.items())
        self._plain: dict[str, dict[str, Any]] = {
            role: tomllib.loads(path.read_text()) for role, path in self._files.items()
        }
        stores = []
        for role in ROLES:
            table = self._plain[role]["store"]
            store = open_store(
                Path(table["path"]),
                role=role,  # type: ignore[arg-type]
                store_key=Path(table["store_key"]).read_bytes(),
                anchor=Path(table["anchor"]),
                kme_id=f"kme-{role}",
                peer_kme_id="kme-bob" if role == "alice" else "kme-alice",
                create=True,
            )
            store.load_preshared(Path(table["preshared_key"]).read_bytes())
            stores.append(store)
        per_block = 20_000
        for block_id in range(1, 1 + n_keys // per_block):
            add_block(make_block(block_id, per_block), *stores)
        for store in stores:
            store.close()
        self._folder = folder
        self._full = folder.with_name("full")
        shutil.copytree(folder, self._full)
        self._processes: list[subprocess.Popen[bytes]] = []

    def start(self, n_pairs: int) -> None:
        """Run both daemons, with so many pairs that the one that asks is the last."""
        import tomli_w

        for role in ROLES:
            for name in ("store", "anchor"):
                self._copy(role, name)
            tables = self._plain[role] | {"devices": {}}
            others = [
                {"sae_id": f"sae-{at}-{i}", "kme_id": f"kme-{at}", "peers": [f"sae-{to}-{i}"]}
                for at, to in (ROLES, ROLES[::-1])
                for i in range(n_pairs - 1)
            ]
            asking = [sae for sae in tables["etsi014"]["sae"] if not sae["sae_id"].startswith("demo")]
            tables["etsi014"] = tables["etsi014"] | {"sae": others + asking}
            self._files[role].write_text(tomli_w.dumps(tables))
            command = [sys.executable, "-P", "-m", "qnode", "run", "--config", str(self._files[role])]
            self._processes.append(
                subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            )

    def _copy(self, role: str, name: str) -> None:
        here, full = self._folder / role / name, self._full / role / name
        if full.is_dir():
            shutil.rmtree(here, ignore_errors=True)
            shutil.copytree(full, here)
        else:
            shutil.copy(full, here)

    def settle(self) -> None:
        """Wait until the sites are connected and the stock grows no more."""
        before, since = -1, time.monotonic()
        deadline = since + SETTLING_S
        while time.monotonic() < deadline:
            time.sleep(1.0)
            status = self._status()
            if status is None or status["peer"]["connection"]["state"] != "connected":
                since = time.monotonic()
            elif status["keys"]["stock"] != before:
                before, since = status["keys"]["stock"], time.monotonic()
            elif time.monotonic() - since > SETTLED_S:
                return

    def _status(self) -> Any:
        import msgspec

        from qnode.operate.control.client import NoAnswer, NodeNotRunning, ask_status, decode_status

        try:
            socket = Path(self._endpoints.sites["alice"].control_socket)
            return msgspec.to_builtins(decode_status(ask_status(socket, patience_s=5.0)))
        except (NodeNotRunning, NoAnswer):
            return None

    def take_all(self) -> int:
        """Ask as master at Alice until nothing more comes; return the number of keys."""
        import httpx

        sae = next(sae for sae in self._endpoints.saes if sae.sae_id == "sae-alice")
        tls = ssl.create_default_context(cafile=self._endpoints.ca)
        tls.load_cert_chain(sae.cert, sae.key)
        url = self._endpoints.sites["alice"].url
        n_got, refused, number = 0, 0, 128
        with httpx.Client(base_url=url, verify=tls, timeout=30.0, trust_env=False) as client:
            while refused < RETRIES:
                answer = client.post(
                    f"/api/v1/keys/{sae.peer_sae_id}/enc_keys", json={"number": number, "size": 256}
                )
                if answer.status_code == 200:
                    n_got += len(answer.json()["keys"])
                    refused = 0
                else:
                    refused += 1
                    time.sleep(1.0)
        return n_got

    def idle_percent(self) -> float:
        """Return the load of both daemons together, in percent of a core."""
        before = self._processor_s()
        time.sleep(IDLE_S)
        return 100.0 * (self._processor_s() - before) / IDLE_S

    def _processor_s(self) -> float:
        ticks = 0
        for process in self._processes:
            fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")

    def stop(self) -> None:
        """End both daemons."""
        for process in self._processes:
            process.send_signal(signal.SIGTERM)
        for process in self._processes:
            try:
                process.wait(30.0)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._processes.clear()


def _of_checkout(checkout: Path, words: list[str]) -> dict[str, float]:
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(str(checkout / part) for part in (".", "drivers", "tests"))
    }
    command = [sys.executable, "-P", __file__, "--child", *words]
    result = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True, text=True)
    figures: dict[str, float] = json.loads(result.stdout)
    return figures


def main() -> int:
    """Print the figures of this checkout, and of another; 1 when this one is beyond a limit."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--keys", type=int, default=400_000)
    parser.add_argument("--pairs", type=int, default=1000)
    parser.add_argument("--many-pairs", type=int, default=10_000)
    parser.add_argument("--beside", type=Path)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    asked: Any = parser.parse_args()
    if asked.child:
        print(json.dumps(measure(asked.keys, asked.pairs, asked.many_pairs)))
        return 0
    words = ["--keys", str(asked.keys), "--pairs", str(asked.pairs), "--many-pairs", str(asked.many_pairs)]
    here = Path(__file__).parents[1]
    figures = {"here": _of_checkout(here, words)}
    if asked.beside:
        figures[str(asked.beside)] = _of_checkout(asked.beside.resolve(), words)
    print(f"keys that one of {asked.pairs} pairs got, of {asked.keys} (at least {LEAST_SHARE:.0%})")
    for where, of in figures.items():
        print(f"  {where}: {of['got']:.0f}, {of['got'] / asked.keys:.1%}")
    print(
        f"idle, both daemons, percent of a core: 1 pair, {asked.many_pairs} pairs, ratio "
        f"(at most {MOST_IDLE_RATIO:g})"
    )
    for where, of in figures.items():
        print(f"  {where}: {of['idle_1']:.2f} {of['idle_many']:.2f} {of['idle_many'] / of['idle_1']:.2f}")
    mine = figures["here"]
    good = mine["got"] >= LEAST_SHARE * asked.keys and mine["idle_many"] <= MOST_IDLE_RATIO * mine["idle_1"]
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
