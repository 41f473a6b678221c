"""What is wrong with a node, by its status: the warnings, and why no key is ready."""

from qnode.choices import NodeState
from qnode.devices.status import State
from qnode.operate.status.alarms import AlarmName
from qnode.operate.status.model import Alarm, NodeStatus


def troubles(status: NodeStatus) -> list[Alarm]:
    """Return all warnings, the node's own alarms last; empty means that the site is ok."""
    found = []
    if status.state.state != NodeState.RUNNING:
        found.append(_alarm(AlarmName.NODE_STARTING, status.state))
    views = status.each_link
    for view in views:
        link = view.site.link if len(views) > 1 else None
        if not view.peer.connected:
            found.append(_alarm(AlarmName.PEER_DISCONNECTED, view.peer.connection, link))
        if not view.quantum.locked:
            found.append(_alarm(AlarmName.QUANTUM_UNLOCKED, view.quantum.lock, link))
        for device in view.devices:
            if not device.well:
                name = AlarmName.DEVICE_FINISHED if device.finished else AlarmName.DEVICE_FAILED
                found.append(_alarm(name, device.state, link, subject=device.name))
    return found + status.alarms


def _alarm(name: AlarmName, state: State, link: str | None = None, subject: str = "") -> Alarm:
    """Return the alarm for a bad state."""
    text = f"{subject} {state.state}".strip() + (f": {state.because}" if state.because else "")
    return Alarm(name=str(name), since=state.since, text=text, link=link)


def store_waits(status: NodeStatus) -> bool:
    """Return whether the store waits and delivers no keys; its alarm states the reason."""
    return any(alarm.name == AlarmName.STORE_WAITING for alarm in status.alarms)


def why_no_key(status: NodeStatus) -> str | None:
    """Explain in one line why no key is ready; None when there is one.

    The order is: a store that waits, devices, the peer, lock, the outcome of the last block.
    """
    if store_waits(status):
        return f"the store holds its keys back (see {AlarmName.STORE_WAITING})"
    if status.keys.available_own + status.keys.available_peer + status.keys.stock:
        return None
    failed = next((device for device in status.devices if not device.well), None)
    if failed is not None:
        return f"device {failed.name} is {failed.state.state}" + _because(failed.state)
    if not status.peer.connected:
        return "the peer is not connected" + _because(status.peer.connection)
    if not status.quantum.locked:
        return "no lock on the quantum channel" + _because(status.quantum.lock)
    block = status.block
    last, discard = block.last, block.last_discard
    if discard is not None and (last is None or discard.at >= last.finished_at):
        detail = f": {discard.detail}" if discard.detail else ""
        return f"block {discard.block_id} was discarded ({discard.reason}){detail}"
    if last is not None:
        return f"all keys are used; block {last.block_id} was the last to give key"
    if block.filled is not None:
        return f"the first block is {100 * block.filled:.0f} % full"
    return "the first block has not begun"


def _because(state: State) -> str:
    """Append the reason, if one is known."""
    return f": {state.because}" if state.because else ""
