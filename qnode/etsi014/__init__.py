"""Key delivery to encryptors by ETSI GS QKD 014 V1.1.1.

`application` is version 1 of the HTTP API over a `qnode.delivery.Delivery`. Another edition of the API is
another application of the same `Delivery`.
"""

from qnode.etsi014._v1 import application

__all__ = ["application"]
