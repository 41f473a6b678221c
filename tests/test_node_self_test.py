"""The self-test finds a wrong computation, and ends the node when it does."""

from collections.abc import Callable

import pytest
import trio
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from trio.testing import MockClock

import qnode.node.self_test
from qnode.distill.selftest import SelfTestFailed
from qnode.node import known_answers
from qnode.node.known_answers import ANSWERS, check_known_answers
from qnode.node.self_test import FAREWELL_S, SelfTest
from qnode.tls_validity import DAY_S


def test_every_cipher_and_hash_gives_its_known_answer_here() -> None:
    check_known_answers()


def flipped(digits: str) -> bytes:
    value = bytes.fromhex(digits)
    return value[:-1] + bytes([value[-1] ^ 1])


@pytest.mark.parametrize("name", ANSWERS)
def test_a_cipher_or_hash_with_another_answer_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known_answers, "ANSWERS", {name: ANSWERS[name]})
    monkeypatch.setattr(known_answers, "_hex", flipped)
    monkeypatch.setattr(known_answers, "_GCM_SEALED", flipped(known_answers._GCM_SEALED.hex()))
    with pytest.raises(SelfTestFailed, match=f"self-test: {name} gives a wrong result on this machine"):
        check_known_answers()


def test_a_cipher_that_opens_what_was_changed_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Careless:
        def __init__(self, key: bytes) -> None:
            self.encrypt = AESGCM(key).encrypt

        def decrypt(self, nonce: bytes, data: bytes, associated_data: bytes | None) -> bytes:
            return known_answers._GCM_PLAIN

    monkeypatch.setattr(known_answers, "AESGCM", Careless)
    with pytest.raises(SelfTestFailed, match="AES-256-GCM"):
        check_known_answers()


async def in_the_loop(work: Callable[[], None]) -> None:
    """Stand for a thread: a virtual clock jumps ahead while the loop waits for a real one."""
    await trio.lowlevel.checkpoint()
    work()


class Machine:
    """Counts self-tests; the one of number ``wrong_from`` and those after it find a wrong result."""

    def __init__(self, wrong_from: int) -> None:
        self.n_tests = 0
        self._wrong_from = wrong_from

    def check(self) -> None:
        self.n_tests += 1
        if self.n_tests >= self._wrong_from:
            raise SelfTestFailed("self-test: SHA-256 gives a wrong result")


async def test_the_self_test_is_repeated_every_day_until_it_fails(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine, tested = Machine(wrong_from=4), SelfTest()
    monkeypatch.setattr(qnode.node.self_test, "check_all", machine.check)
    monkeypatch.setattr(trio.to_thread, "run_sync", in_the_loop)
    passed_at = [tested.passed_at]
    await tested.run()
    passed_at.append(tested.passed_at)
    assert [at is None for at in passed_at] == [True, False]
    began_s = trio.current_time()
    with pytest.raises(SelfTestFailed, match="SHA-256"):
        await tested.repeat()
    assert machine.n_tests == 4
    assert trio.current_time() - began_s == pytest.approx(3 * DAY_S)


async def test_a_failure_on_request_is_told_to_the_caller_and_ends_the_node(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine, tested = Machine(wrong_from=2), SelfTest()
    monkeypatch.setattr(qnode.node.self_test, "check_all", machine.check)
    monkeypatch.setattr(trio.to_thread, "run_sync", in_the_loop)
    await tested.run()

    async def ask() -> None:
        with pytest.raises(SelfTestFailed):
            await tested.run()
        told_at.append(trio.current_time())

    told_at: list[float] = []
    with pytest.RaisesGroup(SelfTestFailed):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(tested.repeat)
            nursery.start_soon(ask)
    assert trio.current_time() - told_at[0] == pytest.approx(FAREWELL_S)
    assert machine.n_tests == 2
