"""What a device reports, from all of its capabilities, as figures by name with the unit at the end."""

from typing import Any

from qnode.devices.capabilities import (
    BiasControl,
    BiasLock,
    DetectorControl,
    Laser,
    PhaseControl,
    PowerMonitor,
    VariableAttenuator,
)
from qnode.devices.protocols import Sensor
from qnode.tags.types import X_CHANNEL, Z_CHANNEL

_READ = (
    Sensor,
    Laser,
    VariableAttenuator,
    BiasControl,
    BiasLock,
    PowerMonitor,
    DetectorControl,
    PhaseControl,
)
_DETECTORS = {Z_CHANNEL: "z", X_CHANNEL: "x"}


def has_readings(device: object) -> bool:
    """Return whether `read` finds anything. Random numbers are key material and are never read here."""
    return isinstance(device, _READ)


async def read(device: object) -> dict[str, float]:
    """Read every capability of ``device`` once.

    A laser gives ``laser_on`` and ``interlock_closed`` (1 or 0), a bias lock ``bias_lock_on`` (0: manual), a
    detector its figures with ``z_detector_`` or ``x_detector_`` before their names.

    Raises:
        DeviceError: whatever the device raises.
    """
    found: dict[str, float] = {}
    if isinstance(device, Laser):
        state = await device.laser_state()
        found["laser_on"] = float(state.on)
        if state.interlock_closed is not None:
            found["interlock_closed"] = float(state.interlock_closed)
    if isinstance(device, VariableAttenuator):
        found["attenuation_db"] = await device.attenuation_db()
    if isinstance(device, BiasControl):
        found["bias_v"] = await device.bias_v()
    if isinstance(device, BiasLock):
        found["bias_lock_on"] = float(await device.bias_point() != "manual")
    if isinstance(device, PowerMonitor):
        found["power_w"] = await device.power_w()
    if isinstance(device, PhaseControl):
        found["phase_rad"] = await device.phase_rad()
    if isinstance(device, DetectorControl):
        for channel in device.detector_channels:
            detector = await device.detector_state(channel)
            for name in detector.__struct_fields__:
                value = getattr(detector, name)
                if value is not None:
                    found[f"{_DETECTORS.get(channel, channel)}_detector_{name}"] = value
    if isinstance(device, Sensor):
        own: Any = await device.readings()
        return {**found, **own} if isinstance(own, dict) else own  # the caller names the fault
    return found
