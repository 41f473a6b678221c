"""The operator's page of a site: its figures over time, its view, and who may look."""

import time
from collections.abc import Callable, Mapping, Sequence
from ipaddress import ip_address
from pathlib import Path
from typing import Final

import trio

from qnode.addresses import host_and_port
from qnode.config import PageSection, SiteConfig
from qnode.errors import ConfigError
from qnode.http import Limits, Server, TlsSettings
from qnode.operate.blocks.row import DecidedBlock
from qnode.operate.page.app import MayLook, Page
from qnode.operate.page.live import Live
from qnode.operate.page.view import SHOWN_BLOCKS
from qnode.operate.status.model import NodeStatus
from qnode.operate.trend.figures import figures_of
from qnode.operate.trend.file import TrendFile

SAMPLE_S: Final = 2.0
_UNIX: Final = "unix:"
# Beyond these, a viewer is told to come back later. A viewer that does not read for `send_s` is dropped.
_LIMITS: Final = Limits(connections=256, connections_per_client=256, send_s=5.0)


def socket_path(section: PageSection) -> Path | None:
    """Return the path of the local socket; None for an address."""
    listen = section.listen
    return Path(listen.removeprefix(_UNIX)) if listen.startswith(_UNIX) else None


def check_page(section: PageSection) -> None:
    """Refuse an address at which everybody could look.

    Raises:
        ConfigError: it has no valid form, or is neither a loopback address nor has certificates.
    """
    path, public = socket_path(section), needs_certificates(section)
    if path is not None:
        if not path.is_absolute():
            raise ConfigError(f"page.listen: expected unix: and an absolute path, got {section.listen!r}")
        if section.tls is not None:
            raise ConfigError("page.tls: a local socket has none; leave it out, or listen on HOST:PORT")
    if section.operators and section.tls is None:
        raise ConfigError("page.operators: without [page.tls] nobody is asked for a name; leave it out")
    if section.tls is None and public:
        raise ConfigError(
            f"page.listen: {section.listen}: without certificates only a loopback address or unix:/PATH may "
            "be used; add [page.tls]"
        )


def needs_certificates(section: PageSection) -> bool:
    """Return whether the page listens where others than this machine reach it; raises ConfigError."""
    return socket_path(section) is None and not _is_loopback(host_and_port(section.listen, "page.listen")[0])


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def _beside(store: Path) -> Path:
    """Return the file of the figures over time; its name is longer than the store's, so never the same."""
    return store.with_name(f"{store.name}.trend")


class OperatorsPage:
    """The page of a running site. ``may_look``: tells by the names in a viewer's certificate."""

    def __init__(
        self,
        section: PageSection,
        configs: Sequence[SiteConfig],
        provide_status: Callable[[], NodeStatus],
        latest_blocks: Mapping[str, Callable[[int], list[DecidedBlock]]],
        may_look: MayLook,
    ) -> None:
        self._provide_status = provide_status
        self._files = {config.link.name: TrendFile(_beside(config.store.path)) for config in configs}
        self._live = Live(provide_status, lambda link: latest_blocks[link](SHOWN_BLOCKS))
        self._section = section
        self._may_look = may_look

    async def start(self, nursery: trio.Nursery) -> Server:
        """Read the figures over time, keep them from now on, and return the server of the page."""
        for file in self._files.values():
            await trio.to_thread.run_sync(file.open)
        page = Page(
            self._live,
            {name: file.trend for name, file in self._files.items()},
            time.time,
            may_look=self._may_look,
            loopback_only=self._section.tls is None and socket_path(self._section) is None,
        )
        nursery.start_soon(self._keep_trends)
        files = self._section.tls
        return Server(page, TlsSettings.of(files) if files is not None else None, _LIMITS)

    async def _keep_trends(self) -> None:
        while True:
            status = self._provide_status()
            for view in status.each_link:
                file = self._files[view.site.link]
                writes = file.trend.add(status.at, figures_of(view))
                if writes:
                    await trio.to_thread.run_sync(file.write, writes)
            await trio.sleep(SAMPLE_S)
