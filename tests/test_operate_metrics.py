"""The metrics page."""

import httpx
import pytest
import trio
from msgspec.structs import replace
from operate_support import NOW, degraded_status, well_status
from prometheus_client.parser import text_string_to_metric_families

from qnode.distill.check_table import Finding
from qnode.operate.status.interfaces import Etsi004Status, HttpStatus, SkipStatus, StreamStatus
from qnode.operate.status.metrics import render_metrics
from qnode.operate.status.metrics_app import metrics_app
from qnode.operate.status.model import (
    BlockStatus,
    LinkStatus,
    NodeStatus,
    PeerStatus,
    QuantumStatus,
    SiteStatus,
    State,
)
from qnode.operate.status.screen import status_lines


def samples(status: NodeStatus, link: str | None = None) -> dict[str, float]:
    """Parse the page; labels are put behind the name. Of links only the figures of the first, or ``link``."""
    found = {}
    link = link or status.site.link
    for family in text_string_to_metric_families(render_metrics(status).decode()):
        for sample in family.samples:
            if sample.labels.pop("link", link) != link:
                continue
            labels = "".join(f",{key}={value}" for key, value in sorted(sample.labels.items()))
            found[sample.name + labels] = sample.value
    return found


def test_the_page_says_what_the_status_says_in_base_units() -> None:
    found = samples(well_status())
    expected = {
        "qkd_node_info,kme_id=KME-ALICE,role=alice,version=0.4.1": 1.0,
        "qkd_node_state,state=running": 1.0,
        "qkd_simulated": 0.0,
        "qkd_recorded": 0.0,
        "qkd_troubles": 0.0,
        "qkd_peer_connected": 1.0,
        "qkd_qber_z_ratio": 0.0162,
        "qkd_sifted_bytes_per_second": 41_200 / 8,
        "qkd_clicks_per_second,arm=z": 60_000.0,
        "qkd_secret_bytes_total": 200_000.0,
        "qkd_blocks_discarded_total,reason=qber_z": 2.0,
        "qkd_blocks_discarded_total,reason=contradiction": 0.0,  # the first one is an increase
        "qkd_last_block_timestamp_seconds": NOW - 41,
        "qkd_key_chunks,state=available_own": 6481.0,
        "qkd_authentication_pads,direction=send": 812.0,
        "qkd_sae_keys_delivered_total,sae_id=SAE-A": 4000.0,
        "qkd_device_up,device=tdc,driver=sfifteen-tdc1": 1.0,
        "qkd_device_reading,device=bias,reading=bias_v": 4.21,
        "qkd_tls_expiry_timestamp_seconds,file=etsi014.tls.certificate,subject=CN=kme-alice": NOW
        + 65 * 86_400,
    }
    assert {name: found.get(name) for name in expected} == expected
    assert found["qkd_phase_residual_seconds"] == pytest.approx(38.2e-12)
    assert found["qkd_clock_offset_ratio"] == pytest.approx(12.5e-6)


def test_refusals_of_the_key_delivery_interface_are_counted() -> None:
    http = HttpStatus(
        connections_open=3,
        connections_total=900,
        connections_refused_total=4,
        connections_evicted_total=5,
        connections_failed_total=6,
        handshakes_failed_total=7,
        requests_total=800,
        requests_refused_total=8,
        requests_unauthorised_total=9,
    )
    well = well_status()
    found = samples(replace(well, etsi014=replace(well.etsi014, http=http)))
    names = ("connections", "connections_refused", "connections_evicted", "connections_failed")
    assert [found[f"qkd_http_{name}_total"] for name in names] == [900, 4, 5, 6]
    names = ("handshakes_failed", "requests", "requests_refused", "requests_unauthorised")
    assert [found[f"qkd_http_{name}_total"] for name in names] == [7, 800, 8, 9]
    assert found["qkd_http_open_connections"] == 3
    shown = "\n".join(status_lines(replace(well, etsi014=replace(well.etsi014, http=http))))
    assert "33 turned away" in shown
    skip = SkipStatus(url="https://kme-alice:8444", http=replace(http, handshakes_failed_total=0))
    both = replace(well, etsi014=replace(well.etsi014, http=http), skip=skip)
    assert samples(both)["qkd_http_requests_total"] == 1600
    assert samples(both)["qkd_http_handshakes_failed_total"] == 7
    assert samples(both)["qkd_http_open_connections"] == 6
    shown = "\n".join(status_lines(both))
    assert "skip      ok     https://kme-alice:8444   800 requests   26 turned away" in shown


