"""What a trial of tunnels saw: changes from the agents' logs, packets, handshakes, processor time."""

import datetime
import json
import os
import re
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec

NEAR_S = 2.0
MARGIN_S = 0.2  # before and after a change, in which a lost packet is counted as lost within it


class Change(msgspec.Struct, frozen=True):
    """One change of key as the initiator's log tells it; times in seconds, ``at`` (its end) in Unix time."""

    key_id: str
    at: float
    took_s: float
    differed_s: float


class Event(msgspec.Struct, frozen=True):
    """One line of an agent's log."""

    name: str
    at: float
    fields: dict[str, Any]


def events(log: Path) -> list[Event]:
    """Return the events of a daemon's log; lines of other forms are skipped."""
    found = []
    for line in log.read_text(errors="replace").splitlines():
        match = _LINE.match(line)
        if match is None:
            continue
        at = datetime.datetime.fromisoformat(match["at"]).timestamp()
        fields = {name: _value(value) for name, value in _FIELD.findall(match["fields"])}
        found.append(Event(match["name"], at, fields))
    return found


_LINE = re.compile(r"(?P<at>\d{4}-\S+ \S+) [a-z]+ +(?P<name>\w+\.\w+)(?P<fields>.*)")
_FIELD = re.compile(r'(\w+)=("(?:[^"\\]|\\.)*"|\S+)')


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def changes(found: list[Event]) -> list[Change]:
    """Return the changes in the initiator's events."""
    return [
        Change(
            event.fields["key_id"], event.at, float(event.fields["took_s"]), float(event.fields["differed_s"])
        )
        for event in found
        if event.name == "key.changed" and "took_s" in event.fields
    ]


def spread(values: list[float]) -> dict[str, float]:
    """Return p50, p99 and the greatest value."""
    if not values:
        return {}
    ordered = sorted(values)
    shares = {"p50": 0.5, "p99": 0.99, "max": 1.0}
    return {
        name: round(ordered[min(len(ordered) - 1, int(share * len(ordered)))], 4)
        for name, share in shares.items()
    }


def processor_s(pid: int) -> float:
    """Return the processor time of a process, in seconds; 0 if it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def captured(text: str) -> list[tuple[float, str]]:
    """Return time and sender of each packet that tcpdump printed."""
    found = []
    for line in text.splitlines():
        if match := re.match(r"(\d+\.\d+) IP ([\d.]+)\.\d+ > ", line):
            found.append((float(match[1]), match[2]))
    return found


def figures(
    alice: list[Event],
    bob: list[Event],
    probe: dict[str, Any],
    first: list[tuple[float, str]],
    answers: list[tuple[float, str]],
    since: float,
    until: float,
) -> dict[str, Any]:
    """Return what was seen between two times."""
    done = [change for change in changes(alice) if since <= change.at <= until]
    followed = Counter(event.fields["key_id"] for event in bob if event.name == "key.changed")
    led = Counter(change.key_id for change in changes(alice))
    lost = [at for at in probe["lost"] if since <= at <= until]
    spans = [(change.at - change.took_s - MARGIN_S, change.at + MARGIN_S) for change in done]
    within = sum(any(begin <= at <= end for begin, end in spans) for at in lost)
    share = sum(end - begin for begin, end in spans) / (until - since)
    return {
        "seconds": round(until - since, 1),
        "changes": len(done),
        "changes_failed": sum(
            event.name == "key.change_failed" and since <= event.at <= until for event in alice
        ),
        "differed_s": spread([change.differed_s for change in done]),
        "change_took_s": spread([change.took_s for change in done]),
        "keys_used": len(led),
        "keys_used_twice": sum(count > 1 for count in (*led.values(), *followed.values())),
        "keys_at_one_end_only": sorted(set(led) ^ set(followed)),
        "probes_sent": probe["sent"],
        "probes_lost": len(lost),
        "probes_lost_near_a_change": sum(_near(at, done) for at in lost),
        "probes_lost_within_a_change": within,
        "probes_lost_within_a_change_by_chance": round(
            (len(lost) - within) * share / max(1e-9, 1 - share), 1
        ),
        "probes_lost_by_change": sorted(
            (count for begin, end in spans if (count := sum(begin <= at <= end for at in lost))), reverse=True
        ),
        "lost_at": [{"at": round(at - since, 3), "near_a_change": _near(at, done)} for at in lost[:200]],
        "rtt_ms": {name: round(value, 3) for name, value in probe["rtt_ms"].items()},
        "handshakes_begun": sum(since <= at <= until for at, _ in first),
        "handshakes_answered": sum(since <= at <= until for at, _ in answers),
        "changes_with_more_than_one_answer": sum(len(_within(change, answers)) > 1 for change in done),
        "changes_with_handshakes_of_both_ends": sum(len(set(_within(change, first))) > 1 for change in done),
    }


def _within(change: Change, packets: list[tuple[float, str]]) -> list[str]:
    """Return the senders of the packets that were seen during a change."""
    return [sender for at, sender in packets if change.at - change.took_s <= at <= change.at]


def _near(at: float, done: list[Change]) -> bool:
    """Return whether a time lies within `NEAR_S` of a change."""
    return any(change.at - change.took_s - NEAR_S <= at <= change.at + NEAR_S for change in done)


def traffic(reports: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what iperf3 says of both directions."""
    found: dict[str, Any] = {}
    for report in reports:
        for name, key in (("a_to_b", "sum"), ("b_to_a", "sum_bidir_reverse")):
            end = report.get("end", {})
            total = end.get(key) or end.get(key + "_received") or end.get(key.replace("sum", "sum_received"))
            if total:
                one = found.setdefault(name, {"mbit_s": 0.0, "seconds": 0.0, "packets": 0, "lost": 0})
                one["seconds"] += round(total["seconds"], 1)
                one["mbit_s"] = round(max(one["mbit_s"], total["bits_per_second"] / 1e6), 1)
                one["packets"] += total.get("packets", 0)
                one["lost"] += total.get("lost_packets", 0)
    return found
