"""A store on a database server: the way to it that imports the driver only when it is used."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from qnode.choices import Role
from qnode.config import PostgresqlSection
from qnode.errors import ConfigError
from qnode.keys._protocol import KeyStore

if TYPE_CHECKING:
    from qnode.keys._front_end_store import FrontEndStore


def check_address(address: PostgresqlSection) -> None:
    """Refuse an address that cannot be right, and one whose driver is missing, by ConfigError."""
    try:
        from qnode.keys._postgresql import check_parameters
    except ImportError as error:
        raise ConfigError(
            f"[store.postgresql]: the driver is missing ({error}); pip install 'qnode[postgresql]'"
        ) from None
    check_parameters(address.parameters)


def open_server_store(
    address: PostgresqlSection,
    *,
    beside: Path,
    role: Role,
    store_key: bytes,
    anchor: Path,
    kme_id: str,
    peer_kme_id: str,
    create: bool = False,
    witness: Path | None = None,
    prepare: Callable[[KeyStore], None] = lambda _: None,
) -> KeyStore:
    """Open the store at ``address``, or create it if its schema is empty or missing and ``create`` is set.

    A store whose server cannot be reached is returned too: its calls raise StoreAway until it is open.
    ``prepare`` is called with the store when it is open for the first time, before any other call.
    ``beside``: the file in whose folder backups are made; the others are those of `qnode.keys.open_store`.
    Raises StoreUnusable, ConfigError for the address or the file of the password, FieldError for a store key
    of another length, and what ``prepare`` raises.
    """
    check_address(address)
    from qnode.keys._postgresql_store import open_postgresql_store

    return open_postgresql_store(
        address,
        beside=beside,
        role=role,
        store_key=store_key,
        anchor=anchor,
        kme_id=kme_id,
        peer_kme_id=peer_kme_id,
        create=create,
        witness=witness,
        prepare=prepare,
    )


def front_end_store(
    address: PostgresqlSection,
    *,
    name: str,
    store_key: bytes,
    anchor: Path,
    kme_id: str,
    peer_kme_id: str,
    anchor_lost: bool = False,
) -> "FrontEndStore":
    """Return the store at ``address`` for the front end ``name``; its calls connect.

    Raises ConfigError for the address, FieldError for a store key of another length.
    """
    check_address(address)
    from qnode.keys._front_end_store import FrontEndStore

    return FrontEndStore(
        address,
        name=name,
        store_key=store_key,
        anchor=anchor,
        kme_id=kme_id,
        peer_kme_id=peer_kme_id,
        anchor_lost=anchor_lost,
    )
