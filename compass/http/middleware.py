"""What a request must pass before it is looked at: the key or the host, and room for one more."""

from __future__ import annotations

import hmac
import ipaddress

from compass.errors import OverloadedError, UnauthorizedError, WrongHostError
from compass.http.messages import App, Receive, Scope, Send, header, path_of
from compass.settings import Settings

_KEY_CHECKED = "compass.key"  # in the scope of a request that brought the key
OPEN_PATHS = frozenset({"/health", "/ready"})  # need no key, and answer under load


def caller(scope: Scope) -> str:
    """Who asks, as the history names him: by the key that was checked, never by its value."""
    return "api-key" if _KEY_CHECKED in scope else "anyone"


def require_api_key(app: App, key: str) -> App:
    """Let through who brings `Authorization: Bearer <key>`; all routes but /health and /ready."""
    wanted = b"Bearer " + key.encode()

    async def guarded(scope: Scope, receive: Receive, send: Send) -> None:
        if path_of(scope) not in OPEN_PATHS:
            key = header(scope, b"authorization")
            if key is None or not hmac.compare_digest(key, wanted):
                raise UnauthorizedError("send the API key as `Authorization: Bearer <key>`")
            scope[_KEY_CHECKED] = True
        await app(scope, receive, send)

    return guarded


def require_host(app: App, settings: Settings) -> App:
    """Let through who means this server by its Host, and no web page of another one.

    A page could reach an open server by DNS rebinding (its own Host), or by a plain cross-site POST (its Origin).
    """
    listed = {name.strip().lower() for name in settings.allowed_hosts.split(",") if name.strip()}
    allowed = {"localhost", "127.0.0.1", "::1", settings.host.strip("[]").lower(), *listed}

    async def guarded(scope: Scope, receive: Receive, send: Send) -> None:
        host = _host_name(header(scope, b"host"))
        if host not in allowed and not _is_bound_address(host, scope):
            raise WrongHostError(
                f"this open server is not {host!r}: list it in COMPASS_ALLOWED_HOSTS, or set COMPASS_API_KEY"
            )
        origin = header(scope, b"origin")
        if origin is not None and _host_name(origin.partition(b"://")[2]) != host:
            raise WrongHostError(f"this open server takes no requests from pages of {origin.decode('latin-1')!r}")
        await app(scope, receive, send)

    return guarded


def limit_concurrency(app: App, limit: int) -> App:
    """Let at most `limit` requests in at once, /health and /ready aside; the others come back later."""
    inside = 0

    async def guarded(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal inside
        if path_of(scope) in OPEN_PATHS:
            return await app(scope, receive, send)
        if inside >= limit:
            raise OverloadedError(f"{limit} requests are in flight in this gateway; try again", {"retry_after": 1})
        inside += 1
        try:
            await app(scope, receive, send)
        finally:
            inside -= 1

    return guarded


def _host_name(value: bytes | None) -> str:
    """The Host header without its port."""
    host = (value or b"").decode("latin-1").strip().lower()
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]


def _is_bound_address(host: str, scope: Scope) -> bool:
    """Whether the Host is the very address that the connection came in on (a server bound to all of them)."""
    server = scope.get("server")
    if not server or server[0] != host:
        return False
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
