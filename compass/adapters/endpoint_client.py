"""One embedding endpoint over HTTP: a batch out, checked float32 rows in, and every fault under its own name.

An answer is decoded from JSON straight into float32; no list of Python floats is ever made. An error names
the endpoint without its query string, gives the server's own reason, and never holds a key.
"""

from __future__ import annotations

import asyncio
import atexit
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakSet

import aiohttp
import simdjson
from yarl import URL

from compass.adapters.embed_wire import decode_rows, encode_request, read_body, secrets_of, transport_reason
from compass.adapters.endpoint_url import CheckedResolver, shown
from compass.domain.chunk import FloatMatrix
from compass.domain.embedding import (
    Kind,
    Meaning,
    ServerInfo,
    meaning,
    read_info,
    read_said,
    request_options,
    retry_after_s,
    smaller_batch,
)
from compass.domain.space import SpaceConfig, prepare_vectors, why_unfit
from compass.domain.spending import Meter, guessed_tokens, most_tokens
from compass.errors import (
    CompassError,
    EndpointAnswerError,
    EndpointForbiddenError,
    EndpointRefusedError,
    EndpointUnavailableError,
)

READ_BUFFER_BYTES = 2 << 20
INFO_TIMEOUT_S = 5.0
INFO_BYTES = 1 << 20
NUMBER_BYTES = 64  # of JSON for one number, spaces included; a longer answer is not the answer

_ADVICE = {
    401: "it wants a key: name the variable that holds it by api_key_env",
    403: "it wants another key: see api_key_env",
    404: "is this the URL of an /embed endpoint?",
    405: "is this the URL of an /embed endpoint?",
}


