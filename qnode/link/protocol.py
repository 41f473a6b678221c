"""The versions of the protocol: the messages, fields of messages and link parameters of each.

**Messages.** A kind that came after protocol 1 is marked in its class (``since = 2``), a field in its
annotation (`Since`). A session sends and accepts only kinds and fields of its protocol (`check_said`). A
field that the protocol lacks has its default, which is not sent.

**Link parameters.** A peer of protocol 1 compares every parameter that it receives. So a hello has the
parameters of protocol 1 in the form of protocol 1, and the others in a separate field, which such a peer
ignores. Two sites of protocol 2 compare both. The bound "shares" on the asymmetry needs counts that protocol
1 lacks.
"""

import hashlib
from dataclasses import dataclass
from functools import cache
from typing import Any, Final, get_args, get_type_hints

import msgspec

from qnode.config import LinkParameters
from qnode.errors import ProtocolError

PROTOCOL: Final = 2
OLDEST_PROTOCOL: Final = 1


@dataclass(frozen=True)
class Since:
    """Marks a field of a message that came with a later protocol than its message did.

    From that protocol on it is always sent, unless ``optional``; before, it is never sent.
    """

    protocol: int
    optional: bool = False


@cache
def later_fields(kind: type[msgspec.Struct]) -> dict[str, Since]:
    """Return the fields of a message that came later than the message, by name."""
    hints = get_type_hints(kind, include_extras=True)
    marks = ((name, get_args(hints[name])[1:]) for name in kind.__struct_fields__)
    return {name: mark for name, found in marks for mark in found if isinstance(mark, Since)}


def protocol_of(kind: type[msgspec.Struct], field: str = "") -> int:
    """Return the first protocol that has a kind of message, or a field of it."""
    since: int = getattr(kind, "since", OLDEST_PROTOCOL)
    later = later_fields(kind).get(field)
    return since if later is None else later.protocol


def check_said(message: msgspec.Struct, protocol: int) -> None:
    """Refuse kinds and fields that ``protocol`` lacks, and missing fields that it has.

    Raises:
        ProtocolError: names the kind or field.
    """
    kind = type(message)
    if _as_in_protocol_1(kind):
        return
    block = f"block {message.block_id}: " if hasattr(message, "block_id") else ""
    if protocol_of(kind) > protocol:
        raise ProtocolError(f"{block}{kind.__name__}: said, but protocol {protocol} does not know it")
    for name, since in later_fields(kind).items():
        value = getattr(message, name)
        said = value is not None and value is not msgspec.UNSET
        if said and since.protocol > protocol:
            raise ProtocolError(f"{block}{name}: said, but protocol {protocol} does not know it")
        if not said and since.protocol <= protocol and not since.optional:
            raise ProtocolError(f"{block}{name}: not said, but protocol {protocol} says it")


@cache
def _as_in_protocol_1(kind: type[msgspec.Struct]) -> bool:
    """Return whether every protocol has this kind of message, with the same fields."""
    return protocol_of(kind) == OLDEST_PROTOCOL and not later_fields(kind)


# The link parameters of protocol 1, in the order of its digest.
_PROTOCOL_1: Final[dict[str, tuple[str, ...]]] = {
    "source": ("qubit_rate_hz", "bin_spacing_ps", "mu", "mu_uncertainty", "p", "p_z"),
    "receiver": ("p_z", "gate_width_ps", "jitter_ps", "dead_time"),
    "block": (
        "sifted_bits", "longest_s", "minimum_secret_bits", "qber_z_limit", "e_vis_limit", "asymmetry_limit",
    ),
    "estimation": (
        "estimator", "statistics", "x_mode", "vacuum_rule", "asymmetry_bound", "eps_sec", "eps_cor",
    ),
    "reconciliation": ("method", "leak_count", "verification_bits"),
    "keys": ("refill_pads_per_direction", "direction_share_alice"),
}  # fmt: skip
_PROTOCOL_1_ESTIMATORS: Final = ("rusca2018", "eur", "wiesemann2024")
# The counts of protocol 1 do not suffice for the bound by shares; this bound needs no others.
_PROTOCOL_1_BOUND: Final = {"shares": "joint"}


def link_for_protocol(link: LinkParameters, protocol: int) -> LinkParameters:
    """Return the parameters by which blocks are decided with a peer of ``protocol``.

    With protocol 1 the asymmetry's bound is "joint" where "shares" is configured. The rest is as configured:
    checks of one site alone can only discard a block.
    """
    bound = _PROTOCOL_1_BOUND.get(link.estimation.asymmetry_bound)
    if protocol > 1 or bound is None:
        return link
    estimation = msgspec.structs.replace(link.estimation, asymmetry_bound=bound)
    return msgspec.structs.replace(link, estimation=estimation)


def unsaid_in_protocol_1(link: LinkParameters) -> str:
    """Return why blocks of ``link`` cannot be decided with a peer of protocol 1; empty if they can."""
    estimator: str = link.estimation.estimator
    if estimator in _PROTOCOL_1_ESTIMATORS:
        return ""
    return f'link.estimation.estimator "{estimator}" needs counts that a peer of protocol 1 does not send'


def parameters_of_protocol_1(link: LinkParameters) -> tuple[dict[str, Any], bytes]:
    """Return the tables in a hello for a peer of any protocol, and their digest.

    Both are those of protocol 1, even if the site speaks a later one.
    """
    tables = _plain(link_for_protocol(link, 1))
    said = {"name": tables["name"]}
    said |= {table: {key: tables[table][key] for key in keys} for table, keys in _PROTOCOL_1.items()}
    return said, hashlib.sha256(msgspec.json.encode(said)).digest()


def parameters_since_protocol_2(link: LinkParameters) -> dict[str, Any]:
    """Return the tables of parameters that protocol 1 lacks, for a peer of protocol 2."""
    tables = _plain(link)
    bound = tables["estimation"]["asymmetry_bound"]
    rest: dict[str, Any] = {"estimation": {"asymmetry_bound": bound}}
    for table, content in tables.items():
        known = _PROTOCOL_1.get(table, ())
        if table == "name":
            continue
        new = {key: value for key, value in content.items() if key not in known}
        if new:
            rest[table] = rest.get(table, {}) | new
    return rest


def _plain(link: LinkParameters) -> dict[str, Any]:
    # Through JSON, so that our tables have the same types as those received from the peer.
    tables: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(link))
    return tables
