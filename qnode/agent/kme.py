"""A client of any key manager's ETSI GS QKD 014 V1.1.1, for one pair of encryptors.

Each call is one request over a connection of its own; none is repeated, because a key manager gives a key
away once. Whatever comes back in place of a key is one error with a remedy. No error has a part of a key.
"""

import base64
import binascii
import re
import ssl
from collections.abc import Iterator
from typing import Annotated, Any, Final, TypeVar
from urllib.parse import quote

import httpx
import msgspec
import trio
from msgspec import Struct

from qnode.agent.config import KmeSection
from qnode.agent.tunnel import TunnelKey
from qnode.errors import ConfigError, KeyManagerError
from qnode.operate.events.line import printable
from qnode.secret_files import read_secret
from qnode.tls_files import load_own, load_trust

LONGEST_ANSWER_BYTES: Final = 1 << 16
_LONGEST_MESSAGE_CHARACTERS: Final = 160
_LONGEST_RETRY_AFTER_S: Final = 86400
_KEY_ID: Final = re.compile(r"[0-9A-Za-z][0-9A-Za-z._-]{0,63}")  # a UUID, or another plain name

_REMEDIES: Final = {
    400: "look at kme.peer_sae_id, and at what this key manager serves",
    401: "it does not know kme.certificate as kme.sae_id, or this pair of encryptors; register them there",
    403: "it does not allow kme.sae_id to have this key; register the pair of encryptors there",
    404: "look at kme.url and kme.peer_sae_id; an unknown key may also be answered so",
    405: "set kme.method to the other one",
    501: "set kme.method to the other one",
}


# In the names of TLS alerts that end a handshake, before anything was asked.
_OF_CERTIFICATES: Final = (
    "CERTIFICATE",
    "UNKNOWN_CA",
    "HANDSHAKE_FAILURE",
    "PROTOCOL_VERSION",
    "ACCESS_DENIED",
)

S = TypeVar("S", bound=Struct)


class _Status(Struct, frozen=True):
    """The member of a status that is used."""

    stored_key_count: Annotated[int, msgspec.Meta(le=2**53)]  # what every reader of a number can hold


class _Key(Struct, frozen=True):
    key_id: str = msgspec.field(name="key_ID")
    key: str

    def __repr__(self) -> str:
        return f"_Key({self.key_id})"

    def __rich_repr__(self) -> list[tuple[str, object]]:
        return [("key_ID", self.key_id)]


class _KeyContainer(Struct, frozen=True):
    keys: list[_Key]


