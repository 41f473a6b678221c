"""`qnodectl rollback`: a stopped site's stores for the release before, with all their keys."""

from pathlib import Path

import click

from qnode.cli.printing import refusals_told, say
from qnode.cli.stopped_site import read_store_key, rights_of_owner, store_key_option
from qnode.errors import ConfigError


@click.command()
@click.argument("site_file", metavar="FILE", type=click.Path(path_type=Path, dir_okay=False))
@store_key_option
@click.option(
    "--void-open",
    is_flag=True,
    help="Void the keys that the sites are still agreeing on or freeing, instead of refusing.",
)
def rollback(site_file: Path, store_key: Path | None, void_open: bool) -> int:
    """Write the store of the stopped site of FILE back into the form that release 0.1.0 opens.

    No key comes twice: that release goes on where this one stopped. It is refused while the sites have not
    settled which keys they agreed on: start the node until it has met its peer. Run it before you
    install that release, as root or as the daemon's user. If it is interrupted, run it again.
    """
    from qnode.config import load_site
    from qnode.keys import roll_back

    with refusals_told():
        configs = load_site(site_file)
        if any(config.store.postgresql is not None for config in configs):
            raise ConfigError("[store.postgresql]: release 0.1.0 knows no store on a server")
        for config in configs:
            section, node = config.store, config.node
            key = read_store_key(config, site_file, store_key)
            with rights_of_owner(section.path):
                done = roll_back(
                    section.path,
                    role=node.role,
                    store_key=key,
                    anchor=section.anchor,
                    witness=section.witness,
                    kme_id=node.kme_id,
                    peer_kme_id=config.peer.kme_id,
                    void_open=void_open,
                )
            voided = f", {done.void_chunks:,} are given up" if done.void_chunks else ""
            say(f"{section.path}: ready for release 0.1.0 with {done.kept_chunks:,} chunks{voided}")
    return 0
