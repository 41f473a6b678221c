"""Stages on one core, as `qnode bench` of each checkout measures them; announcements; messages."""

import subprocess
import time
from pathlib import Path
from typing import Any, Final

import msgspec

from qnode.bench.against.case import Case, Figures, Measure
from qnode.bench.against.checkout import INSIDE, CaseFailed, Checkout, last_line
from qnode.bench.against.daemons import Staged, staged

MESSAGE = "1 kB message / bare TLS"
REPLY = "1 kB round of a correction / bare TLS"
BULK = "bulk byte / its primitives"
_CLICKS: Final = 300_000
_PATIENCE_S: Final = 300.0
_POLL_S: Final = 0.05


def stage(name: str) -> Case:
    """Return the case of a stage of `qnode bench`: ns a bit (of sifting: a tag), or limit over rate."""

    def case(checkout: Checkout, _folder: Path, *, quick: bool) -> Measure:
        words = ["-m", "qnode", "bench", "--json", "--only", name, *(["--quick"] if quick else [])]

        def measure() -> Figures:
            figures: Figures = {}
            for one in msgspec.json.decode(checkout.run(*words))["results"]:
                figures |= dict(_figures_of(one))
            return figures

        return measure

    return case


def _figures_of(one: dict[str, Any]) -> list[tuple[str, float]]:
    size = f"{one['n_bits']:.0e}".replace("e+0", "e") if one["n_bits"] else ""
    if one["name"] == "sift":
        return [("sift: ns a tag", 1e3 / one["median"])]
    what = f"{one['name']} {size}" + (f" {one['qber']:.1%}" if one["qber"] is not None else "")
    figures = [(f"{what}, ns a bit", 1e3 / one["median"])]
    return figures if one["f"] is None else [*figures, (f"{what}, f", one["f"])]


def announcement(checkout: Checkout, _folder: Path, *, quick: bool) -> Measure:
    """Measure announced bits over their entropy, and the processor time of a click."""

    def measure() -> Figures:
        figures: Figures = {}
        for link, one in checkout.run_inside("announcement.py", str(_CLICKS)).items():
            figures |= {
                f"announced / entropy, {link}": one["over_entropy"],
                f"announcing a click, {link}, ns": one["encoding_ns"],
                f"decoding a click, {link}, ns": one["decoding_ns"],
            }
        return figures

    return measure


def channel(checkout: Checkout, folder: Path, *, quick: bool) -> Measure:
    """Measure messages of a block between two processes over the link's TLS."""
    parts = 10 if quick else 30

    def measure() -> Figures:
        with staged(checkout, folder, "turin") as sites:
            return channel_figures(*both_ends(checkout, sites, parts))

    return measure


def both_ends(checkout: Checkout, sites: Staged, parts: int) -> list[dict[str, float]]:
    """Run `inside/channel.py` at both sites; return what both printed.

    Raises:
        CaseFailed: one of them failed.
    """
    processes = [
        subprocess.Popen(
            checkout.command(str(INSIDE / "channel.py"), site_file, str(parts)),
            env=checkout.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for site_file in sites.site_files.values()
    ]
    deadline_s = time.monotonic() + _PATIENCE_S
    try:
        # An end whose other end has failed waits for it.
        while None in (codes := [process.poll() for process in processes]) and not any(codes):
            if time.monotonic() > deadline_s:
                raise CaseFailed(f"no end of the messages within {_PATIENCE_S:g} s")
            time.sleep(_POLL_S)
    finally:
        for process in processes:
            process.kill()
        ended = [process.communicate() for process in processes]
    for code, (_, told) in zip(codes, ended, strict=True):
        if code:
            raise CaseFailed(last_line(told))
    return [msgspec.json.decode(said) for said, _ in ended]


def channel_figures(*ends: dict[str, float]) -> Figures:
    """Return messages over the bare socket, and bulk over its primitives: the bare socket and both codes."""
    both = {name: sum(end[name] for end in ends) for name in ends[0]}
    return {
        MESSAGE: both["round_us"] / both["bare_us"],
        REPLY: both["reply_us"] / both["bare_us"],
        BULK: both["byte_ns"] / (both["bare_ns"] + both["code_ns"]),
    }
