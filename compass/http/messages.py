"""ASGI in small: the body of a request, the answer to it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

from compass.errors import BodyTooLargeError, WrongContentTypeError

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
Headers = tuple[tuple[bytes, bytes], ...]

JSON = b"application/json"


class ClientGoneError(Exception):
    """The client has hung up before its request was whole; there is nobody to answer."""


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole answer."""

    status: int
    body: bytes = b""
    headers: Headers = ()

    async def send(self, send: Send, *, head: bool = False) -> None:
        """Send it; without its body to a HEAD."""
        headers = [*self.headers]
        if self.status != 204:
            headers.append((b"content-length", str(len(self.body)).encode()))
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        await send({"type": "http.response.body", "body": b"" if head else self.body})


def header(scope: Scope, name: bytes) -> bytes | None:
    """The first header of this lower-case name."""
    for key, value in scope["headers"]:
        if key == name:
            first: bytes = value
            return first
    return None


def path_of(scope: Scope) -> str:
    """The path below the prefix that the application is mounted at."""
    path: str = scope["path"]
    root: str = scope.get("root_path", "")
    return path[len(root) :] if root and path.startswith(root + "/") else path


def check_json(scope: Scope) -> None:
    """Refuse a body that does not say that it is JSON.

    Raises:
        WrongContentTypeError: it says something else, or nothing.
    """
    content_type = header(scope, b"content-type") or b""
    if content_type.partition(b";")[0].strip().lower() != JSON:
        sent = repr(content_type.decode("latin-1")) if content_type else "none"
        raise WrongContentTypeError(f"the body wants Content-Type: application/json, not {sent}")


async def read_body(scope: Scope, receive: Receive, limit: int) -> bytes:
    """The whole body; stops at the limit, whether or not the client said how long it is.

    Raises:
        BodyTooLargeError: over `limit` bytes.
        ClientGoneError: the client hung up.
    """
    declared = header(scope, b"content-length")
    if declared is not None and declared.isdigit() and int(declared) > limit:
        raise _too_large(limit)
    parts, size, more = [], 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGoneError
        part = message.get("body", b"")
        size += len(part)
        if size > limit:
            raise _too_large(limit)
        parts.append(part)
        more = message.get("more_body", False)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _too_large(limit: int) -> BodyTooLargeError:
    return BodyTooLargeError(f"the body is over {limit} bytes; send fewer chunks at once", {"limit_bytes": limit})
