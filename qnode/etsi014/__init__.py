"""Key delivery to encryptors by ETSI GS QKD 014 V1.1.1.

`Delivery` implements the calls. `application` implements version 1 of the HTTP API. Another edition of the
API is another application of the same `Delivery`.
"""

from qnode.etsi014._delivery import ApiLimits, Delivery
from qnode.etsi014._directory import SaeDirectory, SaeEntry
from qnode.etsi014._refusal import Refusal
from qnode.etsi014._supply import Key, KeySupply
from qnode.etsi014._v1 import application

__all__ = [
    "ApiLimits",
    "Delivery",
    "Key",
    "KeySupply",
    "Refusal",
    "SaeDirectory",
    "SaeEntry",
    "application",
]
