"""Proof that both ends hold the same key, without telling anything that helps to guess it.

Each end sends an HMAC-SHA256 over the conversation and the key_ID under a key that HKDF derives from the key.
That nothing about the key can be computed from it is an assumption on SHA-256, not information-theoretic.
"""

import hashlib
import hmac
from typing import Final

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from qnode.agent.tunnel import Role, TunnelKey

PROOF_BYTES: Final = 32


def conversation(initiator_hello: bytes, responder_hello: bytes) -> bytes:
    """Return what names one conversation: a hash of both hellos, each with a fresh nonce."""
    lengths = len(initiator_hello).to_bytes(8, "big")
    return hashlib.sha256(b"qnode agent 1" + lengths + initiator_hello + responder_hello).digest()


def proof(key: TunnelKey, session: bytes, role: Role) -> bytes:
    """Return the proof that ``role`` sends in ``session``, for this key and key_ID alone."""
    derived = HKDF(SHA256(), 32, salt=session, info=f"qnode agent proof {role}".encode()).derive(key.key)
    return hmac.digest(derived, key.key_id.encode(), "sha256")


def proves(found: bytes, key: TunnelKey, session: bytes, role: Role) -> bool:
    """Return whether ``found`` is the proof of ``role``."""
    return hmac.compare_digest(found, proof(key, session, role))
