"""The files of a recording: rows of numbers that grow while a link runs, in a folder of their own."""

import mmap
import os
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np
import numpy.typing as npt

from qnode.errors import ConfigError
from qnode.tags.types import Times

Kind = TypeVar("Kind", bound=np.generic)


def new_folder(folder: Path) -> None:
    """Make ``folder``, or use an empty one; only the owner can read it.

    Raises:
        ConfigError: it is not empty, or cannot be made.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise ConfigError(f"{folder}: is not empty; a recording needs a new folder")
        folder.chmod(0o700)
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be written: {error.strerror}") from None


def mapped(path: Path, kind: type[Kind]) -> npt.NDArray[Kind]:
    """Map the row of ``kind`` in the file ``path``.

    Raises:
        ConfigError: it cannot be read, or is something else.
    """
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read as a numpy array: {error}") from None
    if array.dtype != np.dtype(kind) or array.ndim != 1:
        expected = np.dtype(kind).name
        raise ConfigError(f"{path}: expected a row of {expected}, got {array.dtype}, {array.ndim} dimensions")
    return np.asarray(array)


def give_back(array: npt.NDArray[Any], first: int, end: int) -> None:
    """Give back the memory of entries ``first`` to ``end - 1`` of a `mapped` row; they can be read again."""
    owner: object = array
    while isinstance(owner, np.ndarray):
        owner = owner.base
    if not isinstance(owner, mmap.mmap) or first >= end:
        return
    start = array.ctypes.data - np.frombuffer(owner, np.uint8).ctypes.data
    begin, until = ((start + entry * array.itemsize) // mmap.PAGESIZE for entry in (first, end))
    if begin < until:
        owner.madvise(mmap.MADV_DONTNEED, begin * mmap.PAGESIZE, (until - begin) * mmap.PAGESIZE)


class Disorder:
    """The largest disorder of the tags so far: how far a tag is earlier than one before it, ``most_ps``."""

    def __init__(self) -> None:
        self.most_ps = 0
        self._latest_ps: int | None = None

    def see(self, times_ps: Times) -> None:
        """Observe further tags, in the order of their arrival."""
        if times_ps.shape[0]:
            latest_ps = np.maximum.accumulate(times_ps)
            if self._latest_ps is not None:
                latest_ps = np.maximum(latest_ps, self._latest_ps)
            self.most_ps = max(self.most_ps, int((latest_ps - times_ps).max()))
            self._latest_ps = int(latest_ps[-1])


class GrowingArray:
    """An ``.npy`` file that grows: the header has room for a longer count, which is written at the end.

    Only the owner can read it.
    """

    def __init__(self, path: Path, descr: str) -> None:
        self._descr = descr
        self._file: BinaryIO = os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb")
        self.count = 0
        self._write_header()

    def append(self, array: npt.NDArray[np.generic]) -> None:
        """Write further values."""
        self._file.write(np.ascontiguousarray(array, np.dtype(self._descr)).data)
        self.count += array.shape[0]

    def close(self) -> None:
        """Write the count and close the file; an error closes it too."""
        if self._file.closed:
            return
        try:
            self._file.seek(0)
            self._write_header()
        finally:
            self._file.close()

    def _write_header(self) -> None:
        header = {"descr": self._descr, "fortran_order": False, "shape": (self.count,)}
        np.lib.format.write_array_header_1_0(self._file, header)