def test_key_streams_are_counted_and_shown() -> None:
    ends = {"sae-a": "connected", "sae-b": "absent"}
    streams = [
        StreamStatus(stream_id=name, ends=ends, key_chunk_bytes=32, allocated_total=9, waiting=waiting)
        for name, waiting in (("one", 3), ("two", 4))
    ]
    well = well_status()
    interface = Etsi004Status(
        address="127.0.0.1:25575", streams=streams, chunks_allocated_total=50, chunks_left_total=6
    )
    status = replace(well, etsi004=interface)
    found = samples(status)
    names = ("streams", "stream_chunks_waiting", "stream_chunks_allocated_total", "stream_chunks_left_total")
    assert [found[f"qkd_{name}"] for name in names] == [2, 7, 50, 6]
    assert "qkd_streams" not in samples(well)
    shown = "\n".join(status_lines(status))
    assert "etsi004   ok     127.0.0.1:25575   2 streams   7 chunks waiting" in shown


def test_checks_that_failed_are_counted_and_each_shows_its_limits() -> None:
    found = samples(well_status())
    assert found["qkd_checks_failed"] == 0.0
    assert found["qkd_check_limit,check=cross_clicks,side=least"] == 12.5
    assert "qkd_check_limit,check=dead_time,side=least" not in found
    well = well_status()
    blinded = Finding("cross_clicks", 0.0, 12.5, 160.5, points_to="blinding")
    failed = replace(well, quantum=replace(well.quantum, checks=(blinded, *well.quantum.checks[1:])))
    assert samples(failed)["qkd_checks_failed"] == 1.0
    assert samples(failed)["qkd_check_value,check=cross_clicks"] == 0.0
    assert "qkd_checks_failed" not in samples(replace(well, quantum=replace(well.quantum, checks=())))


def test_every_figure_of_a_link_bears_its_name() -> None:
    turin = well_status()
    links = [
        LinkStatus(name=name, role="alice", peer=turin.peer, quantum=quantum, keys=turin.keys)
        for name, quantum in (
            ("turin", turin.quantum),
            ("asti", replace(turin.quantum, qber_z=0.03, lock=State("lost", NOW - 5, "no tags"))),
        )
    ]
    status = replace(turin, links=links)
    assert samples(status)["qkd_qber_z_ratio"] == 0.0162
    assert samples(status, "asti")["qkd_qber_z_ratio"] == 0.03
    assert (samples(status)["qkd_quantum_locked"], samples(status, "asti")["qkd_quantum_locked"]) == (
        1.0,
        0.0,
    )
    assert samples(status)["qkd_troubles"] == 1.0
    screen = "\n".join(status_lines(status))
    assert "alice@asti" in screen
    assert "asti: lost: no tags" in screen


def test_troubles_and_failed_devices_show() -> None:
    found = samples(degraded_status())
    assert found["qkd_troubles"] == 2.0
    assert found["qkd_device_up,device=voa,driver=oz-dd100"] == 0.0


def test_figures_that_are_not_known_are_absent_and_not_zero() -> None:
    bare = NodeStatus(
        at=NOW,
        version="0",
        site=SiteStatus(role="bob", kme_id="B", link="l"),
        simulated=True,
        state=State("starting", NOW),
        peer=PeerStatus(kme_id="A", connection=State("disconnected", NOW)),
        quantum=QuantumStatus(lock=State("searching", NOW)),
    )
    found = samples(bare)
    assert not [name for name in found if "qber" in name or "last_block" in name or "rtt" in name]
    assert found["qkd_simulated"] == 1.0
    assert found["qkd_blocks_accepted_total"] == 0.0


def test_names_and_texts_follow_the_conventions() -> None:
    # What `promtool check metrics` complains about, as far as it applies here.
    for family in text_string_to_metric_families(render_metrics(degraded_status()).decode()):
        words = family.name.split("_")
        assert family.documentation.endswith((".", "1.", "label."))
        assert words[0] == "qkd"
        assert not {"bits", "ms", "us", "ns", "ps", "s", "hz", "percent", "ppm"} & set(words), family.name
        assert all(sample.name.endswith("_total") for sample in family.samples) == (family.type == "counter")
        assert all(len(sample.labels) <= 3 or family.name == "qkd_node_info" for sample in family.samples)


def test_labels_from_outside_cannot_break_the_page() -> None:
    status = replace(well_status(), block=BlockStatus(discarded={'a"b\n# TYPE evil counter\nevil 1\\': 3}))
    found = samples(status)
    assert "evil" not in found
    assert 3.0 in found.values()


def _call(method: str, path: str) -> tuple[int, dict[str, str], bytes]:
    async def run() -> httpx.Response:
        transport = httpx.ASGITransport(app=metrics_app(well_status))
        async with httpx.AsyncClient(transport=transport, base_url="http://node") as http:
            return await http.request(method, path)

    response = trio.run(run)
    return response.status_code, dict(response.headers), response.content


def test_the_application_answers_get_metrics_and_nothing_else() -> None:
    code, headers, body = _call("GET", "/metrics")
    assert (code, headers["content-type"].partition(";")[0]) == (200, "text/plain")
    assert body == render_metrics(well_status())
    assert _call("HEAD", "/metrics")[::2] == (200, b"")
    assert _call("POST", "/metrics")[0] == 405
    assert _call("GET", "/")[0] == 404
