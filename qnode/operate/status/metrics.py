"""The node's figures for Prometheus, made from `NodeStatus` on request; no label and no value is secret.

Names follow promtool's lint: base units (seconds, bytes, ratios), ``_total`` for counters.
"""

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from qnode.block.outcome import Reason
from qnode.distill.check_table import Finding
from qnode.operate.status.families import counter, gauge, rendered
from qnode.operate.status.model import NodeStatus
from qnode.operate.status.plan_metrics import plan_families
from qnode.operate.status.telemetry_metrics import telemetry_families
from qnode.operate.status.troubles import troubles
from qnode.operate.status.validity_metrics import validity_families
from qnode.units import PS_PER_S


def render_metrics(status: NodeStatus) -> bytes:
    """Return the metrics in Prometheus' text format."""
    return rendered(metric_families(status))


def metric_families(status: NodeStatus) -> Iterator[Metric]:
    """Yield all families of a status whose figures are known."""
    yield from _node(status)
    yield from telemetry_families(status.telemetry)
    yield from _http(status)
    yield from _streams(status)
    yield from _saes(status)
    yield from _of_links(status)


def _of_links(status: NodeStatus) -> Iterator[Metric]:
    """Yield the families of every link, each sample with the link's name."""
    merged: dict[str, Metric] = {}
    for view in status.each_link:
        for part in (_link, _quantum, plan_families, _blocks, _keys, _devices, _monitors, _controllers):
            for family in part(view):
                whole = merged.setdefault(family.name, Metric(family.name, family.documentation, family.type))
                whole.samples += [
                    sample._replace(labels={**sample.labels, "link": view.site.link})
                    for sample in family.samples
                ]
    yield from merged.values()


def _node(status: NodeStatus) -> Iterator[Metric]:
    yield gauge(
        "qkd_simulated",
        "1 if the keys of this link are simulated; such keys protect nothing.",
        status.simulated,
    )
    state = GaugeMetricFamily("qkd_node_state", "1 for the node's present state.", labels=["state"])
    state.add_metric([status.state.state], 1)
    yield state
    yield gauge("qkd_node_state_since_timestamp_seconds", "When the present state began.", status.state.since)
    yield gauge("qkd_troubles", "Number of alarms.", len(troubles(status)))
    yield counter(
        "qkd_log_lines_dropped_total",
        "Lines of the log that could not be written.",
        status.log_lines_dropped,
    )
    yield from validity_families(status.certificates)


def _link(status: NodeStatus) -> Iterator[Metric]:
    info = GaugeMetricFamily(
        "qkd_node_info",
        "Version, role and name of this node; the value is always 1.",
        labels=["version", "role", "kme_id"],
    )
    info.add_metric([status.version, status.site.role, status.site.kme_id], 1)
    yield info
    yield gauge(
        "qkd_recorded",
        "1 while somebody records the tags or symbols of this site; the recording reveals its keys.",
        status.recorded_since is not None,
    )
    yield gauge(
        "qkd_peer_connected", "1 while an authenticated session with the peer is open.", status.peer.connected
    )
    yield from _known("qkd_peer_rtt_seconds", "Round trip time to the peer.", status.peer.rtt_s)
    pads = GaugeMetricFamily(
        "qkd_authentication_pads", "One-time authentication pads left.", labels=["direction"]
    )
    for direction, left in (
        ("send", status.authentication.pads_left_send),
        ("receive", status.authentication.pads_left_receive),
    ):
        if left is not None:
            pads.add_metric([direction], left)
    yield pads


def _checks(checks: tuple[Finding, ...]) -> Iterator[Metric]:
    """Yield the results of the plausibility checks of the last corrected block, if there is one."""
    if not checks:
        return
    value = GaugeMetricFamily(
        "qkd_check_value", "Measured value of a plausibility check (a number or a count).", labels=["check"]
    )
    limit = GaugeMetricFamily(
        "qkd_check_limit",
        "The limits of a plausible value.",
        labels=["check", "side"],
    )
    for one in checks:
        value.add_metric([one.check], one.value)
        for side, at in (("least", one.least), ("most", one.most)):
            if at is not None:
                limit.add_metric([one.check, side], at)
    yield value
    yield limit
    yield gauge(
        "qkd_checks_failed",
        "Plausibility checks that failed in the last corrected block.",
        sum(not one.plausible for one in checks),
    )


