"""`qnode agent`: the agent beside an encryptor.

The exit codes of `qnode agent status` are an interface: 0 ready, 1 holding or starved, 2 not running, 3
cannot tell, 64 usage.
"""

import os
import signal
from pathlib import Path

import click

from qnode.cli.main import EXIT_USAGE
from qnode.cli.secrets import forbid_core_dumps
from qnode.errors import ConfigError, QnodeError

EXIT_NOT_RUNNING, EXIT_CANNOT_TELL = 2, 3
SOCKETS = Path("/run/qnode-agent")

_FILE = click.Path(path_type=Path, dir_okay=False)


@click.group()
def agent() -> None:
    """Change the key of a tunnel with keys of any key manager (ETSI GS QKD 014)."""


@agent.command()
@click.option("--config", "path", required=True, type=_FILE, help="The agent's TOML.")
def run(path: Path) -> int:
    """Run one agent until SIGTERM or SIGINT; SIGHUP reads certificates again. The tunnel stays as it is."""
    # A request to reload that comes too early, or during the stop, must not end the agent.
    signal.signal(signal.SIGHUP, lambda *_: None)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    os.umask(0o077)
    forbid_core_dumps()
    from qnode.agent.process import run_agent_until_signal  # usage errors should not wait for it

    try:
        return run_agent_until_signal(path)
    except ConfigError as error:
        click.echo(f"qnode: {error}", err=True)
        return EXIT_USAGE
    except QnodeError as error:
        click.echo(f"qnode: {error}", err=True)
        return 1
    finally:
        # The interpreter removes every handler at its end; an ignored signal stays ignored.
        signal.signal(signal.SIGHUP, signal.SIG_IGN)


@agent.command()
@click.argument("path", metavar="FILE", type=_FILE)
def check(path: Path) -> int:
    """Name every error in an agent's FILE and in the files it names; change nothing.

    Exit 0: no error. 64: an agent would refuse the file, or would not work as the file describes.
    """
    from qnode.agent.config import check_agent
    from qnode.cli.check import tell_findings

    return tell_findings(path, check_agent(path))


@agent.command()
@click.option(
    "--socket",
    "path",
    type=click.Path(path_type=Path),
    envvar="QNODE_AGENT_SOCKET",
    help="Control socket (default: $QNODE_AGENT_SOCKET, or the only one below /run/qnode-agent).",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object with everything.")
@click.option(
    "--patience", default=5.0, type=click.FloatRange(min=0.01), help="Seconds to wait for an answer."
)
def status(path: Path | None, as_json: bool, patience: float) -> int:
    """Show the state of a running agent.

    Exit codes: 0 ready, 1 holding or starved, 2 not running, 3 cannot tell, 64 usage.
    """
    import msgspec

    from qnode.agent.state import AgentState
    from qnode.agent.status import EXIT_CODES, AgentStatus, status_lines
    from qnode.operate.control.client import NoAnswer, NodeNotRunning, ask_status
    from qnode.operate.events.line import printable

    try:
        raw = ask_status(path or _only_socket(), patience_s=patience)
        told = msgspec.json.decode(raw, type=AgentStatus)
        code = EXIT_CODES[AgentState(told.state.state)]
    except NodeNotRunning as error:
        click.echo(f"qnode agent: {error}", err=True)
        return EXIT_NOT_RUNNING
    except (NoAnswer, msgspec.DecodeError, ValueError) as error:
        click.echo(f"qnode agent: {error}", err=True)
        return EXIT_CANNOT_TELL
    if as_json:
        click.echo(msgspec.json.format(bytes(raw), indent=2))
    else:
        click.echo("\n".join(printable(line) for line in status_lines(told)))
    return code


def _only_socket() -> Path:
    """Return the socket of the only agent of this machine. Raises NodeNotRunning or NoAnswer."""
    from qnode.operate.control.client import NoAnswer, NodeNotRunning

    found = sorted(SOCKETS.glob("*/control.sock"))
    if not found:
        raise NodeNotRunning(
            f"no control socket under {SOCKETS}; start the service (systemctl start qnode-agent@NAME), or "
            "name its socket with --socket"
        )
    if len(found) > 1:
        raise NoAnswer(f"several agents run here, name one with --socket: {', '.join(map(str, found))}")
    return found[0]
