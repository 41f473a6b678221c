"""Keys of one session, derived from the pool's session root and both hellos.

Assumption, named in the record of every key: HMAC-SHA-256 and AES-256 are pseudorandom functions. They
protect the messages outside the one-time tags (hello, frames, key control). The block dialogue does not
depend on them.
"""

import hmac
from dataclasses import dataclass, field

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from qnode.config import Role
from qnode.link.directions import Direction

_KEY_BYTES = 32
_INFO = b"qnode link session 1"


@dataclass(frozen=True)
class SessionKeys:
    """The keys from the view of one site."""

    outgoing: Direction
    outgoing_proof: bytes = field(repr=False)
    incoming_proof: bytes = field(repr=False)
    outgoing_frames: bytes = field(repr=False)
    incoming_frames: bytes = field(repr=False)

    def proof(self, hellos: bytes) -> bytes:
        """Return this site's proof that it knows the session root, over both hellos."""
        return _proof(self.outgoing_proof, self.outgoing, hellos)

    def peer_proves(self, hellos: bytes, proof: bytes) -> bool:
        """Return, in constant time, whether ``proof`` is the peer's."""
        return hmac.compare_digest(_proof(self.incoming_proof, self.outgoing.reverse, hellos), proof)


def derive_session_keys(session_root: bytes, hellos: bytes, outgoing: Direction) -> SessionKeys:
    """Derive the four keys of a session by HKDF-SHA-256, salted with both hellos and their nonces."""
    length = 4 * _KEY_BYTES
    material = HKDF(algorithm=SHA256(), length=length, salt=hellos, info=_INFO).derive(session_root)
    keys = [material[start : start + _KEY_BYTES] for start in range(0, length, _KEY_BYTES)]
    a_proof, b_proof, a_frames, b_frames = keys
    if outgoing is Direction.ALICE_TO_BOB:
        return SessionKeys(outgoing, a_proof, b_proof, a_frames, b_frames)
    return SessionKeys(outgoing, b_proof, a_proof, b_frames, a_frames)


def _proof(key: bytes, direction: Direction, hellos: bytes) -> bytes:
    return hmac.digest(key, b"hello proof" + bytes([direction]) + hellos, "sha256")


def joined_hellos(ours: bytes, theirs: bytes, role: Role) -> bytes:
    """Return both hellos as one unambiguous value, Alice's first, the same at both sites."""
    alice, bob = (ours, theirs) if role == "alice" else (theirs, ours)
    return b"".join(len(hello).to_bytes(4, "big") + hello for hello in (alice, bob))
