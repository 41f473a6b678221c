"""A tunnel whose key lies in a file, for encryptors that read it there.

The file is replaced as a whole, with mode 0600, in a file system that is kept in memory. A program may be run
after each replacement, to have the encryptor read the file.
"""

import ctypes
import glob
import os
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Annotated, ClassVar

from qnode.agent.tunnel import InUse, Role, TunnelKey
from qnode.agent.tunnels.key_text import KeyFormat, KeySize, key_text
from qnode.agent.tunnels.programs import run_program
from qnode.config.description import Described, Limits, check_limits
from qnode.config.link import Table
from qnode.errors import TunnelError

_IN_MEMORY = (0x01021994, 0x858458F6)  # of tmpfs and ramfs, statfs(2)
_LONGEST_KEY_FILE_BYTES = 4096


class FileConfig(Table, frozen=True):
    """The table ``[tunnel]`` of kind `file`."""

    path: Annotated[Path, Described("the file of the key")]
    key_id_path: Annotated[Path | None, Described("a file for the key_ID, which is no secret")] = None
    key_format: Annotated[KeyFormat, Described("how the key is written; text ends with a line end")] = (
        "base64"
    )
    key_size_bits: Annotated[KeySize, Described("size of the key, equal at both agents")] = 256
    after: Annotated[
        tuple[str, ...],
        Described("a program, with arguments, to run after each replacement or removal of the file"),
    ] = ()
    timeout_s: Annotated[float, Described("longest run of this program", limits=Limits(0.1, 60.0))] = 8.0
    allow_disk: Annotated[
        bool, Described("allow a file system on a disk, where a copy of each key may stay for ever")
    ] = False

    def __post_init__(self) -> None:
        check_limits(self)


class FileTunnel:
    """A tunnel whose key is the content of a file."""

    Config: ClassVar[type[FileConfig]] = FileConfig

    def __init__(self, config: FileConfig, role: Role) -> None:
        self._config = config
        self._role = role
        self._key: TunnelKey | None = None
        self._before: tuple[TunnelKey | None, bytes] | None = None

    @property
    def key_size_bits(self) -> int:
        """Size of the key in bits."""
        return self._config.key_size_bits

    @asynccontextmanager
    async def open(self, *, first_key_required: bool = True) -> AsyncIterator["FileTunnel"]:
        """Check that the folder is there and kept in memory, and yield the tunnel.

        Raises:
            TunnelError: there is no such folder, it is on a disk, or it cannot be written.
        """
        folder = self._config.path.parent
        if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
            raise TunnelError(f"tunnel.path: {folder} is no folder that this user may write to")
        if not self._config.allow_disk and not kept_in_memory(folder):
            raise TunnelError(
                f"tunnel.path: {folder} is on a disk, where keys would stay; use a folder below /run, "
                "or set allow_disk = true"
            )
        for stale in folder.glob(f".{glob.escape(self._config.path.name)}.*"):  # of an agent that was killed
            with suppress(OSError):  # in a folder that others share it may be theirs
                stale.unlink()
        yield self

    async def prepare(self) -> None:
        """Nothing is to be done."""

    async def load(self, key: TunnelKey) -> None:
        """Nothing is to be done: the file has one key."""

    async def activate(self, key: TunnelKey) -> None:
        """Replace the file, and run the program `after`."""
        text = key_text(key.key, self._config.key_format)
        before = self._content()
        if before != text:
            self._before = (self._key, before)
            self._replace(text, key.key_id)
        self._key = key
        try:
            await self._run_after(key)
        except TunnelError:
            self._put_back()
            with suppress(TunnelError):
                await self._run_after(self._key)  # the encryptor may have read the new key all the same
            raise

    async def in_use(self) -> InUse | None:
        """Return which key the file has; None if there is no file."""
        content = self._content()
        if not content:
            return None
        key = self._key
        ours = key is not None and content == key_text(key.key, self._config.key_format)
        try:
            since = self._config.path.stat().st_mtime
        except FileNotFoundError:
            return None
        key_id = key.key_id if key is not None and ours else None
        return InUse(key_id, since, f"{self._config.path} has {'this' if ours else 'another'} key")

    async def retire(self, key: TunnelKey) -> None:
        """Forget the key before ``key``."""
        self._before = None

    async def unload(self, key: TunnelKey) -> None:
        """Put the file before ``key`` back, if it has ``key``."""
        if self._key is not None and self._key.key_id == key.key_id:
            self._put_back()
            await self._run_after(self._key)

    async def take_down(self) -> None:
        """Remove the file, and run the program `after`."""
        self._key = self._before = None
        self._replace(b"", "")
        await self._run_after(None)

    async def transferred_bytes(self) -> int:
        """Return 0: nobody counts."""
        return 0

    def _put_back(self) -> None:
        if self._before is None:
            return
        (self._key, content), self._before = self._before, None
        self._replace(content, self._key.key_id if self._key is not None else "")

    def _content(self) -> bytes:
        try:
            with self._config.path.open("rb") as file:
                return file.read(_LONGEST_KEY_FILE_BYTES)
        except FileNotFoundError:
            return b""
        except OSError as error:
            raise TunnelError(f"tunnel.path: {self._config.path}: {error.strerror}") from None

    def _replace(self, text: bytes, key_id: str) -> None:
        _replace_file(self._config.path, text)
        if self._config.key_id_path is not None:
            _replace_file(self._config.key_id_path, f"{key_id}\n".encode() if key_id else b"")

    async def _run_after(self, key: TunnelKey | None) -> None:
        if not self._config.after:
            return
        where = f"tunnel.after: {self._config.after[0]}"
        environment = {"QNODE_KEY_ID": key.key_id if key is not None else "", "QNODE_ROLE": self._role}
        ended = await run_program(
            self._config.after,
            named=where,
            limit_s=self._config.timeout_s,
            environment=environment,
            kept=False,
        )
        if ended.status != 0:
            raise TunnelError(f"{where}: ended with {ended.status}")


def kept_in_memory(folder: Path) -> bool:
    """Return whether the file system of ``folder`` is kept in memory (tmpfs, ramfs)."""
    result = (ctypes.c_long * 64)()  # more than a struct statfs, which begins with the type
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.statfs(os.fsencode(folder), ctypes.byref(result)) != 0:
        return False
    return result[0] & 0xFFFFFFFF in _IN_MEMORY


def _replace_file(path: Path, text: bytes) -> None:
    """Replace the file as a whole, with mode 0600; without ``text`` remove it."""
    try:
        if not text:
            path.unlink(missing_ok=True)
            return
        number, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)  # mode 0600
        try:
            with os.fdopen(number, "wb") as file:
                file.write(text)
            Path(name).replace(path)
        except BaseException:
            with suppress(OSError):
                Path(name).unlink()
            raise
    except OSError as error:
        raise TunnelError(f"{path}: cannot be written: {error.strerror}") from None
