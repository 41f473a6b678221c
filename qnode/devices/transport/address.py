"""Addresses of devices, as site files write them: `serial:///dev/serial/by-id/NAME?baud=115200`."""

import importlib.util
import re
from typing import Final
from urllib.parse import parse_qsl

from msgspec import Struct
from msgspec.structs import replace

from qnode.addresses import host_and_port
from qnode.errors import ConfigError

FORMS: Final = {
    "serial": "serial:///dev/serial/by-id/NAME",
    "tcp": "tcp://HOST:PORT",
    "usb": "usb://VENDOR:PRODUCT/SERIAL (hexadecimal)",
    "zmq": "zmq://HOST:PORT",
    "visa": "visa://RESOURCE",
}
OPTIONS: Final = {
    "serial": ("baud", "data_bits", "parity", "stop_bits", "flow"),
    "tcp": (),
    "usb": ("interface", "socket"),
    "zmq": ("socket",),
    "visa": ("library",),
}
EXTRAS: Final = {"zmq": ("zmq", "pyzmq"), "visa": ("pyvisa", "PyVISA")}  # module and name of the package
ZMQ_SOCKETS: Final = ("req", "pull", "sub", "pair")
BAUD_LIMITS: Final = (50, 12_000_000)
PARITIES: Final = ("N", "E", "O")
FLOWS: Final = ("none", "rtscts", "xonxoff")
_USB_PLACE: Final = re.compile(r"([0-9A-Fa-f]{4}):([0-9A-Fa-f]{4})(?:/(.+))?")


class WrongAddress(ConfigError, ValueError):
    """An address that cannot be used; a `ValueError`, so that a struct can check its own key."""


class Address(Struct, frozen=True):
    """The parts of an address: ``kind``, ``place`` (path, host and port, or resource), ``options``."""

    text: str
    kind: str
    place: str
    options: dict[str, str]

    def number(self, option: str, default: int) -> int:
        """Return an option that is a whole number.

        Raises:
            WrongAddress: it is none.
        """
        text = self.options.get(option, str(default))
        if not (text.isascii() and text.isdigit() and len(text) <= 9):
            raise WrongAddress(f"address: {option}: expected a whole number, got {text!r}")
        return int(text)

    def choice(self, option: str, choices: tuple[str, ...]) -> str:
        """Return an option that is one of ``choices``; the first one is the default.

        Raises:
            WrongAddress: it is none of them.
        """
        text = self.options.get(option, choices[0])
        if text not in choices:
            raise WrongAddress(f"address: {option}: expected {' or '.join(choices)}, got {text!r}")
        return text

    def host_and_port(self) -> tuple[str, int]:
        """Return the parts of the place of a `tcp` or `zmq` address."""
        host, port = host_and_port(self.place, "address")
        if not port:
            raise WrongAddress(f"address: expected a port from 1 to 65535, got {self.text!r}")
        return host, port

    def usb_ids(self) -> tuple[int, int, str]:
        """Return vendor, product and serial number of a `usb` address; "" is any serial number."""
        match = _USB_PLACE.fullmatch(self.place)
        if match is None:
            raise WrongAddress(f"address: expected {FORMS['usb']}, got {self.text!r}")
        return int(match[1], 16), int(match[2], 16), match[3] or ""


class SerialSettings(Struct, frozen=True):
    """Speed and framing of a serial line; ``flow`` is the flow control."""

    baud: int = 9600
    data_bits: int = 8
    parity: str = "N"
    stop_bits: int = 1
    flow: str = "none"

    def of_address(self, address: Address) -> "SerialSettings":
        """Return the settings with those that the address names instead.

        Raises:
            WrongAddress: one of them is impossible.
        """
        settings = replace(
            self,
            baud=address.number("baud", self.baud),
            data_bits=address.number("data_bits", self.data_bits),
            stop_bits=address.number("stop_bits", self.stop_bits),
            parity=address.options.get("parity", self.parity).upper(),
            flow=address.options.get("flow", self.flow),
        )
        for name, got, fits, expected in (
            (
                "baud",
                settings.baud,
                BAUD_LIMITS[0] <= settings.baud <= BAUD_LIMITS[1],
                f"{BAUD_LIMITS[0]} to {BAUD_LIMITS[1]:,}",
            ),
            ("data_bits", settings.data_bits, settings.data_bits in (7, 8), "7 or 8"),
            ("stop_bits", settings.stop_bits, settings.stop_bits in (1, 2), "1 or 2"),
            ("parity", settings.parity, settings.parity in PARITIES, " or ".join(PARITIES)),
            ("flow", settings.flow, settings.flow in FLOWS, " or ".join(FLOWS)),
        ):
            if not fits:
                raise WrongAddress(f"address: {name}: expected {expected}, got {got!r}")
        return settings


def check_address(text: str, *kinds: str) -> Address:
    """Return the parts of an address; only the named ``kinds`` are accepted if any are named.

    Raises:
        WrongAddress: its form, an option, or the package that it needs is wrong, with the remedy.
    """
    kind, colon, rest = text.partition("://")
    allowed = kinds or tuple(FORMS)
    if not colon or kind not in allowed or not rest or not text.isprintable():
        raise WrongAddress(f"address: expected {' or '.join(FORMS[one] for one in allowed)}, got {text!r}")
    place, mark, query = rest.partition("?")
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=True) if mark else []
    except ValueError:
        raise WrongAddress(f"address: expected ?OPTION=VALUE&... at the end, got {text!r}") from None
    for option, _ in pairs:
        if option not in OPTIONS[kind]:
            known = ", ".join(OPTIONS[kind]) or "none"
            raise WrongAddress(f"address: unknown option {option} of {kind}:// (known: {known})")
    address = Address(text, kind, place, dict(pairs))
    _check_parts(address)
    if kind in EXTRAS and importlib.util.find_spec(EXTRAS[kind][0]) is None:
        raise WrongAddress(
            f"address: {kind}:// needs {EXTRAS[kind][1]}, which is not installed: pip install 'qnode[{kind}]'"
        )
    return address


def _check_parts(address: Address) -> None:
    if address.kind == "serial":
        if not address.place.startswith("/"):
            raise WrongAddress(f"address: expected {FORMS['serial']}, an absolute path, got {address.text!r}")
        SerialSettings().of_address(address)
    elif address.kind in ("tcp", "zmq"):
        try:
            address.host_and_port()
        except ConfigError as error:
            raise WrongAddress(str(error)) from None
        if address.kind == "zmq":
            address.choice("socket", ZMQ_SOCKETS)
    elif address.kind == "usb":
        address.usb_ids()
        address.number("interface", 0)
