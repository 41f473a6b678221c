"""What an agent says of its changes of key, asked for over its control socket."""

from pathlib import Path
from typing import Final

import msgspec
import trio

from qnode.agent.status import AgentStatus
from qnode.errors import QnodeError
from qnode.operate.control.client import ask_status

# Longer than any pause of a busy machine.
_PATIENCE_S: Final = 30.0


async def agent_status(control_socket: Path) -> AgentStatus:
    """Return the status of a running agent.

    Raises:
        QnodeError: it does not run, or does not answer.
    """
    raw = await trio.to_thread.run_sync(lambda: ask_status(control_socket, patience_s=_PATIENCE_S))
    try:
        return msgspec.json.decode(raw, type=AgentStatus)
    except msgspec.MsgspecError as error:
        raise QnodeError(f"{control_socket}: not an agent's status: {error}") from None