def key_manager_context(section: KmeSection) -> ssl.SSLContext:
    """Read the TLS files for the key manager.

    Raises:
        ConfigError: names the file that cannot be used.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    read_secret(section.key, "kme.key")
    try:
        load_trust(context, section.ca, section.crl)
        load_own(context, section.certificate, section.key)
    except ConfigError as error:
        raise ConfigError(f"kme: {error}") from None
    return context


class Etsi014KeyManager:
    """The key manager of an agent's file. `renew` replaces its TLS context for later calls."""

    def __init__(self, section: KmeSection, context: ssl.SSLContext) -> None:
        self._section = section
        self._context = context
        self._base = f"{section.url.rstrip('/')}/api/v1/keys/{quote(section.peer_sae_id, safe='')}"

    def renew(self, context: ssl.SSLContext) -> None:
        """Use ``context`` from the next call on."""
        self._context = context

    async def stored_key_count(self) -> int:
        """Return how many keys it has for this pair and direction. Raises KeyManagerError."""
        status = self._decoded("status", await self._call("status", "GET"), _Status)
        return max(0, status.stored_key_count)

    async def new_key(self, size_bits: int) -> TunnelKey:
        """Take a new key. Raises KeyManagerError."""
        body = await self._call("enc_keys", self._section.method, {"number": 1, "size": size_bits})
        return self._key_in("enc_keys", body, size_bits)

    async def key(self, key_id: str, size_bits: int) -> TunnelKey:
        """Take the key that the other end has taken. Raises KeyManagerError."""
        if not _KEY_ID.fullmatch(key_id):
            raise KeyManagerError(
                "dec_keys: the other agent told something that is no key_ID", not_given=True
            )
        asked = {"key_ID": key_id} if self._section.method == "GET" else {"key_IDs": [{"key_ID": key_id}]}
        body = await self._call("dec_keys", self._section.method, asked)
        found = self._key_in("dec_keys", body, size_bits)
        if found.key_id.casefold() != key_id.casefold():
            raise self._wrong("dec_keys", "gave another key than the one that was asked for")
        return TunnelKey(key_id, found.key)

    async def _call(self, call: str, method: str, asked: dict[str, Any] | None = None) -> bytes:
        """Make one request and return the body of a good answer."""
        section = self._section
        limit_s = section.connect_timeout_s + section.answer_timeout_s
        content = None if method == "GET" else msgspec.json.encode(asked)
        headers = {"accept": "application/json", "accept-encoding": "identity"}
        if content is not None:
            headers["content-type"] = "application/json"
        try:
            with trio.fail_after(limit_s):
                async with (
                    httpx.AsyncClient(
                        verify=self._context,
                        trust_env=False,
                        timeout=httpx.Timeout(section.answer_timeout_s, connect=section.connect_timeout_s),
                        limits=httpx.Limits(max_connections=1, max_keepalive_connections=0),
                    ) as client,
                    client.stream(
                        method,
                        f"{self._base}/{call}",
                        params=asked if method == "GET" else None,
                        content=content,
                        headers=headers,
                    ) as response,
                ):
                    body = await self._body(call, response)
        except httpx.TransportError as error:
            raise self._unanswered(call, error) from None
        except (httpx.InvalidURL, UnicodeError):
            reason = "cannot be asked: no host has such a name; look at kme.url"
            raise KeyManagerError(f"{self._named(call)} {reason}", not_given=True) from None
        except trio.TooSlowError:
            raise KeyManagerError(f"{self._named(call)} gave no whole answer within {limit_s:g} s") from None
        if response.status_code != 200:
            raise self._refused(call, response, body)
        return body

    async def _body(self, call: str, response: httpx.Response) -> bytes:
        if response.headers.get("content-encoding", "identity") != "identity":
            raise self._wrong(call, "answered compressed, which was not asked for")
        body, length = bytearray(), 0
        # To the end, or the deadline: httpx's generators cannot be left half way without a warning.
        async for part in response.aiter_raw():
            length += len(part)
            if length <= LONGEST_ANSWER_BYTES:
                body += part
        if length > LONGEST_ANSWER_BYTES:
            raise self._wrong(call, f"answered more than {LONGEST_ANSWER_BYTES} bytes")
        return bytes(body)

    def _key_in(self, call: str, body: bytes, size_bits: int) -> TunnelKey:
        keys = self._decoded(call, body, _KeyContainer).keys
        if len(keys) != 1:
            raise self._wrong(call, f"gave {len(keys)} keys, expected 1")
        try:
            key = base64.b64decode(keys[0].key, validate=True)
        except (binascii.Error, ValueError):
            raise self._wrong(call, "gave a key that is not base64") from None
        if 8 * len(key) != size_bits:
            raise self._wrong(
                call, f"gave a key of {8 * len(key)} bits, expected {size_bits}; can it serve this size?"
            )
        if not _KEY_ID.fullmatch(keys[0].key_id):
            raise self._wrong(call, "gave a key_ID that is no UUID")
        return TunnelKey(keys[0].key_id, key)

    def _decoded(self, call: str, body: bytes, kind: type[S]) -> S:
        try:
            return msgspec.json.decode(body, type=kind)
        except msgspec.ValidationError:
            expected = ", ".join(field.encode_name for field in msgspec.structs.fields(kind))
            raise self._wrong(call, f"answered JSON without {expected} as the standard has it") from None
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            what = "nothing" if not body else "something that is no JSON"
            raise self._wrong(call, f"answered {what}; is kme.url a key manager's?") from None

    def _refused(self, call: str, response: httpx.Response, body: bytes) -> KeyManagerError:
        """Return the error of an answer other than 200."""
        status = response.status_code
        reason = f"{self._named(call)} answers {status}"
        if said := _message_in(body):
            reason += f": {said}"
        if 300 <= status < 400:
            reason += "; redirections are not followed: set kme.url to where it leads"
        elif status in _REMEDIES:
            reason += f"; {_REMEDIES[status]}"
        after = response.headers.get("retry-after", "")
        retry_s = float(min(int(after), _LONGEST_RETRY_AFTER_S)) if re.fullmatch(r"\d{1,9}", after) else None
        # A proxy's 500, 502 or 504 says nothing of what the key manager did; 503 is the standard's own.
        not_given = 300 <= status < 500 or status in (501, 503)
        return KeyManagerError(reason, not_given=not_given, retry_after_s=retry_s)

    def _unanswered(self, call: str, error: httpx.TransportError) -> KeyManagerError:
        """Return the error of a call without an answer; nothing was given if it could not be asked."""
        where = self._named(call)
        for cause in _causes(error):
            if isinstance(cause, ssl.SSLCertVerificationError):
                text = f"{where}: its certificate is not accepted: {cause.verify_message}"
                remedy = "; look at kme.ca and at the host in kme.url"
                return KeyManagerError(text + remedy, not_given=True)
            if isinstance(cause, ssl.SSLError) and any(
                word in (cause.reason or "") for word in _OF_CERTIFICATES
            ):
                alert = (cause.reason or "").lower().replace("_", " ")
                text = f"{where} refuses the connection ({alert}); look at kme.certificate"
                return KeyManagerError(text, not_given=True)
        if isinstance(error, httpx.ConnectTimeout | httpx.ConnectError):
            why = (
                "does not answer"
                if isinstance(error, httpx.ConnectTimeout)
                else f"cannot be reached: {error}"
            )
            return KeyManagerError(f"{where} {why}", not_given=True)
        if isinstance(error, httpx.TimeoutException):
            text = f"did not answer within {self._section.answer_timeout_s:g} s"
            return KeyManagerError(f"{where} {text}")
        return KeyManagerError(f"{where} broke off before its answer was whole")

    def _wrong(self, call: str, what: str) -> KeyManagerError:
        return KeyManagerError(f"{self._named(call)} {what}")

    def _named(self, call: str) -> str:
        return f"key manager {self._section.url}: {call}"


def _message_in(body: bytes) -> str:
    """Return the message of an error in the standard's form, else ""."""
    try:
        found = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ""
    message = found.get("message") if isinstance(found, dict) else None
    return printable(message)[:_LONGEST_MESSAGE_CHARACTERS] if isinstance(message, str) else ""


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    found: BaseException | None = error
    while found is not None and id(found) not in seen:
        seen.add(id(found))
        yield found
        found = found.__cause__ or found.__context__
