"""The page `docs/drift.md`: a link over days of drift, with its controllers and without them."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qnode.bench.drifting_link import (
    BIAS_WALK_RAD_PER_ROOT_S,
    CUT_S,
    DRIFT,
    HALF_WAVE_V,
    STEP_S,
    Course,
    course,
    hourly,
)
from qnode.config import LinkParameters
from qnode.loopback.markdown import made_by
from qnode.plan.figure import save_figure
from qnode.simulate.parameters import SimulationParameters

Run = tuple[str, Course]

# Each point of the picture is the mean over this time.
POINT_HOURS = 0.5
_SIZE_INCHES = (9.0, 7.5)

_TEXT = """# A link that drifts

{made}

A link of `{config}` over {hours:g} simulated hours, through the analytic model of the link
(`qnode/bench/drifting_link.py`). Every ten seconds it gives the rates at the present drifts and settings,
and chance draws the counts. The controllers are those of the node ([calibration](calibration.md)), and the
node's own rules decide the blocks. Time tags, the clock and the session are not part of it.
`tests/test_node_calibration.py` holds the phase through the real receiver, from simulated time tags.
[Clocks and fibre](clock.md) shows that the node follows a delay of 10 ns an hour.

The drifts:

- interferometer: a turn in {turn_min:g} minutes, and {steps:g} steps of {step:g} rad an hour;
- bias of the modulator: {bias_v:g} V peak to peak a day, and a random walk of {walk_mv:g} mV an hour, at a
  half-wave voltage of {half_wave:g} V;
- laser: ±{laser:g} % a day; loss of the X arm by polarisation: ±{x_db:g} dB a day;
- delay of the fibre: 10 ns an hour, with a daily period (the node follows it; this model does not have it).

| run | QBER_Z | e_vis | blocks with key | secret bit/s | error of the phase (rms) |
|---|---|---|---|---|---|
{rows}

QBER_Z with drifts and controllers is {difference:.3f} points above that without drifts. The drifts and the
controllers cost {cost:.0f} % of the key: the dither of the phase raises e_vis, and {cut:.1f} % of the time is
cut for its steps.

The key length is that of the file's `mu_uncertainty`, and no block is discarded for its intensities. With
the controllers off these are wrong by up to 5 %, so the key of that run is more than a node that measures
its power would give.

![QBER_Z, e_vis and key rate over time]({figure})
"""


RUNS = (
    ("without drifts", False, False),
    ("drifts, controllers on", True, True),
    ("drifts, controllers off", True, False),
)


def drift_runs(link: LinkParameters, simulation: SimulationParameters, hours: float) -> list[Run]:
    """Run the link without drifts, with drifts and controllers, and with drifts alone."""
    return [
        (name, course(link, simulation, hours=hours, drifts=drifts, controlled=controlled))
        for name, drifts, controlled in RUNS
    ]


def drift_page(config: str, command: str, hours: float, runs: Sequence[Run], figure: Path) -> str:
    """Return the page on the runs of `drift_runs`."""
    (_, still), (_, held), _ = runs
    return _TEXT.format(
        made=made_by(command),
        config=config,
        hours=hours,
        turn_min=DRIFT.interferometer_turn_s / 60.0,
        steps=DRIFT.interferometer_steps_per_hour,
        step=DRIFT.interferometer_step_rad,
        bias_v=round(2.0 * DRIFT.modulator_daily_rad * HALF_WAVE_V / math.pi, 6),
        walk_mv=round(BIAS_WALK_RAD_PER_ROOT_S * HALF_WAVE_V / math.pi * 60.0 * 1e3, 6),
        half_wave=HALF_WAVE_V,
        laser=100.0 * DRIFT.laser_daily,
        x_db=DRIFT.x_arm_daily_db,
        rows="\n".join(_row(name, run) for name, run in runs),
        difference=100.0 * (held.qber_z - still.qber_z),
        cost=100.0 * (1.0 - held.secret_bits_per_s / still.secret_bits_per_s),
        cut=100.0 * CUT_S / STEP_S,
        figure=figure.name,
    )


def _row(name: str, run: Course) -> str:
    errors = run.phase_errors_rad[len(run.phase_errors_rad) // 100 :]
    off = math.sqrt(sum(error**2 for error in errors) / len(errors))
    return (
        f"| {name} | {100.0 * run.qber_z:.3f} % | {100.0 * run.e_vis:.2f} % | {100.0 * run.accepted:.1f} % | "
        f"{run.secret_bits_per_s:.0f} | {off:.3f} rad |"
    )


def draw_drift(path: Path, runs: Sequence[Run]) -> None:
    """Draw QBER_Z, e_vis and the key rate over time.

    Raises:
        ConfigError: the figure cannot be written.
    """
    save_figure(path, _SIZE_INCHES, lambda figure: _draw(figure, runs))


def _draw(figure: Any, runs: Sequence[Run]) -> None:
    panels = figure.subplots(3, 1, sharex=True)
    styles: tuple[dict[str, Any], ...] = (
        {"color": "0.6"},
        {"color": "C0"},
        {"color": "C3", "linewidth": 0.9},
    )
    for (name, run), style in zip(runs, styles, strict=True):
        hours, qber_z, e_vis, key = zip(*hourly(run, POINT_HOURS), strict=True)
        for axes, values in zip(
            panels, ([100 * q for q in qber_z], [100 * e for e in e_vis], key), strict=True
        ):
            axes.plot(hours, values, label=name, **style)
    for axes, title in zip(panels, ("QBER Z (%)", "e_vis (%)", "secret key (bit/s)"), strict=True):
        axes.set_ylabel(title)
        axes.set_ylim(bottom=0.0)
        axes.grid(visible=True, alpha=0.3)
    panels[-1].set_xlabel("time (h)")
    panels[0].legend(loc="lower right", fontsize="small")
