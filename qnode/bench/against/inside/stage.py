"""Records a link, or prepares a folder with both sites of it, with the code of the checkout that runs this.

    stage.py record LINK FOLDER
    stage.py prepare LINK FOLDER OPTIONS

LINK is `fast` or `turin`. OPTIONS, an object of JSON: ``recording`` (a folder; without it the devices are
simulated), ``loop``, ``round_trip_s``. `prepare` prints what clients need.
"""

import json
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from qnode.bench.links import FAST, TURIN
from qnode.loopback.prepare import LoopbackConfig, Prepared, Staging, prepare
from qnode.simulate.recorder import record, steady_clocks

LINKS = {"fast": FAST, "turin": TURIN}
# Simulated seconds: 28 million tags, two blocks and a half; 10 million tags, played in a loop.
RECORDED_S = {"fast": 1.0, "turin": 320.0}
MOST_CHUNKS = 1 << 25  # no store becomes full


def played(recording: str, *, loop: bool) -> Any:
    """Return the recording as the devices of a link."""
    try:
        hardware = import_module("qnode.loopback.hardware")
    except ImportError:  # 0.1.0
        hardware = import_module("qnode.loopback.prepare")
    return hardware.Played(Path(recording), loop=loop)


def staged(folder: Path, config: LoopbackConfig, options: dict[str, Any]) -> Prepared:
    """Prepare both sites in ``folder``."""
    staging = Staging(
        round_trip_s=options.get("round_trip_s", 0.0),
        played=played(options["recording"], loop=options["loop"]) if "recording" in options else None,
        most_chunks=MOST_CHUNKS,
    )
    return prepare(folder, config, staging)


def outside(prepared: Prepared) -> dict[str, Any]:
    """Return what clients and relays need."""
    line = prepared.line
    saes = prepared.endpoints.saes_of(demo=False)
    return {
        "site_files": {role: str(path) for role, path in prepared.site_files.items()},
        "sites": {
            role: {"url": site.url, "control_socket": site.control_socket}
            for role, site in prepared.endpoints.sites.items()
        },
        "ca": prepared.endpoints.ca,
        "saes": {
            role: {"sae_id": sae.sae_id, "certificate": sae.cert, "key": sae.key}
            for role, sae in zip(prepared.endpoints.sites, saes, strict=True)
        },
        "kme_certificate": str(prepared.directory / "tls" / "kme-alice.pem"),
        "kme_key": str(prepared.directory / "tls" / "kme-alice.key"),
        "line": None if line is None else [line.bob_port, line.alice_port, line.round_trip_s],
    }


def main() -> None:
    """Do what the arguments say."""
    what, name, folder, *options = sys.argv[1:]
    config = LINKS[name]
    if what == "record":
        record(Path(folder), steady_clocks(config.simulation), config.link, RECORDED_S[name])
        print("null")
    else:
        print(json.dumps(outside(staged(Path(folder), config, json.loads(options[0])))))


if __name__ == "__main__":
    main()
