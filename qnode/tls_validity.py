"""The validity of a certificate or CRL."""

from typing import Literal

from msgspec import Struct

DAY_S = 86400.0


Kind = Literal["certificate", "crl"]


class Validity(Struct, frozen=True, kw_only=True):
    """The validity of a certificate or CRL; times are Unix seconds.

    ``file``: the key of the configuration that names its file, as in `etsi014.tls.ca`. ``subject``: of a
    certificate, or the issuer of a CRL.
    """

    kind: Kind
    file: str
    subject: str
    begins_at: float
    expires_at: float

    def __str__(self) -> str:
        noun = "CRL of" if self.kind == "crl" else "certificate of"
        return f"{self.file}: {noun} {self.subject}"

    def expired(self, at: float) -> bool:
        """Return whether it has expired."""
        return self.expires_at <= at

    def left_s(self, at: float) -> float:
        """Return the remaining validity in seconds; negative after expiry."""
        return self.expires_at - at

    def expires_within(self, within_s: float, at: float) -> bool:
        """Return whether it expires so soon, and has used most of its validity (relevant for a daily CRL)."""
        return self.left_s(at) < min(within_s, (self.expires_at - self.begins_at) / 2)
