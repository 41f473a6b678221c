"""`qnodectl saes add`, `remove` and `limit`: encryptors of a running site, without a restart."""

import fcntl
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qnode.cli.exits import EXIT_OK
from qnode.cli.printing import refusals_told, say
from qnode.cli.shown import print_table, table_of
from qnode.cli.where import Where, node_of
from qnode.errors import ConfigError
from qnode.operate.control.client import NoAnswer, NodeNotRunning, ask_reload

if TYPE_CHECKING:
    from qnode.config import SiteConfig

RELOAD_PATIENCE_S = 60.0
SITE_FILES = Path("/etc/qnode")
_HEADER = "# Encryptors of this site. `qnodectl saes add`, `limit` and `remove` write this file.\n\n"
_config = click.option(
    "--config",
    "path",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The site's file (default: that of the socket's name in /etc/qnode).",
)


@click.group(invoke_without_command=True)
@click.pass_context
def saes(context: click.Context) -> int:
    """Show, add, limit and remove encryptors; without a command: the same as `saes list`."""
    if context.invoked_subcommand is None:
        return _list_saes(context.obj)
    return EXIT_OK


@saes.command("list")
@click.pass_obj
def list_saes(where: Where) -> int:
    """Show the encryptors, the keys delivered to them, and their limits."""
    return _list_saes(where)


def _list_saes(where: Where) -> int:
    from qnode.operate.events.line import printable
    from qnode.operate.status.screen import age, count

    node = node_of(where)
    table = table_of(node, "SAE", "at KME", "shares keys with", "keys", "last key", "refused", "keys/min")
    for sae in node.etsi014.saes:
        last = "never" if sae.last_key_at is None else f"{age(sae.last_key_at, node.at)} ago"
        delivered, refused = count(sae.keys_delivered_total), count(sae.requests_refused_total)
        peers = printable(", ".join(sae.peers))
        limit = "any" if sae.keys_per_minute is None else count(sae.keys_per_minute)
        table.add_row(printable(sae.sae_id), printable(sae.kme_id), peers, delivered, last, refused, limit)
    print_table(table)
    return EXIT_OK


@saes.command("add")
@click.argument("sae_id")
@click.argument("peer_sae_id")
@click.option("--identity", "identities", multiple=True, help="Name in its certificate, if not SAE_ID.")
@click.option("--peer-kme", help="The site of PEER_SAE_ID (default: the other end of the only link).")
@_config
@click.pass_obj
def add_sae(
    where: Where,
    sae_id: str,
    peer_sae_id: str,
    identities: tuple[str, ...],
    peer_kme: str | None,
    path: Path | None,
) -> int:
    """Let SAE_ID of this site share keys with PEER_SAE_ID of the other site; do the mirror image there."""
    with refusals_told(), _edited(where, path) as edit:
        peer_kme = peer_kme or edit.only_peer()
        edit.add(sae_id, edit.kme_id, peer_sae_id, identities)
        edit.add(peer_sae_id, peer_kme, sae_id, ())
        told = f"{sae_id} of {edit.kme_id} shares keys with {peer_sae_id} of {peer_kme}"
        code = edit.apply(told)
    mirrored = shlex.join([peer_sae_id, sae_id])
    say(f"At {peer_kme}, unless it has the pair: qnodectl saes add {mirrored}")
    return code


@saes.command("remove")
@click.argument("sae_id")
@_config
@click.pass_obj
def remove_sae(where: Where, sae_id: str, path: Path | None) -> int:
    """Let SAE_ID get no more keys at this site; do the same at the other site."""
    with refusals_told(), _edited(where, path) as edit:
        gone = edit.remove(sae_id)
        code = edit.apply(f"removed: {', '.join(gone)}")
    say(f"At the other site, unless it is gone there: qnodectl saes remove {shlex.quote(sae_id)}")
    return code


@saes.command("limit")
@click.argument("sae_id")
@click.argument("keys_per_minute")
@_config
@click.pass_obj
def limit_sae(where: Where, sae_id: str, keys_per_minute: str, path: Path | None) -> int:
    """Let SAE_ID of this site get at most KEYS_PER_MINUTE new keys; `any`: no limit.

    It may get so many at once, and as many in each minute after that. A key counts as one for each 256 bits.
    """
    limit = None if keys_per_minute == "any" else _positive(keys_per_minute)
    with refusals_told(), _edited(where, path) as edit:
        edit.limit(sae_id, limit)
        words = "any number of keys" if limit is None else f"at most {limit} keys a minute"
        return edit.apply(f"{sae_id} of {edit.kme_id} may get {words}")


def _positive(text: str) -> int:
    if not text.isascii() or not text.isdigit():
        raise click.BadParameter(f"expected a number of keys a minute, or any, got {text!r}")
    return int(text[:20])


