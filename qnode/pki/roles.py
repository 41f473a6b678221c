"""The roles of certificates. Each has its authority, its usages and its name.

Link, key delivery, the agents' line and the operator's page have an authority each, so that a certificate of
one is worth nothing at the others. Key managers and encryptors share one, because each must know the other;
there the usages differ: a key manager's certificate is a server's, an encryptor's is a client's. The same
holds for the page and the operators who look at it.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Final, Literal

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from qnode.errors import ConfigError

RoleName = Literal["node", "kme", "sae", "agent", "page", "operator"]
LONGEST_NAME_CHARACTERS = 512
_LONGEST_COMMON_NAME = 64  # RFC 5280, upper bound of a common name
_DNS_NAME = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_])?")
_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:[!-~]+")
_SERVER, _CLIENT = ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH
USAGE_NAMES: Final = {_SERVER: "server", _CLIENT: "client", ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE: "any"}


@dataclass(frozen=True)
class CertificateRole:
    """What a certificate of this role needs; ``meaning`` completes "the certificate of"."""

    name: RoleName
    authority: str
    usages: tuple[x509.ObjectIdentifier, ...]
    meaning: str

    @property
    def has_hosts(self) -> bool:
        """Whether clients connect by the host's name or address, which the certificate then carries."""
        return self.usages == (_SERVER,)


ROLES: Final = {
    role.name: role
    for role in (
        CertificateRole("node", "link", (_SERVER, _CLIENT), "a node on its link ([peer.tls])"),
        CertificateRole("kme", "sae", (_SERVER,), "a node as key manager for encryptors ([etsi014.tls])"),
        CertificateRole("sae", "sae", (_CLIENT,), "an encryptor"),
        CertificateRole("agent", "agent", (_SERVER, _CLIENT), "an agent on its line ([line])"),
        CertificateRole("page", "operator", (_SERVER,), "a node for its page ([page.tls])"),
        CertificateRole("operator", "operator", (_CLIENT,), "an operator who looks at the page"),
    )
}
AUTHORITIES: Final = tuple(dict.fromkeys(role.authority for role in ROLES.values()))


def subject_of(name: str) -> x509.Name:
    """Return the subject for ``name``: its common name if that may be so long, else nothing."""
    short = len(name) <= _LONGEST_COMMON_NAME
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)] if short else [])


def alternative_names(name: str, hosts: Sequence[str] = ()) -> x509.SubjectAlternativeName:
    """Return the names of a certificate: of its owner, and the ``hosts`` (names or addresses) of a server.

    Raises:
        ConfigError: a name that a certificate cannot carry so that qnode finds it.
    """
    if len(name) > LONGEST_NAME_CHARACTERS:
        raise ConfigError(
            f"the name has {len(name)} characters; at most {LONGEST_NAME_CHARACTERS} are possible"
        )
    names = [_general_name(name)]
    for host in hosts:
        try:
            names.append(x509.IPAddress(ip_address(host)))
        except ValueError:
            if not _DNS_NAME.fullmatch(host):
                raise ConfigError(f"host {host!r}: expected an address, or a name without a port") from None
            names.append(x509.DNSName(host))
    return x509.SubjectAlternativeName(list(dict.fromkeys(names)))


def _general_name(name: str) -> x509.GeneralName:
    if _DNS_NAME.fullmatch(name):
        return x509.DNSName(name)
    if _URI.fullmatch(name):
        return x509.UniformResourceIdentifier(name)
    raise ConfigError(
        f"name {name!r}: a certificate carries letters, digits, '.', '-' and '_', or a URI as urn:sae:1; "
        "for another name in the site's file, give the certificate's name in identities"
    )
