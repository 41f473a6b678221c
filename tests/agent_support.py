"""Files, certificates and small programs for tests of the agent."""

from pathlib import Path
from typing import Any

import tomli_w
from http_support import Pki

A, B = "sae-a", "sae-b"


def issue(pki: Pki, name: str) -> None:
    """Write certificate and key of ``name``, which its subject names."""
    pki.write(name, pki.ca.issue_cert(common_name=name))
    (pki.folder / f"{name}.key").chmod(0o600)


def agent_tables(folder: Path, role: str, *, listens: bool = True) -> dict[str, Any]:
    """Return the tables of an agent's file whose certificates `issue` wrote into ``folder``."""
    site, other = ("a", "b") if role == "initiator" else ("b", "a")
    files = {"ca": str(folder / "ca.pem")}
    return {
        "agent": {"name": f"agent-{site}", "role": role, "run_dir": str(folder / f"run-{site}")},
        "kme": {
            **files,
            "url": "https://127.0.0.1:8443",
            "certificate": str(folder / f"sae-{site}.pem"),
            "key": str(folder / f"sae-{site}.key"),
            "sae_id": f"sae-{site}",
            "peer_sae_id": f"sae-{other}",
        },
        "line": {
            **files,
            "certificate": str(folder / f"agent-{site}.pem"),
            "key": str(folder / f"agent-{site}.key"),
            "peer_name": f"agent-{other}",
            ("listen" if listens else "connect"): "127.0.0.1:7500",
        },
        "tunnel": {"kind": "command", "program": ["/bin/true"]},
    }


def written(folder: Path, tables: dict[str, Any], name: str = "agent.toml") -> Path:
    """Write ``tables`` as an agent's file."""
    path = folder / name
    path.write_text(tomli_w.dumps(tables))
    return path
