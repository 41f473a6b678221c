"""Private keys: EC (P-256), RSA (3072 bits) or Ed25519."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, Literal

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    pkcs12,
)
from cryptography.x509 import Certificate

from qnode.errors import ConfigError
from qnode.secret_files import read_secret

KeyKind = Literal["ec", "rsa", "ed25519"]
KEY_KINDS: Final[tuple[KeyKind, ...]] = ("ec", "rsa", "ed25519")
PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey
PublicKey = ec.EllipticCurvePublicKey | rsa.RSAPublicKey | ed25519.Ed25519PublicKey
RSA_BITS: Final = 3072
LEAST_RSA_BITS: Final = 2048
LEAST_EC_BITS: Final = 224


def make_key(kind: KeyKind) -> PrivateKey:
    """Return a new private key."""
    if kind == "rsa":
        return rsa.generate_private_key(public_exponent=65537, key_size=RSA_BITS)
    return (
        ed25519.Ed25519PrivateKey.generate() if kind == "ed25519" else ec.generate_private_key(ec.SECP256R1())
    )


def signature_hash(key: PrivateKey) -> hashes.SHA256 | None:
    """Return the hash that a signature with ``key`` needs; Ed25519 has its own."""
    return None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()


def key_pem(key: PrivateKey, passphrase: bytes | None = None) -> bytes:
    """Return ``key`` in PEM, encrypted if there is a passphrase."""
    encryption: KeySerializationEncryption = (
        NoEncryption() if passphrase is None else BestAvailableEncryption(passphrase)
    )
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)


def packed_for_browser(
    name: str, key: PrivateKey, own: Certificate, chain: Sequence[Certificate], passphrase: bytes
) -> bytes:
    """Return certificate and key in PKCS#12, encrypted; browsers show ``name``."""
    return pkcs12.serialize_key_and_certificates(
        name.encode(errors="replace"), key, own, chain, BestAvailableEncryption(passphrase)
    )


def read_key(path: Path, ask_passphrase: Callable[[Path], bytes] | None = None) -> PrivateKey:
    """Read the private key at ``path``; ``ask_passphrase`` is called if it is encrypted.

    Raises:
        ConfigError: others can read it, it is not a key of a known kind, or the passphrase is wrong.
    """
    content = read_secret(path, "private key")
    try:
        key = load_pem_private_key(content, None)
    except TypeError:  # it is encrypted
        if ask_passphrase is None:
            raise ConfigError(
                f"{path}: is encrypted: give it unencrypted, protected by the file's mode"
            ) from None
        try:
            key = load_pem_private_key(content, ask_passphrase(path))
        except (ValueError, UnsupportedAlgorithm):
            raise ConfigError(f"{path}: cannot be decrypted: wrong passphrase?") from None
    except (ValueError, UnsupportedAlgorithm):
        raise ConfigError(f"{path}: holds no private key in PEM") from None
    if not isinstance(key, PrivateKey):
        raise ConfigError(f"{path}: expected a key of kind EC, RSA or Ed25519")
    return key


def public_bytes(key: object) -> bytes:
    """Return the public part in DER, to compare two keys."""
    public = key.public_key() if isinstance(key, PrivateKey) else key
    return public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)  # type: ignore[attr-defined,no-any-return]


def key_weakness(public: object) -> str | None:
    """Return why TLS would not accept this public key; None: it would."""
    if isinstance(public, rsa.RSAPublicKey):
        short = public.key_size < LEAST_RSA_BITS
        return f"an RSA key of {public.key_size} bits; at least {LEAST_RSA_BITS}" if short else None
    if isinstance(public, ec.EllipticCurvePublicKey):
        short = public.key_size < LEAST_EC_BITS
        return f"an EC key of {public.key_size} bits; at least {LEAST_EC_BITS}" if short else None
    return None if isinstance(public, PublicKey) else "a kind of key other than EC, RSA and Ed25519"


def describe_key(public: object) -> str:
    """Return kind and size of a public key, for people."""
    if isinstance(public, rsa.RSAPublicKey):
        return f"RSA {public.key_size}"
    if isinstance(public, ec.EllipticCurvePublicKey):
        return f"EC {public.curve.name}"
    return "Ed25519" if isinstance(public, ed25519.Ed25519PublicKey) else "unknown kind"
