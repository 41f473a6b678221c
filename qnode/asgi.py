"""Types of the ASGI 3 interface, as all frameworks have them.

The scope's extension ``tls`` contains the client's certificate. ``qnode.exchange`` states whether the client
has disconnected (``client_gone``), and whether no byte of the answer was sent (``nothing_sent``).
"""

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, TypeAlias

Scope: TypeAlias = MutableMapping[str, Any]
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
Application: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]
