"""The agent's table for strongSwan, and the messages for charon that follow from it.

The agent owns the connection. charon takes the PPK_ID that an initiator offers from the connection and from
nowhere else: the command that initiates has no argument for it, and loading a connection replaces it whole.
So whoever changes the key must know the whole connection. It stands in the agent's file, in the words of
swanctl.conf; certificates, private keys and IKE secrets stay in the operator's swanctl.conf.

Of each child of the connection charon gets two: NAME, which this end sets up and sends by, and NAME-in,
which the other end sets up and this end only receives by. NAME-in has no policies of its own, so no packet
is sent by it; it comes first, so charon takes it when the other end asks. What is received by it must be
admitted by a policy with its request ID (reqid). In the kernel the policies of NAME have the same reqid,
and the one for sending names one SA. In user space (plugin kernel-libipsec) it would choose among all SAs
of its reqid, so NAME-in has another reqid there, and a trap policy NAME-admit, which ranks below those of
NAME, admits what is received.
"""

import hashlib
import re
import zlib
from collections.abc import Iterator, Mapping
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from qnode.config.description import Described, Limits, Rule, check_limits
from qnode.config.link import Table
from qnode.config.reading import Impossible

DroppedBy = Literal["charon", "operator"]
Message = dict[str, Any]

_NAME: Final = Rule(
    "1 to 40 letters, digits, - and _", lambda name: re.fullmatch(r"[A-Za-z0-9_-]{1,40}", name) is not None
)

FIXED: Final = {
    "version": "2",
    "ppk_required": "yes",
    "rekey_time": "0",
    "reauth_time": "0",
    "unique": "no",
}
"""What the agent sets: a new IKE_SA with each key, beside the old one. An IKE_SA that renews itself would
keep the old PPK (rekeying) or have none (reauthentication), so neither happens."""

_REQUEST_IDS: Final = 2**30  # charon counts its own from 1
_ACTIONS: Final = ("start_action", "close_action", "dpd_action")
_AGENTS_ALONE: Final = ("policies", "reqid")
_LISTS: Final = {
    *("local_addrs", "remote_addrs", "proposals", "vips", "pools"),
    *("ah_proposals", "esp_proposals", "local_ts", "remote_ts", "groups", "cert_policy"),
}
_FILES: Final = {"certs", "cacerts", "pubkeys"}


