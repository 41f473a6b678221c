"""The `qnode` command: everything that runs, plans or computes (operators use `qnodectl`)."""

import importlib
import sys
from typing import TYPE_CHECKING, NamedTuple

import click

from qnode.cli.exits import EXIT_USAGE
from qnode.cli.interrupted import end_interrupted
from qnode.cli.version import version_option

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem


class LazyCommand(NamedTuple):
    """The place of a command and its short description, so that the list of commands imports none."""

    module: str
    attribute: str
    short_help: str


COMMANDS = {
    "run": LazyCommand("qnode.cli.run", "run", "Run one site until a signal ends it."),
    "serve": LazyCommand(
        "qnode.cli.serve", "serve", "Deliver keys from the store of a node, without a link."
    ),
    "agent": LazyCommand("qnode.cli.agent", "agent", "Change the key of a tunnel beside any key manager."),
    "setup": LazyCommand("qnode.cli.setup", "setup", "Make the file, secrets and certificates of a site."),
    "check": LazyCommand("qnode.cli.check", "check", "Name every error in a site's file."),
    "loopback": LazyCommand(
        "qnode.cli.loopback", "loopback", "Run both sites of a link with simulated hardware."
    ),
    "testbed": LazyCommand("qnode.cli.testbed", "testbed", "Run two sites with a tunnel and a sensor chain."),
    "record": LazyCommand("qnode.cli.record", "record", "Record a simulated link, or a running site."),
    "replay": LazyCommand(
        "qnode.cli.replay", "replay", "Run both sites on this machine, with recorded hardware."
    ),
    "tags": LazyCommand("qnode.cli.tags", "tags", "Show what is in a file of time tags."),
    "keylength": LazyCommand("qnode.cli.keylength", "keylength", "Estimate the key length of a block."),
    "plan": LazyCommand("qnode.cli.plan", "plan", "Compute the key rate of a planned link."),
    "driver": LazyCommand(
        "qnode.cli.driver", "driver", "Begin a driver, check it with its device, record the device."
    ),
    "report": LazyCommand("qnode.cli.report", "report", "Make the measured pages of the documentation."),
    "distill": LazyCommand(
        "qnode.cli.distill", "distill", "Distil a recording, and show each block's result."
    ),
    "bench": LazyCommand("qnode.cli.bench", "bench", "Measure every stage and the whole link."),
    "soak": LazyCommand("qnode.cli.soak", "soak_command", "Correct many random blocks, and compare."),
    "world": LazyCommand(
        "qnode.cli.world", "world_command", "Run both nodes through thousands of simulated faults."
    ),
    "sensors": LazyCommand("qnode.cli.sensors", "sensors", "Run the testbed's sensor chain alone."),
    "warm": LazyCommand("qnode.cli.warm", "warm", "Compile all kernels before the first start of a daemon."),
    "completion": LazyCommand("qnode.cli.completion", "completion", "Print what a shell needs to complete."),
    "manual": LazyCommand("qnode.cli.manual", "manual", "Write the manual pages."),
}


class LazyGroup(click.Group):
    """Import a command only when it runs, so that small commands and the list start fast."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return all command names."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return one command."""
        found = COMMANDS.get(cmd_name)
        if found is None:
            return None
        command = getattr(importlib.import_module(found.module), found.attribute)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, command.short_help) for name, command in COMMANDS.items()])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> "list[CompletionItem]":
        """Return the names that fit, without importing the commands: a Tab should not take seconds."""
        from click.shell_completion import CompletionItem

        names = [
            CompletionItem(name, help=command.short_help)
            for name, command in COMMANDS.items()
            if name.startswith(incomplete)
        ]
        return names + click.Command.shell_complete(self, ctx, incomplete)


@click.group(cls=LazyGroup)
@version_option
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
        end_interrupted()
    except BaseExceptionGroup as group:  # trio's tasks put an interrupt into groups
        if group.subgroup(KeyboardInterrupt) is None:
            raise
        end_interrupted()
    sys.exit(code if isinstance(code, int) else 0)
