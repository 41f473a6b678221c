"""Divides a block's final key into its parts, and computes its key_IDs. Pure."""

from dataclasses import dataclass, field
from uuid import UUID

from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import CTR

from qnode.errors import FieldError
from qnode.keys._model import BLOCK_SECRET_BYTES, PAD_BYTES, KeyLayout
from qnode.units import CHUNK_BYTES

_PRESHARED_HEAD_BYTES = 32 + 2 * 16
# What bytes 6 and 8 of a UUID become.
_OF_VERSION_8 = bytes(0x80 | byte & 0x0F for byte in range(256))
_OF_RFC_9562 = bytes(0x80 | byte & 0x3F for byte in range(256))


@dataclass(frozen=True)
class BlockParts:
    """The disjoint parts of a block's final key: no bit of it serves two purposes."""

    block_secret: bytes = field(repr=False)
    pads_alice_to_bob: bytes = field(repr=False)
    pads_bob_to_alice: bytes = field(repr=False)
    chunks: bytes = field(repr=False)
    n_chunks: int
    n_chunks_alice: int


def cut_block(key: bytes, layout: KeyLayout) -> BlockParts:
    """Divide the final key of a block by its `KeyLayout`.

    Raises FieldError if the key is shorter than block secret and pads.
    """
    if len(key) < layout.overhead_bytes:
        raise FieldError("key", f"needs at least {layout.overhead_bytes} bytes, has {len(key)}")
    middle = BLOCK_SECRET_BYTES + layout.pads_per_direction * PAD_BYTES
    n_chunks = layout.n_chunks(len(key))
    start = layout.overhead_bytes
    return BlockParts(
        block_secret=key[:BLOCK_SECRET_BYTES],
        pads_alice_to_bob=key[BLOCK_SECRET_BYTES:middle],
        pads_bob_to_alice=key[middle:start],
        chunks=key[start : start + n_chunks * CHUNK_BYTES],
        n_chunks=n_chunks,
        n_chunks_alice=layout.n_chunks_alice(n_chunks),
    )


@dataclass(frozen=True)
class PresharedParts:
    """The parts of a pre-shared key file."""

    session_root: bytes = field(repr=False)
    r_alice_to_bob: bytes = field(repr=False)
    r_bob_to_alice: bytes = field(repr=False)
    pads_alice_to_bob: bytes = field(repr=False)
    pads_bob_to_alice: bytes = field(repr=False)


def cut_preshared(data: bytes) -> PresharedParts:
    """Divide a pre-shared key: session root (32), r per direction (16 each), then pads, half per direction.

    Raises FieldError if it has no pad for each direction.
    """
    per_direction = (len(data) - _PRESHARED_HEAD_BYTES) // PAD_BYTES // 2
    if per_direction < 1:
        smallest = _PRESHARED_HEAD_BYTES + 2 * PAD_BYTES
        raise FieldError("preshared", f"needs at least {smallest} bytes, has {len(data)}")
    middle = _PRESHARED_HEAD_BYTES + per_direction * PAD_BYTES
    return PresharedParts(
        session_root=data[:32],
        r_alice_to_bob=data[32:48],
        r_bob_to_alice=data[48:64],
        pads_alice_to_bob=data[_PRESHARED_HEAD_BYTES:middle],
        pads_bob_to_alice=data[middle : middle + per_direction * PAD_BYTES],
    )


def key_id_bytes(block_secret: bytes, first: int, count: int) -> list[bytes]:
    """Return the key_IDs of `count` chunks from position `first` on, 16 bytes each.

    That of position i is block i of the keystream of AES-256 in counter mode under the block secret, with the
    version bits of a UUIDv8 (RFC 9562, 5.8). Both sites have the block secret, so they compute the same
    key_ID without communication; nobody else can predict it.
    """
    keystream = Cipher(AES256(block_secret), CTR(first.to_bytes(16, "big"))).encryptor()
    named = bytearray(keystream.update(bytes(16 * count)))
    named[6::16] = named[6::16].translate(_OF_VERSION_8)
    named[8::16] = named[8::16].translate(_OF_RFC_9562)
    together = bytes(named)
    return [together[i : i + 16] for i in range(0, 16 * count, 16)]


def key_id(block_secret: bytes, position: int) -> UUID:
    """Return the key_ID of the chunk at `position`."""
    return UUID(bytes=key_id_bytes(block_secret, position, 1)[0])
