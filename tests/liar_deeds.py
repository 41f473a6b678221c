"""The deeds of a liar at one message of a session, and the statements that a peer must believe."""

import zlib
from dataclasses import dataclass
from typing import get_args

import msgspec
from lies import lies_about, payload_of

from qnode.config import Role
from qnode.errors import LinkError
from qnode.link import messages as m
from qnode.link.codec import decode_hello, encode
from qnode.link.directions import outgoing_direction
from qnode.link.frames import FrameStream
from qnode.link.hello import Greeted, LocalEnd, _our_hello
from qnode.link.protocol import PROTOCOL
from qnode.link.session import Session
from qnode.link.session_keys import derive_session_keys, joined_hellos

BY_KIND: dict[str, type[m.Message]] = {
    str(kind.__struct_config__.tag): kind for kind in [*get_args(m.SessionMessage), *get_args(m.HelloMessage)]
}
HELLO = ("hello", "hello_proof")
ALIGNMENT = ("alignment_probe_message", "alignment_result")
SAMPLE = ("sample_request", "sample_answer")
ASK_S = 3.0
TAKEN = "taken"
NOT_TOLD = "what would be said is the truth"
MANNERS = ("omitted", "twice", "after the next one", "with a wrong code", "a hundred times")


@dataclass(frozen=True)
class Deed:
    """A deed of a liar at one of its messages, of the first block.

    ``field`` and ``how`` name a lie about the message (`lies_about`); without a field ``how`` is one of
    `MANNERS`, or "extra ..." and "instead ..." with another kind. ``authentic``: its one-time tag, or its
    proof in a hello, belongs to the lie; otherwise to the truth.
    """

    liar: Role
    kind: str
    field: str
    how: str
    authentic: bool = True

    @property
    def name(self) -> str:
        """What tells it from all others."""
        return "/".join(
            (self.liar, self.kind, self.field, self.how, "authentic" if self.authentic else "not tagged")
        )

    @property
    def occurrence(self) -> int:
        """At which message of the kind: some are said often."""
        of = {"reconcile_request": 6, "reconcile_answer": 6, "click_batch": 2}.get(self.kind, 1)
        return zlib.crc32(f"{self.field} {self.how}".encode()) % of


class Liar:
    """Says what a deed asks for in the place of one message of a session."""

    def __init__(self, deed: Deed, samples: dict[str, m.Message]) -> None:
        self.told = False
        self._deed = deed
        self._samples = samples
        self._seen = 0
        self._held: list[tuple[m.Message, bytes]] = []

    def take(self, session: Session, frames: FrameStream) -> None:
        """Have what the site says in ``session`` pass here."""
        self._session, self._frames = session, frames
        session.send = self.send  # type: ignore[method-assign]

    async def send(self, message: m.Message) -> None:
        """Send a message, or what the deed makes of it."""
        kind = str(type(message).__struct_config__.tag)
        if kind == self._deed.kind:
            self._seen += 1
            if self._seen == self._deed.occurrence + 1:
                await self._lie(message)
                return
        await Session.send(self._session, message)
        for held, payload in list(self._held):
            if not isinstance(held, m.DialogueMessage) or held.block_id == getattr(message, "block_id", None):
                self._held.remove((held, payload))
                await self._say(held, payload, [payload])

    async def _lie(self, message: m.Message) -> None:
        deed, true = self._deed, encode(message)
        self.told = True
        if deed.field:
            found = [lie for lie in lies_about(message) if (lie.field, lie.how) == (deed.field, deed.how)]
            self.told = bool(found)
            said = [payload_of(lie.said) for lie in found] or [true]
            await self._say(message, said[0] if deed.authentic else true, said)
        elif deed.how == "omitted":
            if not deed.authentic or isinstance(message, m.BlockProposed):
                await self._say(message, true, [])
        elif deed.how == "twice":
            await self._say(message, true, [true])
            await self._say(message, true if deed.authentic else None, [true])
        elif deed.how == "a hundred times":
            for _ in range(100):
                await self._say(message, true, [true])
        elif deed.how == "after the next one":
            self._held.append((message, true))
            if isinstance(message, m.BlockProposed):
                self._enter(message, true)
        elif deed.how == "with a wrong code":
            self._frames._outgoing._counter += 1  # type: ignore[union-attr]
            await self._say(message, true, [true])
        else:
            manner, _, kind = deed.how.partition(" ")
            other = encode(self._of_block(self._samples[kind], message))
            if manner == "extra":
                await self._say(message, other if deed.authentic else None, [other])
                await self._say(message, true, [true])
            else:
                await self._say(message, other if deed.authentic else true, [other])

    def _of_block(self, sample: m.Message, message: m.Message) -> m.Message:
        """Return another message about the block of this one."""
        if hasattr(sample, "block_id") and hasattr(message, "block_id"):
            return msgspec.structs.replace(sample, block_id=message.block_id)
        return sample

    async def _say(self, message: m.Message, tagged: bytes | None, said: list[bytes]) -> None:
        """Send ``said`` in turn, while the tag of the block will be about ``tagged``."""
        async with self._session._turn:
            if tagged is not None:
                self._enter(message, tagged)
            for payload in said:
                await self._frames.send(payload)

    def _enter(self, message: m.Message, payload: bytes) -> None:
        if not isinstance(message, m.DialogueMessage):
            return
        transcripts = self._session._transcripts
        if isinstance(message, m.BlockProposed) and message.block_id not in transcripts._open:
            transcripts._open_block(message.block_id)
        pair = transcripts._open.get(message.block_id)
        if pair is not None:
            pair.outgoing.enter(payload)

    async def greet(self, frames: FrameStream, local: LocalEnd) -> Greeted:
        """Say the hello, or what the deed makes of it; the proof fits what was said if it is authentic."""
        connected, standing = local.role == "bob", local.standing()
        hello = _our_hello(local, standing)
        said, true = self._hello(hello), encode(hello)
        if connected:
            await frames.send(said)
        theirs = await frames.receive()
        if not connected:
            await frames.send(said)
        hellos = joined_hellos(said if self._deed.authentic else true, theirs, local.role)
        keys = derive_session_keys(local.secrets.session_root(), hellos, outgoing_direction(local.role))
        proof = self._hello(m.HelloProof(keys.proof(hellos)))
        if connected:
            await frames.send(proof)
        answer = decode_hello(await frames.receive())
        if not isinstance(answer, m.HelloProof):
            raise LinkError(f"{answer!r}")
        if not connected:
            await frames.send(proof)
        frames.authenticate(keys.outgoing, keys.outgoing_frames, keys.incoming_frames)
        peer = decode_hello(theirs)
        assert isinstance(peer, m.Hello)
        return Greeted(peer, PROTOCOL, hellos, local.secrets.hash_keys(), standing)

    def _hello(self, message: m.Message) -> bytes:
        deed = self._deed
        if type(message) is not BY_KIND[deed.kind]:
            return encode(message)
        self.told = True
        if not deed.field:
            return encode(self._samples[deed.how.partition(" ")[2]])
        found = [lie for lie in lies_about(message) if (lie.field, lie.how) == (deed.field, deed.how)]
        self.told = bool(found)
        return payload_of(found[0].said) if found else encode(message)


