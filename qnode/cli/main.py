"""The `qnode` command: everything that runs, plans or computes (operators look with `qnodectl`)."""

import importlib
import sys

import click

EXIT_USAGE = 64

_COMMANDS = {
    "run": ("qnode.cli.run", "run"),
    "loopback": ("qnode.cli.loopback", "loopback"),
    "record": ("qnode.cli.record", "record"),
    "replay": ("qnode.cli.replay", "replay"),
    "keylength": ("qnode.cli.keylength", "keylength"),
    "plan": ("qnode.cli.plan", "plan"),
    "report": ("qnode.cli.report", "report"),
    "distill": ("qnode.cli.distill", "distill"),
    "bench": ("qnode.cli.bench", "bench"),
    "soak": ("qnode.cli.soak", "soak_command"),
    "warm": ("qnode.cli.warm", "warm"),
}


class LazyGroup(click.Group):
    """Import a command only when it is asked for, so that a small one starts fast."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return all command names."""
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return one command."""
        if cmd_name not in _COMMANDS:
            return None
        module, attribute = _COMMANDS[cmd_name]
        command = getattr(importlib.import_module(module), attribute)
        assert isinstance(command, click.Command)
        return command


@click.group(cls=LazyGroup)
@click.version_option(package_name="qnode")
def qnode() -> None:
    """Open node software of a quantum key distribution link."""


def main() -> None:
    """Run the command line; usage errors exit with 64."""
    try:
        code = qnode.main(standalone_mode=False)
    except click.UsageError as error:
        error.show()
        sys.exit(EXIT_USAGE)
    except click.ClickException as error:
        error.show()
        sys.exit(1)
    except click.Abort:
        sys.exit(130)
    sys.exit(code if isinstance(code, int) else 0)
