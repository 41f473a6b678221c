"""strongSwan keyed from QKD: each key is a postquantum preshared key (PPK, RFC 8784) of a new IKE_SA.

Only IKE_AUTH uses a PPK; no rekeying does. So a change of key is a second IKE_SA beside the first one: both
ends load the PPK under the key_ID, the agents' responder has its charon initiate with this PPK_ID, and in
the end both ends end every other IKE_SA. charon holds a PPK only from `load` to `retire`, so no later
IKE_SA can come up under a key that was used.

Whoever answers in IKE sends under a new CHILD_SA some milliseconds before the other end can receive by it,
and what is sent meanwhile is lost. So each end sets up the CHILD_SA by which it sends, and sends by no
other one: the other end already receives by it then (`strongswan_config` says how charon is told so).
"""

import re
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import ClassVar, Final, NamedTuple

import trio

from qnode.agent.tunnel import InUse, Role, TunnelKey
from qnode.agent.tunnels.strongswan_config import Message, StrongSwanConfig
from qnode.agent.tunnels.strongswan_vici import Charon, Refused, Secret
from qnode.errors import TunnelError

_KEY_ID: Final = re.compile(r"[0-9A-Za-z][0-9A-Za-z-]{0,99}")  # charon reads other characters as patterns
_SOON_S: Final = 10.0  # a change of key is over by then
_REKEYING_S: Final = 2.0
_POLL_S: Final = 0.05
_ON_THEIR_WAY_S: Final = 0.5  # packets sent under the key before, which wait in queues of a busy machine
_FAREWELL_S: Final = 1.0  # for the peer's answer when an IKE_SA is ended; then it is ended regardless

_TRANSLATED: Final = (
    (
        "received AUTHENTICATION_FAILED",
        "the other end holds another PPK under this key_ID, or none, or another IKE secret (its charon says "
        "`MAC mismatched` or `no PPK found`)",
    ),
    ("no PPK found", "charon here holds no PPK under this key_ID"),
    (
        "peer does not support PPK",
        "the charon of the other end holds no PPK at all, or knows none (RFC 8784)",
    ),
    ("received PPK_ID", "the other end expects another PPK_ID: its connection must have none"),
    (
        "NO_PROPOSAL_CHOSEN",
        "the two ends have no proposal in common, or the agent's connection is not loaded there",
    ),
    ("TS_UNACCEPTABLE", "local_ts and remote_ts of the two ends do not mirror each other"),
    ("MAC mismatched", "the PPK of the other end differs, or its IKE secret"),
    ("not established after", "the other end's charon did not answer"),
)


class IkeSa(NamedTuple):
    """An IKE_SA of the connection, as charon tells it. The SPIs name it, also beyond a restart of charon.

    ``complete``: traffic passes both ways under a PPK. ``soon_rekeyed``: CHILD_SAs due for rekeying.
    """

    spis: str
    unique_id: int
    established: bool
    with_ppk: bool
    complete: bool
    soon_rekeyed: tuple[str, ...]
    age_s: int
    bytes: int
    words: str


