"""Makes a backup of one link of a running site: its store without the keys, and the files of the site."""

from pathlib import Path
from typing import BinaryIO

import structlog
import trio

from qnode import __version__
from qnode.config.reading import read_tables
from qnode.config.saes import saes_file
from qnode.errors import ConfigError, StoreError
from qnode.keys import KeyStore
from qnode.node.supply.async_store import AsyncStore

log = structlog.get_logger()

SITE_NAME, SAES_NAME = "site.toml", "saes.toml"


class Backups:
    """Backups of one link, one at a time. ``config_file``: the site's file, if it has one."""

    def __init__(self, store: KeyStore, audit: AsyncStore, link: str, config_file: Path | None) -> None:
        self._store = store
        self._audit = audit
        self._link = link
        self._config_file = config_file
        self._one = trio.Lock()

    async def save(self) -> BinaryIO:
        """Return a new backup as an open file, and record in the audit that somebody got it.

        Raises:
            StoreError: another backup is being made, or none could be made or recorded.
            ConfigError: the site's files cannot be read.
        """
        try:
            self._one.acquire_nowait()
        except trio.WouldBlock:
            raise StoreError("another backup is being made; try again when it is done") from None
        try:
            await self._audit.record_changes(("backup.saved", self._link, ""))
            # In a thread of its own: the store must not seem to hang for as long as the copy takes.
            content = await trio.to_thread.run_sync(
                lambda: self._store.save_backup(site_files(self._config_file), f"qnode {__version__}")
            )
        finally:
            self._one.release()
        log.info("store.backed_up")
        return content


def site_files(path: Path | None) -> dict[str, bytes]:
    """Return the files of a site that an operator has written, by their names in a backup.

    Raises:
        ConfigError: one cannot be read.
    """
    if path is None:
        return {}
    saes = saes_file(read_tables(path), path)
    try:
        found = {SITE_NAME: path.read_bytes()}
        if saes is not None and saes.exists():
            found[SAES_NAME] = saes.read_bytes()
    except OSError as error:
        raise ConfigError(f"{error.filename}: {error.strerror}") from None
    return found
