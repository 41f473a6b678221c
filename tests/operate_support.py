"""A node's status as these tests show it."""

from typing import Any

from msgspec.structs import replace

from qnode.distill.check_table import Finding
from qnode.operate.status.interfaces import EtsiStatus, SaeStatus
from qnode.operate.status.model import (
    Alarm,
    AuthenticationStatus,
    BlockStatus,
    BlockSummary,
    DeviceStatus,
    Discard,
    KeyStatus,
    NodeStatus,
    PeerStatus,
    QuantumStatus,
    SiteStatus,
    State,
    Totals,
    Validity,
)

NOW = 1_800_000_000.0


def well_status(**changes: Any) -> NodeStatus:
    """Return a node that is well, with ``changes``."""
    status = NodeStatus(
        at=NOW,
        version="0.4.1",
        site=SiteStatus(role="alice", kme_id="KME-ALICE", link="turin"),
        simulated=False,
        state=State("running", NOW - 248_400),
        peer=PeerStatus(
            kme_id="KME-BOB", connection=State("connected", NOW - 244_800), rtt_s=0.00041, software="0.4.0"
        ),
        quantum=QuantumStatus(
            lock=State("locked", NOW - 3600),
            qber_z=0.0162,
            e_vis=0.0204,
            asymmetry=0.003,
            sifted_rate_bits_per_s=41_200,
            click_rates_hz={"z": 60_000.0, "x": 61_000.0},
            clock_offset_ppm=12.5,
            phase_residual_ps=38.2,
            vector_strength=0.93,
            cut_s=1.5,
            tag_time_s=248_000.0,
            checks=(Finding("cross_clicks", 56.0, 12.5, 160.5), Finding("dead_time", 0.0, None, 0.0)),
        ),
        block=BlockStatus(
            current=813,
            filled=0.43,
            in_flight=1,
            accepted=800,
            discarded={"qber_z": 2, "too_short": 1},
            last=BlockSummary(
                block_id=812,
                finished_at=NOW - 41,
                n_z=1_048_576,
                qber_z=0.0162,
                e_vis=0.0204,
                asymmetry=0.003,
                phi_z_upper=0.045,
                secret_bits=238_112,
                lambda_ec_bits=140_000,
                f_ec=1.12,
                reconciliation="cascade",
                estimator="eur",
                assumptions=["phase randomised"],
                span_s=24.0,
                took_s=0.84,
            ),
            last_discard=Discard(block_id=700, at=NOW - 9000, reason="qber_z", detail="12.1 % above 11 %"),
        ),
        totals=Totals(tags=10**9, tags_lost=3, clicks=10**8, sifted_bits=8_000_000, secret_bits=1_600_000),
        keys=KeyStatus(
            available_own=6481,
            available_peer=6000,
            assigned=12,
            stock=256,
            delivered_total=4000,
            void_total=1,
            epsilon_total=8e-8,
        ),
        authentication=AuthenticationStatus(pads_left_send=812, pads_left_receive=811),
        devices=[
            DeviceStatus(
                name="tdc",
                driver="sfifteen-tdc1",
                state=State("running", NOW - 100),
                model="TDC1",
                serial="TDC1-0042",
            ),
            DeviceStatus(
                name="bias",
                driver="optilab-bcb4",
                state=State("running", NOW - 100),
                serial="1",
                readings={"bias_v": 4.21},
            ),
        ],
        etsi014=EtsiStatus(
            url="https://kme-alice:8443",
            saes=[
                SaeStatus(
                    sae_id="SAE-A",
                    peers=["SAE-B"],
                    kme_id="KME-ALICE",
                    keys_delivered_total=4000,
                    last_key_at=NOW - 3,
                    requests_refused_total=2,
                ),
                SaeStatus(sae_id="SAE-C", peers=["SAE-D"], kme_id="KME-ALICE"),
            ],
        ),
        certificates=[
            Validity(
                kind="certificate",
                file="etsi014.tls.certificate",
                subject="CN=kme-alice",
                begins_at=NOW - 300 * 86_400,
                expires_at=NOW + 65 * 86_400,
            ),
        ],
    )
    return replace(status, **changes)


def degraded_status() -> NodeStatus:
    """Return a node with an attenuator that fell silent and an alarm of its own."""
    voa = DeviceStatus(
        name="voa",
        driver="oz-dd100",
        state=State("waiting", NOW - 12, "silent for 10 s (silence_limit_s)"),
        restarts=3,
        retry_at=NOW + 3,
    )
    return well_status(
        devices=[*well_status().devices, voa],
        alarms=[Alarm(name="pads.low", since=NOW - 60, text="12 authentication pads left")],
    )
