"""An agent's file: read as types, and refused with every error at once."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from agent_support import agent_tables, issue, written
from http_support import Pki

from qnode.agent.config import (
    AgentSection,
    KmeSection,
    LineSection,
    MetricsSection,
    RotationSection,
    check_agent,
    load_agent,
)
from qnode.agent.tunnels import KINDS, tunnel_kind
from qnode.agent.tunnels.command import CommandConfig, CommandTunnel
from qnode.agent.tunnels.file import FileConfig
from qnode.config.description import keys_of
from qnode.errors import ConfigError


@pytest.fixture
def pki(tmp_path: Path) -> Pki:
    made = Pki(tmp_path)
    for name in ("agent-a", "agent-b", "sae-a", "sae-b"):
        issue(made, name)
    return made


def test_a_file_gives_the_tunnel_of_its_kind(pki: Pki) -> None:
    config = load_agent(written(pki.folder, agent_tables(pki.folder, "initiator")))
    assert config.tunnel == CommandConfig(program=("/bin/true",))
    assert isinstance(config.make_tunnel(), CommandTunnel)
    assert config.control_socket == pki.folder / "run-a" / "control.sock"
    assert (config.rotation.period_s, config.rotation.when_too_old) == (30.0, "take_down")


def test_check_finds_nothing_wrong_in_a_good_file(pki: Pki) -> None:
    assert check_agent(written(pki.folder, agent_tables(pki.folder, "responder"))).faults == []


CHANGES: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "a wrong word": (
        lambda t: t["agent"].update(role="master"),
        "[agent] role: expected initiator or responder",
    ),
    "an unknown key": (
        lambda t: t["rotation"].update(perod_s=1),
        "[rotation] unknown key perod_s, did you mean period_s?",
    ),
    "no kind": (lambda t: t["tunnel"].pop("kind"), "[tunnel] kind: is missing; expected wireguard or"),
    "an unknown kind": (lambda t: t["tunnel"].update(kind="wiregard"), "did you mean wireguard?"),
    "a key of another kind": (lambda t: t["tunnel"].update(path="x"), "[tunnel] unknown key path"),
    "a wrong value of the kind": (
        lambda t: t["tunnel"].update(timeout_s=0),
        "timeout_s: expected a value from 0.1 to 60",
    ),
    "http": (lambda t: t["kme"].update(url="http://kme:8443"), "kme.url: expected https://host:port"),
    "a path": (lambda t: t["kme"].update(url="https://kme/api"), "kme.url: expected https://host:port"),
    "itself": (
        lambda t: t["kme"].update(peer_sae_id="sae-a"),
        "kme.peer_sae_id: 'sae-a' is this encryptor's own",
    ),
    "two ends of the line": (lambda t: t["line"].update(connect="b:1"), "line: expected listen at one agent"),
    "a bad address": (lambda t: t["line"].update(listen="here"), "line.listen: expected host:port"),
    "a period of nothing": (
        lambda t: t["rotation"].update(period_s=0.0),
        "rotation.period_s: expected 1 to 86400",
    ),
    "an age below the period": (
        lambda t: t["rotation"].update(longest_s=31.0),
        "rotation.longest_s: expected at least",
    ),
    "no certificate": (lambda t: t["kme"].update(certificate="absent.pem"), "absent.pem: cannot be read"),
    "another's certificate": (
        lambda t: t["line"].update(certificate=t["kme"]["certificate"], key=t["kme"]["key"]),
        "names sae-a, but the other agent expects agent-a",
    ),
}


@pytest.mark.parametrize("case", CHANGES)
def test_a_wrong_file_is_refused_with_place_and_remedy(pki: Pki, case: str) -> None:
    change, expected = CHANGES[case]
    tables = {**agent_tables(pki.folder, "initiator"), "rotation": {}}
    change(tables)
    found = check_agent(written(pki.folder, tables)).faults
    assert len(found) == 1, found
    assert expected in found[0]


def test_all_errors_are_told_at_once(pki: Pki) -> None:
    tables = agent_tables(pki.folder, "initiator")
    del tables["agent"]["name"]
    tables["kme"]["url"] = "kme"
    tables["line"]["key"] = "absent.key"
    tables["tunnel"]["programs"] = []
    faults = "\n".join(check_agent(written(pki.folder, tables)).faults)
    for part in ("[agent] name: is missing", "kme.url", "absent.key", "unknown key programs"):
        assert part in faults


def test_a_key_that_others_can_read_is_a_fault(pki: Pki) -> None:
    (pki.folder / "sae-a.key").chmod(0o644)
    (fault,) = check_agent(written(pki.folder, agent_tables(pki.folder, "initiator"))).faults
    assert "can be read by others; run chmod 600" in fault


def test_the_first_error_ends_a_start(pki: Pki) -> None:
    tables = agent_tables(pki.folder, "initiator")
    tables["line"]["listen"] = "nowhere"
    with pytest.raises(ConfigError, match=r"agent\.toml: line\.listen: expected host:port"):
        load_agent(written(pki.folder, tables))


@pytest.mark.parametrize("name", KINDS)
def test_every_key_of_a_kind_of_tunnel_has_its_meaning_beside_it(name: str) -> None:
    assert all(key.described.meaning for key in keys_of(tunnel_kind(name).Config))


def test_the_page_about_the_agent_names_every_key_of_its_file() -> None:
    page = (Path(__file__).parent.parent / "docs" / "agent.md").read_text()
    tables = (
        AgentSection,
        KmeSection,
        LineSection,
        RotationSection,
        MetricsSection,
        CommandConfig,
        FileConfig,
    )
    for table in tables:
        for key in keys_of(table):
            assert f"`{key.name}`" in page, (table.__name__, key.name)
            assert key.described.meaning, (table.__name__, key.name)
    for kind in KINDS:
        assert f"`{kind}`" in page
