"""What an agent says of itself: its status, and figures for Prometheus. Nothing in it is secret."""

from collections.abc import Iterator

from msgspec import Struct
from prometheus_client.core import GaugeMetricFamily, HistogramMetricFamily, Metric

from qnode.agent.figures import DIFFERED_BUCKETS_S
from qnode.agent.state import AgentState
from qnode.operate.status.families import counter, gauge, rendered
from qnode.operate.status.validity_metrics import validity_families
from qnode.tls_validity import Validity


class StateStatus(Struct, frozen=True, kw_only=True):
    """A state (`AgentState`), since when (Unix time), and why; "": nothing to say."""

    state: str
    since: float
    because: str


class KeyInUse(Struct, frozen=True, kw_only=True):
    """The key in use. ``key_id``: None if an earlier run of the agent activated it.

    ``said``: the encryptor's own words when it was last asked.
    """

    key_id: str | None
    since: float
    said: str


class LineStatus(Struct, frozen=True, kw_only=True):
    """The line to the other agent; ``up_since``: None while there is none, ``trouble`` says why."""

    peer: str
    up_since: float | None
    trouble: str
    peer_trouble: str


class AgentStatus(Struct, frozen=True, kw_only=True):
    """An agent at the time ``at`` (Unix time, as all times in it)."""

    version: str
    at: float
    name: str
    role: str
    kind: str
    state: StateStatus
    key: KeyInUse | None
    line: LineStatus
    kme_url: str
    period_s: float
    stretched_period_s: float
    longest_s: float
    next_change_at: float
    stored_key_count: int | None
    changes_total: int
    changes_failed_total: int
    keys_total: int
    transferred_bytes_total: int
    last_change_s: float | None
    last_differed_s: float | None
    longest_differed_s: float
    differed_counts: tuple[int, ...]
    differed_sum_s: float
    certificates: tuple[Validity, ...]

    @property
    def exit_code(self) -> int:
        """0: ready; 1: holding or starved. Raises ValueError: another state, of a newer agent."""
        return int(AgentState(self.state.state) is not AgentState.READY)


def render_agent_metrics(status: AgentStatus) -> bytes:
    """Return the metrics in Prometheus' text format."""
    return rendered(_families(status))


def _families(status: AgentStatus) -> Iterator[Metric]:
    """Yield all families whose figures are known."""
    info = GaugeMetricFamily(
        "qkd_agent_info",
        "Version, name, role and kind of tunnel of this agent; the value is always 1.",
        labels=["version", "name", "role", "kind"],
    )
    info.add_metric([status.version, status.name, status.role, status.kind], 1)
    yield info
    state = GaugeMetricFamily("qkd_agent_state", "1 for the agent's present state.", labels=["state"])
    for word in AgentState:
        state.add_metric([word.value], word.value == status.state.state)
    yield state
    yield gauge(
        "qkd_agent_state_since_timestamp_seconds", "When the present state began.", status.state.since
    )
    yield gauge("qkd_agent_line_up", "1 while there is a line to the other agent.", _up(status))
    if status.key is not None:
        yield gauge(
            "qkd_agent_key_since_timestamp_seconds", "Since when the key is in use.", status.key.since
        )
    yield gauge(
        "qkd_agent_next_change_timestamp_seconds", "When the next change is due.", status.next_change_at
    )
    yield gauge("qkd_agent_period_seconds", "The agreed period of changes.", status.period_s)
    yield gauge(
        "qkd_agent_stretched_period_seconds",
        "The period that the number of stored keys allows.",
        status.stretched_period_s,
    )
    if status.stored_key_count is not None:
        yield gauge(
            "qkd_agent_stored_keys", "Keys at the key manager for this pair.", status.stored_key_count
        )
    yield counter("qkd_agent_changes_total", "Changes of key that both ends made.", status.changes_total)
    yield counter(
        "qkd_agent_changes_failed_total", "Changes of key that failed.", status.changes_failed_total
    )
    yield counter("qkd_agent_keys_total", "Keys taken from the key manager.", status.keys_total)
    yield counter(
        "qkd_agent_tunnel_bytes_total",
        "Bytes through the tunnel, both directions, as the encryptor counts them.",
        status.transferred_bytes_total,
    )
    if status.role == "initiator":
        yield _differed(status)
    yield from validity_families(status.certificates)


def _differed(status: AgentStatus) -> Metric:
    family = HistogramMetricFamily(
        "qkd_agent_ends_differ_seconds",
        "The longest time for which the two ends may have used different keys, for each change.",
    )
    buckets, total = [], 0
    for limit, count in zip((*DIFFERED_BUCKETS_S, "+Inf"), status.differed_counts, strict=True):
        total += count
        buckets.append((str(limit), total))
    family.add_metric([], buckets=buckets, sum_value=status.differed_sum_s)
    return family


def _up(status: AgentStatus) -> int:
    return int(status.line.up_since is not None)


def status_lines(status: AgentStatus) -> list[str]:
    """Return the status as lines for people."""

    def ago(since: float) -> str:
        seconds = max(0.0, status.at - since)
        for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
            if seconds >= 2 * length:
                return f"{seconds / length:.0f} {unit}"
        return f"{seconds:.0f} s"

    state, line, key = status.state, status.line, status.key
    lines = [
        f"{status.name}   {state.state.upper()} for {ago(state.since)}   {status.role}, {status.kind}"
        f"   qnode {status.version}",
        *([f"  because   {state.because}"] if state.because else []),
    ]
    if key is None:
        lines.append("  key       none")
    else:
        lines.append(f"  key       {key.key_id or 'of an earlier run'}, in use for {ago(key.since)}")
        lines.append(f"  tunnel    {key.said}")
    stored = "" if status.stored_key_count is None else f"   {status.stored_key_count} keys stored"
    left_s = status.next_change_at - status.at
    due = f"due in {left_s:.0f} s" if left_s >= 0 else f"due for {-left_s:.0f} s"
    lines.append(
        f"  changes   {status.changes_total:,} done, {status.changes_failed_total:,} failed   next {due}, "
        f"every {status.stretched_period_s:.0f} s{stored}"
    )
    if line.up_since is not None:
        lines.append(f"  line      to {line.peer}, up for {ago(line.up_since)}")
    else:
        lines.append(f"  line      to {line.peer}: down: {line.trouble}")
    lines.append(f"  kme       {status.kme_url}")
    return lines
