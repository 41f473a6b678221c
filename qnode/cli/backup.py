"""`qnodectl backup`: a backup of a running site in one file, and the way back from it."""

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import click

from qnode.cli.printing import refusals_told, say
from qnode.cli.stopped_site import read_store_key, rights_of_owner, store_key_option
from qnode.cli.where import Where
from qnode.errors import ConfigError
from qnode.operate.control.client import NoAnswer, fetch_backup

if TYPE_CHECKING:
    from qnode.config import SiteConfig
    from qnode.keys import BackupHead

BACKUP_PATIENCE_S = 600.0
_FILE = click.Path(path_type=Path, dir_okay=False)
_AGES = ((86400.0, "d"), (3600.0, "h"), (60.0, "min"), (1.0, "s"))


@click.group()
def backup() -> None:
    """Back up a running site, look into a backup, or put one back.

    A backup has no keys of encryptors, nor the store key, nor private keys. docs/operations.md says what to
    keep beside it.
    """


@backup.command()
@click.argument("path", metavar="FILE", type=_FILE)
@click.pass_obj
def save(where: Where, path: Path) -> int:
    """Write a backup of the running node to the new FILE (mode 0600), and verify it.

    As root, or as the daemon's user. The node goes on delivering keys.
    """
    from qnode.keys import read_backup
    from qnode.secret_files import sync_folder

    if os.path.lexists(path):
        raise click.UsageError(f"{path} is there already; name a new file")
    partial = path.with_name(f".{path.name}.partial")
    try:
        with contextlib.suppress(FileNotFoundError):
            partial.unlink()
        with os.fdopen(os.open(partial, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as file:
            patience_s = max(where.patience_s, BACKUP_PATIENCE_S)
            fetch_backup(where.path, file, link=where.link, patience_s=patience_s)
            file.flush()
            os.fsync(file.fileno())
        with _refusals(), partial.open("rb") as written:
            head = read_backup(written)
        os.link(partial, path)
        sync_folder(path.parent)
    except OSError as error:
        raise NoAnswer(f"{path}: no backup was written: {error.strerror}") from None
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()
    say(f"{path}: {path.stat().st_size:,} bytes, verified: {_described(head)}")
    return 0


@backup.command()
@click.argument("path", metavar="FILE", type=_FILE)
@click.option("--store-key", type=_FILE, help="The site's store key: verify also that the site made it.")
def inspect(path: Path, store_key: Path | None) -> int:
    """Verify every byte of the backup FILE, and say what it is of."""
    from qnode.keys import read_backup
    from qnode.secret_files import read_secret

    with _refusals(), _opened(path) as file:
        head = read_backup(file, None if store_key is None else read_secret(store_key, "--store-key"))
    say(f"{path}: {_described(head)}")
    for name, entry in head.files.items():
        say(f"  {name}: {entry.n_bytes:,} bytes")
    say(f"audit head {head.audit}")
    if store_key is None:
        say("complete; give --store-key to verify also that this site made it")
    return 0


@backup.command()
@click.argument("path", metavar="FILE", type=_FILE)
@click.option("--config", "site_file", required=True, type=_FILE, help="The site's file.")
@store_key_option
@click.option("--link", default="", help="The link of a site with several.")
def restore(path: Path, site_file: Path, store_key: Path | None, link: str) -> int:
    """Put the store of the backup FILE in the place of a store that was lost; the daemon is stopped.

    All keys of both sites are void then, and one-time pads that may have been used are skipped: after the
    start the node waits until its peer has said what it remembers. Nothing that is there is overwritten.
    """
    with _refusals():
        config = _config_of(site_file, link)
        key = read_store_key(config, site_file, store_key)
        # Opened before root takes the rights of the store's owner, who need not be able to read it.
        with _opened(path) as file, rights_of_owner(config.store.path.parent):
            told = _put_back(file, config, key)
    say(told)
    say("Start the node. All earlier keys are void; it serves new ones when it has met its peer.")
    return 0


def _put_back(file: BinaryIO, config: "SiteConfig", store_key: bytes) -> str:
    from qnode.keys import restore_backup

    section, node = config.store, config.node
    if section.postgresql is not None:
        raise ConfigError(
            "[store.postgresql]: a backup is put back into a file; restore the server's own backup"
        )
    head = restore_backup(
        file,
        section.path,
        role=node.role,
        store_key=store_key,
        anchor=section.anchor,
        kme_id=node.kme_id,
        peer_kme_id=config.peer.kme_id,
    )
    return f"{section.path}: put back from the backup of {_described(head)}"


def _opened(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None


def _config_of(site_file: Path, link: str) -> "SiteConfig":
    from qnode.config import load_site

    configs = load_site(site_file)
    names = [config.link.name for config in configs]
    if len(configs) > 1 and not link:
        raise ConfigError(f"{site_file}: has several links; name one with --link ({', '.join(names)})")
    if link and link not in names:
        raise ConfigError(f"no link {link} (links: {', '.join(names)})")
    return configs[names.index(link) if link else 0]


def _described(head: "BackupHead") -> str:
    age_s = max(0.0, time.time() - head.saved_at_s)
    unit_s, unit = next(((s, name) for s, name in _AGES if age_s >= s), _AGES[-1])
    at = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(head.saved_at_s))
    return (
        f"{head.role} {head.kme_id} (peer {head.peer_kme_id}), saved {at}, {age_s // unit_s:.0f} {unit} ago, "
        f"by {head.software}, schema {head.schema}"
    )


@contextlib.contextmanager
def _refusals() -> Iterator[None]:
    """Convert what a backup is refused for to one line and exit code 64."""
    from qnode.errors import StoreError

    with refusals_told():
        try:
            yield
        except StoreError as error:
            raise ConfigError(str(error)) from None
