"""What an agent says of itself, for people and for Prometheus."""

from agent_support import agent_status
from prometheus_client.parser import text_string_to_metric_families

from qnode.agent.status import LineStatus, StateStatus, render_agent_metrics, status_lines


def test_one_screen_says_state_key_tunnel_changes_line_and_key_manager() -> None:
    assert status_lines(agent_status()) == [
        "agent-a   READY for 10 min   initiator, command   qnode 0.2.0",
        "  key       key-1, in use for 10 s",
        "  tunnel    the program says key-1",
        "  changes   20 done, 1 failed   next due in 20 s, every 30 s   12 keys stored",
        "  line      to agent-b, up for 12 min",
        "  kme       https://kme:8443",
    ]


def test_a_state_that_is_not_well_says_since_when_and_why() -> None:
    lines = status_lines(
        agent_status(
            key=None,
            state=StateStatus(state="starved", since=999.0, because="no key is in use"),
            line=LineStatus(peer="agent-b", up_since=None, trouble="does not answer", peer_trouble=""),
            next_change_at=990.0,
        )
    )
    assert lines[0].startswith("agent-a   STARVED for 1 s")
    assert lines[1:3] == ["  because   no key is in use", "  key       none"]
    assert "next due for 10 s" in lines[3]
    assert lines[4] == "  line      to agent-b: down: does not answer"


def test_names_and_texts_of_the_metrics_follow_the_conventions() -> None:
    page = render_agent_metrics(agent_status()).decode()
    families = {family.name: family for family in text_string_to_metric_families(page)}
    for family in families.values():
        assert family.documentation.endswith((".", "1."))
        assert family.name.startswith(("qkd_agent_", "qkd_tls_"))
    states = {sample.labels["state"]: sample.value for sample in families["qkd_agent_state"].samples}
    assert states == {"ready": 1.0, "holding": 0.0, "starved": 0.0}
    differed = {
        sample.labels.get("le", sample.name): sample.value
        for sample in families["qkd_agent_ends_differ_seconds"].samples
    }
    assert (differed["0.03"], differed["+Inf"], differed["qkd_agent_ends_differ_seconds_sum"]) == (
        19,
        20,
        0.5,
    )
