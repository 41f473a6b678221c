"""Start and stop of a site: store and secrets, process settings, signals."""

import gc
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import Any, Never, cast

import structlog
import trio

from qnode.config import SiteConfig, StoreSection, load_site
from qnode.devices.supervisor import check_devices, make_safe
from qnode.errors import ConfigError, FieldError, QnodeError, StoreError, StoreUnusable
from qnode.keys import KeyStore, open_server_store, open_store
from qnode.node.secret_files import STORE_KEY_BYTES, check_tls_keys
from qnode.node.site import SiteNode
from qnode.operate.control.listening import is_served
from qnode.operate.events.log import configure_log
from qnode.operate.notify import from_environment
from qnode.secret_files import read_secret

log = structlog.get_logger()

GC_THRESHOLD = 50_000
MOST_OPEN_FILES = 8192
SWITCH_INTERVAL_S = 0.0005
_READ_BYTES = 4096
STOP_LIMIT_S = 10.0
LOG_LINGER_S = 0.2  # for the log's own thread


def open_link_store(config: SiteConfig) -> KeyStore:
    """Open the store of a link, or create it with its pre-shared key if there is none.

    One whose database server is away opens later by itself.

    Raises:
        StoreUnusable: the existing store cannot be trusted; it is never replaced.
        ConfigError: a secret is missing, has a wrong length, or is readable by others.
    """
    section, node = config.store, config.node
    check_tls_keys(config)
    store_key = read_secret(section.store_key, "store.store_key")
    if len(store_key) != STORE_KEY_BYTES:
        raise ConfigError(
            f"[store] store_key: {section.store_key}: expected {STORE_KEY_BYTES} bytes, got {len(store_key)}"
        )
    opened: Callable[..., KeyStore] = partial(open_store, section.path)
    prepare = partial(_prepare, section)
    if section.postgresql is not None:
        opened = partial(open_server_store, section.postgresql, beside=section.path, prepare=prepare)
    store = opened(
        role=node.role,
        store_key=store_key,
        anchor=section.anchor,
        witness=section.witness,
        kme_id=node.kme_id,
        peer_kme_id=config.peer.kme_id,
        create=True,
    )
    if section.postgresql is None:
        try:
            prepare(store)
        except BaseException:
            store.close()
            raise
    return store


def _prepare(section: StoreSection, store: KeyStore) -> None:
    """Load the pre-shared key into a store that is open for the first time and has none."""
    condition = store.condition()
    if not condition.serves:
        log.error("store.waiting", reason=condition.reason)
    if store.positions().pool_epoch == 0:  # never loaded, or the last start was interrupted
        try:
            store.load_preshared(read_secret(section.preshared_key, "store.preshared_key"))
        except FieldError as error:
            raise ConfigError(f"[store] preshared_key: {section.preshared_key}: {error.message}") from None


class _UnusableStore:
    """Stands for the store of one of several links that cannot be opened: each use of it says why."""

    def __init__(self, because: str) -> None:
        self._because = because

    def close(self) -> None:
        """Nothing is open."""

    def __getattr__(self, name: str) -> Any:
        def refuse(*_args: object, **_options: object) -> Never:
            raise StoreUnusable(self._because)

        return refuse


def _open_store_of(config: SiteConfig, *, several: bool) -> KeyStore:
    """Open the store of a link; that of one of several links must not keep the others from starting.

    Raises:
        StoreError: like `open_link_store`, for the only link.
        ConfigError: like `open_link_store`.
    """
    try:
        return open_link_store(config)
    except StoreError as error:
        if not several:
            raise
        unusable: Any = _UnusableStore(str(error))
        return cast(KeyStore, unusable)


