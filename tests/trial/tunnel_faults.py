"""The faults of a trial of tunnels, one after another, and what each did."""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import msgspec

if TYPE_CHECKING:
    from tunnels import Trial

RESTART_S: Final = 1.0  # as a service manager does
BACK_LIMIT_S: Final = 240.0


class Fault(msgspec.Struct, frozen=True):
    """Something breaks, stays broken for ``hold_s``, and is mended."""

    name: str
    hold_s: float
    begin: Callable[["Trial"], None]
    mend: Callable[["Trial"], None]


def faults(kme_away_s: float, cut_s: float) -> list[Fault]:
    """Return all faults: every process killed in turn, a key manager away, the line and the fibre cut."""
    found = []
    for number, name in enumerate(("alice", "bob")):
        found += [
            _killed_agent(number, name),
            _killed_encryptor(number, name),
            _killed_kme(number, name, RESTART_S),
        ]
    found += [_killed_kme(number, name, kme_away_s) for number, name in enumerate(("alice", "bob"))]
    return [
        *found,
        Fault("the line is cut", cut_s, lambda trial: _line(trial, "down"), lambda trial: _line(trial, "up")),
        Fault(
            "the fibre is cut: no new keys",
            cut_s,
            lambda trial: (trial.folder / "fibre_cut").touch(),
            lambda trial: (trial.folder / "fibre_cut").unlink(),
        ),
        Fault(
            "the tunnel's cable is cut",
            cut_s,
            lambda trial: _cable(trial, "down"),
            lambda trial: _cable(trial, "up"),
        ),
    ]


def _killed_agent(number: int, name: str) -> Fault:
    return Fault(
        f"kill -9 of the agent of {name}",
        RESTART_S,
        lambda trial: trial.kill(f"agent-{name}"),
        lambda trial: trial.start_agent(trial.sites[number]),
    )


def _killed_encryptor(number: int, name: str) -> Fault:
    return Fault(
        f"kill -9 of the encryptor of {name}",
        RESTART_S,
        lambda trial: trial.sites[number].kill_daemon(),
        lambda trial: trial.sites[number].start_daemon(),
    )


def _killed_kme(number: int, name: str, away_s: float) -> Fault:
    return Fault(
        f"kill -9 of the key manager of {name}, away for {away_s:g} s",
        away_s,
        lambda trial: trial.kill(f"kme-{name}"),
        lambda trial: trial.start_kme(trial.sites[number]),
    )


def _line(trial: "Trial", state: str) -> None:
    trial.bob.run("ip", "link", "set", "line", state)


def _cable(trial: "Trial", state: str) -> None:
    trial.bob.run("ip", "link", "set", "cable", state)


def run_fault(trial: "Trial", fault: Fault) -> dict[str, Any]:
    """Let a fault happen, wait until both agents have changed the key after it, and return what they said."""
    began = time.time()
    fault.begin(trial)
    time.sleep(fault.hold_s)
    mended = time.time()
    fault.mend(trial)
    back = trial.wait_for_change(mended, BACK_LIMIT_S)
    time.sleep(3)
    return {
        "fault": fault.name,
        "began": began,
        "mended": mended,
        "back_after_s": None if back is None else round(back - mended, 2),
        "states": {
            site.name: [
                {
                    "after_s": round(event.at - began, 1),
                    "state": event.fields.get("state"),
                    "because": event.fields.get("because"),
                }
                for event in trial.told(site)
                if event.name == "agent.state" and event.at >= began
            ]
            for site in trial.sites
        },
        "until": time.time(),
    }


def with_losses(seen: list[dict[str, Any]], lost: list[float]) -> list[dict[str, Any]]:
    """Add to each fault the probes that were lost during it, and for how long."""
    for one in seen:
        gone = [at for at in lost if one["began"] - 0.5 <= at <= one["until"]]
        one["probes_lost"] = len(gone)
        one["lost_from_to_s"] = [round(at - one["began"], 2) for at in (gone[0], gone[-1])] if gone else []
    return seen
