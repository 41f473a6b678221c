"""`qnode agent`: the agent beside an encryptor.

The exit codes of `qnode agent status` are an interface: 0 ready, 1 holding or starved, 2 not running, 3
cannot tell, 64 usage.
"""

from pathlib import Path

import click

from qnode.cli.daemon import run_daemon
from qnode.cli.daemon_status import show_status, status_options

SOCKETS = Path("/run/qnode-agent")

_FILE = click.Path(path_type=Path, dir_okay=False)


@click.group()
def agent() -> None:
    """Change the key of a tunnel with keys of any key manager (ETSI GS QKD 014)."""


@agent.command()
@click.option("--config", "path", required=True, type=_FILE, help="The agent's TOML.")
def run(path: Path) -> int:
    """Run one agent until SIGTERM or SIGINT; SIGHUP reads certificates again. The tunnel stays as it is."""

    def run_agent() -> int:
        from qnode.agent.process import run_agent_until_signal  # usage errors should not wait for it

        return run_agent_until_signal(path)

    return run_daemon(run_agent)


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
@status_options
def status(path: Path | None, as_json: bool, patience: float) -> int:
    """Show the state of a running agent.

    Exit codes: 0 ready, 1 holding or starved, 2 not running, 3 cannot tell, 64 usage.
    """
    from qnode.agent.status import AgentStatus, status_lines
    from qnode.cli.where import only_socket

    def find() -> Path:
        return path or only_socket(SOCKETS, "qnode-agent@NAME", "agents")

    return show_status("qnode agent", find, AgentStatus, status_lines, as_json=as_json, patience_s=patience)
