"""The table `[telemetry]`: where a site writes its figures."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

from qnode.config.description import Described, Limits, limit_faults
from qnode.config.link import Table


class TelemetrySection(Table, frozen=True):
    """The figures of this site for InfluxDB, in addition to the metrics for Prometheus.

    The names are those of the metrics. Samples wait on disk while the database is away.
    """

    url: Annotated[str, Described("http or https address of an InfluxDB 1.x, or of 2.x with its older API")]
    database: Annotated[str, Described("name of the database; the node makes it if it may")]
    spool: Annotated[Path, Described("folder for samples that the database does not have yet; its own")]
    user: Annotated[str | None, Described("name of the database's user; needs `password`")] = None
    password: Annotated[
        Path | None, Described("file with the password of `user`, readable by the daemon's user alone")
    ] = None
    token: Annotated[
        Path | None, Described("file with a token in place of `user`, readable by the daemon's user alone")
    ] = None
    ca: Annotated[
        Path | None, Described("certificates of the authorities of an https address, if not the system's")
    ] = None
    interval_s: Annotated[float, Described("time between two samples", limits=Limits(0.1, 3600.0))] = 10.0
    spool_bytes: Annotated[
        int,
        Described("most bytes in `spool`; beyond them the oldest samples are lost", limits=Limits(1e6, 1e12)),
    ] = 256 * 1024 * 1024


def telemetry_faults(section: TelemetrySection) -> Iterator[str]:
    """Yield what is wrong with the table in itself."""
    yield from limit_faults(section, "telemetry")
    try:
        parts = urlsplit(section.url)
        known = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        plain = not (parts.query or parts.fragment or "@" in parts.netloc)
    except ValueError:
        known = plain = False
    if not known or not plain or not section.url.isprintable():
        has_name = "@" in section.url  # which may have a password
        got = "one with a name or password; use user and password" if has_name else repr(section.url)
        yield f"telemetry.url: expected http://host:port or https://host:port, got {got}"
    if not section.database or not section.database.isprintable():
        yield f"telemetry.database: expected a name, got {section.database!r}"
    if (section.user is None) != (section.password is None):
        yield "telemetry.user: user and password go together"
    if section.user is not None and section.token is not None:
        yield "telemetry.token: expected either a token or a user with a password, not both"
