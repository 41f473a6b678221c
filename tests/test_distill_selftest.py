"""The self-test passes on a machine that computes rightly, and notices one that does not."""

import pytest

from qnode.distill import selftest
from qnode.distill.amplification.amplify import amplify
from qnode.distill.bits import Bits


def test_the_self_test_passes_here() -> None:
    selftest.self_test()


def test_a_wrong_amplification_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(key: Bits, seed: bytes, length: int) -> Bits:
        return Bits.pack(1 - right(key, seed, length).unpack())

    right = amplify
    monkeypatch.setattr(selftest, "amplify", wrong)
    with pytest.raises(selftest.SelfTestFailed, match="privacy amplification"):
        selftest.self_test()


def test_a_wrong_tag_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selftest, "verification_tag", lambda bits, seed, tag_bits: bytes(tag_bits // 8))
    with pytest.raises(selftest.SelfTestFailed, match="verification"):
        selftest.self_test()
