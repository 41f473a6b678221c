"""``qnode keylength``: the key length of one block from its counts in a JSON file."""

import difflib
import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import click
import msgspec

from qnode.choices import VacuumRule, choices_of
from qnode.distill.counts import Pair
from qnode.distill.keylength import (
    DEFAULT_ESTIMATOR,
    ESTIMATORS,
    EstimatorInput,
    KeyLength,
    estimate,
)
from qnode.errors import FieldError

EXIT_REFUSED: Final = 64

# The literature writes the rules in several ways; each of these means one of ours.
_VACUUM_RULES: Final[Mapping[str, VacuumRule]] = {
    **{rule: rule for rule in choices_of(VacuumRule)},
    "1": "k1",
    "2": "k2",
    "form-a": "form_a",
    "a": "form_a",
}


@click.command()
@click.argument("file", metavar="FILE.json")
@click.option(
    "--estimator", metavar="NAME", default=DEFAULT_ESTIMATOR, help=f"One of {', '.join(ESTIMATORS)}."
)
@click.option(
    "--vacuum-rule",
    metavar="RULE",
    help="Bound on detections of vacuum pulses: min, k1, k2, form_a, min3, max3.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def keylength(
    context: click.Context, file: str, estimator: str, vacuum_rule: str | None, as_json: bool
) -> None:
    """Compute the secret key length of one block from the counts in FILE.json (- for standard input)."""
    try:
        result = _estimate_file(file, estimator, vacuum_rule)
    except FieldError as refused:
        if as_json:
            click.echo(msgspec.json.encode({"error": {"field": refused.field, "message": refused.message}}))
        else:
            click.echo(f"qnode keylength: {refused}", err=True)
        context.exit(EXIT_REFUSED)
    click.echo(_as_json(result) if as_json else _report(result))


def _as_json(result: KeyLength) -> bytes:
    texts = list(result.assumptions.values())
    return msgspec.json.encode({**msgspec.structs.asdict(result), "assumptions": texts})


def _estimate_file(file: str, estimator: str, vacuum_rule: str | None) -> KeyLength:
    if estimator not in ESTIMATORS:
        raise FieldError("estimator", f"unknown: {estimator!r}{_did_you_mean(estimator, ESTIMATORS)}")
    inputs = parse_inputs(_read(file))
    if vacuum_rule is not None:
        inputs = msgspec.structs.replace(inputs, vacuum_rule=_vacuum_rule(vacuum_rule))
    return estimate(inputs, estimator)


def _vacuum_rule(name: str) -> VacuumRule:
    rule = _VACUUM_RULES.get(name.lower())
    if rule is None:
        raise FieldError("vacuum_rule", f"unknown: {name!r}{_did_you_mean(name, _VACUUM_RULES)}")
    return rule


def _read(file: str) -> bytes:
    try:
        return sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
    except OSError as failed:
        raise FieldError("file", f"cannot read {file}: {failed.strerror}") from failed


def parse_inputs(data: bytes) -> EstimatorInput:
    """Return the inputs in a JSON object.

    Raises:
        FieldError: not a JSON object, a key unknown or missing, a value of the wrong type or impossible.
    """
    try:
        values = json.loads(data)  # accepts NaN and Infinity, so that the refusal can name their field
    except (ValueError, RecursionError) as failed:
        raise FieldError("file", f"not JSON: {failed}") from failed
    if not isinstance(values, dict):
        raise FieldError("file", "expected a JSON object")
    fields = {field.name: field for field in msgspec.structs.fields(EstimatorInput)}
    for name in values:
        if name not in fields:
            raise FieldError(name, f"unknown key{_did_you_mean(name, fields)}")
    for name, field in fields.items():
        if field.required and name not in values:
            raise FieldError(name, "missing")
    return EstimatorInput(
        **{name: _convert(name, fields[name].type, value) for name, value in values.items()}
    )


def _convert(name: str, kind: Any, value: Any) -> Any:
    # An array-like struct accepts a longer list, so the length of a pair is checked here.
    if isinstance(value, list) and len(value) != len(msgspec.structs.fields(Pair)):
        raise FieldError(name, f"expected a pair of numbers, got {len(value)}")
    if name == "vacuum_rule" and isinstance(value, str):
        return _vacuum_rule(value)
    if name == "asymmetry_bound" and value == "reference":
        raise FieldError(name, '"reference" is no longer offered, as its epsilon does not hold; use "shares"')
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as failed:
        raise FieldError(name, str(failed)) from failed


def _did_you_mean(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f", did you mean {close[0]!r}?" if close else f"; known are {', '.join(known)}"


def _report(result: KeyLength) -> str:
    rows = {
        "length": f"{result.length} bits ({result.length_unfloored:.4f} before rounding down)",
        "estimator": f"{result.estimator}, X mode {result.x_mode}",
        "intensities": f"{result.mu.signal:.6g} and {result.mu.decoy:.6g}, the worst that calibration allows",
        "Z empty": f"{result.s_z0_lower:.3f} to {result.s_z0_upper:.3f}",
        "Z one photon": f"at least {result.s_z1_lower:.3f}",
        "X empty": f"at most {result.s_x0_upper:.3f}",
        "X one photon": f"at least {result.s_x1_lower:.3f}, errors at most {result.v_x1_upper:.3f}",
        "phase error": f"at most {result.phi_z_upper:.10f} "
        f"(without asymmetry {result.phi_visibility_upper:.10f})",
        "subtracted": f"{result.lambda_ec_bits:.0f} disclosed, {result.verification_bits:.2f} for "
        f"verification, {result.overhead_bits:.2f} for smoothing and amplification",
    }
    if (terms := result.asymmetry) is not None:
        rows["asymmetry"] = f"{_number(terms.asymmetry)}, at most {_number(terms.asymmetry_upper)} (joint)"
    if (shares := result.shares) is not None:
        rows["by shares"] = f"{_number(shares.asymmetry)}, at most {shares.asymmetry_upper:.6f} (shares)"
    rows["charged"] = result.asymmetry_bound or "no asymmetry"
    lines = [f"{name:<14}{text}" for name, text in rows.items()]
    lines += ["epsilons", *(f"  {name:<30}{value:.6g}" for name, value in result.epsilons.items())]
    lines += ["assumptions", *(f"  {sentence}" for sentence in result.assumptions.values())]
    return "\n".join(lines)


def _number(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.6f}"
