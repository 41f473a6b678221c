"""Compares the encryptors of both sites, so that no key is assigned to a pair that cannot fetch it.

Each site sends the pairs of its own and the other site's encryptors that share keys (names only), at the
start of a session and after each reload. A pair is valid if both sites have it. A pair that one site alone
has is reported at both. A peer of protocol 1 sends and receives no such messages.
"""

from collections.abc import Callable, Collection, Iterator

import trio

from qnode.delivery import SaeDirectory
from qnode.errors import ProtocolError
from qnode.link.messages import MANY, Pair, SaesRegistered
from qnode.link.session import Session
from qnode.node.dialogue.channel import ANSWER_LIMIT_S
from qnode.node.supply.stock import SaePair

MOST_PAIRS = 1 << 20
MOST_WORDED = 100


class PeerSaes:
    """The peer's pairs in one session: an encryptor of the peer and one of this site."""

    def __init__(self) -> None:
        self.pairs: frozenset[Pair] = frozenset()
        self._coming: set[Pair] = set()
        self._told = trio.Event()

    def take(self, message: SaesRegistered) -> bool:
        """Add a part of the peer's pairs; return whether it was the last part.

        Raises:
            ProtocolError: there are too many parts.
        """
        self._coming.update(message.pairs)
        if len(self._coming) > MOST_PAIRS:
            raise ProtocolError(f"more than {MOST_PAIRS} pairs of encryptors")
        if message.more:
            return False
        self.pairs, self._coming = frozenset(self._coming), set()
        self._told.set()
        return True

    async def heard(self) -> None:
        """Return when the peer has sent its pairs; no key is assigned before.

        Raises:
            ProtocolError: it has not sent them in time.
        """
        try:
            with trio.fail_after(ANSWER_LIMIT_S):
                await self._told.wait()
        except trio.TooSlowError:
            raise ProtocolError(f"no SaesRegistered within {ANSWER_LIMIT_S:g} s") from None


class SaeTables:
    """This site's directory, and the latest pairs of the peer.

    ``note`` receives the number of pairs that one site alone has, and the first of them in words. ``others``:
    the sites at the ends of other links, whose encryptors do not concern this link.
    """

    def __init__(
        self,
        directory: SaeDirectory,
        peer_kme_id: str,
        note: Callable[[int, list[str]], None],
        others: Collection[str] = (),
    ) -> None:
        self.directory = directory
        self._peer_kme_id = peer_kme_id
        self._note = note
        self._others = others
        self._theirs: frozenset[Pair] | None = None  # None: not received yet, or protocol 1
        self._changed = trio.Event()

    @property
    def _pairs(self) -> frozenset[Pair]:
        """The pairs of an encryptor of this site and one of the peer that share keys."""
        return self.directory.pairs_abroad(self._others)

    def renew(self, directory: SaeDirectory) -> None:
        """Use another directory, and send its pairs to the peer."""
        self.directory = directory
        self._changed.set()
        self._changed = trio.Event()
        self._compare()

    async def tell(self, session: Session) -> None:
        """Send this site's pairs, now and after each change."""
        while True:
            changed = self._changed
            for part in parts(self._pairs):
                await session.send(part)
            await changed.wait()

    def hear(self, peer_saes: PeerSaes | None) -> None:
        """Use the pairs of the peer; None: the peer speaks protocol 1."""
        self._theirs = None if peer_saes is None else peer_saes.pairs
        self._compare()

    def peer_shares(self, master: str, slave: str) -> bool:
        """Return whether the peer would deliver our ``master``'s keys to its ``slave``, if known."""
        return self._theirs is None or (slave, master) in self._theirs

    def stocked_pairs(self) -> list[SaePair]:
        """Return each pair for which keys can be set aside."""
        abroad = self._pairs
        every = ((sae.sae_id, peer) for sae in self.directory.local for peer in sae.peers)
        return [SaePair(*pair) for pair in every if pair not in abroad or self.peer_shares(*pair)]

    def _compare(self) -> None:
        if self._theirs is None:
            self._note(0, [])
            return
        here, there = self.directory.kme_id, self._peer_kme_id
        ours, theirs = self._pairs, {(local, remote) for remote, local in self._theirs}
        found = [(local, remote, here, there) for local, remote in sorted(ours - theirs)]
        found += [(remote, local, there, here) for local, remote in sorted(theirs - ours)]
        known = {here: {pair[0] for pair in ours}, there: {pair[0] for pair in self._theirs}}
        self._note(len(found), [_worded(*one, known[one[3]]) for one in found[:MOST_WORDED]])


def parts(pairs: frozenset[Pair]) -> Iterator[SaesRegistered]:
    """Yield the messages with ``pairs``, at least one."""
    every = sorted(pairs)
    for first in range(0, len(every) or 1, MANY):
        yield SaesRegistered(pairs=tuple(every[first : first + MANY]), more=first + MANY < len(every))


def _worded(local: str, remote: str, has: str, lacks: str, known: set[str]) -> str:
    why = (
        f"does not name {local} among its peers" if remote in known else "is not registered, or has no peers"
    )
    return f"{local} at {has} shares keys with {remote}, which at {lacks} {why}"
