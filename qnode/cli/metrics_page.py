"""The page of `qnode report metrics`: all metrics, alarms and reasons, from the program itself."""

import builtins
import types
import typing
from collections.abc import Iterable
from typing import Any, Final

import msgspec
from msgspec import Struct
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from qnode.block.outcome import Reason
from qnode.choices import ConnectionState, DeviceState, LockState, NodeState, Word
from qnode.loopback.markdown import table
from qnode.operate.status.alarms import AlarmName
from qnode.operate.status.metrics import render_metrics
from qnode.operate.status.model import NodeStatus

_HOW: Final = """\
Prometheus reads the metrics at the address `metrics_listen` of the table `[operate]`. Times are seconds,
amounts of key are bytes, ratios are fractions. A counter begins at zero when the daemon starts, unless its
text says otherwise. The node omits an unknown figure."""
_STATES: Final = """\
`qnodectl status` and its JSON show these states, each with its start time."""
_ALARMS: Final = """\
`qnodectl status` shows the alarms, and `qkd_troubles` counts them. The log has `alarm.raised` and
`alarm.cleared`. [Operations](operations.md#symptoms) lists the remedies."""
_REASONS: Final = """\
A reason is the label of `qkd_blocks_discarded_total`, the outcome in `qnodectl blocks`, and a field of the
event `block.discarded`. It is one of these words, or the name of a [plausibility check](plausibility.md) or
of a [monitor](monitors.md)."""


def metrics_page(command: str) -> str:
    """Return the page in Markdown; ``command`` made it."""
    families = text_string_to_metric_families(render_metrics(_filled(NodeStatus)).decode())
    return (
        "\n\n".join(
            [
                "# Metrics, alarms and reasons",
                f"Made by `{command}` from the program. Do not edit.",
                _HOW,
                table(
                    ["metric", "type", "labels", "meaning"], [_row(one) for one in families], words=range(4)
                ),
                "## States",
                _STATES,
                table(["of", "state", "meaning"], _states(), words=range(3)),
                "## Alarms",
                _ALARMS,
                _words("alarm", AlarmName),
                "## Why a block was discarded",
                _REASONS,
                _words("reason", Reason),
            ]
        )
        + "\n"
    )


def _row(family: Metric) -> list[str]:
    labels = dict.fromkeys(label for sample in family.samples for label in sample.labels)
    name = family.samples[0].name  # the name of a counter ends with _total
    return [f"`{name}`", family.type, ", ".join(f"`{label}`" for label in labels), family.documentation]


def _states() -> list[list[str]]:
    found: list[list[str]] = []
    for what, states in (
        ("the node", NodeState),
        ("the session with the other site", ConnectionState),
        ("the quantum channel", LockState),
        ("a device", DeviceState),
    ):
        found += [[what, f"`{state}`", state.meaning] for state in states]
    return found


def _words(title: str, words: Iterable[Word]) -> str:
    return table([title, "meaning"], [[f"`{word}`", word.meaning] for word in words], words=range(2))


def _filled(kind: Any) -> Any:
    """Return a value of ``kind`` without an omission, so that every figure is known."""
    inner = typing.get_args(kind)
    match typing.get_origin(kind):
        case typing.Annotated:
            return _filled(inner[0])
        case typing.Literal:
            return inner[0]
        case typing.Union | types.UnionType:
            return _filled(next(one for one in inner if one is not types.NoneType))
        case builtins.list:
            return [_filled(inner[0])]
        case builtins.tuple:
            return (_filled(inner[0]),)
        case builtins.dict:
            return {_filled(inner[0]): _filled(inner[1])}
    if issubclass(kind, Struct):
        return kind(**{field.name: _filled(field.type) for field in msgspec.structs.fields(kind)})
    return kind(1)