class StrongSwanTunnel:
    """One end of a tunnel of strongSwan, over the vici socket of its charon."""

    Config: ClassVar[type[StrongSwanConfig]] = StrongSwanConfig
    key_size_bits: ClassVar[int] = 256

    def __init__(self, config: StrongSwanConfig, role: Role) -> None:
        self._config = config
        self._role = role
        self._own = (config.name, config.dropping)
        self._charon = Charon(config.socket, config.answer_timeout_s)
        self._keys: dict[str, str] = {}  # SPIs of an IKE_SA -> key_ID
        self._loading: tuple[str, frozenset[str]] | None = None  # key_ID, SPIs of the IKE_SAs before it
        self._said = ""  # charon's own words about the last key
        self._drop = False
        self._in_user_space = False

    @asynccontextmanager
    async def open(self, *, first_key_required: bool) -> AsyncIterator["StrongSwanTunnel"]:
        """See `TunnelKind.open`. What packets without a tunnel meet is set here, before the first key."""
        self._drop = first_key_required
        await self.prepare()
        await self._unload_ppks()
        yield self

    async def prepare(self) -> None:
        """Load the connection, which `swanctl` or a restart of charon may have removed, and end old IKE_SAs.

        The connection has no rekeying and no reauthentication of the IKE_SA. A CHILD_SA that is to be rekeyed
        within the next seconds is rekeyed now: in a change the old one would take the traffic back.
        """
        if self._drop:
            await self._refuse_ways_around()
            await self._drop_in_clear()
        self._in_user_space = "kernel-libipsec" in (await self._charon.request("stats")).get("plugins", [])
        await self._load_connection(None)
        found = await self._ike_sas()
        kept = _newest(found) or max(
            (one for one in found if one.established and one.with_ppk),
            key=lambda one: one.unique_id,
            default=None,
        )
        await self._end(one for one in found if one is not kept)
        for child_sa in kept.soon_rekeyed if kept is not None else ():
            await self._charon.request("rekey", {"child-id": child_sa})
        with trio.move_on_after(_REKEYING_S):
            while kept is not None and any(one.soon_rekeyed for one in await self._ike_sas()):  # noqa: ASYNC110
                await trio.sleep(_POLL_S)

    async def load(self, key: TunnelKey) -> None:
        """Give charon the key as a PPK, under its key_ID, in place of PPKs that are not in use."""
        if not _KEY_ID.fullmatch(key.key_id):
            raise TunnelError(f"strongSwan: key_ID {key.key_id!r}: expected letters, digits and - only")
        if 8 * len(key.key) != self.key_size_bits:
            raise TunnelError(
                f"strongSwan: key {key.key_id} has {8 * len(key.key)} bits, expected {self.key_size_bits}"
            )
        before = frozenset(one.spis for one in await self._ike_sas())
        await self._unload_ppks()
        await self._load_ppk(key)
        await self._load_connection(key.key_id)
        await self._admit()
        self._loading = key.key_id, before

    async def activate(self, key: TunnelKey) -> None:
        """Have charon set up what this end sends by, at the responder with the new IKE_SA, and send by it.

        Somebody may have run `swanctl` since `load`, so what it removes is loaded again.
        """
        if self._loading is None or self._loading[0] != key.key_id:
            raise TunnelError(f"strongSwan: key {key.key_id} is not loaded")
        if self._secret(key.key_id) not in (await self._charon.request("get-shared")).get("keys", []):
            await self._load_ppk(key)
        await self._load_connection(key.key_id)
        await self._admit()
        if self._role == "initiator" and not await self._new_ike_sas(self._loading[1]):
            raise TunnelError(
                f"strongSwan: the other end has set up no IKE_SA with a PPK for key {key.key_id}"
            )
        words: list[Message] = []
        for child in self._config.children:
            words += await self._initiate(child)
        named = [one for one in words if one.get("ikesa-name") == self._config.name]
        unique_ids = {int(one["ikesa-uniqueid"]) for one in named}
        self._said = next((one["msg"] for one in named if "using PPK" in one["msg"]), "")
        for one in await self._new_ike_sas(self._loading[1]):
            if one.unique_id in unique_ids:
                self._keys[one.spis] = key.key_id
        if key.key_id not in self._keys.values():
            raise TunnelError(f"strongSwan: charon set up no new IKE_SA with a PPK for key {key.key_id}")

    async def in_use(self) -> InUse | None:
        """Return what charon says of the newest IKE_SA with a PPK and all its CHILD_SAs."""
        newest = _newest(await self._ike_sas())
        if newest is None:
            return None
        key_id, proof = self._keys.get(newest.spis), newest.words
        if key_id is not None and key_id in self._said:
            proof += f"; {self._said}"
        return InUse(key_id, time.time() - newest.age_s, proof)

    async def retire(self, key: TunnelKey) -> None:
        """End every IKE_SA but the one under ``key``, and remove the PPK, which has done its work."""
        found = await self._ike_sas()
        newest = _newest([one for one in found if self._keys.get(one.spis) == key.key_id])
        if newest is None:
            raise TunnelError(f"strongSwan: no IKE_SA is under key {key.key_id}; nothing was removed")
        older = [one for one in found if one is not newest]
        if older:
            await trio.sleep(_ON_THEIR_WAY_S)
        await self._end(older)
        await self._unload_ppks()
        self._keys = {newest.spis: key.key_id}
        self._loading = None

    async def unload(self, key: TunnelKey) -> None:
        """Remove the PPK, and an IKE_SA that came up in part under it; the one before stays.

        Raises:
            TunnelError: traffic passes both ways under the key, which therefore stays.
        """
        await self._unload_ppks()
        before = self._loading[1] if self._loading is not None and self._loading[0] == key.key_id else None
        self._loading = None
        found = await self._ike_sas()
        if any(one.complete and self._keys.get(one.spis) == key.key_id for one in found):
            raise TunnelError(f"strongSwan: key {key.key_id} is in use both ways already, so it stays")
        await self._end(
            one
            for one in found
            if self._keys.get(one.spis) == key.key_id or (before is not None and one.spis not in before)
        )
        self._keys = {spis: key_id for spis, key_id in self._keys.items() if key_id != key.key_id}

    async def take_down(self) -> None:
        """End every IKE_SA and take the connection away, so that no other comes up; packets are dropped."""
        self._drop = True
        await self._drop_in_clear()
        await self._unload_ppks()
        if self._config.name in (await self._charon.request("get-conns")).get("conns", []):
            for one in await self._policies({"trap": "yes", "ike": self._config.name}):
                await self._charon.request("uninstall", {"child": one["child"], "ike": self._config.name})
            await self._charon.request("unload-conn", {"name": self._config.name})
        await self._end(await self._ike_sas())
        self._keys = {}
        self._loading = None

    async def transferred_bytes(self) -> int:
        """Return the bytes of all CHILD_SAs of the connection."""
        return sum(one.bytes for one in await self._ike_sas())

    async def _initiate(self, child: str) -> list[Message]:
        """Have charon set up a CHILD_SA; return what it said."""
        limit_s = self._config.answer_timeout_s
        message = {"ike": self._config.name, "child": child, "timeout": str(round(1000 * limit_s))}
        try:
            return await self._charon.stream("initiate", "control-log", message, extra_time_s=limit_s)
        except Refused as refused:
            said = [str(refused), *(one.get("msg", "") for one in refused.words)]
            meanings = [meaning for sign, meaning in _TRANSLATED if any(sign in one for one in said)]
            reason = f": {meanings[0]}" if meanings else ""
            raise TunnelError(f"strongSwan: {refused}{reason}") from None

    async def _load_connection(self, ppk_id: str | None) -> None:
        try:
            message = self._config.message(ppk_id, in_user_space=self._in_user_space)
        except OSError as error:
            raise TunnelError(f"strongSwan: {error.filename} cannot be read: {error.strerror}") from None
        await self._charon.request("load-conn", message)

    def _secret(self, key_id: str) -> str:
        return f"{self._config.name}/{key_id}"

    async def _load_ppk(self, key: TunnelKey) -> None:
        secret = Secret(key.key)  # as bytes: of a text, charon would decode one that begins with 0s or 0x
        message = {"id": self._secret(key.key_id), "type": "PPK", "owners": [key.key_id], "data": secret}
        await self._charon.request("load-shared", message)

    async def _unload_ppks(self) -> None:
        for secret in (await self._charon.request("get-shared")).get("keys", []):
            if secret.startswith(self._secret("")):
                await self._charon.request("unload-shared", {"id": secret})

    async def _ike_sas(self) -> list[IkeSa]:
        name = self._config.name
        found = []
        for event in await self._charon.stream("list-sas", "list-sa", {"ike": name}):
            for told in (event[name],) if name in event else ():
                found.append(_ike_sa(told, (*self._config.children, *self._config.receiving)))
        known = {one.spis for one in found}
        self._keys = {spis: key_id for spis, key_id in self._keys.items() if spis in known}
        return found

    async def _new_ike_sas(self, before: frozenset[str]) -> list[IkeSa]:
        found = await self._ike_sas()
        return [one for one in found if one.established and one.with_ppk and one.spis not in before]

    async def _end(self, ended: Iterable[IkeSa]) -> None:
        """End IKE_SAs; the peer is told, but not waited for longer than `_FAREWELL_S`."""
        for one in ended:
            message = {
                "ike-id": str(one.unique_id),
                "force": "yes",
                "timeout": str(round(1000 * _FAREWELL_S)),
            }
            try:
                await self._charon.stream("terminate", "control-log", message, extra_time_s=_FAREWELL_S)
            except Refused:
                # Said also of an IKE_SA that is gone, and of one whose peer did not answer in time.
                if any(left.spis == one.spis for left in await self._ike_sas()):
                    raise

    async def _drop_in_clear(self) -> None:
        """Give charon policies that drop what finds no CHILD_SA; a policy of a CHILD_SA goes before them."""
        if self._config.dropped_by == "operator":
            return
        wanted, holder = self._config.drop_policies(), self._config.dropping
        listed = await self._policies({"drop": "yes", "ike": holder})
        present = {one["child"] for one in listed if one.get("ike") == holder}
        if not wanted.keys() <= present:
            connection = {"remote_addrs": ["127.0.0.1"], "children": wanted}
            await self._charon.request("load-conn", {holder: connection})
            for child in wanted.keys() - present:
                await self._charon.request("install", {"child": child, "ike": holder})
        for child in present - wanted.keys():
            await self._charon.request("uninstall", {"child": child, "ike": holder})

    async def _admit(self) -> None:
        """Give charon the policies that admit what it receives, where ESP is in user space."""
        if self._in_user_space:
            listed = await self._policies({"trap": "yes", "ike": self._config.name})
            present = {one["child"] for one in listed if one.get("ike") == self._config.name}
            for child in self._config.admitting:
                if child not in present:
                    await self._charon.request("install", {"child": child, "ike": self._config.name})

    async def _refuse_ways_around(self) -> None:
        """Refuse what would let the tunnel's traffic pass without a QKD key."""
        for policy in await self._policies({"pass": "yes"}):
            if self._config.overlaps(policy.get("local-ts", []), policy.get("remote-ts", [])):
                raise TunnelError(
                    f"strongSwan: the policy {policy.get('child')} of {policy.get('ike')} lets traffic "
                    "of the tunnel pass in clear; remove it (mode = pass, or the plugin bypass-lan)"
                )
        for event in await self._charon.stream("list-conns", "list-conn"):
            for name, told in event.items():
                children = told.get("children", {}) if name not in self._own else {}
                for child, networks in children.items():
                    if networks.get("mode") != "DROP" and self._config.overlaps(
                        networks.get("local-ts", []), networks.get("remote-ts", [])
                    ):
                        raise TunnelError(
                            f"strongSwan: the connection {name} has a child {child} for traffic of the "
                            "tunnel; remove it from swanctl.conf, for the agent's file has the connection"
                        )

    async def _policies(self, wanted: Message) -> list[Message]:
        events = await self._charon.stream("list-policies", "list-policy", wanted)
        return [told for event in events for told in event.values()]


