"""What measurements of running sites share: both daemons on full stores, processor time, other checkouts.

What runs in a `--child` uses only what release 0.1.0 has as well.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

ROLES: Final = ("alice", "bob")
CHUNKS_OF_A_BLOCK: Final = 20_000
POLL_S, CONNECTING_S, STOP_S = 0.1, 120.0, 30.0
_CPUCLOCK_SCHED: Final = 2  # of Linux, include/linux/posix-timers.h: the clock of a process as scheduled


def processor_s(pids: Iterable[int]) -> float:
    """Return the processor time of processes, as the kernel counts it, with all their threads."""
    return sum(time.clock_gettime(~pid << 3 | _CPUCLOCK_SCHED) for pid in pids)


def figures_of(script: str, checkout: Path, words: list[str]) -> dict[str, float]:
    """Run a script with ``--child`` and the code of a checkout; return the JSON that it prints."""
    here = str(Path(__file__).parent)
    parts = [*(str(checkout / part) for part in (".", "drivers", "tests")), here]
    command = [sys.executable, "-P", script, "--child", *words]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(parts)}
    result = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True, text=True)
    figures: dict[str, float] = json.loads(result.stdout)
    return figures


class Sites:
    """Both sites over one prepared folder, without devices; each start is from the same full stores."""

    def __init__(self, folder: Path, n_keys: int, *, share_alice: float = 0.5) -> None:
        """Fill both stores with ``n_keys`` keys, of which Alice may assign ``share_alice``."""
        from keys_support import add_block, make_block

        from qnode.keys import KeyLayout, open_store
        from qnode.loopback.prepare import LoopbackConfig, Staging, prepare

        prepared = prepare(folder, LoopbackConfig(), Staging(1.0))
        self.endpoints = prepared.endpoints
        self._files: dict[str, Path] = dict(prepared.site_files.items())
        self._plain: dict[str, dict[str, Any]] = {
            role: tomllib.loads(path.read_text()) for role, path in self._files.items()
        }
        stores = []
        for role in ROLES:
            table = self._plain[role]["store"]
            store = open_store(
                Path(table["path"]),
                role=role,
                store_key=Path(table["store_key"]).read_bytes(),
                anchor=Path(table["anchor"]),
                kme_id=f"kme-{role}",
                peer_kme_id="kme-bob" if role == "alice" else "kme-alice",
                create=True,
            )
            store.load_preshared(Path(table["preshared_key"]).read_bytes())
            stores.append(store)
        layout = KeyLayout(pads_per_direction=3, direction_share_alice=share_alice)
        for block_id in range(1, 1 + n_keys // CHUNKS_OF_A_BLOCK):
            add_block(make_block(block_id, CHUNKS_OF_A_BLOCK, layout=layout), *stores)
        for store in stores:
            store.close()
        self._folder = folder
        self._full = folder.with_name("full")
        shutil.copytree(folder, self._full)
        self._processes: list[subprocess.Popen[bytes]] = []

    @property
    def pids(self) -> list[int]:
        """The processes that run, Alice's first."""
        return [process.pid for process in self._processes]

    def start(
        self, n_pairs: int, tables: Mapping[str, Mapping[str, Mapping[str, Any]]] | None = None
    ) -> None:
        """Run both daemons, with so many pairs of encryptors, `saes_of_pair` from the last to the first.

        ``tables``: by role and name of a table, what is changed in it.
        """
        import tomli_w

        for role in ROLES:
            for name in ("store", "anchor"):
                self._copy(role, name)
            site = self._plain[role] | {"devices": {}}
            for table, changes in (tables or {}).get(role, {}).items():
                site[table] = site[table] | dict(changes)
            site["etsi014"] = site["etsi014"] | {
                "sae": [
                    {"sae_id": own, "kme_id": f"kme-{at}", "peers": [other]}
                    for at, own, other in (
                        one
                        for i in reversed(range(n_pairs))
                        for alices, bobs in [saes_of_pair(i)]
                        for one in (("alice", alices, bobs), ("bob", bobs, alices))
                    )
                ]
            }
            self._files[role].write_text(tomli_w.dumps(site))
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

    def wait_connected(self) -> None:
        """Wait until the sites are connected.

        Raises:
            TimeoutError: they are not within two minutes.
        """
        deadline_s = time.monotonic() + CONNECTING_S
        while (status := self.status()) is None or status["peer"]["connection"]["state"] != "connected":
            if time.monotonic() > deadline_s:
                raise TimeoutError("the two sites do not connect")
            time.sleep(POLL_S)

    def status(self) -> Any:
        """Return the status of Alice's site; None while there is none."""
        import msgspec

        from qnode.operate.control.client import NoAnswer, NodeNotRunning, ask_status, decode_status

        try:
            socket = Path(self.endpoints.sites["alice"].control_socket)
            return msgspec.to_builtins(decode_status(ask_status(socket, patience_s=5.0)))
        except (NodeNotRunning, NoAnswer):
            return None

    def stop(self) -> None:
        """End both daemons."""
        for process in self._processes:
            process.send_signal(signal.SIGTERM)
        for process in self._processes:
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._processes.clear()


def saes_of_pair(number: int) -> tuple[str, str]:
    """Return the encryptors of a pair at Alice's site and at Bob's; pair 0 has certificates of `prepare`."""
    return ("sae-alice", "sae-bob") if number == 0 else (f"sae-alice-{number}", f"sae-bob-{number}")
