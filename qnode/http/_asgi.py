"""Types of the ASGI 3 seam, equal in shape to those of every framework.

A scope's extension ``tls`` holds the client's certificate; ``qnode.exchange`` says of the client whether it
has gone (``client_gone``), and of the answer whether nothing of it was sent (``nothing_sent``).
"""

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, TypeAlias

Scope: TypeAlias = MutableMapping[str, Any]
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
Application: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]