def _ike_sa(told: Message, children: tuple[str, ...]) -> IkeSa:
    child_sas = list(told.get("child-sas", {}).values())
    installed = {one.get("name") for one in child_sas if one.get("state") in ("INSTALLED", "REKEYING")}
    established, with_ppk = told.get("state") in ("ESTABLISHED", "REKEYING"), told.get("ppk") == "yes"
    words = f"IKE_SA #{told.get('uniqueid')} {told.get('state')}{', PPK' if with_ppk else ''}"
    for one in child_sas:
        words += f", CHILD_SA {one.get('name')} #{one.get('uniqueid')} {one.get('state')}"
        words += f" {one.get('encr-alg')}-{one.get('encr-keysize')}"
        words += f" in {one.get('bytes-in')} out {one.get('bytes-out')} bytes"
    return IkeSa(
        spis=f"{told.get('initiator-spi')}/{told.get('responder-spi')}",
        unique_id=int(told["uniqueid"]),
        established=established,
        with_ppk=with_ppk,
        complete=established and with_ppk and set(children) <= installed,
        soon_rekeyed=tuple(
            one["uniqueid"]
            for one in child_sas
            if one.get("state") in ("INSTALLED", "REKEYING")
            and float(one.get("rekey-time", _SOON_S)) < _SOON_S
        ),
        age_s=int(told.get("established", 0)),
        bytes=sum(int(one.get("bytes-in", 0)) + int(one.get("bytes-out", 0)) for one in child_sas),
        words=words,
    )


def _newest(found: list[IkeSa]) -> IkeSa | None:
    return max((one for one in found if one.complete), key=lambda one: one.unique_id, default=None)
