"""Formats a `NodeStatus` for one screen: ages instead of times, figures with units.

Text from a device or the peer is made printable, so that it cannot control the terminal.
"""

from collections import deque
from collections.abc import Iterable
from datetime import datetime

from qnode.choices import ControllerState, DeviceState
from qnode.devices.status import Exchange
from qnode.operate.blocks.row import DecidedBlock
from qnode.operate.events.line import printable
from qnode.operate.status.interfaces import Etsi004Status, SkipStatus
from qnode.operate.status.model import ControllerStatus, DeviceStatus, NodeStatus, State
from qnode.operate.status.troubles import store_waits, troubles, why_no_key
from qnode.tls_validity import DAY_S
from qnode.units import CHUNK_BITS

_PREFIXES = ((1.0, ""), (1e3, "k"), (1e6, "M"), (1e9, "G"), (1e12, "T"))
BLOCK_COLUMNS = ("block", "ago", "s", "sifted", "QBER Z", "f_EC", "phase error", "secret", "outcome")
# The column in which a long line of `status_lines` continues.
PARTS_COLUMN = 19
LAST_EXCHANGES = 9  # in each direction
SIMULATED = "SIMULATED: these keys are not keys"
RECORDED = "whoever reads the recording knows its keys"
WARN = "WARN"
_WELL = (ControllerState.FOLLOWING, ControllerState.HELD, ControllerState.SETTLING)


class Loud(str):
    """A line that a terminal shows in colour."""

    __slots__ = ()


def status_lines(status: NodeStatus) -> list[str]:
    """Return the screen of `qnodectl status`: the links one after another, then the common part."""
    views = status.each_link
    lines = [_headline(status)] if len(views) == 1 else [_site_headline(status)]
    if status.simulated:
        lines.append(Loud(f"  {SIMULATED}"))
    for view in views:
        if len(views) > 1:
            lines.append(_link_headline(view))
        lines += _link_lines(view)
    lines.append(_etsi(status))
    if status.skip is not None:
        lines.append(_skip(status.skip))
    if status.etsi004 is not None:
        lines.append(_streams(status.etsi004))
    if status.certificates:
        lines.append(_certificates(status))
    return lines + trouble_lines(status)


def _link_lines(status: NodeStatus) -> list[str]:
    """Return the lines of one link."""
    lines = []
    if status.recorded_since is not None:
        lines.append(f"  BEING RECORDED for {age(status.recorded_since, status.at)}: {RECORDED}")
    lines += [_quantum(status), _channel(status), _keys(status)]
    reason = why_no_key(status)
    if reason is not None:
        lines.append(_row("", "", [f"no key: {printable(reason)}"]))
    for index, device in enumerate(status.devices):
        line = "  " + ("devices" if index == 0 else "").ljust(10) + device_line(device, status.at)
        lines.append(line if device.well else Loud(line))
    for index, one in enumerate(status.controllers):
        line = "  " + ("control" if index == 0 else "").ljust(10) + controller_line(one, status.at)
        lines.append(line if one.state.state in _WELL else Loud(line))
    return lines


def controller_line(one: ControllerStatus, at: float) -> str:
    """Return one controller's line: name, state, setting, and how well the best setting is known."""
    name, verdict, text = controller_parts(one, at)
    return f"{name:<10} {verdict:<6} {text}"


def controller_parts(one: ControllerStatus, at: float) -> tuple[str, str, str]:
    """Return name, verdict and the rest of a controller's line."""
    unit = one.unit
    parts = ["" if one.setting is None else f"set {one.setting:.4g} {unit}"]
    if one.best is not None:
        parts.append(f"best {one.best:.4g} {unit}" + ("" if one.sigma is None else f" ±{one.sigma:.2g}"))
    if one.drift_per_hour is not None:
        parts.append(f"drift {one.drift_per_hour:.2g} {unit}/h")
    parts.append(_state(one.state, at))
    verdict = _verdict(one.state.state in _WELL)
    return printable(one.name), verdict, "   ".join(part for part in parts if part)


def trouble_lines(status: NodeStatus) -> list[str]:
    """Return the warnings, a count first; nothing if there are none."""
    found = troubles(status)
    if not found:
        return []
    failed = [device.name for view in status.each_link for device in view.devices if not device.well]
    see = f" See: qnodectl devices {printable(failed[0])}" if failed else ""
    lines = [f"{len(found)} warning{'s' if len(found) > 1 else ''}.{see}"]
    for alarm in found:
        text = alarm.text if alarm.link is None else f"{alarm.link}: {alarm.text}"
        lines.append(f"  {alarm.name:<20} {age(alarm.since, status.at):>10}   {printable(text)}")
    return lines


