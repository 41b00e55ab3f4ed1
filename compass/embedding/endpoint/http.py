"""One embedding endpoint over HTTP: a batch out, checked float32 rows in, and every fault under its own name.

An answer is decoded from JSON straight into float32; no list of Python floats is ever made. An error names
the endpoint without its query string, gives the server's own reason, and never holds a key.
"""

from __future__ import annotations

import asyncio
import atexit
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakSet

import aiohttp
import simdjson
from yarl import URL

from compass.domain.chunk import FloatMatrix
from compass.domain.embedding.contract import ServerInfo, read_info, read_said, request_options, retry_after_s
from compass.embedding.endpoint.base import INFO_TIMEOUT_S, Ask, Endpoint
from compass.embedding.endpoint.resolver import CheckedResolver
from compass.embedding.endpoint.wire import decode_rows, encode_request, read_body, secrets_of, transport_reason
from compass.errors import CompassError, EndpointUnavailableError

READ_BUFFER_BYTES = 2 << 20
INFO_BYTES = 1 << 20
NUMBER_BYTES = 64  # of JSON for one number, spaces included; a longer answer is not the answer

_ADVICE = {
    401: "it wants a key: name the variable that holds it by api_key_env",
    403: "it wants another key: see api_key_env",
    404: "is this the URL of an /embed endpoint?",
    405: "is this the URL of an /embed endpoint?",
}


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes


class Connections:
    """The connections of an embedder: a session for each event loop that uses it."""

    def __init__(self) -> None:
        self._sessions: dict[asyncio.AbstractEventLoop, aiohttp.ClientSession] = {}
        _open.add(self)

    def session(self) -> aiohttp.ClientSession:
        """The session of the running loop."""
        loop = asyncio.get_running_loop()
        session = self._sessions.get(loop)
        if session is None:
            self._sessions = {old: kept for old, kept in self._sessions.items() if not old.is_closed()}
            session = self._sessions[loop] = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(resolver=CheckedResolver(), limit=0),
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=aiohttp.ClientTimeout(),
                trust_env=False,
                read_bufsize=READ_BUFFER_BYTES,
            )
        return session

    async def close(self) -> None:
        """Close the sessions of every event loop that still runs."""
        here, sessions = asyncio.get_running_loop(), self._sessions
        self._sessions = {}
        for loop, session in sessions.items():
            if loop is here:
                await session.close()
            elif loop.is_running():
                await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(session.close(), loop))

    def abandon(self) -> None:
        """Let go at the end of the process, when no loop runs any more; the system closes the sockets."""
        for session in self._sessions.values():
            session.detach()
        self._sessions.clear()


_open: WeakSet[Connections] = WeakSet()


@atexit.register
def _abandon_all() -> None:
    """A process that Ray ends does not close its embedders; aiohttp would print a complaint for each."""
    for connections in list(_open):
        connections.abandon()


@dataclass(slots=True, eq=False)
class EndpointClient(Endpoint):
    """One server over HTTP; its `url` ends in `/embed`.

    Attributes:
        key: Sent as `Authorization: Bearer`.
    """

    key: str | None = field(repr=False)
    connections: Connections
    _secrets: tuple[bytes, ...] = field(default=(), init=False, repr=False)  # never repeated from what it says
    _parser: Any = field(default_factory=simdjson.Parser, init=False, repr=False)

    def __post_init__(self) -> None:
        self._secrets = secrets_of(self.url, self.key)

    async def _exchange(self, ask: Ask) -> FloatMatrix:
        count = len(ask.texts)
        body = encode_request({"inputs": ask.texts, **request_options(self.config, self.kind, ask.info)})
        limit = count * self.config.dims * NUMBER_BYTES + INFO_BYTES
        try:
            answer = await self._request(self.url, ask.timeout_s, limit, body)
        except EndpointUnavailableError as error:
            if error.fields.get("unreachable"):
                ask.cost_tokens = 0
            raise
        if answer.status != 200:
            ask.cost_tokens = 0
            raise self._read_failure(answer, count)
        counted = answer.headers.get("x-compute-tokens", "")
        await self._arrived(ask, int(counted) if counted.isascii() and counted.isdigit() else 0)
        decoded, reason = decode_rows(self._parser, answer.body, count, self.config.dims)
        return self._fit(decoded, count, reason)

    async def describe(self, timeout_s: float = INFO_TIMEOUT_S) -> ServerInfo:
        """Ask `/info`. Only a server that is not up leaves the question open.

        To take a server for what it is not because it was not up would send a TEI no `truncate`, and long
        texts would be refused for good.

        Raises:
            EndpointUnavailableError: it is not up.
        """
        head, mark, query = self.url.partition("?")
        url = head.removesuffix("/embed") + "/info" + mark + query
        with self._asked(0):
            answer = await self._request(url, min(timeout_s, INFO_TIMEOUT_S), INFO_BYTES)
            if answer.status in (429, 502, 503, 504):
                detail = f"{self.shown} is not up: its /info answered {answer.status}"
                raise EndpointUnavailableError(detail, {"endpoint": self.shown, "status": answer.status})
        self.info = read_info(answer.status, answer.body)
        return self.info

    def _read_failure(self, answer: _Answer, count: int) -> Exception:
        """The error that an answer other than 200 stands for."""
        body = answer.body
        for secret in self._secrets:
            body = body.replace(secret, b"***")
        after_s = retry_after_s(answer.headers.get("Retry-After"), time.time())
        redirect = "redirects are not followed, give the final URL" if 300 <= answer.status < 400 else None
        advice = _ADVICE.get(answer.status, redirect)
        return self._failure(answer.status, read_said(body), count, after_s, advice)

    async def _request(self, url: str, timeout_s: float, limit: int, body: bytes | None = None) -> _Answer:
        """One request, never redirected. No error of aiohttp's leaves here: they hold headers and URLs."""
        headers = {"Accept": "application/json", "Accept-Encoding": "identity"}
        if body is not None:
            headers["Content-Type"] = "application/json"
        if self.key is not None:
            headers["Authorization"] = f"Bearer {self.key}"
        ask = self.connections.session().request(
            "GET" if body is None else "POST",
            URL(url, encoded=True),
            data=body,
            headers=headers,
            allow_redirects=False,
        )
        what = "/embed" if body is not None else "/info"
        kind: type[CompassError] = EndpointUnavailableError
        fields: dict[str, Any] = {"endpoint": self.shown}
        try:
            async with asyncio.timeout(timeout_s), ask as response:
                return _Answer(response.status, response.headers, await read_body(response, limit))
        except CompassError as error:  # the resolver's, or a body without end
            kind, fault = type(error), error.detail
        except TimeoutError:
            fault = f"{what} did not answer within {timeout_s:.3g} s"
        except (aiohttp.ClientError, OSError, ValueError) as error:
            fault = f"{what} failed: {transport_reason(error)}"
            if isinstance(error, aiohttp.ClientConnectorError):
                fields["unreachable"] = True
        raise kind(f"{self.shown}: {fault}", fields)
