"""The random bits of a site for seeds: from the operating system, or from a device under health tests."""

import hashlib
import math
import secrets
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, Never

import structlog
import trio

from qnode.block.outcome import BlockLost, Reason
from qnode.config import RandomnessSection
from qnode.devices.capabilities import RandomSource
from qnode.devices.supervisor import silence_limit
from qnode.errors import ConfigError, DeviceError
from qnode.monitors.random_health import HealthTestNeverFires, RandomHealth

log = structlog.get_logger()

Draw = Callable[[int], Awaitable[bytes]]

# The operating system needs several milliseconds for a megabyte of random bytes.
_LARGE_BYTES: Final = 4096
_READ_BYTES: Final = 16_384
_DIGEST_BYTES: Final = 32
# SP 800-90C: output has full entropy if the input has 64 bits more.
_MORE_BITS: Final = 64
DRAW_LIMIT_S: Final = 60.0
FALLBACK_LIMIT_S: Final = 5.0  # so that a missing device holds no block up for long


async def system_bytes(number: int) -> bytes:
    """Return random bytes of the operating system."""
    if number <= _LARGE_BYTES:
        return secrets.token_bytes(number)
    return await trio.to_thread.run_sync(secrets.token_bytes, number)


def health_tests(section: RandomnessSection) -> RandomHealth:
    """Return fresh health tests for the configured device.

    Raises:
        ConfigError: a test would never fail.
    """
    try:
        return RandomHealth(section.min_entropy_bits, section.alpha_exponent, section.sample_bits)
    except HealthTestNeverFires as error:
        raise ConfigError(f"[randomness] {error}") from None


@dataclass(frozen=True)
class _Request:
    """A draw that waits for ``number`` tested bytes."""

    number: int
    reply: trio.MemorySendChannel[bytes]


class _Unavailable(Exception):
    """There are no tested bytes; the text says why."""


class DeviceRandomness:
    """Draws from a device while it passes its health tests; ``alarm`` is called when it fails one.

    A source that failed is used no more while the process runs.

    Raises:
        ConfigError: a health test would never fail.
    """

    def __init__(self, section: RandomnessSection, alarm: Callable[[str], None]) -> None:
        health_tests(section)
        self._section = section
        self._alarm = alarm
        self._ask, self._asked = trio.open_memory_channel[_Request](0)
        self._failed = ""

    @property
    def device(self) -> str:
        """The name of the device."""
        return self._section.device

    async def use(self, device: object, silence_limit_s: float) -> Never:
        """Serve draws from an opened device, after its start-up test, until cancelled.

        Raises:
            ConfigError: the device is no source of random numbers.
            DeviceError: it does not answer as one.
        """
        if not isinstance(device, RandomSource):
            raise ConfigError(
                f"[randomness] device {self.device}: expected a source of random numbers, got a "
                f"{type(device).__name__}"
            )
        health = health_tests(self._section)
        if not self._failed:
            await self._tested(device, health.start_up_bytes, health, silence_limit_s)
        async for request in self._asked:
            with request.reply:  # closed without an answer, a draw ends
                if self._failed:
                    continue
                data = await self._tested(device, request.number, health, silence_limit_s)
                if data is not None:
                    with suppress(trio.BrokenResourceError):  # the draw has ended meanwhile
                        request.reply.send_nowait(data)
        raise AssertionError("its requests never end")

    async def draw(self, number: int) -> bytes:
        """Return ``number`` random bytes: those of the device added to those of the operating system.

        Raises:
            BlockLost: the device is not healthy or not there, and there is no fallback.
        """
        own = await system_bytes(number)
        digests = math.ceil(number / _DIGEST_BYTES)
        per_digest = self._bytes_per_digest()
        try:
            samples = await self._ask_for(digests * per_digest)
        except _Unavailable as because:
            if self._section.fallback_to_system:
                return own
            raise BlockLost(Reason.RANDOMNESS, str(because)) from None
        return await trio.to_thread.run_sync(_condition, samples, per_digest, own)

    def _bytes_per_digest(self) -> int:
        per_byte = self._section.min_entropy_bits * 8 / self._section.sample_bits
        return math.ceil((8 * _DIGEST_BYTES + _MORE_BITS) / per_byte)

    async def _ask_for(self, number: int) -> bytes:
        if self._failed:
            raise _Unavailable(self._failed)
        reply, answer = trio.open_memory_channel[bytes](1)
        limit_s = FALLBACK_LIMIT_S if self._section.fallback_to_system else DRAW_LIMIT_S
        with answer, trio.move_on_after(limit_s):
            await self._ask.send(_Request(number, reply))
            try:
                return await answer.receive()
            except trio.EndOfChannel:
                raise _Unavailable(self._failed or "the device failed while it was read") from None
        raise _Unavailable(f"{self._section.device} gave no random bytes within {limit_s:g} s")

    async def _tested(
        self, device: RandomSource, number: int, health: RandomHealth, silence_limit_s: float
    ) -> bytes | None:
        """Return bytes of which every sample passed; None if the source has failed."""
        parts = []
        while number > 0:
            wanted = min(number, _READ_BYTES)
            with silence_limit(silence_limit_s):
                data = await device.random_bytes(wanted)
            if type(data) is not bytes or len(data) != wanted:
                raise DeviceError(f"random_bytes({wanted}) did not return {wanted} bytes")
            found = health.feed(data)
            if found is not None:
                self._failed = f"{self._section.device}: {found.check}: {found}"
                log.error("randomness.failed", device=self._section.device, test=found.check)
                self._alarm(self._failed)
                return None
            parts.append(data)
            number -= wanted
        return b"".join(parts)


def _condition(samples: bytes, per_digest: int, own: bytes) -> bytes:
    """Hash ``per_digest`` bytes of samples at a time, and add ``own`` bit by bit."""
    digests = b"".join(
        hashlib.sha256(samples[at : at + per_digest]).digest() for at in range(0, len(samples), per_digest)
    )
    number = len(own)
    mixed = int.from_bytes(digests[:number], "big") ^ int.from_bytes(own, "big")
    return mixed.to_bytes(number, "big")
