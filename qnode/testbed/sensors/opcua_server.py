"""The power meter as its OPC UA server shows it: a node for each quantity, stamped with its slot's time."""

import asyncio
import time
from datetime import UTC, datetime
from typing import Final, cast

from asyncua import ua
from asyncua.server.server import Server

from qnode.testbed.sensors.plant import PlantSettings
from qnode.testbed.sensors.power_meter import NAMES

NAMESPACE: Final = "urn:qnode:testbed:power-meter"


def node_id(name: str, index: int) -> ua.NodeId:
    """Return the identifier of the node ``name`` in the namespace with this ``index``."""
    return ua.NodeId(ua.String(name), ua.Int16(index))


async def show_by_opcua(settings: PlantSettings, ready: asyncio.Event) -> None:
    """Serve the meter until cancelled; sets ``ready`` when it listens."""
    server = Server()
    await server.init()
    server.set_endpoint(f"opc.tcp://{settings.opcua}/")
    server.set_server_name("power meter of the testbed")
    server.set_security_policy([ua.SecurityPolicyType.NoSecurity])
    index = await server.register_namespace(NAMESPACE)
    folder = await server.nodes.objects.add_object(node_id("power_meter", index), "power_meter")
    nodes = [
        await folder.add_variable(node_id(name, index), name, 0.0, ua.VariantType.Float) for name in NAMES
    ]
    async with server:
        ready.set()
        while True:
            slot = int(time.time() * 1000 // settings.period_ms)
            stamp = cast("ua.DateTime", datetime.fromtimestamp(slot * settings.period_ms / 1000, UTC))
            for node, value in zip(nodes, settings.values(slot), strict=True):
                shown = ua.DataValue(
                    ua.Variant(value, ua.VariantType.Float), SourceTimestamp=stamp, ServerTimestamp=stamp
                )
                await server.write_attribute_value(node.nodeid, shown)
            await asyncio.sleep(max(0.0, (slot + 1) * settings.period_ms - time.time() * 1000) / 1000)