class _Edit:
    """One change of the file of encryptors of the site at ``path``, for its node behind ``socket``."""

    def __init__(self, path: Path, where: Where, *, named: bool) -> None:
        from qnode.config import links_of
        from qnode.config.reading import read_tables
        from qnode.config.saes import read_saes, saes_file, with_saes

        self._path, self._where, self._named = path, where, named
        self._raw = read_tables(path)
        file = saes_file(self._raw, path)
        if file is None:
            raise ConfigError(
                f'{path}: has no file for encryptors: enter saes_file = "{path.stem}-saes.toml" under '
                "[etsi014], or edit [[etsi014.sae]] and reload"
            )
        self._file = file
        self._saes = read_saes(file)
        self._configs: tuple[SiteConfig, ...] = links_of(with_saes(self._raw, self._saes), path)
        own = self._raw["etsi014"].get("sae", [])
        self._fixed = {sae["sae_id"]: sae for sae in own}

    @property
    def kme_id(self) -> str:
        """The name of this site."""
        return self._configs[0].node.kme_id

    def only_peer(self) -> str:
        """Return the name of the only other site; raises ConfigError if there are several."""
        if len(self._configs) > 1:
            names = ", ".join(config.peer.kme_id for config in self._configs)
            raise ConfigError(
                f"{self._path}: has several links; name the other site with --peer-kme ({names})"
            )
        return self._configs[0].peer.kme_id

    def add(self, sae_id: str, kme_id: str, peer: str, identities: tuple[str, ...]) -> None:
        """Enter an encryptor, or one more peer of it; raises ConfigError."""
        if sae_id in self._fixed:
            fixed = self._fixed[sae_id]
            if kme_id == self.kme_id and peer not in fixed["peers"]:
                raise ConfigError(
                    f"{self._path}: {sae_id} stands there itself, where qnodectl changes nothing: add "
                    f"{peer} to its peers there, and reload"
                )
            found = fixed
        else:
            same = [sae for sae in self._saes if sae.get("sae_id") == sae_id]
            found = same[0] if same else {"sae_id": sae_id, "kme_id": kme_id, "peers": []}
            if not same:
                self._saes.append(found)
            if peer not in found["peers"]:
                found["peers"] = [*found["peers"], peer]
            if identities:
                found["identities"] = list(identities)
        if found["kme_id"] != kme_id:
            raise ConfigError(f"{sae_id} is at {found['kme_id']} already, not at {kme_id}")

    def remove(self, sae_id: str) -> list[str]:
        """Remove an encryptor and those that would have no peer left; return their names."""
        if sae_id in self._fixed:
            raise ConfigError(f"{self._path}: {sae_id} stands there itself: remove it there, and reload")
        self._found(sae_id)
        before = [str(sae["sae_id"]) for sae in self._saes]
        for sae in self._saes:
            sae["peers"] = [peer for peer in sae["peers"] if peer != sae_id]
        self._saes = [sae for sae in self._saes if sae["sae_id"] != sae_id and sae["peers"]]
        left = {sae["sae_id"] for sae in self._saes}
        return [name for name in before if name not in left]

    def limit(self, sae_id: str, keys_per_minute: int | None) -> None:
        """Set or remove the limit of an encryptor of this site; raises ConfigError."""
        if sae_id in self._fixed:
            raise ConfigError(
                f"{self._path}: {sae_id} stands there itself: set its keys_per_minute there, and reload"
            )
        found = self._found(sae_id)
        if found["kme_id"] != self.kme_id:
            raise ConfigError(f"{sae_id} is at {found['kme_id']}: limit it there")
        found.pop("keys_per_minute", None)
        if keys_per_minute is not None:
            found["keys_per_minute"] = keys_per_minute

    def _found(self, sae_id: str) -> dict[str, Any]:
        for sae in self._saes:
            if sae.get("sae_id") == sae_id:
                return sae
        raise ConfigError(f"{self._file}: has no encryptor {sae_id}")

    def apply(self, told: str) -> int:
        """Check the new entries, write them, and have the node apply them; otherwise all stays as it was.

        Raises:
            ConfigError: they cannot be used, or the node refuses them.
            NoAnswer: the node does not say whether it has applied them; they stay in the file.
        """
        import tomli_w

        from qnode.config.saes import with_saes
        from qnode.node.check import check_site
        from qnode.secret_files import PUBLIC_MODE, NewFile, write_files

        faults = check_site(self._path, tables=with_saes(self._raw, self._saes)).faults
        if faults:
            raise ConfigError(f"{faults[0]}; nothing was changed")
        former = self._file.read_bytes() if self._file.exists() else None
        content = (_HEADER + tomli_w.dumps({"sae": self._saes})).encode()
        if content == former:
            say(f"{told}: nothing to change")
            return 0
        write_files([NewFile(self._file, content, PUBLIC_MODE)], replace=True)
        try:
            socket = self._configs[0].operate.control_socket if self._named else self._where.path
            reloaded = ask_reload(socket, patience_s=RELOAD_PATIENCE_S)
        except NodeNotRunning:
            say(f"{told}. The node does not run: it will read {self._file} at its start")
            return 0
        except NoAnswer as error:
            raise NoAnswer(f"{self._file} is written, but the node has not confirmed it: {error}") from None
        if reloaded.fault is not None:
            if former is None:
                self._file.unlink()
            else:
                write_files([NewFile(self._file, former, PUBLIC_MODE)], replace=True)
            raise ConfigError(f"the node refuses, and nothing was changed: {reloaded.fault}")
        say(f"{told}. In force now, and after a restart")
        if "etsi014.sae" in reloaded.waiting:
            say("It waits for a restart: the names of the sites have changed too")
        return 0


@contextmanager
def _edited(where: Where, path: Path | None) -> Iterator[_Edit]:
    """Yield an edit of a site's file that nobody else edits at the same time."""
    named = path is not None
    if path is None:
        path = SITE_FILES / f"{where.path.parent.name}.toml"
    try:
        with path.open("rb") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            yield _Edit(path, where, named=named)
    except OSError as error:
        raise ConfigError(
            f"{error.filename or path}: {error.strerror}; name the site's file with --config"
        ) from None
