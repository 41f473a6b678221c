"""The child process of the driver `pymeasure`: it owns one instrument, and reads and sets its properties.

It needs pymeasure and Python alone, so that it can run in an environment of its own. Lines of JSON come on
the standard input and are answered on the standard output; what the library prints goes to the standard
error. At the end of the input the process ends, even if the library hangs.
"""

import importlib
import json
import math
import os
import queue
import sys
import threading
import time
from typing import IO, Any

CLOSING_S = 0.3
MOST_SHOWN = 300


def named(path: str) -> Any:
    """Return what ``module:name.name`` names."""
    module, _, names = path.partition(":")
    found = importlib.import_module(module)
    for name in names.split("."):
        found = getattr(found, name)
    return found


def value_of(given: Any) -> Any:
    """Return a value to set; a text `pymeasure.module:Class.MEMBER` is what it names."""
    is_name = isinstance(given, str) and given.startswith("pymeasure.") and ":" in given
    return named(given) if is_name else given


def answer(instrument: Any, request: dict[str, Any]) -> Any:
    """Read or set one property; ``path`` may lead through channels."""
    *channels, name = request["path"].split(".")
    owner = instrument
    for channel in channels:
        owner = getattr(owner, channel)
    if "value" in request:
        setattr(owner, name, value_of(request["value"]))
        return None
    value = getattr(owner, name)
    finite = isinstance(value, int | float) and math.isfinite(value)
    return float(value) if finite else str(value)


def identity(instrument: Any) -> str:
    """Return what the instrument says of itself, or else the name that the library gives it."""
    try:
        return str(instrument.id)
    except Exception:  # noqa: BLE001  # many classes have none, or raise what they like
        return str(getattr(instrument, "name", type(instrument).__name__))


def read_lines(stream: IO[str], lines: "queue.Queue[str | None]") -> None:
    """Pass lines on; at the end give the library a moment, then end the process."""
    for line in stream:
        lines.put(line)
    lines.put(None)
    time.sleep(CLOSING_S)
    os._exit(0)


def main() -> None:
    """Serve requests until the end of the input."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    lines: queue.Queue[str | None] = queue.Queue()
    threading.Thread(target=read_lines, args=(sys.stdin, lines), daemon=True).start()
    instrument: Any = None
    while (line := lines.get()) is not None:
        request = json.loads(line)
        said: dict[str, Any] = {"number": request["number"]}
        try:
            if "instrument" in request:
                arguments = {name: value_of(one) for name, one in request["arguments"].items()}
                instrument = named(request["instrument"])(request["resource"], **arguments)
                said["value"] = identity(instrument)
            else:
                said["value"] = answer(instrument, request)
        except Exception as error:  # noqa: BLE001  # a library raises what it likes; the driver gets it as text
            said["error"] = " ".join(f"{type(error).__name__}: {error}".split())[:MOST_SHOWN]
        print(json.dumps(said), file=answers)
    adapter = getattr(instrument, "adapter", None)
    if adapter is not None:
        adapter.close()


if __name__ == "__main__":
    main()
