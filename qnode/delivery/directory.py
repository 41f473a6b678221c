"""The encryptors of the configuration, and their identification by certificates."""

from collections.abc import Collection, Iterable, Iterator

from qnode.config import SaeSection
from qnode.delivery.refusal import malformed, unauthorised
from qnode.errors import ConfigError
from qnode.tls import certificate_names

# An entry is the table of the configuration: sae_id, kme_id, peers, identities.
SaeEntry = SaeSection


def system_id(sae: SaeEntry) -> str:
    """Return the name of an SAE in SKIP."""
    return sae.sae_id if sae.system_id is None else sae.system_id


class SaeDirectory:
    """The encryptors of both sites, in the view of one site.

    A certificate identifies an SAE by one of its ``identities`` or, without any, by its sae_id. Names of KMEs
    (``node_names`` and all kme_id) belong to nodes: a certificate with such a name identifies no SAE.

    Raises:
        ConfigError: two SAEs have the same id, system ID or identity, one has the name of a node, or a peer
            is not known; the message names all such errors.
    """

    def __init__(self, kme_id: str, entries: Iterable[SaeEntry], node_names: Iterable[str] = ()) -> None:
        self.kme_id = kme_id
        self._entries: dict[str, SaeEntry] = {}
        self._by_identity: dict[str, SaeEntry] = {}
        self._by_system_id: dict[str, SaeEntry] = {}
        faults: list[str] = []
        for entry in entries:
            if entry.sae_id in self._entries:
                faults.append(f"[etsi014.sae] {entry.sae_id}: registered twice")
            self._entries[entry.sae_id] = entry
        self._node_names = {kme_id, *node_names} | {entry.kme_id for entry in self._entries.values()}
        for entry in self._entries.values():
            faults += self._register(entry)
        if faults:
            raise ConfigError("; ".join(faults))

    def _register(self, entry: SaeEntry) -> Iterator[str]:
        """Add ``entry``, and yield its errors."""
        where = f"[etsi014.sae] {entry.sae_id}"
        for peer in entry.peers:
            if peer not in self._entries or peer == entry.sae_id:
                yield f"{where}: peers: expected other registered SAEs, got {peer!r}"
        named = self._by_system_id.setdefault(system_id(entry), entry)
        if named is not entry:
            yield f"{where}: system_id {system_id(entry)!r} belongs to {named.sae_id} already"
        for identity in entry.identities or (entry.sae_id,):
            if identity in self._node_names:
                yield f"{where}: {identity!r} names a node, which is another role"
            other = self._by_identity.setdefault(identity, entry)
            if other is not entry:
                yield f"{where}: identity {identity!r} belongs to {other.sae_id} already"

    @property
    def local(self) -> tuple[SaeEntry, ...]:
        """The SAEs that may call at this site."""
        return tuple(entry for entry in self._entries.values() if entry.kme_id == self.kme_id)

    def peers_of(self, sae: SaeEntry) -> tuple[SaeEntry, ...]:
        """Return the SAEs with which ``sae`` shares keys."""
        return tuple(self._entries[peer] for peer in sae.peers if peer in self._entries)

    def pairs_abroad(self, but: Collection[str] = ()) -> frozenset[tuple[str, str]]:
        """Return the pairs that share keys between sites: an SAE of this site and one of another.

        ``but``: not those of these sites.
        """
        return frozenset(
            (sae.sae_id, peer)
            for sae in self.local
            for peer in sae.peers
            if self._entries[peer].kme_id not in (self.kme_id, *but)
        )

    def kme_of(self, sae_id: str) -> str:
        """Return the site of an SAE; this one for an SAE that nobody knows."""
        entry = self._entries.get(sae_id)
        return self.kme_id if entry is None else entry.kme_id

    def keys_per_minute(self, sae_id: str) -> int | None:
        """Return the most keys that an SAE may get in a minute; None: any number."""
        entry = self._entries.get(sae_id)
        return None if entry is None else entry.keys_per_minute

    def caller(self, certificate: bytes | None) -> SaeEntry:
        """Return the local SAE that ``certificate`` (DER) belongs to.

        Raises:
            Refusal: 401; the certificate identifies nobody, a node, two SAEs, or an SAE of another site.
        """
        if certificate is None:
            raise unauthorised("no certificate")
        try:
            names = certificate_names(certificate)
        except ValueError:  # possible although TLS has verified it
            raise unauthorised("unreadable certificate") from None
        if not self._node_names.isdisjoint(names):
            raise unauthorised("certificate of a node")
        found = {entry.sae_id: entry for name in names if (entry := self._by_identity.get(name)) is not None}
        if not found:
            raise unauthorised("certificate of nobody registered")
        if len(found) > 1:
            raise unauthorised("certificate of several SAEs")
        entry = next(iter(found.values()))
        if entry.kme_id != self.kme_id:
            raise unauthorised("SAE of another site")
        return entry

    def other(self, caller: SaeEntry, sae_id: str, field: str) -> SaeEntry:
        """Return the SAE ``sae_id`` with which ``caller`` shares keys.

        Raises:
            Refusal: 400 naming ``field``; the same answer for unknown SAEs and for those of other pairs.
        """
        if sae_id == caller.sae_id:
            raise malformed(f"{field} is the caller's own", "own SAE ID", {"field": field})
        entry = self._entries.get(sae_id) if sae_id in caller.peers else None
        if entry is None:  # also: a reload has removed it since the call began
            raise malformed(f"{field} is not an SAE to share keys with", "unknown SAE", {"field": field})
        return entry
