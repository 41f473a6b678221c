"""The gate of the sessions: no session continues with the secrets of an earlier pre-shared key."""

from collections.abc import Awaitable, Callable

import structlog
import trio

from qnode.errors import LinkError
from qnode.link.session import Session
from qnode.node.supply.async_store import AsyncStore
from qnode.operate.control.client import Restored

log = structlog.get_logger()


class RestoreGate:
    """Every session passes the gate; a restore ends running sessions, and delays new ones."""

    def __init__(self, store: AsyncStore) -> None:
        self._store = store
        self._turn = trio.Lock()
        self._closed = False
        self._inside: set[trio.CancelScope] = set()
        self._because = ""
        self._left = trio.Event()

    async def hold(self, session: Session, converse: Callable[[Session], Awaitable[None]]) -> None:
        """Run ``converse`` for the duration of one session.

        Raises:
            LinkError: a new pre-shared key is being loaded, or was loaded after this session's hello.
        """
        if self._closed:
            raise LinkError("this site is being restored")
        with trio.CancelScope() as scope:
            self._inside.add(scope)
            try:
                if session.standing.pool_epoch != (await self._store.positions()).pool_epoch:
                    raise LinkError("a new pre-shared key was loaded during the hello")
                await converse(session)
            finally:
                self._inside.discard(scope)
                self._left.set()
        if scope.cancelled_caught:
            raise LinkError(self._because)

    def end_sessions(self, because: str) -> None:
        """End every session; new ones follow."""
        self._because = because
        for scope in self._inside:
            scope.cancel()

    async def restore(self, preshared_key: bytes) -> Restored:
        """Void every chunk, wipe the whole pool, and start again with ``preshared_key``.

        Raises:
            StoreError: the key was loaded here before, or the store cannot be written; nothing has changed.
            FieldError: the key is too short; nothing has changed.
        """
        async with self._turn:
            self._closed = True
            try:
                self.end_sessions("this site was restored with a new pre-shared key")
                while self._inside:
                    self._left = trio.Event()
                    await self._left.wait()
                before = (await self._store.counts()).here
                await self._store.load_preshared(preshared_key)
                left = await self._store.pads_left()
            finally:
                self._closed = False
        log.warning("store.restored", void_chunks=before, pads_send=left.send, pads_receive=left.receive)
        return Restored(void_chunks=before, pads_send=left.send, pads_receive=left.receive)