# What may be taken: the word of a peer that nobody else can know, or that changes nothing

HIS_WORD: dict[str, dict[str, str]] = {
    "hello": {
        "protocol": "the sites speak the older protocol of the two",
        "oldest_protocol": "the sites speak the older protocol of the two",
        "nonce": "any will do",
        "last_block_id": "numbers are skipped",
        "generation": "it is remembered",
        "positions": "by what the peer remembers a store finds that it was restored",
        "since_2": "by what the peer remembers a store finds that it was restored",
        "software": "it is shown",
    },
    "emission_run_started": {"": "Alice's runs are known from Alice alone"},
    "alignment_probe_message": {"": "another question, which is answered"},
    "alignment_result": {"": "an offset that was asked for; wrong slots give errors, and no key"},
    "clicks_ended": {
        "dropped": "Bob counts the clicks that it could not announce",
        "recorded": "Bob states whether it is recorded",
        "nonce": "any will do",
        "tags": "Bob's counts, within what is plausible",
    },
    "sifted": {
        "x_counts": "Alice's counts, within what is plausible; both sites must come to the same length",
        "n_z_plus": "Alice's counts, within what is plausible; both sites must come to the same length",
        "boundary": "Alice's counts, within what is plausible; both sites must come to the same length",
        "decoy_bits": "Alice's counts, within what is plausible; both sites must come to the same length",
        "dropped": "Alice counts the clicks that it no longer knew",
        "recorded": "Alice states whether it is recorded",
    },
    "reconcile_begin": {"qber_estimate": "it chooses how much is asked first", "seed": "any will do"},
    "verify_begin": {"nonce": "any will do"},
    "verified": {
        "m_z": "Bob's count of errors, within its limit; both sites must come to the same length",
        "nonce": "any will do",
    },
    "amplify": {
        "seed": "any will do; the liar may do anything with its own bits",
        "refill_pads": "within its limits; the liar may do anything with its own bits",
    },
    "reconcile_answer": {"payload": "wrong parities cost corrections, and the hash compares the blocks"},
    "transcript_tag": {"block_id": "a tag of another block is stale; the block waits for its own"},
    "prepared": {"block_id": "a tag of another block is stale; the next meeting settles the block"},
    "block_discarded": {"": "a block is given up by either site's word"},
    "goodbye": {"": "it is shown"},
    "saes_registered": {"": "its encryptors; differences are an alarm"},
    "assign": {"": "its own chunks; it chooses their receiver"},
    "release_assignments": {"": "its own chunks, which are free again"},
    "void_assignments": {"": "its own chunks, which nobody gets"},
    "give_away": {"": "its own chunks, which are ours then"},
    "void_handover": {"": "its own chunks, which nobody gets"},
    "void_lost": {"": "what it cannot open is given up"},
    "key_answer": {"": "whether it holds an assignment; open ones are taken back"},
    "block_state_query": {"": "another question, which is answered"},
    "stream_request": {"": "another question, which is answered"},
    "stream_answer": {
        "answer": "what it knows of its own streams",
        "request_id": "an answer that nobody waits for",
    },
    "block_state_answer": {
        "states": "which of the blocks it holds",
        "request_id": "an answer that nobody waits for",
    },
}
SPOILS_HIS_KEY = ("amplify/seed", "amplify/refill_pads")


def may_be_taken(deed: Deed) -> str:
    """Return why a deed may go unnoticed; empty if it may not."""
    is_dialogue = issubclass(BY_KIND[deed.kind], m.DialogueMessage)
    if is_dialogue and not deed.authentic:
        return ""
    if deed.field:
        known = HIS_WORD.get(deed.kind, {})
        return next((why for field, why in known.items() if deed.field.startswith(field)), "")
    manner, _, other = deed.how.partition(" ")
    if manner == "extra" and other in BY_KIND and not issubclass(BY_KIND[other], m.DialogueMessage):
        return "another message, which means what it says"
    if deed.kind == "goodbye":
        return "the last word"
    if not is_dialogue and manner in ("extra", "instead", "omitted", "twice", "after", "a"):
        return "a message of no block may be missing, late or repeated, and a block's is stale after its end"
    return ""
