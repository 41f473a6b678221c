"""The files of a node and an agent at each site, and their processes."""

import sys
from pathlib import Path
from typing import Any, Final

import msgspec
import tomli_w

from qnode.loopback.prepare import LoopbackConfig, Prepared, Staging, prepare
from qnode.pki.authority import certificate_pem, new_authority
from qnode.pki.keys import key_pem, make_key
from qnode.pki.roles import ROLES as CERTIFICATE_ROLES
from qnode.secret_files import write_secret
from qnode.testbed.network import LINE_ADDRESS, ROLE_AT, SITES, Network, Site
from qnode.testbed.parts import Part
from qnode.testbed.tunnels import SiteTunnel, other

_AGENTS_PORT: Final = 7500


def prepare_nodes(folder: Path, config: LoopbackConfig, speed: float | None) -> Prepared:
    """Make certificates, secrets and site files; the nodes meet on the operator's line.

    The quantum fibre is a Unix socket, for it is a fibre of its own: an outage of the line leaves it alone.
    ``speed``: tag seconds a second; None is as fast as possible.

    Raises:
        ConfigError: the folder cannot be used.
    """
    return prepare(folder, config, Staging(speed, alice_host=LINE_ADDRESS["office"]))


def node_parts(network: Network, prepared: Prepared, logs: Path) -> list[Part]:
    """Return the daemon of each site."""
    return [
        Part(
            f"the node at the {site}",
            network.inside(
                site,
                *(sys.executable, "-m", "qnode", "run", "--stop-at-eof"),
                *("--config", str(prepared.site_files[ROLE_AT[site]])),
            ),
            logs / f"node-{site}.log",
        )
        for site in SITES
    ]


class AgentAtSite(msgspec.Struct, frozen=True):
    """An agent's process, and where its status is asked for."""

    part: Part
    control_socket: Path


def agents(
    network: Network, prepared: Prepared, tunnels: dict[Site, SiteTunnel], period_s: float, folder: Path
) -> dict[Site, AgentAtSite]:
    """Write certificates and file of each agent, and return them; the one at the office is the initiator."""
    folder.mkdir(mode=0o700)
    authority_key = make_key("ec")
    authority = new_authority(folder, "testbed", "agent", authority_key)
    (folder / "agents-ca.pem").write_bytes(certificate_pem(authority.certificate))
    found = {}
    for site in SITES:
        key = make_key("ec")
        issued = authority.issue(authority_key, CERTIFICATE_ROLES["agent"], _name(site), key.public_key())
        write_secret(folder / f"{_name(site)}.pem", certificate_pem(issued))
        write_secret(folder / f"{_name(site)}.key", key_pem(key))
        run_dir = folder / site
        run_dir.mkdir(mode=0o700)
        file = folder / f"{_name(site)}.toml"
        file.write_text(tomli_w.dumps(_tables(prepared, tunnels[site], site, period_s, folder, run_dir)))
        command = network.inside(site, sys.executable, "-m", "qnode", "agent", "run", "--config", str(file))
        part = Part(f"the agent at the {site}", command, folder / f"{_name(site)}.log")
        found[site] = AgentAtSite(part, run_dir / "control.sock")
    return found


def _name(site: Site) -> str:
    return f"agent-{site}"


def _tables(
    prepared: Prepared, tunnel: SiteTunnel, site: Site, period_s: float, folder: Path, run_dir: Path
) -> dict[str, Any]:
    endpoints = prepared.endpoints
    sae = endpoints.saes_of(demo=False)[SITES.index(site)]  # Alice's, Bob's
    place = f"{LINE_ADDRESS['office']}:{_AGENTS_PORT}"
    return {
        "agent": {
            "name": _name(site),
            "role": "initiator" if site == "office" else "responder",
            "run_dir": str(run_dir),
        },
        "kme": {
            "url": endpoints.sites[ROLE_AT[site]].url,
            "ca": endpoints.ca,
            "certificate": sae.cert,
            "key": sae.key,
            "sae_id": sae.sae_id,
            "peer_sae_id": sae.peer_sae_id,
        },
        "line": {
            "listen" if site == "office" else "connect": place,
            "ca": str(folder / "agents-ca.pem"),
            "certificate": str(folder / f"{_name(site)}.pem"),
            "key": str(folder / f"{_name(site)}.key"),
            "peer_name": _name(other(site)),
        },
        "rotation": {"period_s": period_s},
        "tunnel": tunnel.table(),
    }
