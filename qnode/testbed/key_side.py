"""The key side of a testbed: the link over many simulated hours, its keys compared at both ends."""

from pathlib import Path

from qnode.loopback.prepare import LoopbackConfig, Staging
from qnode.loopback.result import LinkResult
from qnode.loopback.run import LinkOutcome, run_link
from qnode.operate.status.model import NodeStatus
from qnode.testbed.outcome import KeySide, key_hours
from qnode.testbed.progress import Progress


async def run_key_side(
    config: LoopbackConfig, folder: Path, hours: float, speed: float | None, progress: Progress
) -> KeySide:
    """Run both sites of the link for ``hours`` of simulated time; two encryptors fetch and compare every key.

    It runs before the real-time part, because at full speed it needs all processors. ``speed``: tag seconds
    a second; None is as fast as possible.

    Raises:
        ConfigError: the folder cannot be used.
        ExceptionGroup: of the errors of `qnode.loopback.run.sites_running`.
    """

    def until(result: LinkResult, _bob: NodeStatus) -> bool:
        progress.show(
            {
                "simulated": f"{result.simulated_s / 3600.0:.2f} of {hours:g} h",
                "blocks": f"{result.blocks_accepted} accepted, "
                f"{sum(result.blocks_discarded.values())} discarded",
                "secret key": f"{result.secret_bits_per_simulated_s:.0f} bit/s",
                "keys": f"{result.keys_compared} compared, {result.keys_different} different",
            }
        )
        return result.simulated_s >= 3600.0 * hours

    with (folder / "key-side.log").open("a") as log:

        def tell(site: str, line: str) -> None:
            log.write(f"{site} | {line}\n")

        outcome = await run_link(config, folder / "key-side", Staging(speed), until, tell)
    return key_side_of(outcome, hours)


def key_side_of(outcome: LinkOutcome, hours: float) -> KeySide:
    """Return the figures of a run of the link that was to last for ``hours``."""
    result = outcome.result
    return KeySide(
        hours_wanted=hours,
        hours=result.simulated_s / 3600.0,
        wall_s=result.wall_s,
        secret_bits_per_s=result.secret_bits_per_simulated_s,
        qber_z=result.qber_z,
        keys=result.keys_compared,
        different=result.keys_different,
        accepted=result.blocks_accepted,
        discarded=result.blocks_discarded,
        blocks=key_hours(
            [(block.span_s, block.secret_bits, block.qber_z) for block in outcome.blocks],
            result.simulated_s,
        ),
    )
