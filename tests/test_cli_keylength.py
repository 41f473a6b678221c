"""``qnode keylength``: outputs, refusals and exit codes as promised outside."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from qnode.cli.keylength import keylength

EXAMPLE: dict[str, Any] = {
    "n_z": [8875913, 1124087],
    "m_z": [185856, 26055],
    "n_x": [165048, 20902],
    "m_x": [3456, 484],
    "mu": [0.51, 0.15],
    "p": [0.7, 0.3],
    "eps_sec": 1e-9,
    "eps_cor": 1e-15,
    "lambda_ec": 1776924,
}
PROMISED = {
    "length",
    "s_z0_lower",
    "s_z0_upper",
    "s_z1_lower",
    "s_x0_upper",
    "s_x1_lower",
    "v_x1_upper",
    "phi_z_upper",
    "estimator",
    "epsilons",
    "assumptions",
}


def run(content: object, *options: str) -> Result:
    text = content if isinstance(content, str) else json.dumps(content)
    return CliRunner().invoke(keylength, ["-", *options], input=text)


@pytest.mark.parametrize("rule", ["k2", "2", "K2"])
def test_worked_example_comes_out_of_a_file(tmp_path: Path, rule: str) -> None:
    file = tmp_path / "block.json"
    file.write_text(json.dumps(EXAMPLE))
    result = CliRunner().invoke(
        keylength, [str(file), "--estimator", "rusca2018", "--vacuum-rule", rule, "--json"]
    )
    assert result.exit_code == 0
    answer = json.loads(result.stdout)
    assert set(answer) >= PROMISED
    assert answer["length"] == 1464719
    assert answer["estimator"] == "rusca2018"
    assert answer["epsilons"]["eps_sec"] == 1e-9
    assert result.stderr == ""


def test_defaults_are_the_recommended_ones() -> None:
    answer = json.loads(run({k: v for k, v in EXAMPLE.items() if not k.startswith("eps")}, "--json").stdout)
    assert answer["estimator"] == "eur"
    assert (answer["epsilons"]["eps_sec"], answer["epsilons"]["eps_cor"]) == (1e-10, 1e-15)
    assert answer["x_mode"] == "visibility"
    assert answer["asymmetry"] is None
    counts = {"p_z": 0.5, "e_same": [40000, 5000], "e_plus": [40000, 5000], "e_dark": [300, 40], "x_scale": 2}
    answer = json.loads(run(EXAMPLE | counts, "--json").stdout)
    assert answer["x_mode"] == "visibility + asymmetry"
    assert answer["epsilons"]["events"] == 15


def test_uncertain_intensities_are_read_and_the_worst_ones_named() -> None:
    plain = json.loads(run(EXAMPLE, "--json").stdout)
    answer = json.loads(run(EXAMPLE | {"mu_uncertainty": [0.02, 0.01]}, "--json").stdout)
    assert plain["mu"] == [0.51, 0.15]
    assert answer["mu"] == pytest.approx([0.51 * 0.98, 0.15 * 1.01])
    assert answer["length"] < plain["length"]
    assert "0.4998 and 0.1515" in run(EXAMPLE | {"mu_uncertainty": [0.02, 0.01]}).stdout


def test_report_for_people_names_estimator_length_and_assumptions() -> None:
    result = run(EXAMPLE, "--estimator", "wiesemann2024")
    assert result.exit_code == 0
    assert "wiesemann2024" in result.stdout
    assert "assumptions" in result.stdout
    assert "independent dead time" in result.stdout


def test_length_zero_is_an_answer_not_a_refusal() -> None:
    result = run(EXAMPLE | {"lambda_ec": 10**9}, "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["length"] == 0


@pytest.mark.parametrize(
    ("field", "content"),
    [
        ("n_zz", EXAMPLE | {"n_zz": [1, 2]}),
        ("m_z", EXAMPLE | {"m_z": [9000000, 0]}),
        ("mu", EXAMPLE | {"mu": [0.15, 0.51]}),
        ("mu", EXAMPLE | {"mu": [0.51, 0.15, 0.01]}),
        ("mu", EXAMPLE | {"mu": 0.51}),
        ("mu", EXAMPLE | {"mu": [0.51, "0.15"]}),
        ("mu", EXAMPLE | {"mu": [0.51, float("nan")]}),
        ("n_x", EXAMPLE | {"n_x": [float("inf"), 1]}),
        ("n_x", EXAMPLE | {"n_x": [10**400, 1]}),
        ("n_x", EXAMPLE | {"n_x": None}),
        ("mu_uncertainty", EXAMPLE | {"mu_uncertainty": [0.9, 0.9]}),
        ("mu_uncertainty", EXAMPLE | {"mu_uncertainty": 0.02}),
        ("p", EXAMPLE | {"p": [0.7, 0.4]}),
        ("eps_sec", EXAMPLE | {"eps_sec": 1}),
        ("eps_cor", EXAMPLE | {"eps_cor": 0}),
        ("eps_sec", EXAMPLE | {"eps_sec": 5e-324}),
        ("s_z0_lower", EXAMPLE | {"n_z": [0, 1_000_000], "m_z": [0, 15_000]}),
        ("n_z_plus", EXAMPLE | {"p_z": 0.5, "boundary": 700_000, "x_scale": 2}),
        ("boundary", EXAMPLE | {"p_z": 0.5, "n_z_plus": [800_000, 100_000], "x_scale": 2}),
        ("e_same", EXAMPLE | {"asymmetry_bound": "joint"}),
        ("lambda_ec", EXAMPLE | {"lambda_ec": True}),
        ("statistics", EXAMPLE | {"statistics": "exakt"}),
        ("x_mode", EXAMPLE | {"x_mode": "full"}),
        ("p_z", EXAMPLE | {"x_mode": "visibility + asymmetry"}),
        ("vacuum_rule", EXAMPLE | {"vacuum_rule": "k3"}),
        ("m_x", {k: v for k, v in EXAMPLE.items() if k != "m_x"}),
        ("file", [1, 2]),
        ("file", "{"),
        ("file", "[" * 100_000),
    ],
)
def test_refusal_is_exit_64_with_field_and_message(field: str, content: object) -> None:
    result = run(content, "--json")
    assert result.exit_code == 64
    error = json.loads(result.stdout)["error"]
    assert error["field"] == field
    assert error["message"]
    spoken = run(content)
    assert spoken.exit_code == 64
    assert spoken.stdout == ""
    assert spoken.stderr.startswith(f"qnode keylength: {field}: ")


def test_misspelt_names_are_answered_with_the_right_ones() -> None:
    unknown_key = run(EXAMPLE | {"lamda_ec": 1}, "--json")
    assert "did you mean 'lambda_ec'?" in json.loads(unknown_key.stdout)["error"]["message"]
    estimator = run(EXAMPLE, "--estimator", "rusca", "--json")
    assert (estimator.exit_code, json.loads(estimator.stdout)["error"]["field"]) == (64, "estimator")
    assert "rusca2018" in estimator.stdout
    rule = run(EXAMPLE, "--vacuum-rule", "max", "--json")
    assert (rule.exit_code, json.loads(rule.stdout)["error"]["field"]) == (64, "vacuum_rule")


def test_missing_file_is_refused(tmp_path: Path) -> None:
    result = CliRunner().invoke(keylength, [str(tmp_path / "none.json"), "--json"])
    assert result.exit_code == 64
    assert json.loads(result.stdout)["error"]["field"] == "file"
