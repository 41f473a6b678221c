"""Try lies about every message of the link, on either side, and say what the honest site answered.

``python tests/liar.py [--every N] [--seed N] [--table FILE]`` prints each lie that was answered wrongly, with
the command that tells it again, and ends with 1 if there was one.
"""

import argparse
import multiprocessing
import random
import re
import sys
from pathlib import Path

import structlog
import structlog.testing
from keys_support import memory_folder
from liar_deeds import NOT_TOLD, TAKEN, Deed, may_be_taken
from liar_trial import Told, Trial
from small_link import ROLES


def category(answered: str) -> str:
    """Return an answer without what differs from one lie to the next."""
    words = answered.split(": ")
    return " ".join(words[: 2 if words[0] in ("session ended", "block discarded") else 1])


def judged(told: Told) -> Told:
    """Add the fault of an answer that takes what may not be taken."""
    if told.answered == TAKEN and not may_be_taken(told.deed):
        told.faults.append("it went unnoticed")
    return told


def _share(number: int, of: int, every: int, seed: int) -> list[Told]:
    with memory_folder() as folder:
        with structlog.testing.capture_logs():
            trial = Trial(folder)
        deeds = list(trial.deeds())
        random.Random(seed).shuffle(deeds)
        found = []
        for deed in deeds[::every][number::of]:
            try:
                found.append(judged(trial.lie(deed)))
            except Exception as error:  # noqa: BLE001 - whatever it was, it is told
                found.append(Told(deed, "", [repr(error)]))
        print(f"share {number + 1} of {of}: {len(found)} lies", flush=True)
        return found


ANSWERS = Path(__file__).parent / "liar_answers.md"
HEAD = """# What a lie is answered with

Each row has a message, who says it wrongly, what of it is wrong, and the answers of the honest site, each
with the lies that it answers. "Not tagged": the one-time tag, or the proof of a hello, is that of the truth.
Without a field: the message is missing, late, repeated, or another one comes before it or in its place.
"Taken": it is the peer's own word; `HIS_WORD` in `liar_deeds.py` says why. Of most fields a third of the lies
is here. Made by `python tests/liar.py --every 3 --table tests/liar_answers.md`.

| message | liar | field | answers |
|---|---|---|---|
"""


def row_of(deed: Deed) -> tuple[str, str, str]:
    """Return message, liar and field, as the table has them."""
    return deed.kind, deed.liar, re.sub(r"\[\d+\]", "[]", deed.field) or "-"


def table(tolds: list[Told]) -> str:
    """Return what was answered, as a page."""
    rows: dict[tuple[str, str, str], dict[str, set[str]]] = {}
    for told in tolds:
        if told.answered != NOT_TOLD:
            how = told.deed.how + ("" if told.deed.authentic else " (not tagged)")
            rows.setdefault(row_of(told.deed), {}).setdefault(category(told.answered), set()).add(how)
    return HEAD + "".join(
        f"| {' | '.join(row)} | {_listed(answers)} |\n" for row, answers in sorted(rows.items())
    )


def _listed(answers: dict[str, set[str]]) -> str:
    return "; ".join(f"{what}: {', '.join(sorted(answers[what]))}" for what in sorted(answers))


def rows_of(page: str) -> set[tuple[str, str, str]]:
    """Return message, liar and field of each row of a table."""
    rows = (line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("| "))
    return {(row[0], row[1], row[2]) for row in rows if row[1] in ROLES}


def main() -> int:
    """Try lies, or one again."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--every", type=int, default=1, help="try only every so many of the lies")
    parser.add_argument("--seed", type=int, default=1, help="which of them those are")
    parser.add_argument("--table", type=Path, help="write what was answered to a file")
    parser.add_argument("--again", metavar="NAME", help="tell one lie, with the log")
    given = parser.parse_args()
    if given.again is not None:
        with memory_folder() as folder:
            trial = Trial(folder)
            (deed,) = (one for one in trial.deeds() if one.name == given.again)
            told = judged(trial.lie(deed, show=True))
        print(told.answered, *told.faults, sep="\n")
        return 1 if told.faults else 0
    with multiprocessing.get_context("spawn").Pool(given.processes) as pool:
        shares = [(number, given.processes, given.every, given.seed) for number in range(given.processes)]
        tolds = [told for share in pool.starmap(_share, shares) for told in share]
    if given.table is not None:
        given.table.write_text(table(tolds))
    wrong = [told for told in tolds if told.faults]
    for told in wrong:
        print(f"{told.answered}: {'; '.join(told.faults)}\n  python tests/liar.py --again '{told.deed.name}'")
    print(f"{len(tolds)} lies, {len(wrong)} of them answered wrongly")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
