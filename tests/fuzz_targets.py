"""The decoders of bytes from outside, each as a function that a fuzzer calls, with seeds from real encoders.

A target returns, or raises one of the errors that its decoder declares; anything else is a fault. What was
decoded and has an encoder is encoded, and must decode to the same. `python tests/fuzz.py` runs them.
"""

import fuzz_files
import fuzz_link
import fuzz_talk

TARGETS = fuzz_link.TARGETS | fuzz_talk.TARGETS | fuzz_files.TARGETS


def try_input(name: str, data: bytes) -> None:
    """Give ``data`` to a target; raises whatever a decoder may not raise."""
    target = TARGETS[name]
    try:
        target.decode(data)
    except target.errors:
        return
