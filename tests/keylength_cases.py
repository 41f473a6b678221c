"""300 inputs of the estimators, random and extreme, and what they are to 50 digits.

`python tests/keylength_cases.py` works them out again and writes the file beside (about a minute); the test
compares it with the node, and works a part of it out anew.
"""

import json
import math
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from mpmath import mp, mpf
from mpmath_keylength import Refused, reference

from qnode.bench.count_sets import count_set

FILE = Path(__file__).parent / "keylength_cases.json"
SEED = 41
RANDOM, EXTREME, IMPOSSIBLE = 170, 90, 40
ESTIMATORS = ("rusca2018", "eur", "wiesemann2024")
DIGITS = 25


def inputs_of_case(index: int) -> tuple[str, dict[str, Any]]:
    """Return estimator and inputs of one of the cases."""
    rng = np.random.default_rng((SEED, index))
    estimator = ESTIMATORS[index % 3]
    inputs: dict[str, Any] = msgspec.to_builtins(count_set(SEED, index).inputs)
    inputs["statistics"] = str(rng.choice(["exact", "exact", "hoeffding"]))
    if estimator == "wiesemann2024" and index % 30:
        inputs["vacuum_rule"] = "min"
    if rng.random() < 0.3:
        inputs["error_positions_public"] = True
    if index < RANDOM:
        return estimator, inputs
    return estimator, (extreme if index < RANDOM + EXTREME else _impossible)(rng, inputs)


def extreme(rng: np.random.Generator, inputs: dict[str, Any]) -> dict[str, Any]:
    """Return the inputs changed to one of the extremes."""
    inputs = inputs | {"mu_uncertainty": [0.0, 0.0]}
    match int(rng.integers(14)):
        case 0:
            return inputs | {"m_z": [0.0, 0.0], "m_x": [0.0, 0.0]}
        case 1:
            return inputs | {"n_z": [inputs["n_z"][0], 0.0], "m_z": [0.0, 0.0]}
        case 2:
            return inputs | {"n_x": [0.0, 0.0], "m_x": [0.0, 0.0]}
        case 3:
            return inputs | {"eps_sec": 10 ** -rng.uniform(60, 100), "eps_cor": 1e-100}
        case 4:
            return inputs | {"eps_sec": 0.99, "eps_cor": 0.99, "lambda_ec": 0.0}
        case 5:
            return _grown(inputs, 10 ** rng.uniform(3, 5))
        case 6:
            return _grown(inputs, 10 ** rng.uniform(-5, -3))
        case 7:  # expectations of a plan: not integers
            return _grown(inputs, 10 ** rng.uniform(-1, 0.5), whole=False)
        case 8:
            return inputs | {"mu": [10 ** rng.uniform(-3, 1.9), 10 ** rng.uniform(-5, -3.1)]}
        case 9:
            p = 10 ** rng.uniform(-4, -1)
            return inputs | {"p": [p, 1 - p]}
        case 10:
            return inputs | {"mu_uncertainty": [float(x) for x in rng.uniform(0, 0.2, 2)]}
        case 11:  # nearly all clicks are of empty qubits
            return inputs | _dark(rng)
        case 12:  # limits one event away from the count
            m_z, m_x = ([float(n) for n in rng.integers(1, 4, 2)] for _ in range(2))
            return inputs | {"m_z": m_z, "m_x": m_x, "eps_sec": 0.9, "statistics": "exact"}
        case _:
            few = [float(n) for n in rng.integers(0, 4, 2)]
            return inputs | {"n_z_plus": few, "boundary": 0.0, "m_x": few, "n_x": [50.0, 50.0]}


