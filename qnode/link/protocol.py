"""The versions of the protocol: what a link's parameters are in each, and how a hello says them.

Protocol 2 added counts to two messages (`ClicksEnded.tags`, `Sifted.n_z_plus` and `Sifted.boundary`), the
bound on the asymmetry that needs them ("shares"), parameters of the link, how a site's key store stands
(`SinceProtocol2`), the messages `SaesRegistered` and `VoidLost`, and keys that become free again after they
were assigned (`ReleaseAssignments`, `KeyAnswer.share_used_up`). A peer of protocol 1 knows none of these, and
compares every parameter that he is told. So a hello says what protocol 1 had as protocol 1 said it, and the
rest in a field of its own, which he ignores; two sites of protocol 2 compare both.
"""

import hashlib
from typing import Any, Final

import msgspec

from qnode.config import LinkParameters

PROTOCOL: Final = 2
OLDEST_PROTOCOL: Final = 1

# What a link's parameters were in protocol 1, in the order in which its digest has them.
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
# The counts of protocol 1 do not carry the share bound; this one needs no others.
_PROTOCOL_1_BOUND: Final = {"shares": "joint"}


def link_for_protocol(link: LinkParameters, protocol: int) -> LinkParameters:
    """Return the parameters by which blocks are decided with a peer of ``protocol``.

    With protocol 1 the asymmetry's bound is "joint" where "shares" is configured. All else is as configured:
    what a site holds a block against by itself can only discard it.
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
    """Return the tables that a hello says to a peer of any protocol, and their digest.

    Both are those of protocol 1, also where the site speaks a later one.
    """
    tables = _plain(link_for_protocol(link, 1))
    said = {"name": tables["name"]}
    said |= {table: {key: tables[table][key] for key in keys} for table, keys in _PROTOCOL_1.items()}
    return said, hashlib.sha256(msgspec.json.encode(said)).digest()


def parameters_since_protocol_2(link: LinkParameters) -> dict[str, Any]:
    """Return the tables of what protocol 1 could not say, for a peer of protocol 2."""
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
    # Through JSON, so that our own tables have the types that the peer's have after their journey.
    tables: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(link))
    return tables
