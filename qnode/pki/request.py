"""Signing requests: what a site sends to an authority, its own or another one."""

from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from qnode.errors import ConfigError
from qnode.pki.keys import PrivateKey, PublicKey, key_weakness, signature_hash
from qnode.pki.roles import CertificateRole, alternative_names, subject_of
from qnode.tls import UNREADABLE


def make_request(key: PrivateKey, role: CertificateRole, name: str, hosts: Sequence[str] = ()) -> bytes:
    """Return a request in PEM for a certificate of ``role``, with names and usages.

    Raises:
        ConfigError: a name cannot be carried.
    """
    builder = x509.CertificateSigningRequestBuilder().subject_name(subject_of(name))
    builder = builder.add_extension(alternative_names(name, hosts), critical=False)
    builder = builder.add_extension(x509.ExtendedKeyUsage(role.usages), critical=False)
    return builder.sign(key, signature_hash(key)).public_bytes(Encoding.PEM)


def read_request(path: Path) -> tuple[PublicKey, frozenset[x509.GeneralName]]:
    """Return the public key of the request at ``path`` and the names that it asks for.

    Raises:
        ConfigError: it is no request, its sender does not hold the key, or the key is of no use.
    """
    try:
        request = x509.load_pem_x509_csr(path.read_bytes())
        signed = request.is_signature_valid
        extensions = request.extensions
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    except UNREADABLE:
        raise ConfigError(f"{path}: holds no signing request in PEM") from None
    if not signed:
        raise ConfigError(f"{path}: its signature is wrong: whoever made it does not hold the private key")
    public = request.public_key()
    weak = key_weakness(public)
    if weak is not None or not isinstance(public, PublicKey):
        raise ConfigError(f"{path}: has {weak}")
    try:
        asked = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return public, frozenset()
    return public, frozenset(asked)
