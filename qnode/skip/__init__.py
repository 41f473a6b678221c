"""Key delivery to encryptors by the Secure Key Integration Protocol (SKIP), draft-cisco-skip-02.

`application` is its HTTP API over the same `qnode.delivery.Delivery` as every other interface: a key that an
encryptor gets here can be fetched at the other site here or by ETSI GS QKD 014, once. The keyId is the
key_ID of ETSI without hyphens.
"""

from qnode.skip._interface import application

__all__ = ["application"]
