"""What commands need that work on the store of a stopped site: its key, and its owner's rights."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from qnode.errors import ConfigError, StoreError

if TYPE_CHECKING:
    from qnode.config import SiteConfig

store_key_option = click.option(
    "--store-key",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The key of the store, if the site's file names a credential (default: SITE/store.key beside FILE).",
)


def read_store_key(config: "SiteConfig", site_file: Path, given: Path | None) -> bytes:
    """Return the store key of a site that does not run, so that its credentials are not there.

    Raises:
        ConfigError: it cannot be read, others can read it, or its length is wrong.
    """
    from qnode import secret_files
    from qnode.tls_files import CREDENTIALS

    path = given or config.store.store_key
    if given is None and path.is_relative_to(CREDENTIALS) and not path.exists():
        path = site_file.resolve().with_suffix("") / "store.key"  # where the shipped unit takes it from
    return secret_files.read_store_key(path)


@contextmanager
def rights_of_owner(path: Path) -> Iterator[None]:
    """Work as the owner of ``path``, if root does: the files must stay those of the daemon.

    Raises:
        ConfigError: it is not there, or this user is neither root nor its owner; also what the body refuses.
    """
    try:
        owner = path.stat()
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    user, group = os.geteuid(), os.getegid()
    if user not in (0, owner.st_uid):
        raise ConfigError(f"{path}: belongs to user {owner.st_uid}; run this as root or as that user")
    mask = os.umask(0o077)
    if user == 0:
        os.setegid(owner.st_gid)
        os.seteuid(owner.st_uid)
    try:
        yield
    except OSError as error:
        raise ConfigError(f"{error.filename or path}: {error.strerror or error}") from None
    except StoreError as error:
        raise ConfigError(str(error)) from None
    finally:
        if user == 0:
            os.seteuid(user)
            os.setegid(group)
        os.umask(mask)
