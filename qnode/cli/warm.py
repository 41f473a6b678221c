"""`qnode warm`: compile all code before the first start."""

import time

import click

from qnode.kernel_cache import UntrustedCache, cache_directory, trusted


@click.command()
def warm() -> int:
    """Compile the code of a daemon and keep it, so that daemons start at once.

    The code is the machine code of the kernels, and Python's bytecode where it is missing and may be written.

    Installers and the systemd unit run this command. `QNODE_CACHE_DIR` names the folder of the code. The
    command takes half a minute of processor time after an update, and two seconds when nothing is missing.
    """
    # Imported here: numerical libraries load slowly, and usage errors should not wait for them.
    from qnode.distill.selftest import SelfTestFailed

    directory = cache_directory("qnode.distill.amplification.amplify").resolve()
    try:
        trusted(directory)
    except UntrustedCache as error:
        click.echo(f"qnode: compiled code cannot be kept: {error}", err=True)
        return 1
    from qnode.offline.warm import warm as compile_all

    began = time.monotonic()
    try:
        compiled = compile_all()
    except SelfTestFailed as error:
        click.echo(f"qnode: {error}", err=True)
        return 1
    click.echo(f"{compiled} kernels compiled in {time.monotonic() - began:.1f} s, kept in {directory.parent}")
    return 0
