"""Find drivers by entry point, check their configuration, open them.

A package of a third party that names a class in the group ``qnode.drivers`` is found like a shipped driver.
"""

import difflib
import inspect
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from importlib.metadata import entry_points
from typing import Any, TypeAlias, cast

import msgspec

from qnode.config import DeviceSection, convert
from qnode.devices.protocols import Device, Driver
from qnode.errors import ConfigError, DeviceGone

DRIVER_GROUP = "qnode.drivers"

DriverClass: TypeAlias = type[Driver]


def known_drivers() -> list[str]:
    """Return the names of all installed drivers, sorted."""
    return sorted({entry.name for entry in entry_points(group=DRIVER_GROUP)})


def load_driver(name: str) -> DriverClass:
    """Import the driver class that the entry point ``name`` names.

    Raises:
        ConfigError: no such driver (with a near match), its libraries are missing, or the class is not a
        driver.
    """
    found = list(entry_points(group=DRIVER_GROUP, name=name))
    if not found:
        known = known_drivers()
        near = difflib.get_close_matches(name, known, 1, 0.5)
        hint = f", did you mean {near[0]}?" if near else ""
        raise ConfigError(f"unknown driver {name}{hint} (installed: {', '.join(known) or 'none'})")
    if len({entry.value for entry in found}) > 1:
        places = " and ".join(sorted(entry.value for entry in found))
        raise ConfigError(f"driver {name} is installed twice: {places}; uninstall one")
    try:
        loaded = found[0].load()
    except ImportError as error:
        # A missing module is a fault of the installation (an extra such as qnode[zmq]), not of the program.
        raise ConfigError(f"driver {name} cannot be imported: {error}") from error
    except AttributeError as error:
        raise ConfigError(f"driver {name}: {found[0].value} does not exist") from error
    config = getattr(loaded, "Config", None)
    if not (inspect.isclass(loaded) and callable(getattr(loaded, "open", None))):
        raise ConfigError(f"driver {name}: {found[0].value} is no driver class with an open()")
    if not (inspect.isclass(config) and issubclass(config, msgspec.Struct)):
        raise ConfigError(f"driver {name}: {found[0].value} has no Config struct")
    return cast(DriverClass, loaded)


def driver_config(driver_class: DriverClass, raw: dict[str, Any], where: str) -> msgspec.Struct:
    """Convert the device's table to the driver's ``Config``; ``where`` begins the error's text.

    Raises:
        ConfigError: an unknown key (with a near match) or a value of the wrong type.
    """
    return convert(raw, driver_class.Config, where=where)


def device_opener(
    name: str, section: DeviceSection, *, allow_simulated: bool
) -> Callable[[], AbstractAsyncContextManager[Device]]:
    """Load the driver that ``section`` names, and return what opens the device; leaving makes it safe.

    The driver is loaded once: a package that is exchanged below a running node ends no device for good.

    Raises:
        ConfigError: unknown driver, wrong table; on opening, a simulated device where none is allowed.
        DeviceError: on opening, the driver could not open the device.
        DeviceGone: on opening, another device is in its place.
    """
    driver_class = load_driver(section.driver)
    config = driver_config(driver_class, section.config, f"[devices.{name}.config]")

    @asynccontextmanager
    async def open_device() -> AsyncIterator[Device]:
        async with driver_class.open(config) as device:
            if device.identity.simulated and not allow_simulated:
                raise ConfigError(
                    f"[devices.{name}] driver {section.driver} is simulated, and simulated keys are not "
                    "keys: set allow_simulated = true in [node] if that is what you want"
                )
            identity, expected = device.identity, section.serial_number
            if expected is not None and identity.serial != expected:
                raise DeviceGone(
                    f"expected serial number {expected}, found {identity.serial or 'none'} "
                    f"({identity.model}): connect the right device, or correct serial_number"
                )
            yield device

    return open_device
