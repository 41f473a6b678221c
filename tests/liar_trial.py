"""Trials of lies: a session with the lie, an honest one after it, and what must hold at the honest site."""

import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import structlog
import structlog.testing
import trio
from cuts import Line, owners
from liar_deeds import HELLO, MANNERS, NOT_TOLD, SPOILS_HIS_KEY, TAKEN, Deed
from liar_scene import Scene
from lies import Lie, lies_about, payload_of
from small_link import (
    ERROR_RATE,
    ROLES,
    Conduct,
    SmallLink,
    Spoken,
    copied,
    one_loop,
    small_link,
    virtual_clock,
)

from qnode.block.outcome import REASONS
from qnode.config import Role
from qnode.errors import LinkError, ProtocolError, StoreError
from qnode.keys import BlockState, StoredKey
from qnode.link import messages as m
from qnode.link.codec import decode, decode_hello
from qnode.link.hello import _our_hello
from qnode.link.protocol import PROTOCOL, check_said


@dataclass
class Told:
    """What came of a lie: what the honest site ``answered``, and what is wrong about it, if anything."""

    deed: Deed
    answered: str
    faults: list[str] = field(default_factory=list)


class Trial:
    """Tries lies, each on a copy of the same two sites, which have made some blocks before."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._number = 0
        self._template = folder / "template"
        self.samples: dict[Role, dict[str, m.Message]] = {role: {} for role in ROLES}
        with one_loop("template"), small_link(self._template) as link:
            trio.run(self._first_blocks, link, clock=virtual_clock())
        with self._copy() as link:
            scene = Scene(link, None, self.samples)
            ended = self._meet(link, scene)
            assert not [error for errors in ended.values() for error in errors if "goodbye" not in str(error)]
            for site in link.sites:
                hello = _our_hello(site.end(), site.end().standing())
                self.samples[site.role] |= {
                    "hello": hello,
                    "hello_proof": m.HelloProof(bytes(range(32))),
                    "refused": m.Refused("made up"),
                    "goodbye": m.Goodbye("made up"),
                }

    async def _first_blocks(self, link: SmallLink) -> None:
        async def bob(spoken: Spoken) -> None:
            await link.fill_blocks(spoken, 3)

        async def alice(_spoken: Spoken) -> None:
            await trio.sleep_forever()

        await link.meet(Line().ends, {"alice": Conduct(alice), "bob": Conduct(bob)})

    @contextmanager
    def _copy(self) -> Iterator[SmallLink]:
        self._number += 1
        place = copied(self._template, self._folder / str(self._number))
        try:
            with one_loop("liar"), small_link(place) as link:
                yield link
        finally:
            shutil.rmtree(place)

    def _meet(self, link: SmallLink, scene: Scene) -> dict[Role, list[BaseException]]:
        async def meet() -> dict[Role, list[BaseException]]:
            return await link.meet(Line().ends, scene.conducts())

        return trio.run(meet, clock=virtual_clock())

    # Deeds

    def deeds(self) -> Iterator[Deed]:
        """Yield every deed that is worth a session."""
        for liar in ROLES:
            for kind, sample in self.samples[liar].items():
                if kind in ("ping", "pong", "refused"):
                    continue
                yield from self._deeds_at(liar, kind, sample)

    def _deeds_at(self, liar: Role, kind: str, sample: m.Message) -> Iterator[Deed]:
        is_tagged = isinstance(sample, m.DialogueMessage) or kind == "hello"
        formal = 0
        for lie in lies_about(sample):
            if is_formal(lie):
                formal += 1  # they all end in the decoder, which is tried with each of them
                if formal > 1:
                    continue
            for authentic in (True, False) if is_tagged and not is_formal(lie) else (True,):
                yield Deed(liar, kind, lie.field, lie.how, authentic)
        if kind in HELLO:
            others = ["refused", "goodbye", "hello", "hello_proof"]
            yield from (Deed(liar, kind, "", f"instead {other}") for other in others if other != kind)
            return
        for manner in MANNERS:
            for authentic in (True, False) if is_tagged and manner in MANNERS[:2] else (True,):
                yield Deed(liar, kind, "", manner, authentic)
        for other in self.samples[liar] | self.samples["bob" if liar == "alice" else "alice"]:
            if other not in (*HELLO, "refused", "ping", "pong", kind):
                yield Deed(liar, kind, "", f"extra {other}")
                yield Deed(liar, kind, "", f"instead {other}")

    def lie(self, deed: Deed, *, show: bool = False) -> Told:
        """Let the liar do a deed, and the sites meet again."""
        with self._copy() as link, ExitStack() as stack:
            events: list[Any] = [] if show else stack.enter_context(structlog.testing.capture_logs())
            if deed.kind == "block_state_answer":  # said only where a commit was cut
                self._meet(
                    link, Scene(link, Deed(deed.liar, "prepared", "", MANNERS[3]), self._all_samples())
                )
            judge = Judge(link, deed)
            scene = Scene(link, deed, self._all_samples())
            events.clear()
            ended = self._meet(link, scene)
            told = judge.answer(ended, events)
            if scene.liar is None or not scene.liar.told:
                return Told(deed, NOT_TOLD)
            try:
                judge.hold_to()
                self._meet_honestly(link, judge, scene)
            except AssertionError as error:
                told.faults.append(str(error))
            return told

    def _meet_honestly(self, link: SmallLink, judge: "Judge", lied: Scene) -> None:
        """Have the sites meet again; more than once where a store was voided, which the peer must hear."""
        for site in link.sites:
            site.figures.history.error_rate.counted(ERROR_RATE)
        for _ in range(4):
            scene = Scene(link)
            ended = self._meet(link, scene)
            errors = [error for of_site in ended.values() for error in of_site]
            if not any("this store was voided" in str(error) for error in errors):
                break
        unexpected = [error for error in errors if "said goodbye" not in str(error)]
        if judge.about_memory and all(isinstance(error, LinkError) for error in unexpected) and unexpected:
            return  # who is said to hold no pads has none: qnodectl restore
        assert not unexpected, f"the next session: {unexpected!r}"
        judge.check_next(lied, scene)

    def _all_samples(self) -> dict[Role, dict[str, m.Message]]:
        both = self.samples["alice"] | self.samples["bob"]
        return {role: both | self.samples[role] for role in ROLES}


def is_formal(lie: Lie) -> bool:
    """Tell whether a lie breaks a type or a limit, which the decoder sees."""
    payload = payload_of(lie.said)
    try:
        message = (
            decode_hello(payload)
            if lie.said.get("kind") in ("hello", "hello_proof", "refused")
            else decode(payload)
        )
        check_said(message, PROTOCOL)
    except ProtocolError:
        return True
    return False


class Judge:
    """What the honest site must be after a lie: told from what it was before."""

    def __init__(self, link: SmallLink, deed: Deed) -> None:
        self._link = link
        self._deed = deed
        self.about_memory = deed.kind == "hello" and deed.field.startswith(("positions", "since_2"))
        self.about_memory |= deed.kind == "void_lost" and deed.field.startswith("loss.send_after")
        """A lie about what the peer remembers and holds, by which a restored store is found."""
        self._honest: Role = "bob" if deed.liar == "alice" else "alice"
        self._before = link.site(self._honest).store.last_block_id
        store = link.site(self._honest).store
        self._available = [
            one for one in range(1, self._before + 1) if store.block_state(one) == BlockState.AVAILABLE
        ]
        self._owned = self._own_chunks()
        self._era = store.positions().era

    def _rows(self) -> dict[int, str]:
        rows = self._link.site(self._honest).figures.blocks.table.latest(50)
        assert len({row.block_id for row in rows}) == len(rows), "a block is decided twice"
        return {row.block_id: row.outcome for row in rows}

    def _own_chunks(self) -> set[tuple[int, int]]:
        """Return the free chunks that only the honest site may assign, of the blocks before."""
        return {
            chunk
            for chunk, owner in owners(self._link, self._honest).items()
            if owner == self._honest and chunk[0] in self._available
        }

    def answer(self, ended: dict[Role, list[BaseException]], events: list[Any]) -> Told:
        """Say what the honest site answered."""
        told = Told(self._deed, "")
        errors = [error for error in ended[self._honest] if "said goodbye" not in str(error)]
        escaped = [error for error in errors if not isinstance(error, LinkError)]
        told.faults += [f"{type(error).__name__} escapes: {error}" for error in escaped]
        if any("made up" in str(error) for error in ended[self._honest]):
            told.answered = "session ended: goodbye"
            return told
        rows = self._link.site(self._honest).figures.blocks.table.latest(50)
        lost = [row for row in rows if row.outcome not in ("accepted", "link")]
        refused = [one for one in events if one["event"] == "key_control.refused"]
        if errors:
            told.answered = f"session ended: {type(errors[0]).__name__}: {errors[0]}"
        elif lost:
            told.answered = f"block discarded: {lost[0].outcome}: {lost[0].detail}"
            told.faults += [
                f"no reason: {row.outcome}" for row in lost if row.outcome not in {*REASONS, "peer"}
            ]
        elif refused:
            told.answered = f"refused: {refused[0]['request']}: {refused[0]['reason']}"
        else:
            told.answered = TAKEN
        return told

    def hold_to(self) -> None:
        """Check that nothing changed but what the protocol spends, and what the liar's own word is about."""
        link, honest = self._link, self._link.site(self._honest)
        liar = link.site(self._deed.liar)
        if self._deed.kind in HELLO:  # the peer's memory decides whether a store was restored (docs)
            return
        for block_id in self._available:
            state = honest.store.block_state(block_id)
            assert state == BlockState.AVAILABLE, f"block {block_id} of before is {state}"
        gone = len(self._owned - self._own_chunks())
        assert gone <= (3 if self._honest == "bob" else 2), f"{gone} chunks of the honest site are gone"
        received, sent = honest.store.positions().received, liar.store.positions().sent
        assert received <= sent, f"pads up to {received} are used up, of those sent up to {sent}"
        for block_id in range(self._before + 1, honest.store.last_block_id + 1):
            if honest.store.block_state(block_id) == BlockState.AVAILABLE:
                there = liar.store.block_state(block_id)
                assert there in (BlockState.PREPARED, BlockState.AVAILABLE), (
                    f"block {block_id}: there {there}"
                )
                is_spoilt = f"{self._deed.kind}/{self._deed.field}" in SPOILS_HIS_KEY and self._deed.authentic
                assert is_spoilt or self._same_keys(block_id), f"block {block_id} is another key there"
                assert self._rows().get(block_id) == "accepted", (
                    f"block {block_id} is available, not accepted"
                )

    def _same_keys(self, block_id: int) -> bool:
        try:
            return len({site.store.fingerprint(block_id) for site in self._link.sites}) == 1
        except StoreError:  # the liar has given some of it away, or voided it
            return True

    def check_next(self, lied: Scene, scene: Scene) -> None:
        """Check what an honest session made, and that keys are the same at both sites or at one alone."""
        link, honest = self._link, self._link.site(self._honest)
        (made,) = scene.made
        states = {site.store.block_state(made) for site in link.sites}
        assert states == {BlockState.AVAILABLE}, f"the next session's block is {states}"
        assert self._same_keys(made), "the next session's keys differ"
        left = [site.role for site in link.sites if site.store.unconfirmed_blocks()]
        assert not left, f"a block is left unconfirmed at {left}"
        # The peer states that its store was set back and is void, or remembers things that this site has not
        # done.
        is_voided = honest.store.positions().era > self._era
        for block_id, outcome in self._rows().items():
            is_here = honest.store.block_state(block_id) == BlockState.AVAILABLE
            assert outcome != "accepted" or is_here or is_voided, f"{block_id} was accepted, and is not here"
        assert scene.given[self._honest], "the honest site's key of the next session was refused"
        for one in (lied, scene):
            for role, keys in one.given.items():
                self._fetch(role, keys, is_voided=is_voided)

    def _fetch(self, role: Role, keys: list[StoredKey], *, is_voided: bool) -> None:
        """Fetch at the other site what was delivered at the site of ``role``: the honest site's are there."""
        master, slave = ("sae-a", "sae-b") if role == "alice" else ("sae-b", "sae-a")
        peer = self._link.site("bob" if role == "alice" else "alice")
        for key in keys:
            try:
                (same,) = peer.store.deliver_to_slave(slave, master, [key.key_id])
            except StoreError:
                is_lost = role == self._honest and not is_voided
            else:
                is_lost = False
                assert same.key == key.key, "a key of two values"
            assert not is_lost, "a key that was delivered at the honest site cannot be fetched"
