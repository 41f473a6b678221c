"""The commands of `qnodectl` that make a running node do something."""

import sys
import time
from pathlib import Path

import click

from qnode.cli.exits import EXIT_DEGRADED, EXIT_OK
from qnode.cli.printing import echo, say
from qnode.cli.saes import RELOAD_PATIENCE_S
from qnode.cli.where import Where, node_of
from qnode.operate.control.client import (
    LONGEST_PRESHARED_BYTES,
    ask_calibrate,
    ask_reload,
    ask_restore,
    ask_self_test,
    ask_status,
    decode_status,
)

RESTORE_PATIENCE_S = 60.0
SELF_TEST_PATIENCE_S = 60.0


@click.command("reload")
@click.pass_obj
def reload_site(where: Where) -> int:
    """Read the site's file and certificates again, as `systemctl reload`; exit 1: nothing has changed."""
    reloaded = ask_reload(where.path, patience_s=max(where.patience_s, RELOAD_PATIENCE_S))
    if reloaded.fault is not None:
        say(f"the node continues as before: {reloaded.fault}")
        return EXIT_DEGRADED
    say(f"applied: {', '.join(reloaded.applied) or 'no setting has changed; certificates are read again'}")
    if reloaded.waiting:
        say(f"waits for a restart: {', '.join(reloaded.waiting)}")
    return EXIT_OK


@click.command("selftest")
@click.pass_obj
def self_test(where: Where) -> int:
    """Have the node test its computations now; if one is wrong, the node ends, and this with exit 1."""
    tested = ask_self_test(where.path, patience_s=max(where.patience_s, SELF_TEST_PATIENCE_S))
    if tested.fault is not None:
        say(f"{tested.fault}; the node ends")
        return EXIT_DEGRADED
    say(f"passed in {tested.took_s:.2f} s: distillation, ciphers and hashes")
    return EXIT_OK


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("name")
@click.argument("command", metavar="hold|auto|VALUE")
@click.pass_obj
def calibrate(where: Where, name: str, command: str) -> int:
    """Let the controller NAME hold its setting, go on by itself, or hold VALUE (in its own unit).

    `qnodectl status` lists the controllers. Only root and the daemon's own user may do this.
    """
    from qnode.operate.status.screen import controller_line

    told = ask_calibrate(where.path, name, command, link=where.link, patience_s=where.patience_s)
    echo(f"{command}: " + controller_line(told, time.time()))
    return EXIT_OK


@click.command()
@click.argument("preshared_key", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.pass_obj
def restore(where: Where, preshared_key: Path, yes: bool) -> int:
    """Void every key of this site and start again with a new PRESHARED_KEY (a file of mode 0600).

    Use it after a restore from a backup, or when the one-time pads are used up. Run it at both sites with
    the same file, which neither site has loaded before. Delete both copies when the link works again.
    """
    secret = _read_preshared(preshared_key)
    links = decode_status(ask_status(where.path, patience_s=where.patience_s)).each_link
    if not where.link and len(links) > 1:
        names = ", ".join(view.site.link for view in links)
        raise click.UsageError(f"name the link whose keys are voided with --link (links: {names})")
    node = node_of(where)
    known = node.keys
    n_here = known.available_own + known.available_peer + known.prepared + known.assigned + known.stock
    if not yes:
        if not sys.stdin.isatty():
            raise click.UsageError("say --yes where nobody can be asked")
        question = f"{node.site.kme_id}: void all {n_here:,} chunks and load this pre-shared key?"
        click.confirm(question, abort=True)
    patience_s = max(where.patience_s, RESTORE_PATIENCE_S)
    done = ask_restore(where.path, secret, link=where.link, patience_s=patience_s)
    echo(
        f"{node.site.kme_id}: {done.void_chunks:,} chunks are void, {done.pads_send:,} one-time pads to send "
        f"and {done.pads_receive:,} to receive are loaded.\n"
        f"Run the same with the same file at {node.peer.kme_id}; delete the file at both when the link is up."
    )
    return EXIT_OK


def _read_preshared(path: Path) -> bytes:
    """Return the content of the file. Raises UsageError when it cannot be a pre-shared key."""
    try:
        if path.stat().st_mode & 0o077:
            raise click.UsageError(f"{path} can be read by others; run chmod 600 {path}")
        content = path.read_bytes()
    except OSError as error:
        raise click.UsageError(f"{path}: {error.strerror}") from None
    if len(content) > LONGEST_PRESHARED_BYTES:
        raise click.UsageError(
            f"{path}: {len(content):,} bytes, at most {LONGEST_PRESHARED_BYTES:,} are taken"
        )
    return content
