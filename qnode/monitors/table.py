"""The monitors over readings of devices by name: part of public records of discarded blocks.

`qnode.monitors.readings` and `qnode.monitors.random_health` have the functions themselves.
"""

from typing import Final

from msgspec import Struct

_INTERVAL: Final = "`least` to `most`, and noise"
_BY_NOISE: Final = "an equal part of `false_alarms_per_year`"


class Monitor(Struct, frozen=True):
    """One monitor. ``low`` and ``high``: the attack or fault behind a value below or above its limits.

    ``limit`` and ``false_alarm`` say in words how both follow from the site's file.
    """

    name: str
    what: str
    low: str
    high: str
    limit: str
    false_alarm: str


MONITORS: Final[tuple[Monitor, ...]] = (
    Monitor(
        "photocurrent",
        "photocurrent of a detector, beside the current that its click rate explains",
        "clicks that no avalanche made",
        "a detector controlled by bright light: current without clicks (blinding)",
        "(`dark_a` + `charge_per_click_c` times the rate of tags) (1 ± `tolerance`), and noise of reading "
        "and count",
        _BY_NOISE,
    ),
    Monitor(
        "detector_temperature",
        "temperature of a detector",
        "a cooler that is driven from outside",
        "a detector heated by bright light (thermal blinding), or a cooler that fails",
        _INTERVAL,
        _BY_NOISE,
    ),
    Monitor(
        "detector_bias",
        "bias voltage of a detector",
        "a detector controlled by bright light, whose current lowers the bias",
        "efficiency and dark counts that are not the measured ones",
        _INTERVAL,
        _BY_NOISE,
    ),
    Monitor(
        "detector_dead_time",
        "dead time that a detector reports",
        "afterpulses, and clicks that the checks of tags do not expect",
        "a detector that is blind at chosen times",
        _INTERVAL,
        _BY_NOISE,
    ),
    Monitor(
        "output_power",
        "light that leaves Alice: the mean photon number",
        "a laser or modulator that fails, or an attenuator that moved",
        "pulses brighter than configured: laser seeding, or a damaged attenuator",
        _INTERVAL,
        _BY_NOISE,
    ),
    Monitor(
        "backward_light",
        "light that comes back into Alice",
        "a monitor that is blind or disconnected",
        "light injected into Alice: Trojan horse, laser seeding or laser damage",
        _INTERVAL,
        _BY_NOISE,
    ),
    Monitor(
        "input_light",
        "light at Bob's input",
        "a monitor that is blind or disconnected",
        "bright light: blinding of the detectors, or steering of the splitter by wavelength",
        _INTERVAL,
        _BY_NOISE,
    ),
    Monitor(
        "interlock",
        "a laser that is on, or its closed interlock: 1, else 0",
        "an open interlock, or a laser that is off: the light is not Alice's",
        "",
        _INTERVAL,
        "none: a state has no noise",
    ),
    Monitor(
        "repetition_count",
        "equal samples of the random number generator in a row",
        "",
        "a generator that is stuck",
        "SP 800-90B 4.4.1: 1 + ceil(`alpha_exponent` / `min_entropy_bits`) in a row fail",
        "2^-`alpha_exponent` a sample, at the stated min-entropy",
    ),
    Monitor(
        "adaptive_proportion",
        "how often the first of 512 samples (1024 of one bit) occurs among them",
        "",
        "a generator that prefers some values: it fails, or is biased from outside",
        "SP 800-90B 4.4.2: the critical value of the binomial distribution, by an exact sum",
        "2^-`alpha_exponent` a window by the standard's formula, at the stated min-entropy; up to ten times "
        "as many, because the first sample always counts itself",
    ),
)
MONITOR_BY_NAME: Final = {monitor.name: monitor for monitor in MONITORS}
