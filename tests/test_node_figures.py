"""The figures of a site: what is taken back when it is not so any more."""

from pathlib import Path

import pytest

from qnode.config import Role, SiteConfig, load
from qnode.node import figures as figures_module
from qnode.node.figures import LONGEST_UNANNOUNCED_S, Figures

CONFIG = Path(__file__).parent.parent / "config"


def figures_of(role: Role) -> Figures:
    return Figures(load(CONFIG / f"{role}.toml", SiteConfig), simulated=True)


def test_alice_has_lock_as_long_as_bob_announces_clicks(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 1000.0
    monkeypatch.setattr(figures_module.time, "monotonic", lambda: now_s)
    alice = figures_of("alice")

    def lock() -> str:
        alice.look_after_lock()
        return alice.status().quantum.lock.state

    assert lock() == "searching"
    alice.clicks_heard()
    alice.note_lock("locked")
    assert lock() == "locked"
    now_s += LONGEST_UNANNOUNCED_S
    assert lock() == "lost"
    assert "Bob has announced no clicks" in alice.status().quantum.lock.because
    alice.clicks_heard()
    assert lock() == "locked"
    alice.note_lock("searching", "not connected to Bob")
    now_s += LONGEST_UNANNOUNCED_S
    assert lock() == "searching"
