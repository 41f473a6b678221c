"""A session between two small sites in which all kinds of messages are said, and the liar lies."""

from contextlib import suppress

import msgspec
import trio
from liar_deeds import ALIGNMENT, ASK_S, HELLO, SAMPLE, Deed, Liar
from small_link import (
    ROLES,
    Conduct,
    SmallLink,
    SmallSite,
    Spoken,
)

from qnode.block.outcome import Reason
from qnode.config import Role
from qnode.errors import LinkError, NotEnoughKeys, ProtocolError, ShareUsedUp
from qnode.keys import KeyRange, Loss, PadId, StoredKey
from qnode.link import messages as m
from qnode.link.frames import FrameStream
from qnode.link.session import Session


class Scene:
    """A session in which much is said; a lie is told in it, or ``samples`` are taken of what is said.

    Without either it is an honest one.
    """

    def __init__(
        self,
        link: SmallLink,
        deed: Deed | None = None,
        samples: dict[Role, dict[str, m.Message]] | None = None,
    ) -> None:
        self._link = link
        self._deed = deed
        self._samples = samples
        self._block_decided = trio.Event()
        self._alice_done = trio.Event()
        self.given: dict[Role, list[StoredKey]] = {"alice": [], "bob": []}
        self.made: list[int] = []
        self.liar = Liar(deed, samples[deed.liar]) if deed is not None and samples is not None else None

    def conducts(self) -> dict[Role, Conduct]:
        """Return what each site does."""
        conducts: dict[Role, Conduct] = {"alice": Conduct(self._alice), "bob": Conduct(self._bob)}
        if self._samples is None:
            return conducts
        if self.liar is None or self._deed is None:
            for role in ROLES:
                conducts[role].prepare = _Listener(self._samples[role]).take
        elif self._deed.kind in HELLO:
            conducts[self._deed.liar].greet = self.liar.greet
        else:
            conducts[self._deed.liar].prepare = self.liar.take
        return conducts

    def _includes(self, *kinds: str) -> bool:
        if self._samples is None:
            return False
        return self._deed is None or self._deed.kind in kinds or self._deed.how.partition(" ")[2] in kinds

    async def _bob(self, spoken: Spoken) -> None:
        with trio.move_on_after(ASK_S):
            await spoken.part.run_known.wait()
        if spoken.part.run is None:
            return
        if self._includes(*ALIGNMENT):
            await self._link.align(spoken)
        if self._deed is None and self._samples is not None:
            await self._link.fill_blocks(spoken, 1)  # and one more, of which a sample is disclosed
        if self._includes(*SAMPLE):
            self._link.bob.figures.history.error_rate.lost(Reason.VERIFICATION)
        self.made += await self._link.fill_blocks(spoken, 1)
        with trio.move_on_after(ASK_S):
            while self._link.alice.store.unconfirmed_blocks():  # noqa: ASYNC110
                await trio.sleep(0.25)
        self._block_decided.set()
        await self._keys(spoken)
        with trio.move_on_after(600):
            await self._alice_done.wait()
        with trio.move_on_after(ASK_S), suppress(NotEnoughKeys):
            await spoken.conversation.keys.hand_over(
                self._link.bob.store.pending_handover() or self._link.bob.store.give_away(1)
            )
        if self._deed is not None and self._deed.kind == "key_answer":
            await trio.sleep(100)  # an answer that is missing ends the session

    async def _alice(self, spoken: Spoken) -> None:
        await self._block_decided.wait()
        await self._keys(spoken)
        self._alice_done.set()
        await trio.sleep_forever()

    async def _keys(self, spoken: Spoken) -> None:
        """Have a key assigned and one assigned and taken back, as the key supply does."""
        site = self._link.site(spoken.conversation.context.role)
        assignments, store = spoken.conversation.keys.assignments, site.store
        for is_wanted in (True, False):
            master, slave = ("sae-a", "sae-b") if site.role == "alice" else ("sae-b", "sae-a")
            if not store.stored_key_count():
                return  # the store was voided
            assignment = store.assign(master, [slave], 1, 256, now=0.0)
            held = False
            with trio.move_on_after(ASK_S):
                try:
                    await assignments.announce(assignment)
                    held = True
                except ProtocolError:
                    raise
                except (LinkError, ShareUsedUp):
                    pass  # as the key supply: it is taken back
            if held and is_wanted:
                store.acknowledge(assignment.assignment_id)
                self.given[site.role] += store.deliver_to_master(assignment.assignment_id)
            else:
                done = assignments.take_back([assignment.assignment_id], late=not held)
                with trio.move_on_after(ASK_S):
                    await done.wait()
        if self._samples is not None and self._includes("stream_request", "stream_answer"):
            with trio.move_on_after(ASK_S), suppress(LinkError):  # as the node: the encryptor hears of it
                await spoken.conversation.ask_about_stream(b"of a stream")
        if self._samples is not None and (self._deed is None or self._deed.liar == site.role):
            await self._more_requests(spoken, site)

    async def _more_requests(self, spoken: Spoken, site: SmallSite) -> None:
        """Say what an honest site would say only after a fault."""
        pack = msgspec.msgpack.encode
        ask = spoken.conversation._requests.ask
        if self._includes("void_assignments"):
            assignment = site.store.assign("m", ["s"], 1, 256, now=0.0)
            await ask(lambda number: m.VoidAssignments(number, pack([assignment])))
            site.store.void_assignment(assignment.assignment_id)
        if self._includes("void_handover") and site.store.pending_handover() is None:
            handover = site.store.give_away(1)
            await ask(lambda number: m.VoidHandover(number, pack(handover)))
            site.store.void_handover(handover)
        if self._includes("void_lost"):
            loss = Loss(loss_id=1, ranges=(KeyRange(1 << 40, 0, 1),), pads=0, send_after=PadId(-1, -1))
            await ask(lambda number: m.VoidLost(number, pack(loss)))
        if self._includes("block_state_query"):
            await ask(lambda number: m.BlockStateQuery(number, (1,)))
        if self._includes("block_discarded"):
            await spoken.conversation.context.session.send(
                m.BlockDiscarded(1, "qber_z", "of an earlier block")
            )


class _Listener:
    """Keeps the first message of each kind that a site says."""

    def __init__(self, samples: dict[str, m.Message]) -> None:
        self._samples = samples

    def take(self, session: Session, _frames: FrameStream) -> None:
        async def send(message: m.Message) -> None:
            self._samples.setdefault(str(type(message).__struct_config__.tag), message)
            await Session.send(session, message)

        session.send = send  # type: ignore[method-assign]
