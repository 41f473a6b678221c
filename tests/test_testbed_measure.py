"""What ping and iperf3 say of a path."""

import pytest

from qnode.testbed.measure import PathFigures, ping_command, read_pings


def reply(at_s: float, number: int, ms: float = 0.5) -> str:
    return f"[{at_s:.6f}] 64 bytes from 10.92.0.1: icmp_seq={number} ttl=64 time={ms} ms\n"


def silence(at_s: float, number: int) -> str:
    return f"[{at_s:.6f}] no answer yet for icmp_seq={number}\n"


def test_replies_are_counted_and_requests_without_one_have_their_time() -> None:
    said = ["PING 10.92.0.1 (10.92.0.1) 56(84) bytes of data.\n", reply(1.0, 1), silence(2.0, 2)]
    said += [silence(2.1, 3), reply(2.15, 3, 70.0), reply(2.2, 4, 0.7)]
    pings = read_pings(said)
    assert pings.replies == [(1.0, 0.5), (2.15, 70.0), (2.2, 0.7)]
    assert pings.lost_at == [2.0]
    assert pings.median_ms == 0.7
    assert pings.p99_ms == 70.0


def test_a_duplicate_is_no_second_reply() -> None:
    assert len(read_pings([reply(1.0, 1), reply(1.1, 1).replace("ms\n", "ms (DUP!)\n")]).replies) == 1


def test_more_pings_than_there_are_numbers_are_told_apart() -> None:
    numbers = [65_534, 65_535, 0, 1, 2]
    said = [reply(float(at), number) for at, number in enumerate(range(1, 65_534))]
    said += [reply(70_000.0 + at, number) for at, number in enumerate(numbers) if number != 1]
    said.insert(-1, silence(70_003.5, 1))
    pings = read_pings(said)
    assert len(pings.replies) == 65_533 + 4
    assert pings.lost_at == [70_003.5]


def test_a_path_without_replies_has_no_round_trip_time() -> None:
    pings = read_pings(["ping: sendmsg: Network is unreachable\n"])
    assert (pings.median_ms, pings.p99_ms, pings.lost_at) == (None, None, [])


def test_the_command_asks_for_times_and_for_silences() -> None:
    command = ping_command("10.92.2.1", "10.92.1.1", 0.1, 300)
    assert " ".join(command) == "ping -n -D -O -i 0.1 -c 300 -I 10.92.2.1 10.92.1.1"
    assert "-c" not in ping_command("10.92.2.1", "10.92.1.1", 0.1)


def test_iperf3_gives_what_the_receiver_counted_or_its_error(monkeypatch: pytest.MonkeyPatch) -> None:
    from qnode.testbed.measure import _read_throughput

    assert _read_throughput('{"end":{"sum_received":{"bits_per_second":2.5e8}}}') == 2.5e8
    assert isinstance(_read_throughput('{"error":"unable to connect"}'), str)
    assert isinstance(_read_throughput("no JSON"), str)
    assert PathFigures.__struct_fields__[-1] == "throughput_bits_per_s"
