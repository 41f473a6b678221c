"""The Grafana board and the alert rules: figures that exist, the right form, tests of each alert."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from agent_support import agent_status
from msgspec.structs import replace
from operate_support import well_status

from qnode.agent.status import render_agent_metrics
from qnode.operate.status.metrics import render_metrics

TOP = Path(__file__).parent.parent
RULES = (TOP / "config" / "prometheus-rules.yml").read_text()
BOARD: dict[str, Any] = json.loads((TOP / "config" / "grafana-qnode.json").read_text())
PANELS: list[dict[str, Any]] = BOARD["panels"]
ALERTS = re.findall(r"- alert: (\w+)", RULES)
_NAME = re.compile(r"\bqkd_[a-z0-9_]+")


def exported() -> dict[str, set[str]]:
    """Return every metric of a node or an agent, with its labels."""
    found = {}
    page = (TOP / "docs" / "metrics.md").read_text()  # made from the program, which a test compares
    for name, labels in re.findall(r"^\| `(qkd_\w+)` \| \w+ \| (.*?) \|", page, re.MULTILINE):
        found[name] = set(re.findall(r"`(\w+)`", labels))
    for name, labels in re.findall(
        r"^(qkd_\w+)(?:\{(.*)\})? ", render_agent_metrics(agent_status()).decode(), re.M
    ):
        found.setdefault(name, set()).update(re.findall(r'(\w+)="', labels))
    return found


def queries() -> list[str]:
    return [target["expr"] for panel in PANELS for target in panel.get("targets", [])]


def test_every_figure_of_the_board_and_of_the_rules_is_exported() -> None:
    names = exported()
    used = {name for text in (RULES, *queries()) for name in _NAME.findall(text)}
    assert len(used) > 30
    assert used - set(names) == set()


def test_every_label_of_a_selector_or_a_legend_exists() -> None:
    names = exported()
    of_scrapes = {"job", "instance"}
    for panel in PANELS:
        for target in panel.get("targets", []):
            for name, selector in re.findall(r"\b(qkd_\w+)\{([^}]*)\}", target["expr"]):
                selected = set(re.findall(r"(\w+)=", selector))
                shown = set(re.findall(r"\{\{(\w+)\}\}", target.get("legendFormat", "")))
                assert (selected | shown) - of_scrapes <= names[name], target["expr"]
    for name, selector in re.findall(r"\b(qkd_\w+)\{([^}]*)\}", RULES):
        assert set(re.findall(r"(\w+)[=!]", selector)) - of_scrapes <= names[name], name


def test_the_board_has_the_fields_that_grafana_demands() -> None:
    # The required fields of Grafana's dashboard schema (kinds/dashboard), and what it takes for granted.
    assert {"schemaVersion", "title", "uid", "editable", "panels", "templating", "time"} <= set(BOARD)
    assert len(BOARD["uid"]) <= 40
    assert len({panel["id"] for panel in PANELS}) == len(PANELS)
    variables = {one["name"] for one in BOARD["templating"]["list"]}
    assert all({"name", "type"} <= set(one) for one in BOARD["templating"]["list"])
    taken: set[tuple[int, int]] = set()
    for panel in PANELS:
        assert {"id", "type", "title", "gridPos"} <= set(panel)
        place = panel["gridPos"]
        assert set(place) == {"h", "w", "x", "y"}
        assert place["x"] + place["w"] <= 24
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken, panel["title"]
        taken |= cells
        if panel["type"] == "row":
            continue
        assert panel["type"] in ("timeseries", "stat", "table")
        assert {"defaults", "overrides"} <= set(panel["fieldConfig"])
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        assert panel["description"]
        ids = [target["refId"] for target in panel["targets"]]
        assert len(set(ids)) == len(ids) > 0
        for target in panel["targets"]:
            assert set(re.findall(r"\$(\w+)", target["expr"])) <= variables


def test_the_board_shows_what_an_operator_looks_for() -> None:
    rows = [panel["title"] for panel in PANELS if panel["type"] == "row"]
    assert rows == ["Links", "Rates", "QBER", "Keys", "Devices", "Alarms", "Agents beside encryptors"]


def test_a_high_error_rate_is_an_alert_also_when_no_block_gives_key() -> None:
    expression = re.search(r"alert: QkdQberHigh\n(?:.*#.*\n)? *expr: (\w+) > 0.05\n", RULES)
    assert expression is not None
    status = well_status()
    quantum, block = replace(status.quantum, qber_z=0.12), replace(status.block, last=None)
    page = render_metrics(replace(status, quantum=quantum, block=block)).decode()
    assert re.search(rf"^{expression[1]}\{{.*\}} 0.12$", page, re.MULTILINE)


@pytest.mark.parametrize("alert", ALERTS)
def test_each_alert_has_a_test_that_it_fires_and_one_that_it_is_quiet_and_its_fault_in_the_docs(
    alert: str,
) -> None:
    tests = (TOP / "tests" / "prometheus-rules_test.yml").read_text()
    assert f"- name: {alert} fires\n" in tests
    assert f"- name: {alert} is quiet\n" in tests
    assert re.search(rf"^\| `{alert}` \|", (TOP / "docs" / "telemetry.md").read_text(), re.MULTILINE)
