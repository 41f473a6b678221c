"""What differs between the databases of a store: a connection with its transactions and its errors.

The SQL of the parts of the store is the same for each (`qnode.sql`); so are the anchor and the groups of
changes (`qnode.keys._database`).
"""

from collections.abc import Callable
from typing import Any, Protocol

from qnode.errors import StoreError
from qnode.sql import Statements


class Engine(Protocol):
    """One connection to a database that no other process uses for this store."""

    name: str
    """The database in messages: its path or its address, without secrets."""
    error: type[Exception]
    """The root of the errors that statements raise."""

    @property
    def statements(self) -> Statements:
        """The connection, for the parts of the store."""

    @property
    def in_transaction(self) -> bool:
        """Whether a transaction is open."""

    @property
    def is_sound(self) -> bool:
        """Whether a transaction is open of which a part can be undone: it is known whose statement failed."""

    def begin(self) -> None:
        """Begin a transaction that writes."""

    def guard(self, sql: str, check: Callable[[Any], None]) -> None:
        """Let `check` have the row of a query, and raise, before any row of a later statement is returned."""

    def heed_guards(self) -> None:
        """Raise what the checks of `guard` raise, if they were not called yet."""

    def wait(self) -> None:
        """Return when all statements were run; raise the error of one that was not."""

    def commit(self) -> None:
        """Make the open transaction durable. After an error it is unknown whether it is, or it is undone.

        Rows of its statements may be fetched afterwards.
        """

    def roll_back(self) -> None:
        """Undo the open transaction."""

    def translated(self, error: Exception) -> StoreError:
        """Return what to say about an error of a statement.

        Its text does not name the database. StoreUnusable: the contents are in doubt. StoreAway: the server
        is gone. After both the connection is not used again.
        """

    def remove_traces(self) -> bool:
        """Remove encrypted traces of wiped slots; False if something prevents that for the moment."""

    def close(self) -> None:
        """Close the connection."""