def device_line(device: DeviceStatus, at: float) -> str:
    """Return one device's line: name, verdict, identity, readings or the error."""
    name, verdict, text = device_parts(device, at)
    return f"{name:<10} {verdict:<6} {text}"


def device_parts(device: DeviceStatus, at: float) -> tuple[str, str, str]:
    """Return name, verdict and the rest of a device's line."""
    verdict = _verdict(device.well)
    parts = [f"{printable(device.driver)} {printable(device.serial)}".rstrip()]
    if device.simulated:
        parts.append("simulated")
    if device.well:
        parts += [_reading(name, value) for name, value in list(device.readings.items())[:4]]
        parts += [device.state.state] if device.state.state != DeviceState.RUNNING else []
        parts.append(f"{device.restarts} restart{'' if device.restarts == 1 else 's'}")
    else:
        parts.append(printable(device.state.because or device.state.state))
        if device.retry_at is not None:
            parts.append(f"retry in {duration(max(device.retry_at - at, 0.0))}")
    return printable(device.name), verdict, "   ".join(parts)


def device_detail(device: DeviceStatus, at: float) -> list[str]:
    """Return everything known about one device."""
    rows = [
        ("driver", device.driver + (" (simulated)" if device.simulated else "")),
        ("model", device.model or "?"),
        ("serial", device.serial or "?"),
        ("state", f"{device.state.state} for {age(device.state.since, at)}"),
        ("because", device.state.because or "-"),
        ("restarts", str(device.restarts)),
    ]
    if device.failing_since is not None:
        rows.append(("failing", f"for {age(device.failing_since, at)}"))
    if device.retry_at is not None:
        rows.append(("retry", f"in {duration(max(device.retry_at - at, 0.0))}"))
    rows += [(name, f"{value:.6g}") for name, value in device.readings.items()]
    return [printable(device.name), *(f"  {name:<24} {printable(text)}" for name, text in rows)]


def exchange_lines(exchanges: Iterable[Exchange], width: int) -> list[str]:
    """Return the last bytes to and from a device, control characters escaped, at most a screenful."""
    last: dict[bool, deque[Exchange]] = {way: deque(maxlen=LAST_EXCHANGES) for way in (True, False)}
    for one in exchanges:
        last[one.sent].append(one)
    shown = sorted([*last[True], *last[False]], key=lambda one: one.at)
    if not shown:
        return ["  last bytes               none are recorded; those of tags and symbols never are"]
    return ["  last bytes", *(_exchange_line(one, width) for one in shown)]


def _exchange_line(one: Exchange, width: int) -> str:
    at = datetime.fromtimestamp(one.at).astimezone().strftime("%H:%M:%S.%f")[:-3]
    start = f"    {at} {'sent' if one.sent else 'received':<8} "
    text, room = _escaped(one.data), max(width - len(start), 20)
    if len(text) > room:
        half = (room - 5) // 2
        text = f"{text[:half]} ... {text[-half:]}"
    return start + text


def _escaped(data: bytes) -> str:
    return data.decode("latin-1").encode("unicode_escape").decode("ascii")


def keys_rows(status: NodeStatus) -> list[tuple[str, str, str]]:
    """Return the rows of `qnodectl keys`: what, how many, explanation."""
    keys, pads = status.keys, status.authentication
    ready = f"assignable by {status.site.kme_id} ({si(keys.available_own * CHUNK_BITS)}b)"
    return [
        ("ready here", count(keys.available_own), ready),
        ("ready at peer", count(keys.available_peer), f"assignable by {status.peer.kme_id}"),
        ("stock", count(keys.stock), "pre-assigned, for delivery while the link is down"),
        ("prepared", count(keys.prepared), "waiting for the peer's confirmation"),
        ("assigned", count(keys.assigned), "named to encryptors, not yet fetched by all"),
        ("delivered", count(keys.delivered_total), "chunks, in total"),
        ("void", count(keys.void_total), "given up on both sites, in total"),
        ("expired", count(keys.expired_total), "too old, in total"),
        ("epsilon", f"{keys.epsilon_total:.1e}", "by which all keys together may fail to be ideal, in total"),
        ("pads to send", _known_count(pads.pads_left_send), "one-time authentication, this site's half"),
        ("pads to receive", _known_count(pads.pads_left_receive), "one-time authentication, the peer's half"),
    ]


