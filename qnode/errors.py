"""The one tree of errors. Each says what went wrong, where, and how to mend it.

A caller that can do something sensible catches a branch; everything else ends at one of the three
supervisors (devices, peer link, HTTP connection), which alone catch broadly (the
transmitter's port hands a driver's fault to the supervisor of devices).
"""

import math


class QnodeError(Exception):
    """Root of all errors that qnode raises on purpose."""


class ConfigError(QnodeError):
    """A configuration file cannot be used; the message names file, table, key and what was expected."""


class FieldError(QnodeError):
    """One named input is impossible (a count, a probability, an epsilon)."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field
        self.message = message


class CountsContradiction(FieldError):
    """The counts of a block cannot come from the source and receiver they are said to come from.

    ``field`` names the count or bound that shows it.
    """


class DeviceError(QnodeError):
    """A device did something its driver does not understand."""


class TransientDeviceError(DeviceError):
    """A device failed in a way that usually passes by itself; the supervisor tries again soon."""


class DeviceGone(TransientDeviceError):
    """The device was unplugged or its process died."""


class LinkError(QnodeError):
    """The classical channel to the peer failed; the session ends and is built again."""


class PeerRefused(LinkError):
    """The peers do not fit (version, role, parameters, identity); the message names the difference."""


class ProtocolError(LinkError):
    """The peer sent something that the protocol does not allow."""


class AuthenticationError(LinkError):
    """A tag did not verify: nothing from this session may be used further."""


class PoolExhausted(LinkError):
    """Too little one-time authentication key is left; load a new pre-shared key."""


class StoreError(QnodeError):
    """The key store refused an operation."""


class StoreUnusable(StoreError):
    """The store is damaged, of a newer schema, or older than its anchor: the node must not start over it."""


class StoreAway(StoreError, LinkError):
    """The database server of a store is not reachable or does not serve; the store opens it again by itself.

    Whether the change in progress was made is known when it is back. So a session ends with it, and the next
    one settles what was open.
    """


class NotEnoughKeys(StoreError):
    """Fewer keys are available than asked for; nothing was taken."""

    def __init__(self, asked: int, available: int) -> None:
        super().__init__(f"asked for {asked} keys, {available} available")
        self.asked = asked
        self.available = available


class SaeLimitReached(StoreError):
    """An encryptor has had as many keys as it may; nothing was taken. ``wait_s``: until it may ask again."""

    def __init__(self, sae_id: str, keys_per_minute: int, wait_s: float) -> None:
        super().__init__(f"{sae_id} may get {keys_per_minute} keys a minute")
        self.keys_per_minute = keys_per_minute
        self.wait_s = wait_s


class AboveSaeLimit(SaeLimitReached):
    """A single request wants more keys than its encryptor may ever get at once: it can never succeed."""

    def __init__(self, sae_id: str, keys_per_minute: int) -> None:
        super().__init__(sae_id, keys_per_minute, math.inf)


class ShareUsedUp(StoreError):
    """So many keys of a pair wait for its slave that the store holds no more of them; nothing was taken."""


class NotOpen(StoreError):
    """An assignment is delivered, expired, void, released, or was never made."""


class KeyNotFound(StoreError):
    """A key_ID cannot be delivered to this SAE: unknown, used or expired (told apart in the log only)."""


class NotNamed(StoreError):
    """The caller was not named as a slave when a key was assigned."""


class LinkDown(StoreError):
    """The request needs the peer and the link to it is down."""


def first_of(error: BaseException) -> BaseException:
    """Return the first error in a group, at any depth; ``error`` itself if it is no group."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


class TunnelError(QnodeError):
    """An encryptor did not do what it was told, or is set so that traffic could pass without a QKD key."""


class KeyManagerError(QnodeError):
    """A key manager gave no key. It was not asked twice for a key that it may have given away.

    ``not_given``: it refused, so that no key was given. ``retry_after_s``: its own wish, if it had one.
    """

    def __init__(self, message: str, *, not_given: bool = False, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.not_given = not_given
        self.retry_after_s = retry_after_s
