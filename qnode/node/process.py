"""Start and stop of a site: store and secrets, process settings."""

import gc
import resource
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import Any, Never, cast

import structlog
import trio

from qnode.config import SiteConfig, StoreSection, load_site
from qnode.devices.supervisor import MAKING_SAFE_LIMIT_S, check_devices, make_safe
from qnode.errors import ConfigError, FieldError, StoreError, StoreUnusable
from qnode.keys import KeyStore, open_server_store, open_store
from qnode.node.secret_files import check_tls_keys
from qnode.node.site import SiteNode
from qnode.operate.control.listening import is_served
from qnode.operate.daemon import StopLimit, run_until_told
from qnode.operate.events.log import configure_log
from qnode.secret_files import read_secret, read_store_key

log = structlog.get_logger()

GC_THRESHOLD = 50_000
MOST_OPEN_FILES = 8192
SWITCH_INTERVAL_S = 0.0005
STOP_LIMIT_S = 10.0


def open_link_store(config: SiteConfig) -> KeyStore:
    """Open the store of a link, or create it with its pre-shared key if there is none.

    One whose database server is away opens later by itself.

    Raises:
        StoreUnusable: the existing store cannot be trusted; it is never replaced.
        ConfigError: a secret is missing, has a wrong length, or is readable by others.
    """
    section, node = config.store, config.node
    check_tls_keys(config)
    store_key = read_store_key(section.store_key)
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
    with StopLimit("node", STOP_LIMIT_S, "a disk or a device hangs") as limit, ExitStack() as opened:
        opened.push(partial(_leave_hardware_safe, configs, limit))
        several = len(configs) > 1
        try:
            stores = [
                opened.enter_context(closing(_open_store_of(config, several=several))) for config in configs
            ]
            # Objects from the start live as long as the daemon, and cycles are rare. The garbage collector
            # need not traverse millions of objects a thousand times a second.
            gc.freeze()
            gc.set_threshold(GC_THRESHOLD)
            gc.enable()
            # The event loop must not wait long for a worker thread that returns from a kernel to Python.
            sys.setswitchinterval(SWITCH_INTERVAL_S)
            site = SiteNode(configs, stores, events, path)
            run_until_told(site.run, limit, stop_at_eof=stop_at_eof)
        finally:
            limit.begin()
    log.info("node.stopped")
    events.flush()
    return 0


def _leave_hardware_safe(
    configs: Sequence[SiteConfig], limit: StopLimit, _kind: object, error: object, _trace: object
) -> None:
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
        limit.extend(MAKING_SAFE_LIMIT_S)
        trio.run(make_all_safe)


def _allow_open_files() -> None:
    """Raise the soft limit of open files to the need of the connections, within the hard limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_OPEN_FILES if hard == resource.RLIM_INFINITY else min(MOST_OPEN_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
