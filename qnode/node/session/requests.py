"""Requests to the peer within a session, and their answers."""

import itertools
from collections.abc import Callable

import trio

from qnode.errors import LinkError, ProtocolError
from qnode.link.messages import BlockStateAnswer, KeyAnswer, NodeMessage, StreamAnswer, StreamRequest
from qnode.link.session import Session

Answer = KeyAnswer | BlockStateAnswer | StreamAnswer
# The longest time for an answer of the peer's key store. Without a limit, a peer that is alive and does not
# answer would keep encryptors waiting for the whole session.
ANSWER_LIMIT_S = 60.0


class PeerRequests:
    """The numbered requests of one session; each is answered by its number, in any order."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._answers: dict[int, trio.MemorySendChannel[Answer]] = {}
        self._numbers = itertools.count(1)

    async def ask(self, make: Callable[[int], NodeMessage]) -> Answer:
        """Send the request that ``make`` returns for a number, and return its answer.

        Raises:
            LinkError: the session ended before the peer answered.
            ProtocolError: the peer did not answer in time.
        """
        number = next(self._numbers)
        deliver, receive = trio.open_memory_channel[Answer](1)
        self._answers[number] = deliver
        try:
            await self._session.send(make(number))
            with trio.fail_after(ANSWER_LIMIT_S):
                return await receive.receive()
        except trio.EndOfChannel:
            raise LinkError("the session ended before the peer answered") from None
        except trio.TooSlowError:
            raise ProtocolError(f"no answer to a request within {ANSWER_LIMIT_S:g} s") from None
        finally:
            self._answers.pop(number, None)

    async def ask_for_keys(self, make: Callable[[int], NodeMessage]) -> KeyAnswer:
        """Like `ask`, for the peer's key store.

        Raises:
            ProtocolError: the answer has another type.
        """
        answer = await self.ask(make)
        if not isinstance(answer, KeyAnswer):
            raise ProtocolError("a request to the key store was answered by something else")
        return answer

    async def ask_about_stream(self, request: bytes) -> bytes:
        """Like `ask`, for the key streams of the peer.

        Raises:
            ProtocolError: the answer has another type.
        """
        answer = await self.ask(lambda number: StreamRequest(request_id=number, request=request))
        if not isinstance(answer, StreamAnswer):
            raise ProtocolError("a request about a key stream was answered by something else")
        return answer.answer

    def take(self, answer: Answer) -> None:
        """Pass an answer to the task that waits for it."""
        waiting = self._answers.pop(answer.request_id, None)
        if waiting is not None:  # otherwise the caller no longer waits
            waiting.send_nowait(answer)

    def close(self) -> None:
        """Wake the waiting tasks, because no answer will come."""
        for waiting in self._answers.values():
            waiting.close()
        self._answers.clear()