def run_site_until_signal(path: Path, *, stop_at_eof: bool = False) -> int:
    """Run the site of the file at ``path`` until SIGTERM or SIGINT, or until standard input ends.

    Returns the exit status. SIGHUP, which the caller has blocked, reloads when the node runs.

    Raises:
        ConfigError: the file cannot be used.
    """
    configs = load_site(path)
    events = configure_log(configs[0].operate.log_level)
    events.take_stderr()
    for config in configs:
        check_devices(dict(config.devices))
    _allow_open_files()
    last_resort = threading.Timer(STOP_LIMIT_S, _exit_at_once)
    last_resort.daemon = True
    with ExitStack() as opened:
        opened.callback(last_resort.cancel)  # last, because closing a store may hang as well
        opened.push(partial(_leave_hardware_safe, configs))
        several = len(configs) > 1
        stores = [
            opened.enter_context(closing(_open_store_of(config, several=several))) for config in configs
        ]
        # Objects from the start live as long as the daemon, and cycles are rare. The garbage collector need
        # not traverse millions of objects a thousand times a second.
        gc.freeze()
        gc.set_threshold(GC_THRESHOLD)
        gc.enable()
        # The event loop must not wait long for a worker thread that returns from a kernel to Python.
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        try:
            trio.run(_run_until_signal, SiteNode(configs, stores, events, path), stop_at_eof, last_resort)
        except BaseExceptionGroup as group:
            raise _clearest(group) from None
    log.info("node.stopped")
    events.flush()
    return 0


def _leave_hardware_safe(configs: Sequence[SiteConfig], _kind: object, error: object, _trace: object) -> None:
    """Make all hardware safe when the node ends with an error, also one that came before its devices.

    The devices of another daemon of this site, which runs, are left alone.
    """

    async def make_all_safe() -> None:
        async with trio.open_nursery() as nursery:
            for config in configs:
                is_serious = not config.node.allow_simulated
                for name, section in config.devices.items():
                    nursery.start_soon(partial(make_safe, name, section, is_serious=is_serious))

    if error is not None and not is_served(configs[0].operate.control_socket):
        trio.run(make_all_safe)


def _allow_open_files() -> None:
    """Raise the soft limit of open files to the need of the connections, within the hard limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_OPEN_FILES if hard == resource.RLIM_INFINITY else min(MOST_OPEN_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _clearest(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the error that explains the end of the node, if all errors in the group are the node's own.

    A broken store fails in several tasks at once: that is one error. Unexpected errors are shown completely.
    """
    leaves = [leaf for leaf in _leaves(group) if not isinstance(leaf, trio.Cancelled)]
    if len(leaves) == 1 or all(isinstance(leaf, QnodeError) for leaf in leaves):
        kinds = (StoreUnusable, ConfigError, StoreError, BaseException)
        return next(leaf for kind in kinds for leaf in leaves if isinstance(leaf, kind))
    return group


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    else:
        yield error


def _exit_at_once() -> None:
    """End a process that cannot stop in order because its disk hangs; the store survives this."""
    log.error("node.stop_forced", reason=f"not stopped within {STOP_LIMIT_S:g} s: a disk or a device hangs")
    time.sleep(LOG_LINGER_S)
    os._exit(1)


async def _run_until_signal(node: SiteNode, stop_at_eof: bool, last_resort: threading.Timer) -> None:
    with (
        trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals,
        trio.open_signal_receiver(signal.SIGHUP) as hangups,
    ):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})
        async with trio.open_nursery() as nursery:
            nursery.start_soon(node.run, hangups)
            if stop_at_eof:
                nursery.start_soon(_stop_at_eof, nursery.cancel_scope, last_resort)
            async for number in signals:
                _stop(nursery.cancel_scope, signal.Signals(number).name, last_resort)
                return


async def _stop_at_eof(scope: trio.CancelScope, last_resort: threading.Timer) -> None:
    """Stop when the process at the other end of standard input has ended."""
    async with trio.lowlevel.FdStream(os.dup(sys.stdin.fileno())) as stdin:
        while await stdin.receive_some(_READ_BYTES):
            pass
    _stop(scope, "end of standard input", last_resort)


def _stop(scope: trio.CancelScope, because: str, last_resort: threading.Timer) -> None:
    last_resort.start()
    log.info("node.stopping", signal=because)
    from_environment().stopping()
    scope.cancel()
