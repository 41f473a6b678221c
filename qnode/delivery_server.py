"""The servers of key delivery, the same for a node and a front end: limits of clients, and the status."""

import dataclasses
from collections.abc import Sequence

from qnode.config import Etsi014Section
from qnode.delivery import Delivery
from qnode.http import Limits, Server
from qnode.operate.status.interfaces import EtsiStatus, HttpStatus, SaeStatus


def connection_limits(section: Etsi014Section) -> Limits:
    """Return the limits for clients of each key delivery interface."""
    least = Limits()
    return Limits(
        connections=section.most_connections,
        connections_per_client=section.most_connections_per_address,
        # After a cut or a restart all clients may connect at once.
        failed_handshakes_at_once=max(least.failed_handshakes_at_once, section.most_connections_per_address),
        unknown_handshakes_at_once=max(least.unknown_handshakes_at_once, section.most_connections),
    )


def http_status(delivery: Delivery, server: Server, interface: str) -> HttpStatus:
    """Return the connections of the ``server`` of one interface, such as `etsi014`."""
    return HttpStatus(
        connections_open=server.open_connections,
        requests_unauthorised_total=delivery.requests_unauthorised[interface],
        **{f"{name}_total": value for name, value in dataclasses.asdict(server.counters).items()},
    )


def etsi014_status(
    delivery: Delivery, server: Server, listen: str, away: str | None, differences: Sequence[str] = ()
) -> EtsiStatus:
    """Return the interface at the address ``listen``; ``away`` and ``differences``: see `EtsiStatus`."""
    saes = [
        SaeStatus(
            sae_id=sae.sae_id,
            peers=list(sae.peers),
            kme_id=sae.kme_id,
            keys_delivered_total=delivery.usage[sae.sae_id].keys_delivered,
            last_key_at=delivery.usage[sae.sae_id].last_key_at,
            requests_refused_total=delivery.usage[sae.sae_id].requests_refused,
            keys_per_minute=sae.keys_per_minute,
        )
        for sae in delivery.directory.local
    ]
    return EtsiStatus(
        url=f"https://{listen}",
        away=away,
        saes=saes,
        http=http_status(delivery, server, "etsi014"),
        differences=list(differences),
        keys_unsent_total=delivery.unsent.held_total,
        keys_lost_total=delivery.unsent.lost_total,
    )
