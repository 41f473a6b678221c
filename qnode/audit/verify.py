"""Verifies the chains of an audit: every entry, in one pass, and what the chains say about each other.

The hash of an entry covers everything before it. A change that leaves the hashes alone shows at the changed
entry. One that makes all later hashes anew shows at the head, which the anchor outside
the database knows.
"""

from collections.abc import Iterator, Sequence
from typing import Protocol

import msgspec
from msgspec import Struct

from qnode.audit.entries import (
    Chain,
    ChainBegun,
    ChainPruned,
    Head,
    PeerHead,
    Row,
    chained,
    decode,
    encode,
    genesis,
)

# Further findings of the same chain say nothing new.
MOST_FINDINGS = 20
_NO_HASH = b""


class Source(Protocol):
    """An audit, wherever it is kept."""

    name: str
    anchored: Head | None
    """The head that the anchor knows; None if there is no anchor to compare with."""

    def chains(self) -> list[Chain]:
        """Return the chains, the live one last."""
        ...

    def rows(self, chain: Chain) -> Iterator[Row]:
        """Yield the entries of a chain in order; raises AuditUnreadable in the middle of a damaged file."""
        ...


class AuditUnreadable(Exception):
    """An audit, or the rest of it, cannot be read; the text says what and where."""


class Finding(Struct, frozen=True):
    """Something is wrong: where (chain and entry), and what."""

    where: str
    what: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}"


class Verified(Struct, frozen=True, kw_only=True):
    """The result. ``unanchored``: entries after the head that the anchor knows."""

    entries: int
    chains: int
    head: Head | None
    anchored: bool
    unanchored: int
    peer_head: Head | None
    findings: list[Finding]


def verify(source: Source, expected: Sequence[Head] = ()) -> Verified:
    """Verify an audit against its own hashes, its anchor, and heads that were kept elsewhere."""
    return _Verification(source, expected).run()