def _quantum(status: NodeStatus) -> Iterator[Metric]:
    quantum, totals = status.quantum, status.totals
    yield gauge("qkd_quantum_locked", "1 while clicks are assigned to slots.", quantum.locked)
    yield from _known("qkd_qber_z_ratio", "Bit error rate of the sifted bits.", quantum.qber_z)
    yield from _known("qkd_visibility_error_ratio", "Error rate of the X arm, (1 - V) / 2.", quantum.e_vis)
    yield from _known("qkd_asymmetry_ratio", "Asymmetry of the X boundary classes.", quantum.asymmetry)
    yield from _known(
        "qkd_sifted_bytes_per_second",
        "Sifted key per second of tag time.",
        _bytes(quantum.sifted_rate_bits_per_s),
    )
    yield from _checks(quantum.checks)
    clicks = GaugeMetricFamily("qkd_clicks_per_second", "Clicks per second of tag time.", labels=["arm"])
    for arm, rate_hz in quantum.click_rates_hz.items():
        clicks.add_metric([arm], rate_hz)
    yield clicks
    ppm, residual_ps = quantum.clock_offset_ppm, quantum.phase_residual_ps
    yield from _known(
        "qkd_clock_offset_ratio",
        "Relative excess of Alice's clock rate over Bob's.",
        None if ppm is None else ppm * 1e-6,
    )
    yield from _known(
        "qkd_phase_residual_seconds",
        "Spread of the recovered clock's phase.",
        None if residual_ps is None else residual_ps / PS_PER_S,
    )
    yield from _known(
        "qkd_vector_strength_ratio", "Sharpness of the folded histogram.", quantum.vector_strength
    )
    yield from _known(
        "qkd_tag_time_seconds", "Latest tag time that the node has processed.", quantum.tag_time_s
    )
    yield counter(
        "qkd_cut_seconds_total",
        "Tag time discarded without lock, or while a setting changed.",
        quantum.cut_s,
    )
    yield counter("qkd_tags_total", "Time tags received.", totals.tags)
    yield counter("qkd_tags_lost_total", "Time tags lost by the hardware.", totals.tags_lost)
    yield counter(
        "qkd_tags_out_of_order_total",
        "Time tags dropped because they came later than the order window allows.",
        totals.tags_out_of_order,
    )
    yield counter(
        "qkd_tag_overruns_total",
        "Blocks of tags that arrived when the channel was full.",
        totals.tag_overruns,
    )
    yield counter(
        "qkd_tags_dropped_total",
        "Time tags not processed: there was no room, no emission run was known, or their source failed.",
        totals.tags_dropped,
    )
    yield counter("qkd_clicks_total", "Clicks accepted by a gate.", totals.clicks)
    yield counter(
        "qkd_clicks_dropped_total",
        "Clicks dropped without a session, or because Alice's record of symbols no longer had their slots.",
        totals.clicks_dropped,
    )