class StrongSwanConfig(Table, frozen=True):
    """How the agent controls strongSwan, and the whole connection."""

    connection: Annotated[
        dict[str, Any],
        Described(
            "the connection, in the words of swanctl.conf; without secrets, and without what the agent sets: "
            + ", ".join(("ppk_id", *FIXED, *_ACTIONS, *_AGENTS_ALONE))
        ),
    ]
    name: Annotated[str, Described("name of the connection in charon", limits=_NAME)] = "qnode"
    socket: Annotated[Path, Described("charon's vici socket")] = Path("/run/charon.vici")
    dropped_by: Annotated[
        DroppedBy,
        Described(
            "what drops the packets that find no tunnel: a drop policy that the agent gives to charon, "
            "or the operator's own firewall"
        ),
    ] = "charon"
    answer_timeout_s: Annotated[
        float, Described("longest wait for an answer of charon", limits=Limits(1.0, 60.0))
    ] = 5.0

    def __post_init__(self) -> None:
        check_limits(self)
        Impossible.check(self._faults())

    def _faults(self) -> Iterator[str]:
        if "ppk_id" in self.connection:
            yield "connection.ppk_id: the agent sets it, a new one with each key; leave it out"
        for key, value in FIXED.items():
            if _text(self.connection.get(key, value)) != value:
                yield f"connection.{key}: must be {value} with an agent, which sets it; leave it out"
        children = self.connection.get("children")
        if not isinstance(children, dict) or not children:
            yield "connection.children: expected at least one table [tunnel.connection.children.NAME]"
            return
        for name, child in children.items():
            where = f"connection.children.{name}"
            if not isinstance(child, dict):
                yield f"{where}: expected a table"
                continue
            for key in ("local_ts", "remote_ts"):
                if not _items(child.get(key, [])):
                    yield f"{where}.{key}: is missing; it says what the tunnel protects"
                elif "dynamic" in _items(child[key]):
                    yield f"{where}.{key}: expected networks, got 'dynamic', which would stop the agents too"
            for key in _ACTIONS:
                if _text(child.get(key, "none")) not in ("none", "clear"):
                    yield f"{where}.{key}: must be none with an agent, which alone starts; leave it out"
            for key in _AGENTS_ALONE:
                if key in child:
                    yield f"{where}.{key}: the agent sets it; leave it out"
            if name.endswith(("-in", "-admit")):
                yield f"{where}: a name that ends with -in or -admit is the agent's; choose another one"
            if _text(child.get("mode", "tunnel")) in ("pass", "drop"):
                yield f"{where}.mode: expected a mode that protects traffic, got {child['mode']!r}"
        yield from _value_faults(self.connection, "connection")

    @property
    def children(self) -> tuple[str, ...]:
        """Names of the CHILD_SAs of a complete tunnel."""
        return tuple(self.connection["children"])

    @property
    def dropping(self) -> str:
        """Name of the connection that holds the drop policies."""
        return f"{self.name}-drop"

    @property
    def receiving(self) -> tuple[str, ...]:
        """Names of the children that the other end sets up and this end only receives by."""
        return tuple(f"{name}-in" for name in self.children)

    @property
    def admitting(self) -> tuple[str, ...]:
        """Names of the trap policies that admit, in user space, what this end receives."""
        return tuple(f"{name}-admit" for name in self.children)

    def message(self, ppk_id: str | None = None, *, in_user_space: bool = False) -> Message:
        """Return the connection for charon. ``ppk_id``: the PPK that it offers, and the only one it accepts.

        Raises:
            OSError: a file of a certificate cannot be read.
        """
        own = {"ppk_id": ppk_id} if ppk_id is not None else {}
        made = {**_message(self.connection), **FIXED, **own}
        sending, receiving, admitting = {}, {}, {}
        for name, child in made["children"].items():
            with_id = {**child, "reqid": str(_REQUEST_IDS + zlib.crc32(f"{self.name}/{name}".encode()) // 4)}
            receiving[f"{name}-in"] = {**with_id, "policies": "no"}
            sending[name] = child if in_user_space else with_id
            if in_user_space:
                admitting[f"{name}-admit"] = with_id
        return {self.name: {**made, "children": {**receiving, **sending, **admitting}}}

    def drop_policies(self) -> dict[str, Message]:
        """Return the policies that drop what finds no tunnel. The names follow from their networks.

        So new networks get new policies before the old ones go.
        """
        policies = {}
        for child in self.connection["children"].values():
            networks = {key: _items(child[key]) for key in ("local_ts", "remote_ts")}
            name = hashlib.sha256(repr(sorted(networks.items())).encode()).hexdigest()[:12]
            policies[name] = {"mode": "drop", **networks}
        return policies

    def overlaps(self, local: list[str], remote: list[str]) -> bool:
        """Return whether traffic between these networks could be traffic that the tunnel protects."""
        return any(
            _any_overlap(_items(child["local_ts"]), local)
            and _any_overlap(_items(child["remote_ts"]), remote)
            for child in self.connection["children"].values()
        )


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)


def _items(value: object) -> list[str]:
    """Return a list as such, and the items of a text between commas, as in swanctl.conf."""
    if isinstance(value, list):
        return [_text(item) for item in value]
    return [item.strip() for item in _text(value).split(",") if item.strip()]


def _message(table: Mapping[str, Any]) -> Message:
    made: Message = {}
    for key, value in table.items():
        if isinstance(value, dict):
            made[key] = _message(value)
        elif key in _FILES:
            made[key] = [Path(name).read_bytes() for name in _items(value)]
        elif key in _LISTS or isinstance(value, list):
            made[key] = _items(value)
        else:
            made[key] = _text(value)
    return made


def _value_faults(table: Mapping[str, Any], where: str) -> Iterator[str]:
    for key, value in table.items():
        place = f"{where}.{key}"
        if "secret" in key:
            yield f"{place}: secrets do not belong into the agent's file; put them into swanctl.conf"
        elif isinstance(value, dict):
            yield from _value_faults(value, place)
        elif key in _FILES and not all(Path(name).is_absolute() for name in _items(value)):
            yield f"{place}: expected absolute paths, got {value!r}"
        elif not all(isinstance(one, str | int) for one in (value if isinstance(value, list) else [value])):
            yield f"{place}: expected a text, a whole number, true or false, or a list of these"


def _any_overlap(ours: list[str], others: list[str]) -> bool:
    return any(_overlap(one, other) for one in ours for other in others)


def _overlap(one: str, other: str) -> bool:
    """Return whether two traffic selectors overlap; one that is not a network overlaps with everything."""
    try:
        first, second = (ip_network(text.partition("[")[0], strict=False) for text in (one, other))
    except ValueError:
        return True
    return first.version == second.version and first.overlaps(second)