class _Verification:
    def __init__(self, source: Source, expected: Sequence[Head]) -> None:
        self._source = source
        self._known = [("the anchor", source.anchored)] if source.anchored is not None else []
        self._known += [("the head that was kept", head) for head in expected]
        self._findings: list[Finding] = []
        self._found: dict[tuple[bytes, int], bytes] = {}  # hashes of the entries that others name
        self._begun: list[tuple[str, ChainBegun]] = []
        self._pruned: set[tuple[bytes, int, bytes]] = set()
        self._peer_head: Head | None = None
        self._entries = 0

    def run(self) -> Verified:
        chains = self._source.chains()
        if not chains:
            self._note("audit", "there is no chain")
        for chain in chains:
            self._verify_chain(chain)
        self._compare(chains)
        head = chains[-1].head if chains else None
        anchored = self._source.anchored
        return Verified(
            entries=self._entries,
            chains=len(chains),
            head=head,
            anchored=anchored is not None,
            unanchored=0 if head is None or anchored is None else max(0, head.number - anchored.number),
            peer_head=self._peer_head,
            findings=self._findings,
        )

    def _note(self, where: str, what: str) -> None:
        self._findings.append(Finding(where, what))

    def _verify_chain(self, chain: Chain) -> None:
        """Hash every entry after the one before; of an entry and its hash, find out which was changed."""
        name = chain.chain_id.hex()
        wanted = {head.number for _, head in self._known if head.chain_id == chain.chain_id}
        number, previous, stored = chain.pruned_number, chain.pruned_hash, chain.pruned_hash
        if number == 0 and previous != genesis(chain.chain_id):
            self._note(name, "the hash before the first entry was changed")
            previous = stored = genesis(chain.chain_id)
        suspect = False  # the entry before does not fit its stored hash
        n_before = len(self._findings)
        try:
            for number_here, content, hash_here in self._source.rows(chain):
                if len(self._findings) - n_before >= MOST_FINDINGS:
                    self._note(name, "further findings of this chain are not shown")
                    return
                if type(content) is not bytes or type(hash_here) is not bytes:
                    self._note(f"{name} entry {number_here}", "is no entry")
                    continue
                where = number_here
                if number_here != number + 1:
                    if suspect:
                        self._note(f"{name} entry {number}", "its content or its hash was changed")
                    what = f"entries {number + 1} to {number_here - 1} are missing"
                    if number_here <= number:
                        what = "its number was changed, or its order"
                    self._note(f"{name} entry {where}", what)
                    stored = previous = _NO_HASH  # unknown: this entry cannot be held against it
                    suspect = False
                computed = chained(stored, content)
                if suspect:
                    # `previous`: the hash that the entry before should have by its content.
                    by_content = chained(previous, content)
                    if hash_here == by_content and hash_here != computed:
                        self._note(f"{name} entry {number}", "its hash was changed; its content fits")
                        computed = by_content
                    else:
                        self._note(f"{name} entry {number}", "its content was changed")
                suspect = False
                if stored == _NO_HASH:
                    previous = stored = hash_here
                else:
                    suspect = computed != hash_here
                    previous, stored = computed, hash_here
                number = number_here
                self._entries += 1
                if number in wanted:
                    self._found[chain.chain_id, number] = hash_here
                if not suspect:
                    self._read(name, number, content)
        except AuditUnreadable as error:
            self._note(f"{name} after entry {number}", str(error))
            return
        if suspect:
            self._note(f"{name} entry {number}", "its content or its hash was changed")
        if number != chain.last_number:
            self._note(name, f"ends at entry {number}, and says that its last entry is {chain.last_number}")
        elif stored != chain.last_hash:
            self._note(name, f"the hash of its last entry {number} is not the one that it says")

    def _read(self, name: str, number: int, content: bytes) -> None:
        try:
            entry = decode(content)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            self._note(f"{name} entry {number}", f"cannot be read: {error}")
            return
        if entry.number != number or encode(entry) != content:
            self._note(f"{name} entry {number}", "is not written as this version writes it")
        if type(entry) is ChainBegun:
            self._begun.append((name, entry))
        elif type(entry) is ChainPruned:
            self._pruned.add((entry.last.chain_id, entry.last.number, entry.last.hash))
        elif type(entry) is PeerHead:
            self._peer_head = entry.head

    def _compare(self, chains: Sequence[Chain]) -> None:
        """Hold the chains against each other, the anchor, and the heads that were kept."""
        by_id = {chain.chain_id: chain for chain in chains}
        for chain in chains:
            if chain.pruned_number and not self._was_pruned(chain.pruned):
                where = chain.chain_id.hex()
                self._note(where, f"entries up to {chain.pruned_number} are gone, and no entry says so")
        for name, begun in self._begun:
            for head in begun.heads:
                known = by_id.get(head.chain_id)
                if known is None and not self._was_pruned(head):
                    self._note(head.chain_id.hex(), f"this chain is gone; {name} begins after it")
                elif known is not None and known.head != head:
                    self._note(head.chain_id.hex(), f"ends otherwise than {name} says, which begins after it")
            if begun.lost is not None:
                self._note(
                    f"{name} entry 1",
                    f"the audit up to entry {begun.lost.number} of {begun.lost.chain_id.hex()} was lost or "
                    f"changed before ({begun.because})",
                )
        for who, head in self._known:
            self._compare_with(by_id.get(head.chain_id), who, head)
        newest = chains[-1] if chains else None
        anchored = self._source.anchored
        if newest is not None and anchored is not None and anchored.chain_id in by_id:
            chain = by_id[anchored.chain_id]
            if chain is not newest and chain.last_number > anchored.number:
                self._note(
                    chain.chain_id.hex(), "goes on after the head that the anchor knows, and has ended"
                )

    def _compare_with(self, chain: Chain | None, who: str, head: Head) -> None:
        where = head.chain_id.hex()
        if chain is None:
            if not any(one[0] == head.chain_id and one[1] >= head.number for one in self._pruned):
                self._note(where, f"this chain is gone; {who} knows its entry {head.number}")
        elif head.number > chain.last_number:
            lost = f"entries {chain.last_number + 1} to {head.number} are missing"
            self._note(where, f"{lost} at the end; {who} knows them")
        elif head.number > chain.pruned_number and self._found.get((head.chain_id, head.number)) != head.hash:
            self._note(
                where,
                f"entry {head.number} is not the one that {who} knows: it or entries before it were replaced",
            )
        elif head.number == chain.pruned_number and head != chain.pruned:
            self._note(where, f"entry {head.number}, deleted since, is not the one that {who} knows")

    def _was_pruned(self, head: Head) -> bool:
        return (head.chain_id, head.number, head.hash) in self._pruned
