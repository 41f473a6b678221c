"""Writes the package of a new driver from the templates beside this module."""

import importlib.util
import keyword
import re
import sys
from pathlib import Path
from string import Template
from typing import Final, Literal

from qnode.devices.registry import known_drivers
from qnode.devices.transport.address import FORMS
from qnode.errors import ConfigError

Kind = Literal["sensor", "attenuator", "tdc"]
TransportName = Literal["serial", "tcp", "usb"]
_TEMPLATES: Final = Path(__file__).parent / "driver_templates"
_NAME: Final = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
_EXAMPLES: Final[dict[TransportName, str]] = {
    "serial": "serial:///dev/serial/by-id/usb-MAKER_MODEL_SERIAL-if00-port0",
    "tcp": "tcp://192.0.2.7:5025",
    "usb": "usb://1209:0001/SERIAL",
}
_PORTS: Final[dict[TransportName, tuple[str, str]]] = {
    "serial": ("pty_port", 'f"serial://{place}"'),
    "tcp": ("tcp_port", "place"),
    "usb": ("usb_port", "place"),
}


def write_package(folder: Path, name: str, transport: TransportName, kind: Kind) -> list[Path]:
    """Write the package of the driver ``name`` into the new ``folder``; return its files.

    Raises:
        ConfigError: the name or the folder cannot be used.
    """
    package = _package(name)
    if folder.exists():
        raise ConfigError(f"{folder}: is there already; name another folder with --output")
    words = _words(name, package, transport)
    places = {
        "pyproject.toml": "pyproject.toml",
        "README.md": "README.md",
        f"{package}/driver.py": f"{kind}/driver.py",
        f"tests/{package}_emulator.py": f"{kind}/emulator.py",
        f"tests/test_{package}.py": f"{kind}/test.py",
        "tests/transcript.txt": f"{kind}/transcript.txt",
    }
    texts = {f"{package}/__init__.py": f'"""Driver of qnode for {name}."""\n'}
    for place, template in places.items():
        texts[place] = Template((_TEMPLATES / f"{template}.template").read_text()).substitute(words)
    written = []
    try:
        for place, text in texts.items():
            path = folder / place
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
            written.append(path)
    except OSError as error:
        raise ConfigError(f"{error.filename or folder}: cannot be written: {error.strerror}") from None
    return written


def _package(name: str) -> str:
    """Return the name of the Python package."""
    if not _NAME.fullmatch(name):
        raise ConfigError(f"{name!r}: expected a name of small letters, digits and hyphens, such as my-tdc")
    if name in known_drivers():
        raise ConfigError(f"{name}: a driver of this name is installed; choose another one")
    package = name.replace("-", "_")
    if keyword.iskeyword(package) or package in sys.stdlib_module_names or importlib.util.find_spec(package):
        raise ConfigError(f"{name}: Python has a module {package} already; choose another name")
    return package


def _words(name: str, package: str, transport: TransportName) -> dict[str, str]:
    port, address = _PORTS[transport]
    # The same device behind a terminal server is the same driver.
    kinds = '"serial", "tcp"' if transport == "serial" else f'"{transport}"'
    form = FORMS["serial"] + ", " + FORMS["tcp"] if transport == "serial" else FORMS[transport]
    is_serial = transport == "serial"
    return {
        "name": name,
        "distribution": f"qnode-{name}",
        "package": package,
        "cls": "".join(part.capitalize() for part in name.split("-")),
        "kinds": kinds,
        "form": form,
        "example": _EXAMPLES[transport],
        "serial_import": "SerialSettings, " if is_serial else "",
        "open_options": ", serial=SerialSettings(baud=9600)" if is_serial else "",
        "port": port,
        "address": address,
    }