class TooManyError(Exception):
    """More than the endpoint takes in one request: inputs, or bytes where `limit` is None."""

    def __init__(self, detail: str, limit: int | None) -> None:
        super().__init__(detail)
        self.limit = limit


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass(slots=True)
class _Charge:
    """What a request has to be paid for: without an answer, all that it may have cost."""

    tokens: int = 0


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
class EndpointClient:
    """One server. `info` is None until it has answered `/info` in some way.

    Attributes:
        url: Canonical, ending in `/embed`; never shown.
        key: Sent as `Authorization: Bearer`.
        docs: Texts answered, since the first was asked for.
        tokens: Of those, as the server counted them in `x-compute-tokens`.
        meter: Asked before each request that embeds; None: nobody counts what it costs.
    """

    url: str = field(repr=False)
    config: SpaceConfig
    kind: Kind
    key: str | None = field(repr=False)
    connections: Connections
    info: ServerInfo | None = None
    in_flight: int = 0
    docs: int = 0
    tokens: int = 0
    errors: int = 0
    last_error: str | None = None
    meter: Meter | None = None
    _asked_at: float | None = None
    _secrets: tuple[bytes, ...] = field(default=(), repr=False)  # never repeated from what it says
    _parser: Any = field(default_factory=simdjson.Parser, repr=False)

    def __post_init__(self) -> None:
        self._secrets = secrets_of(self.url, self.key)

    @property
    def shown(self) -> str:
        """The URL without its secrets."""
        return shown(self.url)

    async def embed(
        self, texts: Sequence[str], timeout_s: float, arrived: Callable[[], None] | None = None
    ) -> FloatMatrix:
        """The rows of texts that are one request: float32, shape (n, dims), checked, normalised for cosine.

        `arrived` is called when the server is through with its rows and they have yet to be read.

        Raises:
            TooManyError: it wants fewer inputs, or bytes.
            EndpointRefusedError: it will not take one of these inputs.
            EndpointUnavailableError: it is down, overloaded (`retry_after` in the fields where it says when to
                come back), or its model failed (`status` 424).
            EndpointAnswerError: it answered 200 with what are no vectors of this space.
            EndpointForbiddenError: no request of this form will ever succeed.
            BudgetSpentError: nothing was sent: it might cost more than is left.
        """
        info = self.info or await self.describe(timeout_s)
        if self.meter is None:
            return await self._embed(texts, timeout_s, info, _Charge(), arrived)
        held = await self.meter.reserve(most_tokens(texts))
        charge = _Charge(held)
        try:
            return await self._embed(texts, timeout_s, info, charge, arrived)
        finally:
            self.meter.settle(held, charge.tokens)

    async def _embed(
        self,
        texts: Sequence[str],
        timeout_s: float,
        info: ServerInfo,
        charge: _Charge,
        arrived: Callable[[], None] | None,
    ) -> FloatMatrix:
        with self._asked(len(texts)):
            body = encode_request({"inputs": texts, **request_options(self.config, self.kind, info)})
            limit = len(texts) * self.config.dims * NUMBER_BYTES + INFO_BYTES
            try:
                answer = await self._request(self.url, timeout_s, limit, body)
            except EndpointUnavailableError as error:
                if error.fields.get("unreachable"):
                    charge.tokens = 0
                raise
            if answer.status != 200:
                charge.tokens = 0
                raise self._failure(answer, len(texts))
            counted = answer.headers.get("x-compute-tokens", "")
            tokens = int(counted) if counted.isascii() and counted.isdigit() else 0
            charge.tokens = tokens or math.ceil(guessed_tokens(sum(map(len, texts))))
            if arrived is not None:
                arrived()
                await asyncio.sleep(0)  # what it has set off is sent before these rows take their time
            rows = self._read_rows(answer.body, len(texts))
            self.tokens += tokens
            return rows

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

    def told(self) -> dict[str, Any]:
        """{url, in_flight, docs_per_s, docs, tokens, errors, last_error}, since it was made."""
        elapsed_s = time.monotonic() - self._asked_at if self._asked_at else 0.0
        return {
            "url": self.shown,
            "in_flight": self.in_flight,
            "docs_per_s": round(self.docs / elapsed_s, 1) if elapsed_s else 0.0,
            "docs": self.docs,
            "tokens": self.tokens,
            "errors": self.errors,
            "last_error": self.last_error,
        }

    @contextmanager
    def _asked(self, count: int) -> Iterator[None]:
        """Keep count of a request for `count` texts, and of how it ends."""
        self._asked_at = self._asked_at or time.monotonic()
        self.in_flight += 1
        try:
            yield
            self.docs += count
        except CompassError as error:
            self.errors, self.last_error = self.errors + 1, error.detail
            raise
        finally:
            self.in_flight -= 1

    def _failure(self, answer: _Answer, count: int) -> Exception:
        """The error that an answer other than 200 stands for."""
        body = answer.body
        for secret in self._secrets:
            body = body.replace(secret, b"***")
        said = read_said(body)
        detail = f"{self.shown} answered {answer.status}{': ' + said.reason if said.reason else ''}"
        fields: dict[str, Any] = {"endpoint": self.shown, "status": answer.status}
        match meaning(answer.status, said):
            case Meaning.TOO_MANY:
                return TooManyError(detail, smaller_batch(count, said))
            case Meaning.TOO_LARGE:
                return TooManyError(detail, None)
            case Meaning.REFUSED:
                return EndpointRefusedError(detail, fields)
            case Meaning.BACKEND | Meaning.BUSY:
                after_s = retry_after_s(answer.headers.get("Retry-After"), time.time())
                if after_s is not None:
                    fields["retry_after"] = after_s
                return EndpointUnavailableError(detail, fields)
        redirect = "redirects are not followed, give the final URL" if 300 <= answer.status < 400 else None
        advice = _ADVICE.get(answer.status, redirect)
        return EndpointForbiddenError(f"{detail} ({advice})" if advice else detail, fields)

    def _read_rows(self, body: bytes, count: int) -> FloatMatrix:
        dims = self.config.dims
        rows, reason = decode_rows(self._parser, body, count, dims)
        if rows is not None:
            reason = why_unfit(rows, dims)
            if reason is None:
                return prepare_vectors(rows, self.config.metric)
        detail = f"{self.shown} answered 200, but not with vectors of this space: {reason}"
        raise EndpointAnswerError(detail, {"endpoint": self.shown, "reason": reason})

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
