"""Which encryptor a URI of an application names."""

from collections.abc import Collection, Iterator, Mapping
from urllib.parse import unquote, urlsplit


def sae_named(uri: str, known: Collection[str], uris: Mapping[str, str]) -> str | None:
    """Return the first of ``known`` encryptors that ``uri`` names; None if it names none.

    In this order: what ``uris`` of the configuration says, the whole text, and of `scheme://user@host:port/path`
    the user, host with port, host, and path.
    """
    return next((name for name in _names(uri, uris) if name in known), None)


def _names(uri: str, uris: Mapping[str, str]) -> Iterator[str]:
    if uri in uris:
        yield uris[uri]
        return
    yield uri
    try:
        parts = urlsplit(uri)
        user, at, place = parts.netloc.rpartition("@")
        host = place.rpartition(":")[0] if place.rpartition(":")[2].isdigit() else place
    except ValueError:  # not a URI
        return
    if at:
        yield unquote(user)
    yield from (unquote(name) for name in (place, host, parts.path.strip("/")) if name)
