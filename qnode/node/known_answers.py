"""Known answers of the ciphers and hashes on which keys rest, from the standards that define them.

They are the primitives as the node calls them: a library or a processor that computes wrongly must not
authenticate blocks or encrypt keys.
"""

import hashlib
import hmac
from collections.abc import Callable
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import CTR
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.poly1305 import Poly1305

from qnode.distill.selftest import expect
from qnode.link.authentication import TranscriptHash, transcript_tag

_hex = bytes.fromhex
_MESSAGE = b"Cryptographic Forum Research Group"
_GCM_KEY = _hex("feffe9928665731c6d6a8f9467308308" * 2)
_GCM_NONCE = _hex("cafebabefacedbaddecaf888")
_GCM_PLAIN = _hex(
    "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a721c3c0c95956809532fcf0e2449a6b525"
    "b16aedf5aa0de657ba637b39"
)
_GCM_ADDED = _hex("feedfacedeadbeeffeedfacedeadbeefabaddad2")
_GCM_SEALED = _hex(
    "522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa8cb08e48590dbb3da7b08b1056828838"
    "c5f61e6393ba7a0abcc9f662" + "76fc6ece0f4e1768cddf8853bb2d551b"
)


def check_known_answers() -> None:
    """Compute each known answer.

    Raises:
        SelfTestFailed: a cipher or hash gave a wrong result; the message names it.
    """
    for name, right in ANSWERS.items():
        expect(name, right())


def _authentication() -> bool:
    """RFC 8439, 2.5.2, as the tag of a transcript: the pad is added to the hash."""
    running = Poly1305(_hex("85d6be7857556d337f4452fe42d506a8") + bytes(16))
    running.update(_MESSAGE)
    transcript = TranscriptHash(running.finalize(), len(_MESSAGE))
    tag = transcript_tag(transcript, _hex("0103808afb0db2fd4abff6af4149f51b"))
    return tag == _hex("a8061dc1305136c6c22b8baf0c0127a9")


def _sealing() -> bool:
    """Test case 16 of the GCM specification; what was changed by one bit must not open."""
    cipher = AESGCM(_GCM_KEY)
    sealed = cipher.encrypt(_GCM_NONCE, _GCM_PLAIN, _GCM_ADDED)
    try:
        if sealed != _GCM_SEALED or cipher.decrypt(_GCM_NONCE, sealed, _GCM_ADDED) != _GCM_PLAIN:
            return False
    except InvalidTag:
        return False
    try:
        cipher.decrypt(_GCM_NONCE, sealed[:-1] + bytes([sealed[-1] ^ 1]), _GCM_ADDED)
    except InvalidTag:
        return True
    return False


def _counter_mode() -> bool:
    """SP 800-38A, F.5.5, first block."""
    key = _hex("603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4")
    cipher = Cipher(AES256(key), CTR(_hex("f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff"))).encryptor()
    return cipher.update(_hex("6bc1bee22e409f96e93d7e117393172a")) == _hex("601ec313775789a5b7a7f504bbf3d228")


def _hash() -> bool:
    """FIPS 180, the message "abc"."""
    return hashlib.sha256(b"abc").digest() == _hex(
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    )


def _keyed_hash() -> bool:
    """RFC 4231, test case 2."""
    return hmac.digest(b"Jefe", b"what do ya want for nothing?", "sha256") == _hex(
        "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
    )


def _derivation() -> bool:
    """RFC 5869, test case 1."""
    derived = HKDF(
        algorithm=SHA256(), length=42, salt=bytes(range(13)), info=bytes(range(0xF0, 0xFA))
    ).derive(b"\x0b" * 22)
    return derived == _hex(
        "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865"
    )


ANSWERS: Final[dict[str, Callable[[], bool]]] = {
    "authentication by Poly1305": _authentication,
    "encryption by AES-256-GCM": _sealing,
    "AES-256 in counter mode": _counter_mode,
    "SHA-256": _hash,
    "HMAC-SHA-256": _keyed_hash,
    "HKDF-SHA-256": _derivation,
}
