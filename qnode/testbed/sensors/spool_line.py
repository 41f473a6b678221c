"""What collector and spool server say to each other: frames of MessagePack with their length in front."""

from typing import Annotated, TypeVar

import msgspec
import trio
from msgspec import Meta, Struct

from qnode.errors import QnodeError

MOST_FRAME_BYTES = 1024 * 1024
MOST_RECORDS = 2000
# Random; empty if the spool has not been started yet. It becomes a tag in the database.
SpoolName = Annotated[str, Meta(pattern=r"\A[0-9a-f]{0,16}\Z")]
T = TypeVar("T", bound=Struct)


class LineBroken(QnodeError):
    """The other side closed the connection, or said something that is no frame of this protocol."""


class Take(Struct, frozen=True, forbid_unknown_fields=True):
    """The collector asks for records of ``spool`` after the number ``after``, and acknowledges all up to it.

    None: those that follow the last acknowledged one, of whatever spool there is. The server answers with a
    `Batch`, empty if nothing came within a second.
    """

    spool: SpoolName
    after: int | None
    limit: int


class Batch(Struct, frozen=True, forbid_unknown_fields=True):
    """Records of the spool ``spool`` that follow ``after``, in the bytes that they have on the disk.

    Numbers that are missing below the last one will not come any more.
    """

    spool: SpoolName
    after: int
    records: tuple[bytes, ...]


async def send(stream: trio.abc.SendStream, message: Struct) -> None:
    """Send one message.

    Raises:
        LineBroken: the connection is gone.
    """
    body = msgspec.msgpack.encode(message)
    try:
        await stream.send_all(len(body).to_bytes(4, "big") + body)
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        raise LineBroken("the connection is gone") from None


async def receive(stream: trio.abc.ReceiveStream, kind: type[T]) -> T:
    """Return the next message.

    Raises:
        LineBroken: the connection is gone, or this is no message of this ``kind``.
    """
    length = int.from_bytes(await _exactly(stream, 4), "big")
    if length > MOST_FRAME_BYTES:
        raise LineBroken(f"a frame of {length} bytes; at most {MOST_FRAME_BYTES} are allowed")
    try:
        return msgspec.msgpack.decode(await _exactly(stream, length), type=kind)
    except msgspec.MsgspecError as error:
        raise LineBroken(f"not a {kind.__name__}: {error}") from None


async def _exactly(stream: trio.abc.ReceiveStream, length: int) -> bytes:
    raw = bytearray()
    while len(raw) < length:
        try:
            piece = await stream.receive_some(length - len(raw))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            piece = b""
        if not piece:
            raise LineBroken("the connection was closed")
        raw += piece
    return bytes(raw)
