"""strongSwan at both sites, with ESP in user space; an IKE PSK that is not of QKD proves the sites."""

import secrets
from pathlib import Path
from typing import Any, Final

import trio

from qnode.secret_files import write_secret
from qnode.testbed.network import LINE_ADDRESS, SITES, TUNNEL_ADDRESS, Network, Site, run_command
from qnode.testbed.parts import Part
from qnode.testbed.tunnels import other, ready

CHARON: Final = "/usr/lib/ipsec/charon"
_IKE: Final = "aes256gcm16-prfsha384-x25519"
_ESP: Final = "aes256gcm16-x25519"
_SETTINGS: Final = """\
charon {{
    load_modular = yes
    install_routes = yes
    filelog {{
        stderr {{
            default = 1
        }}
    }}
    plugins {{
        include /etc/strongswan.d/charon/*.conf
        kernel-libipsec {{
            load = yes
        }}
        bypass-lan {{
            load = no
        }}
        vici {{
            socket = unix://{socket}
        }}
    }}
}}
"""


def strongswan_ends(network: Network, folder: Path) -> dict[Site, "StrongSwanEnd"]:
    """Return both ends of a tunnel; ``folder``: for logs and settings."""
    secret = secrets.token_hex(32)
    return {site: StrongSwanEnd(network, folder, site, secret) for site in SITES}


class StrongSwanEnd:
    """charon at one site; the agent owns the connection, and drops what finds no tunnel."""

    def __init__(self, network: Network, folder: Path, site: Site, secret: str) -> None:
        self._network, self._site, self._secret = network, site, secret
        self._socket = folder / f"{site}.vici"
        self._credentials = folder / f"swanctl-{site}.conf"
        settings = folder / f"strongswan-{site}.conf"
        settings.write_text(_SETTINGS.format(socket=self._socket))
        # A private /run, for all charons of a machine would write one process file.
        alone = ("unshare", "--mount", "sh", "-c", f"mount -t tmpfs tmpfs /run && exec {CHARON}")
        command = network.inside(site, "env", f"STRONGSWAN_CONF={settings}", *alone)
        self.part = Part(f"strongSwan at the {site}", command, folder / f"strongswan-{site}.log")

    async def set_up(self) -> None:
        """Wait for charon, and load the IKE PSK."""
        await ready(self._socket, self.part.name)
        await trio.to_thread.run_sync(self._set)

    def table(self) -> dict[str, Any]:
        """Return the table ``[tunnel]`` of the agent's file."""
        site, far = self._site, other(self._site)
        return {
            "kind": "strongswan",
            "socket": str(self._socket),
            "connection": {
                "local_addrs": [LINE_ADDRESS[site]],
                "remote_addrs": [LINE_ADDRESS[far]],
                "encap": "yes",
                "proposals": [_IKE],
                "local": {"auth": "psk", "id": site},
                "remote": {"auth": "psk", "id": far},
                "children": {
                    "net": {
                        "local_ts": [f"{TUNNEL_ADDRESS[site]}/32"],
                        "remote_ts": [f"{TUNNEL_ADDRESS[far]}/32"],
                        "esp_proposals": [_ESP],
                    }
                },
            },
        }

    def _set(self) -> None:
        inside, site = self._network.inside, self._site
        credentials = (
            f"secrets {{\n ike-testbed {{\n id-1 = {SITES[0]}\n id-2 = {SITES[1]}\n"
            f" secret = 0x{self._secret}\n }}\n}}\n"
        )
        # swanctl reads no pipe: it takes one for an empty file.
        write_secret(self._credentials, credentials.encode())
        where = ("--file", str(self._credentials), "--uri", f"unix://{self._socket}")
        run_command(inside(site, "swanctl", "--load-creds", *where))
        address = f"{TUNNEL_ADDRESS[site]}/32"
        run_command(inside(site, "ip", "address", "add", address, "dev", "lo"))