def _blocks(status: NodeStatus) -> Iterator[Metric]:
    block, totals, last = status.block, status.totals, status.block.last
    yield from _known("qkd_block_filled_ratio", "Part of the present block that has passed.", block.filled)
    yield gauge("qkd_blocks_in_flight", "Blocks being distilled.", block.in_flight)
    yield counter("qkd_blocks_accepted_total", "Blocks that gave key.", block.accepted)
    discarded = CounterMetricFamily(
        "qkd_blocks_discarded_total", "Blocks that gave no key, by reason.", labels=["reason"]
    )
    # This one is there from the start, so that its first block is an increase, which an alert asks for.
    for reason, count in {Reason.CONTRADICTION: 0, **block.discarded}.items():
        discarded.add_metric([reason], count)
    yield discarded
    yield counter("qkd_sifted_bytes_total", "Sifted key of all blocks.", _bytes(totals.sifted_bits))
    yield counter(
        "qkd_secret_bytes_total", "Secret key before the pool's refill.", _bytes(totals.secret_bits)
    )
    yield counter(
        "qkd_disclosed_bytes_total",
        "Key disclosed by error correction and verification.",
        _bytes(totals.lambda_ec_bits),
    )
    yield counter(
        "qkd_epsilon_total",
        "Sum of the failure probabilities of all blocks, over restarts.",
        status.keys.epsilon_total,
    )
    if last is not None:
        yield gauge("qkd_last_block_timestamp_seconds", "When the last block gave key.", last.finished_at)
        yield gauge("qkd_last_block_secret_bytes", "Secret key of the last block.", _bytes(last.secret_bits))
        yield gauge("qkd_last_block_qber_z_ratio", "Bit error rate of the last block.", last.qber_z)
        yield gauge(
            "qkd_last_block_phase_error_ratio",
            "Upper bound on the phase error rate of the last block.",
            last.phi_z_upper,
        )
        yield gauge(
            "qkd_last_block_reconciliation_efficiency",
            "Bits disclosed by the correction of the last block, over Shannon's limit.",
            last.f_ec,
        )
        yield gauge(
            "qkd_last_block_took_seconds", "Time from the end of the last block to its key.", last.took_s
        )


def _http(status: NodeStatus) -> Iterator[Metric]:
    others = [one.http for one in (status.skip, status.etsi004) if one is not None]
    interfaces = [status.etsi014.http, *others]
    yield gauge(
        "qkd_http_open_connections",
        "Open connections to the key delivery interfaces, of all interfaces together like each `qkd_http_`.",
        sum(http.connections_open for http in interfaces),
    )
    yield counter(
        "qkd_keys_unsent_total",
        "Keys whose answer could not be sent; they waited for a repeated request.",
        status.etsi014.keys_unsent_total,
    )
    yield counter(
        "qkd_keys_lost_total",
        "Unsent keys that no client requested again in time.",
        status.etsi014.keys_lost_total,
    )
    for name, text in (
        ("connections", "Connections accepted."),
        (
            "connections_refused",
            "Connections refused: no connection was free, or too many handshakes from the address failed.",
        ),
        ("connections_evicted", "Connections closed in favour of a new one."),
        ("connections_failed", "Connections that ended in an error of the node."),
        ("handshakes_failed", "TLS handshakes that failed."),
        ("requests", "Valid requests."),
        ("requests_refused", "Requests refused: not valid HTTP, too large or too slow."),
        ("requests_unauthorised", "Requests answered 401."),
    ):
        total = sum(getattr(http, f"{name}_total") for http in interfaces)
        yield counter(f"qkd_http_{name}_total", text, total)


def _keys(status: NodeStatus) -> Iterator[Metric]:
    keys = status.keys
    chunks = GaugeMetricFamily(
        "qkd_key_chunks", "Chunks of 256 bits in the store, by state.", labels=["state"]
    )
    for state in ("available_own", "available_peer", "prepared", "assigned", "stock"):
        chunks.add_metric([state], getattr(keys, state))
    yield chunks
    yield counter(
        "qkd_key_chunks_delivered_total",
        "Chunks delivered to encryptors, over restarts.",
        keys.delivered_total,
    )
    yield counter(
        "qkd_key_chunks_void_total", "Chunks made void at both sites, over restarts.", keys.void_total
    )
    yield counter(
        "qkd_key_chunks_expired_total",
        "Chunks that no encryptor fetched in time, over restarts.",
        keys.expired_total,
    )
    yield counter(
        "qkd_audit_entries_total",
        "Entries written in the present chain of the audit.",
        status.audit.entries_total,
    )
    yield gauge("qkd_audit_entries_kept", "Entries of the audit in the store.", status.audit.entries_kept)
    yield gauge("qkd_audit_chains", "Chains of the audit in the store.", status.audit.chains)