def _dark(rng: np.random.Generator) -> dict[str, Any]:
    mu, p, size = (0.5, 0.2), (0.7, 0.3), 10 ** rng.uniform(6, 8)
    light = rng.uniform(0.01, 0.3)
    n_z = [math.floor(size * chance * (1 + light * mean)) for mean, chance in zip(mu, p, strict=True)]
    empty = [size * chance * math.exp(-mean) for mean, chance in zip(mu, p, strict=True)]
    m_z = [math.floor(0.5 * dark + 0.4 * (n - dark)) for n, dark in zip(n_z, empty, strict=True)]
    return {"n_z": [float(n) for n in n_z], "m_z": [float(m) for m in m_z], "mu": list(mu), "p": list(p)}


def _grown(inputs: dict[str, Any], factor: float, *, whole: bool = True) -> dict[str, Any]:
    rounded = math.floor if whole else float
    names = ("n_z", "m_z", "n_x", "m_x", "n_z_plus", "e_same", "e_plus", "e_dark")
    grown: dict[str, Any] = {
        name: [float(rounded(n * factor)) for n in inputs[name]]
        for name in names
        if inputs.get(name) is not None
    }
    if inputs.get("boundary") is not None:
        grown["boundary"] = float(rounded(inputs["boundary"] * factor))
    return inputs | grown | {"lambda_ec": inputs["lambda_ec"] * factor}


def _impossible(rng: np.random.Generator, inputs: dict[str, Any]) -> dict[str, Any]:
    pairs = [name for name in ("n_z", "m_z", "n_x", "m_x", "e_same", "n_z_plus") if inputs.get(name)]
    name = str(rng.choice(pairs))
    bad = float(rng.choice([-1.0, math.nan, math.inf, 2e15]))
    changes: list[dict[str, Any]] = [
        {name: [bad, inputs[name][1]]},
        {name: [inputs[name][0], bad]},
        {"mu": [inputs["mu"][1], inputs["mu"][0]]},
        {"mu": [float(rng.choice([0.0, -0.1, 101.0, math.nan])), inputs["mu"][1]]},
        {"p": [0.5, 0.4]},
        {"p": [1.0, 0.0]},
        {"eps_sec": float(rng.choice([0.0, 1.0, -1e-9, math.nan, 5e-324, 9e-101]))},
        {"eps_cor": float(rng.choice([0.0, 1.0, math.inf, 1e-300]))},
        {"lambda_ec": float(rng.choice([-1.0, math.nan, math.inf]))},
        {"x_scale": float(rng.choice([0.0, -1.0, math.nan, math.inf]))},
        {"mu_uncertainty": [float(rng.choice([1.0, -0.1, math.nan, 0.95])), 0.9]},
        {"m_z": [inputs["n_z"][0] + 1, 0.0]},
        {"verification_bits": -1},
        {"p_z": float(rng.choice([0.0, 1.0, math.nan]))},
        {"p_z": None, "x_mode": "visibility + asymmetry"},
        {"e_plus": None, "e_same": [1.0, 1.0]},
        {"boundary": bad},
        {"n_z_plus": None, "x_mode": "visibility + asymmetry", "asymmetry_bound": "shares"},
    ]
    return inputs | changes[int(rng.integers(len(changes)))]


def worked_out(estimator: str, inputs: dict[str, Any]) -> dict[str, Any]:
    """Return what the reference says: every bound as text, or the fields that are refused."""
    try:
        found = reference(inputs, estimator)
    except Refused as refused:
        return {"refused": sorted(refused.fields)}
    return {name: _text(value) for name, value in found.items()}


def _text(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _text(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_text(one) for one in value]
    return mp.nstr(value, DIGITS) if isinstance(value, mpf) else value


def main() -> None:
    cases = []
    for index in range(RANDOM + EXTREME + IMPOSSIBLE):
        estimator, inputs = inputs_of_case(index)
        cases.append({"estimator": estimator, "inputs": inputs, "expected": worked_out(estimator, inputs)})
        print(f"{index + 1} cases", end="\r", file=sys.stderr)
    lines = ",\n".join(json.dumps(case) for case in cases)
    FILE.write_text(f"[\n{lines}\n]\n")


if __name__ == "__main__":
    main()