def block_cells(block: DecidedBlock, at: float) -> list[str]:
    """Return one decided block under `BLOCK_COLUMNS`; what is not known is empty."""
    outcome = printable(block.outcome) + (f": {printable(block.detail)}" if block.detail else "")
    return [
        str(block.block_id),
        age(block.decided_at_s, at),
        "" if block.span_s is None else f"{block.span_s:.3g}",
        "" if block.n_z is None else count(block.n_z),
        "" if block.qber_z is None else f"{100 * block.qber_z:.2f} %",
        "" if block.f_ec is None else f"{block.f_ec:.3f}",
        "" if block.phi_z_upper is None else f"{100 * block.phi_z_upper:.2f} %",
        count(block.secret_bits),
        outcome,
    ]


def age(since: float, at: float) -> str:
    """Return the age of ``since`` in words; a clock that was set back shows as now."""
    return duration(max(at - since, 0.0))


def duration(seconds: float) -> str:
    """Return a duration in its two largest units: ``0.4 s``, ``41 s``, ``3 h 12 min``, ``2 d 21 h``."""
    if seconds < 9.95:
        return f"{seconds:.1f} s" if seconds >= 0.05 else "0 s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def si(value: float) -> str:
    """Return three digits and an SI prefix, ready for the unit: ``41.2 k``, ``3.19 M``, ``812 ``."""
    factor, prefix = next((row for row in _PREFIXES if abs(value) < 999.5 * row[0]), _PREFIXES[-1])
    return f"{value / factor:.3g} {prefix}"


def count(number: int) -> str:
    """Return a count in groups of three digits."""
    return f"{number:,}".replace(",", " ")


def _known_count(number: int | None) -> str:
    return "?" if number is None else count(number)


def _headline(status: NodeStatus) -> str:
    parts = [f"{status.site.role}@{status.site.link} ({status.site.kme_id})", *_node(status), _peer(status)]
    return printable("   ".join(parts))


def _site_headline(status: NodeStatus) -> str:
    return printable("   ".join([status.site.kme_id, *_node(status), f"{len(status.links)} links"]))


def _link_headline(status: NodeStatus) -> str:
    return printable(f"{status.site.role}@{status.site.link}   {_peer(status)}")


def _node(status: NodeStatus) -> list[str]:
    state = status.state
    return [
        f"{state.state} {age(state.since, status.at)}" + (f" ({state.because})" if state.because else ""),
        f"qnode {status.version}",
    ]


def _peer(status: NodeStatus) -> str:
    peer = status.peer
    connection = "up" if peer.connected else peer.connection.state
    return f"peer {peer.kme_id} {connection} {age(peer.connection.since, status.at)}"


def _row(name: str, verdict: str, parts: Iterable[str]) -> str:
    line = f"  {name:<9} {verdict:<6} {'   '.join(part for part in parts if part)}".rstrip()
    return Loud(line) if verdict == WARN else line


def _verdict(is_well: bool) -> str:
    return "ok" if is_well else WARN


def _percent(fraction: float | None) -> str:
    return "?" if fraction is None else f"{100 * fraction:.2f} %"


def _state(state: State, at: float) -> str:
    because = f": {state.because}" if state.because else ""
    return printable(f"{state.state} for {age(state.since, at)}{because}")


def _quantum(status: NodeStatus) -> str:
    quantum = status.quantum
    rate, residual = quantum.sifted_rate_bits_per_s, quantum.phase_residual_ps
    return _row(
        "quantum",
        _verdict(quantum.locked),
        [
            "" if quantum.locked else _state(quantum.lock, status.at),
            f"QBER Z {_percent(quantum.qber_z)}  X {_percent(quantum.e_vis)}",
            "" if rate is None else f"sifted {si(rate)}b/s",
            loss_text(status),
            "" if residual is None else f"clock ±{residual:.0f} ps",
            "  ".join(f"{arm} {si(rate_hz)}cps" for arm, rate_hz in quantum.click_rates_hz.items()),
        ],
    )


def _channel(status: NodeStatus) -> str:
    peer, pads = status.peer, status.authentication
    return _row(
        "channel",
        _verdict(peer.connected),
        [
            "" if peer.connected else _state(peer.connection, status.at),
            "" if peer.rtt_s is None else f"rtt {1e3 * peer.rtt_s:.2f} ms",
            "" if peer.software is None else f"peer runs {printable(peer.software)}",
            f"authentication pads left {_known_count(pads.pads_left_send)} to send, "
            f"{_known_count(pads.pads_left_receive)} to receive",
        ],
    )


