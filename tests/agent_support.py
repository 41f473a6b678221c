"""Files, certificates and small programs for tests of the agent."""

from pathlib import Path
from typing import Any

import msgspec.structs
import tomli_w
from http_support import Pki

from qnode.agent.status import AgentStatus, KeyInUse, LineStatus, StateStatus
from qnode.tls_validity import Validity

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


def agent_status(**changes: Any) -> AgentStatus:
    """Return what an initiator says that is well."""
    whole = AgentStatus(
        version="0.2.0",
        at=1000.0,
        name="agent-a",
        role="initiator",
        kind="command",
        state=StateStatus(state="ready", since=400.0, because=""),
        key=KeyInUse(key_id="key-1", since=990.0, said="the program says key-1"),
        line=LineStatus(peer="agent-b", up_since=300.0, trouble="", peer_trouble=""),
        kme_url="https://kme:8443",
        period_s=30.0,
        stretched_period_s=30.0,
        longest_s=600.0,
        next_change_at=1020.0,
        stored_key_count=12,
        changes_total=20,
        changes_failed_total=1,
        keys_total=21,
        transferred_bytes_total=123456,
        last_change_s=0.2,
        last_differed_s=0.02,
        longest_differed_s=0.04,
        differed_counts=(0, 19, 1, 0, 0, 0, 0, 0),
        differed_sum_s=0.5,
        certificates=(
            Validity(kind="certificate", file="line.ca", subject="CN=x", begins_at=1.0, expires_at=2e9),
        ),
    )
    return msgspec.structs.replace(whole, **changes)
