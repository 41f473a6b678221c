"""Commands to charon over its vici socket, from the event loop.

The package `vici` of strongSwan's makers blocks, so each command runs in a thread, over a connection of its
own: nothing has to be mended after charon was started again. A command that is cancelled, or that charon does
not answer, has its connection closed, which ends the thread.
"""

import socket
import struct
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, Final, TypeVar

import trio
import vici
from vici.exception import CommandException, DeserializationException, EventUnknownException, SessionException

from qnode.agent.tunnels.strongswan_config import Message
from qnode.errors import TunnelError

T = TypeVar("T")

_NOT_UNDERSTOOD: Final = (
    DeserializationException,
    EventUnknownException,
    SessionException,
    struct.error,
    UnicodeDecodeError,
    KeyError,
)


class Secret(bytes):
    """Bytes that a traceback with local variables does not show."""

    def __repr__(self) -> str:
        return f"Secret({8 * len(self)} bits)"


class Refused(TunnelError):
    """charon answered that it could not do what it was told; ``words``: what it said meanwhile."""

    def __init__(self, message: str, words: list[Message]) -> None:
        super().__init__(message)
        self.words = words


class Charon:
    """The charon behind one socket. Every method raises `TunnelError`."""

    def __init__(self, path: Path, answer_timeout_s: float) -> None:
        self._path = path
        self._answer_timeout_s = answer_timeout_s

    async def request(self, command: str, message: Message | None = None) -> Message:
        """Give charon one command and return its answer."""
        return await self._call(command, lambda session: plain(session.request(command, message)))

    async def stream(
        self, command: str, event: str, message: Message | None = None, *, extra_time_s: float = 0.0
    ) -> list[Message]:
        """Give charon a command that it answers with events, and return them all.

        ``extra_time_s``: how long the command may take beyond the time for an answer.

        Raises:
            Refused: with the events up to the refusal.
        """
        words: list[Message] = []

        def work(session: Any) -> list[Message]:
            for one in session.streamed_request(command, event, message):
                words.append(plain(one))
            return words

        try:
            return await self._call(command, work, extra_time_s)
        except Refused as refused:
            raise Refused(str(refused), words) from None

    async def _call(self, command: str, work: Callable[[Any], T], extra_time_s: float = 0.0) -> T:
        limit_s = self._answer_timeout_s + extra_time_s

        def in_thread() -> T:
            connection.settimeout(limit_s + 1.0)  # the event loop's limit comes first
            connection.connect(str(self._path))
            return work(vici.Session(connection))

        where = f"charon ({self._path})"
        with closing(socket.socket(socket.AF_UNIX)) as connection:
            try:
                with trio.fail_after(limit_s):
                    return await trio.to_thread.run_sync(in_thread, abandon_on_cancel=True)
            except trio.TooSlowError:
                raise TunnelError(f"{where} did not answer {command}; is it busy or stopped?") from None
            except CommandException as error:
                raise Refused(f"{where} refused {command}: {_without_prefix(error)}", []) from None
            except _NOT_UNDERSTOOD as error:
                problem = type(error).__name__
                raise TunnelError(f"{where}: answer to {command} not understood ({problem})") from None
            except OSError as error:
                reason = error.strerror or str(error)
                raise TunnelError(
                    f"{where} cannot be reached for {command}: {reason}; is strongSwan running, "
                    f"and may this user use the socket?"
                ) from None
            finally:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)  # ends the thread, should it still wait


def plain(value: Any) -> Any:
    """Return an answer of charon with text in place of bytes."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    return value


def _without_prefix(error: Exception) -> str:
    return str(error).removeprefix("Command failed: ")