def _keys(status: NodeStatus) -> str:
    keys, block, last = status.keys, status.block, status.block.last
    ready = keys.available_own + keys.available_peer
    discarded = sum(block.discarded.values())
    waits = store_waits(status)
    filled = "" if block.filled is None else f"{100 * block.filled:.0f} % full"
    return _row(
        "keys",
        WARN if waits else "ok" if ready + keys.stock else "none",
        [
            f"{count(ready)} {'held back' if waits else 'ready'} ({si(ready * CHUNK_BITS)}b)",
            secret_rate_text(status),
            lasts_text(status),
            "simulated" if status.simulated else "",
            "" if last is None else f"block {last.block_id}, {age(last.finished_at, status.at)} ago",
            "" if block.current is None else f"block {block.current} {filled}".rstrip(),
            f"{count(block.accepted)} accepted" + (f", {count(discarded)} discarded" if discarded else ""),
        ],
    )


def secret_rate_text(status: NodeStatus) -> str:
    """Return the secret key rate of a link beside the one that it should have; empty if unknown."""
    rate, expected = status.block.secret_bits_per_s, status.expected.secret_bits_per_s
    if rate is None:
        return "" if expected is None else f"plan {si(expected)}b/s"
    beside = f", {100 * rate / expected:.0f} % of plan" if expected else ""
    return f"{si(rate)}b/s over 1 h{beside}"


def loss_text(status: NodeStatus) -> str:
    """Return the loss of a link beside the one that it should have; empty if unknown."""
    loss, error, expected = status.quantum.loss_db, status.quantum.loss_error_db, status.expected.loss_db
    beside = "" if expected is None else f" (plan {expected:.1f} dB)"
    return "" if loss is None else f"loss {loss:.1f} ±{error or 0.0:.1f} dB{beside}"


def lasts_text(status: NodeStatus) -> str:
    """Return how long the keys that are ready last at their present use; empty if none is used."""
    lasts = status.keys.lasts_s
    return "" if lasts is None else f"last {duration(lasts)} at present use"


def _etsi(status: NodeStatus) -> str:
    saes = status.etsi014.saes
    last = max((sae.last_key_at for sae in saes if sae.last_key_at is not None), default=None)
    refused = sum(sae.requests_refused_total for sae in saes)
    return _row(
        "etsi014",
        _verdict(status.etsi014.away is None),
        [
            printable(status.etsi014.away or status.etsi014.url),
            f"{len(saes)} SAE{'' if len(saes) == 1 else 's'}",
            "no key yet" if last is None else f"last key {age(last, status.at)} ago",
            f"{count(refused)} refused",
            *(
                [f"{count(turned_away)} turned away"]
                if (turned_away := status.etsi014.http.turned_away)
                else []
            ),
        ],
    )


def _skip(skip: SkipStatus) -> str:
    return _row(
        "skip",
        _verdict(skip.away is None),
        [
            printable(skip.away or skip.url),
            f"{count(skip.http.requests_total)} requests",
            *([f"{count(turned_away)} turned away"] if (turned_away := skip.http.turned_away) else []),
        ],
    )


def _streams(interface: Etsi004Status) -> str:
    http = interface.http
    return _row(
        "etsi004",
        _verdict(interface.away is None),
        [
            printable(interface.away or interface.address),
            f"{count(len(interface.streams))} streams",
            f"{count(sum(one.waiting for one in interface.streams))} chunks waiting",
            *([f"{count(turned_away)} turned away"] if (turned_away := http.turned_away) else []),
        ],
    )


def _certificates(status: NodeStatus) -> str:
    # A CRL that is made every day expires first, and this is normal.
    soon = [one for one in status.certificates if one.expires_within(7 * DAY_S, status.at)]
    first = min(soon or status.certificates, key=lambda one: one.expires_at)
    if first.expired(status.at):
        told = f"{first.file} has expired {age(first.expires_at, status.at)} ago"
    else:
        told = f"{first.file} expires in {duration(first.left_s(status.at))}"
    return _row("tls", _verdict(not soon), [printable(told)])


def _reading(name: str, value: float) -> str:
    return f"{printable(name)} {value:.4g}"
