"""The two sites of the world, as their files would say it."""

from pathlib import Path
from typing import Any

from qnode.choices import ROLES, Role
from qnode.config import (
    BlockParameters,
    EstimationParameters,
    Etsi014Section,
    KeyParameters,
    LinkParameters,
    NodeSection,
    OperateSection,
    PeerSection,
    ReceiverParameters,
    ReconciliationParameters,
    SaeSection,
    SiteConfig,
    SourceParameters,
    StoreSection,
    TlsFiles,
)
from qnode.world import estimator, light
from qnode.world.disk import Disk

SIFTED_BITS = 4000
_NOWHERE = Path("/nonexistent")
_FILES = TlsFiles(ca=_NOWHERE, certificate=_NOWHERE, key=_NOWHERE)


def other(role: Role) -> Role:
    """Return the role of the other site."""
    return "bob" if role == "alice" else "alice"


def kme_of(role: Role) -> str:
    """Return the name of a site."""
    return f"kme-{role}"


def saes_of(role: Role) -> tuple[str, str]:
    """Return the encryptors of a site."""
    return f"sae-{role}-1", f"sae-{role}-2"


def link_parameters(*, block_s: float, refill_pads: int, reserve_pads: int) -> LinkParameters:
    """Return what both sites have in common; ``block_s``: how long a block takes to fill."""
    qubit_rate_hz = round(SIFTED_BITS / light.SIFTED_PER_SLOT / block_s)
    named: Any = estimator.NAME
    return LinkParameters(
        name="world",
        source=SourceParameters(
            qubit_rate_hz=qubit_rate_hz,
            bin_spacing_ps=0.48e12 / qubit_rate_hz,
            mu=light.MU,
            p=light.P,
            p_z=light.P_Z_ALICE,
        ),
        receiver=ReceiverParameters(p_z=light.P_Z_BOB),
        block=BlockParameters(sifted_bits=SIFTED_BITS, minimum_secret_bits=2048),
        estimation=EstimationParameters(estimator=named, x_mode="visibility"),
        reconciliation=ReconciliationParameters(method="cascade"),
        keys=KeyParameters(refill_pads_per_direction=refill_pads, reserve_pads_per_direction=reserve_pads),
    )


def site_config(
    role: Role,
    disk: Disk,
    link: LinkParameters,
    *,
    most_chunks: int,
    key_lifetime_s: float,
    stock_per_pair: int,
) -> SiteConfig:
    """Return the configuration of one site."""
    saes = tuple(
        SaeSection(sae_id=sae, kme_id=kme_of(site), peers=saes_of(other(site)))
        for site in ROLES
        for sae in saes_of(site)
    )
    return SiteConfig(
        node=NodeSection(role=role, kme_id=kme_of(role), allow_simulated=True),
        link=link,
        peer=PeerSection(kme_id=kme_of(other(role)), address="", tls=_FILES),
        store=StoreSection(
            path=disk.database,
            anchor=disk.anchor,
            store_key=_NOWHERE,
            preshared_key=_NOWHERE,
            most_chunks=most_chunks,
            key_lifetime_s=key_lifetime_s,
        ),
        etsi014=Etsi014Section(listen="127.0.0.1:0", tls=_FILES, stock_per_pair=stock_per_pair, sae=saes),
        operate=OperateSection(control_socket=_NOWHERE),
        devices={},
    )
