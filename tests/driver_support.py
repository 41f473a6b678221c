"""What the tests of drivers share: a device that replays a transcript, and one clear error."""

from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest
import trio

from qnode.errors import DeviceError

Transcript = list[tuple[bytes, bytes]]
"""What is sent to a device, and what it answers."""


class Replayed:
    """Expects exactly the bytes of a transcript, in their order, and answers with its bytes."""

    def __init__(self, transcript: Transcript) -> None:
        self.left = list(transcript)

    async def serve(self, stream: trio.abc.Stream) -> None:
        """Serve one connection."""
        while self.left:
            sent, said = self.left[0]
            came = b""
            while len(came) < len(sent):
                came += await stream.receive_some()
            assert came == sent, f"expected {sent!r}, {came!r} came"
            self.left.pop(0)
            if said:
                await stream.send_all(said)
        await trio.sleep_forever()


def answered(answer: Callable[[str], bytes], transcript: Transcript) -> Transcript:
    """Return the transcript as an emulator would have answered it."""
    return [(sent, answer(sent.decode().strip())) for sent, _ in transcript]


def refused(said: str) -> AbstractContextManager[object]:
    """Expect one `DeviceError` of one line that matches ``said``; nurseries may have put it into groups."""
    one_line = f"^(?=.*{said})[^\\n]*$"
    return pytest.RaisesGroup(
        pytest.RaisesExc(DeviceError, match=one_line), flatten_subgroups=True, allow_unwrapped=True
    )
