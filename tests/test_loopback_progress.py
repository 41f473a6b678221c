"""What a person sees of the running link: rates, blocks, and why there is no key."""

from rich.console import Console

from qnode.loopback.encryptors import Comparison
from qnode.loopback.progress import progress_line, progress_view
from qnode.loopback.result import Ledger
from qnode.operate.status.model import (
    BlockStatus,
    Discard,
    NodeStatus,
    PeerStatus,
    QuantumStatus,
    SiteStatus,
    State,
    Totals,
)


def bob(**block: object) -> NodeStatus:
    connected = State("connected", 0.0)
    return NodeStatus(
        at=10.0,
        version="0",
        site=SiteStatus(role="bob", kme_id="kme-bob", link="turin"),
        simulated=True,
        state=State("running", 0.0),
        peer=PeerStatus(kme_id="kme-alice", connection=connected),
        quantum=QuantumStatus(lock=State("locked", 0.0), click_rates_hz={"z": 15_200.0, "x": 14_800.0}),
        block=BlockStatus(**block),  # type: ignore[arg-type]
        totals=Totals(error_bits=15, measured_bits=1000),
    )


def shown(status: NodeStatus) -> str:
    ledger = Ledger(0.5)
    ledger.see(status)
    console = Console(width=120)
    with console.capture() as capture:
        console.print(progress_view(ledger.result("link", Comparison(), 1.0), status))
    return capture.get()


def test_the_view_says_that_keys_are_simulated_and_how_far_the_block_is() -> None:
    text = shown(bob(current=3, filled=0.5))
    assert "these keys protect nothing" in text
    assert "#3" in text
    assert "QBER Z 1.50 %" in text
    assert "clicks Z 15200/s" in text


def test_the_view_says_why_there_is_no_key() -> None:
    lost = Discard(block_id=2, at=5.0, reason="key_length", detail="0 secret bits")
    assert "block 2 was discarded (key_length)" in shown(bob(last_discard=lost, discarded={"key_length": 1}))


def test_the_line_for_logs_counts_blocks_and_keys() -> None:
    status = bob(current=3, filled=0.5, accepted=2)
    ledger = Ledger(0.5)
    ledger.see(status)
    line = progress_line(ledger.result("link", Comparison(compared=7), 1.0), status)
    assert "block 3 50%, accepted 2" in line
    assert "keys 7 compared, 0 different" in line