def _streams(status: NodeStatus) -> Iterator[Metric]:
    """Yield the figures of key streams whose home is this site, if it has the interface."""
    if status.etsi004 is None:
        return
    streams = status.etsi004.streams
    yield gauge("qkd_streams", "Key streams of this home.", len(streams))
    yield gauge(
        "qkd_stream_chunks_waiting",
        "Chunks of key streams that an end has not taken yet.",
        sum(one.waiting for one in streams),
    )
    yield counter(
        "qkd_stream_chunks_allocated_total",
        "Chunks allocated for key streams.",
        status.etsi004.chunks_allocated_total,
    )
    yield counter(
        "qkd_stream_chunks_left_total",
        "Chunks that the end at the other site did not take before it closed, or in time; destroyed.",
        status.etsi004.chunks_left_total,
    )


def _saes(status: NodeStatus) -> Iterator[Metric]:
    delivered = CounterMetricFamily(
        "qkd_sae_keys_delivered_total", "Keys delivered to an encryptor.", labels=["sae_id"]
    )
    refused = CounterMetricFamily(
        "qkd_sae_requests_refused_total", "Refused requests of an encryptor.", labels=["sae_id"]
    )
    last = GaugeMetricFamily(
        "qkd_sae_last_key_timestamp_seconds",
        "When the last key was delivered to an encryptor.",
        labels=["sae_id"],
    )
    for sae in status.etsi014.saes:
        delivered.add_metric([sae.sae_id], sae.keys_delivered_total)
        refused.add_metric([sae.sae_id], sae.requests_refused_total)
        if sae.last_key_at is not None:
            last.add_metric([sae.sae_id], sae.last_key_at)
    yield from (delivered, refused, last)


def _monitors(status: NodeStatus) -> Iterator[Metric]:
    """Yield the last readings of the monitors over devices, if there are any."""
    if not status.monitors:
        return
    value = GaugeMetricFamily(
        "qkd_monitor_value", "Last reading of a monitor over devices.", labels=["monitor", "place"]
    )
    limit = GaugeMetricFamily(
        "qkd_monitor_limit", "The limits of an honest reading.", labels=["monitor", "place", "side"]
    )
    for place, one in status.monitors.items():
        value.add_metric([one.check, place], one.value)
        for side, at in (("least", one.least), ("most", one.most)):
            if at is not None:
                limit.add_metric([one.check, place, side], at)
    yield value
    yield limit


def _devices(status: NodeStatus) -> Iterator[Metric]:
    up = GaugeMetricFamily("qkd_device_up", "1 while the device runs.", labels=["device", "driver"])
    restarts = CounterMetricFamily("qkd_device_restarts_total", "Restarts of a device.", labels=["device"])
    reading = GaugeMetricFamily(
        "qkd_device_reading", "Reading of a device; the label names the unit.", labels=["device", "reading"]
    )
    for device in status.devices:
        up.add_metric([device.name, device.driver], float(device.well))
        restarts.add_metric([device.name], device.restarts)
        for name, value in device.readings.items():
            reading.add_metric([device.name, name], value)
    yield from (up, restarts, reading)


def _controllers(status: NodeStatus) -> Iterator[Metric]:
    if not status.controllers:
        return
    labels = ["controller", "unit"]
    families = {
        "setting": GaugeMetricFamily("qkd_controller_setting", "Present setting.", labels=labels),
        "best": GaugeMetricFamily("qkd_controller_best", "Estimate of the best setting.", labels=labels),
        "sigma": GaugeMetricFamily(
            "qkd_controller_sigma", "Standard error of the best setting.", labels=labels
        ),
    }
    state = GaugeMetricFamily(
        "qkd_controller_state", "1 for the present state of a controller.", labels=["controller", "state"]
    )
    moves = CounterMetricFamily(
        "qkd_controller_moves_total", "Settings by a controller.", labels=["controller"]
    )
    for one in status.controllers:
        for name, family in families.items():
            value = getattr(one, name)
            if value is not None:
                family.add_metric([one.name, one.unit], value)
        state.add_metric([one.name, one.state.state], 1)
        moves.add_metric([one.name], one.moves)
    yield from (*families.values(), state, moves)


def _known(name: str, text: str, value: float | None) -> Iterator[Metric]:
    """Yield a gauge for a known figure, and nothing for an unknown one."""
    if value is not None:
        yield gauge(name, text, value)


def _bytes(bits: float | None) -> float:
    """Convert bits, the unit of the field, to bytes, the unit of Prometheus."""
    return (bits or 0) / 8
