"""The meter by an OPC UA subscription: values that come by themselves, put together by source time stamp.

The trigger is StatusValueTimestamp: with the usual one a value that has not changed is not sent. The server
keeps `QUEUE` values of each quantity while the connection is slow. A slot of which values are missing is left
out, and so becomes a gap.
"""

import asyncio
from collections.abc import Callable
from datetime import datetime
from typing import Any, Final

from asyncua import ua
from asyncua.client.client import Client
from asyncua.common.node import Node
from asyncua.ua.attribute_ids import AttributeIds
from asyncua.ua.uaerrors import UaError

from qnode.testbed.sensors.opcua_server import NAMESPACE, node_id
from qnode.testbed.sensors.part import say
from qnode.testbed.sensors.power_meter import NAMES
from qnode.testbed.sensors.reader import ReaderSettings, Spooling
from qnode.testbed.sensors.slots import Outcome

QUEUE: Final = 600
_PUBLISH_MS: Final = 50.0
_FIRST_PAUSE_S: Final = 1.0
_LONGEST_PAUSE_S: Final = 10.0


class SlotCollation:
    """Puts the values of one slot together; a slot that is complete ends those before it."""

    def __init__(self, period_ms: int, put: Callable[[Outcome], None]) -> None:
        self._period_ms = period_ms
        self._put = put
        self._open: dict[int, dict[int, float]] = {}

    def add(self, index: int, value: float, stamp: datetime) -> None:
        """Take the value of the quantity ``index`` in `NAMES`."""
        slot = round(stamp.timestamp() * 1000) // self._period_ms
        values = self._open.setdefault(slot, {})
        values[index] = value
        if len(values) == len(NAMES):
            self._put(Outcome(slot, tuple(values[n] for n in range(len(NAMES)))))
            self._open = {later: parts for later, parts in self._open.items() if later > slot}
        elif len(self._open) > QUEUE:
            del self._open[min(self._open)]


class _Handler:
    """What the library calls with each value."""

    def __init__(self, collation: SlotCollation, indices: dict[ua.NodeId, int]) -> None:
        self._collation, self._indices = collation, indices

    def datachange_notification(self, node: Node, value: Any, data: Any) -> None:
        """Take one value; one without a source time stamp or of another type belongs to no slot."""
        stamp = data.monitored_item.Value.SourceTimestamp
        if isinstance(value, float) and stamp is not None:
            self._collation.add(self._indices[node.nodeid], value, stamp)


async def subscribe(settings: ReaderSettings, spooling: Spooling) -> None:
    """Take what the server sends, until cancelled; connect anew when the connection is lost."""
    pause_s = _FIRST_PAUSE_S
    lost = asyncio.Event()

    async def note_loss(_: Exception) -> None:
        lost.set()

    while True:
        lost.clear()
        try:
            async with Client(f"opc.tcp://{settings.meter}/") as client:
                client.connection_lost_callback = note_loss
                await _subscribe(client, settings, spooling)
                spooling.connected, pause_s = True, _FIRST_PAUSE_S
                await lost.wait()
        except (OSError, TimeoutError, UaError) as error:
            say(f"opcua.disconnected: {type(error).__name__}: {error}")
        spooling.connected = False
        await asyncio.sleep(pause_s)
        pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)


async def _subscribe(client: Client, settings: ReaderSettings, spooling: Spooling) -> None:
    index = await client.get_namespace_index(NAMESPACE)
    indices = {node_id(name, index): n for n, name in enumerate(NAMES)}
    handler = _Handler(SlotCollation(settings.period_ms, spooling.put), indices)
    subscription = await client.create_subscription(_PUBLISH_MS, handler)
    trigger = ua.DataChangeFilter(Trigger=ua.DataChangeTrigger.StatusValueTimestamp)
    items = [
        ua.MonitoredItemCreateRequest(
            ItemToMonitor=ua.ReadValueId(NodeId=node, AttributeId=AttributeIds.Value),
            MonitoringMode=ua.MonitoringMode.Reporting,
            RequestedParameters=ua.MonitoringParameters(
                ClientHandle=1 + n,
                SamplingInterval=0.0,
                Filter=trigger,
                QueueSize=QUEUE,
                DiscardOldest=True,
            ),
        )
        for node, n in indices.items()
    ]
    for name, result in zip(NAMES, await subscription.create_monitored_items(items), strict=True):
        if isinstance(result, ua.StatusCode):
            raise UaError(f"{name}: {result}")
