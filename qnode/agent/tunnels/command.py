"""A tunnel that a program of the operator controls: it gets each key on its standard input.

The program is run as ``PROGRAM… EVENT KEY_ID`` (no key_ID for `take_down`, `in_use` and
`transferred_bytes`), with `QNODE_EVENT`, `QNODE_KEY_ID` and `QNODE_ROLE` in its environment. For `load` and
`activate` its standard input is the key. It ends with 0 if it did what was asked; otherwise the last line of
its standard error is the reason.
"""

import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, ClassVar, Literal

from qnode.agent.tunnel import InUse, Role, TunnelKey
from qnode.agent.tunnels.key_text import KeyFormat, KeySize, key_text, shows_key
from qnode.agent.tunnels.programs import Ended, run_program
from qnode.config.description import Described, Limits, check_limits
from qnode.config.link import Table
from qnode.errors import TunnelError

Event = Literal["prepare", "load", "activate", "in_use", "retire", "unload", "take_down", "transferred_bytes"]
LONGEST_REASON_CHARACTERS = 200
_LONGEST_OUTPUT_BYTES = 1 << 16


class CommandConfig(Table, frozen=True):
    """The table ``[tunnel]`` of kind `command`."""

    program: Annotated[tuple[str, ...], Described("the program and its first arguments; not run by a shell")]
    events: Annotated[
        tuple[Event, ...],
        Described(
            "what the program is run for. `load` and `activate` get the key; `in_use` writes the key_ID in "
            "use, or nothing; `transferred_bytes` writes a number"
        ),
    ] = ("load", "activate", "retire", "unload", "take_down")
    key_format: Annotated[KeyFormat, Described("how the key is written; text ends with a line end")] = (
        "base64"
    )
    key_size_bits: Annotated[KeySize, Described("size of the key, equal at both agents")] = 256
    timeout_s: Annotated[float, Described("longest run of the program", limits=Limits(0.1, 60.0))] = 8.0

    def __post_init__(self) -> None:
        check_limits(self)
        if not self.program or not self.program[0]:
            raise ValueError("program: expected the program's path and its arguments, got none")
        if "activate" not in self.events:
            raise ValueError('events: expected "activate" among them')


class CommandTunnel:
    """A tunnel whose key a program changes.

    Without `in_use` among its events nobody asks the encryptor: what was activated counts as in use.
    """

    Config: ClassVar[type[CommandConfig]] = CommandConfig

    def __init__(self, config: CommandConfig, role: Role) -> None:
        self._config = config
        self._role = role
        self._active: InUse | None = None
        self._before: TunnelKey | None = None
        self._key: TunnelKey | None = None

    @property
    def key_size_bits(self) -> int:
        """Size of the key in bits."""
        return self._config.key_size_bits

    @asynccontextmanager
    async def open(self, *, first_key_required: bool = True) -> AsyncIterator["CommandTunnel"]:
        """Check that the program is there, and yield the tunnel.

        Raises:
            TunnelError: there is no such program, or it may not be run.
        """
        program = self._config.program[0]
        if os.sep in program and not os.access(program, os.X_OK):
            raise TunnelError(f"tunnel.program: {program} is no program that this user may run")
        self._active = InUse(None, time.time(), "the program is not asked what is in use")
        yield self

    async def prepare(self) -> None:
        """Run the program for `prepare`."""
        await self._run("prepare")

    async def load(self, key: TunnelKey) -> None:
        """Run the program for `load`."""
        await self._run("load", key)

    async def activate(self, key: TunnelKey) -> None:
        """Run the program for `activate`."""
        await self._run("activate", key)
        if self._key is not key:
            self._before, self._key = self._key, key
        self._active = InUse(key.key_id, time.time(), "the program activated it")

    async def in_use(self) -> InUse | None:
        """Return what the program says; what was activated if it is not asked."""
        if "in_use" not in self._config.events:
            return self._active
        output = await self._run("in_use")
        if any(shows_key(output, key.key) for key in (self._key, self._before) if key is not None):
            raise TunnelError("tunnel.program: wrote a key for in_use, expected its key_ID")
        words = output.decode(errors="replace").split()
        if not words:
            return None
        ours = self._active is not None and self._active.key_id == words[0]
        since = self._active.since if self._active is not None and ours else time.time()
        return InUse(words[0], since, f"the program says {words[0]}")

    async def retire(self, key: TunnelKey) -> None:
        """Run the program for `retire`."""
        await self._run("retire", key)
        self._before = None

    async def unload(self, key: TunnelKey) -> None:
        """Run the program for `unload`; if ``key`` was activated, first activate the one before it again.

        After a restart of the agent the one before is unknown: the program itself may put it back.
        """
        if self._key is not None and self._key.key_id == key.key_id:
            before = self._before
            if before is not None:
                await self._run("activate", before)
                self._active = InUse(before.key_id, time.time(), "the program activated it again")
            else:
                self._active = InUse(None, time.time(), f"the program was told to unload {key.key_id}")
            self._key, self._before = before, None
        await self._run("unload", key)

    async def take_down(self) -> None:
        """Run the program for `take_down`."""
        await self._run("take_down")
        self._active = self._key = self._before = None

    async def transferred_bytes(self) -> int:
        """Return the number that the program writes; 0 if it is not asked."""
        if "transferred_bytes" not in self._config.events:
            return 0
        text = await self._run("transferred_bytes")
        try:
            return int(text)
        except ValueError:
            raise TunnelError("tunnel.program: expected a number of bytes for transferred_bytes") from None

    async def _run(self, event: Event, key: TunnelKey | None = None) -> bytes:
        """Run the program, if it takes ``event``; return what it wrote to standard output."""
        if event not in self._config.events:
            return b""
        key_id = () if key is None else (key.key_id,)
        gets_key = key is not None and event in ("load", "activate")
        standard_input = key_text(key.key, self._config.key_format) if key is not None and gets_key else b""
        where = f"tunnel.program: {self._config.program[0]} {event}"
        environment: dict[str, str] = {"QNODE_EVENT": event, "QNODE_ROLE": self._role}
        environment["QNODE_KEY_ID"] = key.key_id if key is not None else ""
        ended = await run_program(
            [*self._config.program, event, *key_id],
            named=where,
            given=standard_input,
            limit_s=self._config.timeout_s,
            environment=environment,
        )
        if ended.status != 0:
            raise TunnelError(f"{where}: ended with {ended.status}{_reason(ended, key)}")
        return ended.output[:_LONGEST_OUTPUT_BYTES]


def _reason(ended: Ended, key: TunnelKey | None) -> str:
    """Return the last words of the program, unless they have the key."""
    if key is not None and shows_key(ended.errors, key.key):
        return " (its words are not shown, for they have the key)"
    lines = ended.errors.decode(errors="replace").strip().splitlines()
    return f": {lines[-1][:LONGEST_REASON_CHARACTERS]}" if lines else ""
