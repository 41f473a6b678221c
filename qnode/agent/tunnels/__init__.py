"""The kinds of tunnels, by the name that an agent's file has; a kind is imported when it is chosen."""

import importlib
from typing import Final

from qnode.agent.tunnel import TunnelKind
from qnode.errors import ConfigError

KINDS: Final = {
    "wireguard": "qnode.agent.tunnels.wireguard:WireGuardTunnel",
    "strongswan": "qnode.agent.tunnels.strongswan:StrongSwanTunnel",
    "macsec": "qnode.agent.tunnels.macsec:MacsecTunnel",
    "command": "qnode.agent.tunnels.command:CommandTunnel",
    "file": "qnode.agent.tunnels.file:FileTunnel",
}


def tunnel_kind(name: str) -> type[TunnelKind]:
    """Return the class of a kind in `KINDS`.

    Raises:
        ConfigError: a package that it needs is not installed.
    """
    module, _, attribute = KINDS[name].partition(":")
    try:
        found: type[TunnelKind] = getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as error:
        missing = f"the package {error.name} is not installed"
        raise ConfigError(f'[tunnel] kind: "{name}" cannot be used: {missing}') from None
    return found
