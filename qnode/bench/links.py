"""The measured links: the shipped configuration files, also if only the package is installed."""

from typing import Final

from qnode.config import (
    BlockParameters,
    EstimationParameters,
    LinkParameters,
    PlausibilityParameters,
    ReceiverParameters,
    ReconciliationParameters,
    SourceParameters,
)
from qnode.loopback.prepare import LoopbackConfig
from qnode.simulate.parameters import DetectorParameters, JitterParameters, SimulationParameters

_SUPERCONDUCTING: Final = DetectorParameters(
    efficiency=0.88, dark_rate_hz=100.0, afterpulse_probability=0.0, dead_time_s=0.0
)

# config/turin.toml
TURIN: Final = LoopbackConfig(
    link=LinkParameters(
        name="turin",
        source=SourceParameters(mu_uncertainty=(0.0, 0.0)),
        receiver=ReceiverParameters(dead_time_s=62.5e-6),
        plausibility=PlausibilityParameters(arm_ratio=(0.4, 2.5), out_of_gate=(0.01, 0.06)),
        estimation=EstimationParameters(estimator="rusca2018", x_mode="visibility", eps_sec=1e-9),
        reconciliation=ReconciliationParameters(method="cascade"),
    ),
    simulation=SimulationParameters(attenuation_db=10.8),
)

# config/fast.toml
FAST: Final = LoopbackConfig(
    link=LinkParameters(
        name="fast",
        source=SourceParameters(mu=(0.32, 0.12), mu_uncertainty=(0.005, 0.005), p_z=0.9),
        receiver=ReceiverParameters(p_z=0.9, jitter_ps=40.0),
        block=BlockParameters(sifted_bits=10_000_000, asymmetry_limit=0.08),
    ),
    simulation=SimulationParameters(
        attenuation_db=6.0,
        z_arm_loss_db=0.5,
        x_arm_loss_db=1.5,
        visibility=0.98,
        wrong_bin_fraction=0.0087,
        jitter=JitterParameters(sigma_ps=35.0, tail_fraction=0.03, tail_ps=60.0),
        z_detector=_SUPERCONDUCTING,
        x_detector=_SUPERCONDUCTING,
    ),
)
