"""Round-trip time and throughput between the sites, by ping and iperf3."""

import re
import statistics
import subprocess
from collections.abc import Iterable

import msgspec
import trio
from msgspec import Struct

from qnode.errors import QnodeError
from qnode.loopback.sites import stop
from qnode.testbed.network import Network

PINGS = 300
PING_INTERVAL_S = 0.01
THROUGHPUT_S = 5.0
_PATIENCE_S = 20.0
_LISTENING_PAUSE_S = 0.2
_SEQUENCE_NUMBERS = 65_536
_REPLY = re.compile(r"\[(?P<at>[\d.]+)\].* icmp_seq=(?P<number>\d+) .*time=(?P<ms>[\d.]+) ms")
_SILENCE = re.compile(r"\[(?P<at>[\d.]+)\] no answer yet for icmp_seq=(?P<number>\d+)")


class NotMeasured(QnodeError):
    """A measurement of the path failed; the message says why."""


class Pings(Struct, frozen=True, kw_only=True):
    """Replies in the order of their requests: (Unix time of the reply, round-trip time in ms), and requests
    without one: Unix time at which the next request was sent."""

    replies: list[tuple[float, float]]
    lost_at: list[float]

    @property
    def median_ms(self) -> float | None:
        """The median round-trip time."""
        return statistics.median(ms for _, ms in self.replies) if self.replies else None

    @property
    def p99_ms(self) -> float | None:
        """The round-trip time that 99 % of the replies keep."""
        ordered = sorted(ms for _, ms in self.replies)
        return ordered[(99 * len(ordered) - 1) // 100] if ordered else None


class PathFigures(Struct, frozen=True, kw_only=True):
    """One path between the sites. ``throughput_bits_per_s``: one TCP connection from plant to office.

    None: no reply came, or iperf3 had no figure in time.
    """

    rtt_median_ms: float | None
    rtt_p99_ms: float | None
    pings_sent: int
    pings_lost: int
    throughput_bits_per_s: float | None


def ping_command(source: str, address: str, interval_s: float, count: int | None = None) -> list[str]:
    """Return the command whose output `read_pings` reads; it runs until stopped, or ``count`` times."""
    number = [] if count is None else ["-c", str(count)]
    return ["ping", "-n", "-D", "-O", "-i", f"{interval_s:g}", *number, "-I", source, address]


def read_pings(lines: Iterable[str]) -> Pings:
    """Read what ping wrote, with ``-D`` and ``-O``; the numbers of its requests start again after 65,535."""
    replies: dict[int, tuple[float, float]] = {}
    silent: dict[int, float] = {}
    last = 0
    for line in lines:
        found = _REPLY.match(line) or _SILENCE.match(line)
        if found is None:
            continue
        number = int(found["number"])
        # The full number nearest to the last one.
        number += round((last - number) / _SEQUENCE_NUMBERS) * _SEQUENCE_NUMBERS
        last = max(last, number)
        if found.re is _REPLY:
            replies.setdefault(number, (float(found["at"]), float(found["ms"])))
        else:
            silent.setdefault(number, float(found["at"]))
    return Pings(
        replies=[reply for _, reply in sorted(replies.items())],
        lost_at=[at for number, at in sorted(silent.items()) if number not in replies],
    )


async def measure_path(network: Network, office: str, plant: str) -> PathFigures:
    """Measure from the plant to the office between these addresses, with nothing else to send.

    Raises:
        NotMeasured: ping cannot be run.
    """
    said = await _run(network.inside("plant", *ping_command(plant, office, PING_INTERVAL_S, PINGS)))
    pings = read_pings(said.splitlines())
    return PathFigures(
        rtt_median_ms=pings.median_ms,
        rtt_p99_ms=pings.p99_ms,
        pings_sent=PINGS,
        pings_lost=PINGS - len(pings.replies),
        throughput_bits_per_s=await _throughput(network, office, plant),
    )


async def _throughput(network: Network, office: str, plant: str) -> float | None:
    server = await trio.lowlevel.open_process(
        network.inside("office", "iperf3", "--server", "--one-off", "--bind", office),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    client = ["iperf3", "--client", office, "--bind", plant, "--time", f"{THROUGHPUT_S:g}", "--json"]
    try:
        with trio.move_on_after(_PATIENCE_S):
            while True:
                said = _read_throughput(await _run(network.inside("plant", *client), check=False))
                if isinstance(said, float):
                    return said
                await trio.sleep(_LISTENING_PAUSE_S)  # the server does not listen yet
        return None
    finally:
        await stop(server)


def _read_throughput(said: str) -> float | str:
    """Return bit/s as the receiver counted them, or iperf3's error."""
    try:
        answer = msgspec.json.decode(said)
        return float(answer["end"]["sum_received"]["bits_per_second"])
    except (msgspec.DecodeError, KeyError, TypeError):
        return said


async def _run(command: list[str], *, check: bool = True) -> str:
    done = await trio.run_process(
        command, capture_stdout=True, capture_stderr=True, check=False, start_new_session=True
    )
    if check and done.returncode not in (0, 1):  # ping says 1 if no reply came
        raise NotMeasured(f"{' '.join(command)}: {done.stderr.decode(errors='replace').strip()}")
    return done.stdout.decode(errors="replace")
