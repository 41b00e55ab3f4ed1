"""Embedding endpoints over HTTP: batches out, checked float32 rows in, and every fault under its own name.

An answer is decoded from JSON straight into float32; no list of Python floats is ever made. An error names
the endpoint without its query string, gives the server's own reason, and never holds a key.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import aiohttp
import numpy as np
import simdjson
import stamina
from yarl import URL

from compass.adapters.embed_wire import (
    check_key,
    decode_rows,
    encode_request,
    read_body,
    secrets_of,
    transport_reason,
)
from compass.adapters.endpoint_url import CheckedResolver, check_endpoint, shown
from compass.domain.chunk import FloatMatrix, has_text
from compass.domain.embedding import (
    FIRST_BATCH,
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
from compass.errors import (
    CompassError,
    EndpointAnswerError,
    EndpointForbiddenError,
    EndpointRefusedError,
    EndpointUnavailableError,
    InvalidRequestError,
)

READ_BUFFER_BYTES = 2 << 20
INFO_TIMEOUT_S = 5.0
INFO_BYTES = 1 << 20
BACKEND_ATTEMPTS = 3  # how often 424 is taken for the moment's fault, before it is taken for the input's
REQUESTS_PER_ENDPOINT = 4
NUMBER_BYTES = 64  # of JSON for one number, spaces included; a longer answer is not the answer

_ADVICE = {
    401: "it wants a key: name the variable that holds it by api_key_env",
    403: "it wants another key: see api_key_env",
    404: "is this the URL of an /embed endpoint?",
    405: "is this the URL of an /embed endpoint?",
}

_T = TypeVar("_T")


@dataclass(slots=True)
class _Endpoint:
    """One server. `info` is None until it has answered `/info` in some way."""

    url: str
    shown: str
    secrets: tuple[bytes, ...] = field(repr=False)  # never repeated from what it says
    info: ServerInfo | None = None
    in_flight: int = 0
    texts: int = 0  # answered, since the first was asked for
    asked_at: float | None = None
    errors: int = 0
    last_error: str | None = None

    @contextmanager
    def asked(self, count: int) -> Iterator[None]:
        """Keep count of a request for `count` texts, and of how it ends."""
        self.asked_at = self.asked_at or time.monotonic()
        self.in_flight += 1
        try:
            yield
            self.texts += count
        except CompassError as error:
            self.errors, self.last_error = self.errors + 1, error.detail
            raise
        finally:
            self.in_flight -= 1

    def told(self) -> dict[str, Any]:
        """{url, in_flight, docs_per_s, errors, last_error}."""
        elapsed_s = time.monotonic() - self.asked_at if self.asked_at else 0.0
        return {
            "url": self.shown,
            "in_flight": self.in_flight,
            "docs_per_s": round(self.texts / elapsed_s, 1) if elapsed_s else 0.0,
            "errors": self.errors,
            "last_error": self.last_error,
        }


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes


class _TooManyError(Exception):
    """More than the endpoint takes in one request: inputs or bytes."""


@dataclass(slots=True)
class _Patience:
    """What one batch has met so far; as stamina's backoff hook it decides whether and when to try again."""

    total_s: float
    others: int  # endpoints that have not been tried yet
    started: float = field(default_factory=time.monotonic)
    backend_failures: int = 0
    retry_after_s: float | None = None
    last: Exception | None = None

    def left_s(self) -> float:
        """Seconds until the batch is given up; 0 when too few are left for a request that proves anything."""
        left = self.started + self.total_s - time.monotonic()
        return left if left > min(1.0, self.total_s / 10) else 0.0

    def __call__(self, error: Exception) -> bool | float:
        """True: after stamina's own backoff with jitter; a float: after so many seconds; False: no more."""
        if not isinstance(error, EndpointUnavailableError | EndpointAnswerError):
            return False
        self.last, asked = error, self.retry_after_s
        if self.others > 0:
            self.others -= 1
            return 0.001
        if asked is None or asked < 0.1:
            return self.left_s() > 0
        return asked * random.uniform(1.0, 1.1) if asked < self.left_s() else False


@dataclass(slots=True)
class _Door:
    """What belongs to one event loop: the connections, and the slots that bound the requests at once."""

    session: aiohttp.ClientSession
    slots: asyncio.Semaphore
    parser: Any = field(default_factory=simdjson.Parser)


class HttpEmbedder:
    """The `Embedder` of one space over one or several endpoints that serve the same model.

    Batches go round robin; a batch that failed is tried at the next endpoint. May be used from several event
    loops, each has its own connections.

    Args:
        endpoints: URLs, with or without the trailing `/embed`.
        config: dims and metric that the rows are checked against; the options that the space sends.
        timeout_s: Of one request, connecting included.
        retry_s: How long one batch is tried again; 0: one attempt per endpoint.
        batch_size: Texts a request at most; the server's limit counts if it is smaller.
        api_key: Sent as `Authorization: Bearer`.
        kind: Which of the space's prompt names is sent.

    Raises:
        InvalidRequestError: an endpoint is not to be called, or the key cannot be a header.
    """

    def __init__(
        self,
        endpoints: Sequence[str],
        config: SpaceConfig,
        *,
        timeout_s: float,
        retry_s: float,
        batch_size: int | None = None,
        api_key: str | None = None,
        kind: Kind,
    ) -> None:
        if not endpoints:
            raise InvalidRequestError("an HttpEmbedder wants at least one endpoint")
        urls = [check_endpoint(url) for url in endpoints]
        self._key = check_key(api_key)
        self._endpoints = [_Endpoint(url, shown(url), secrets_of(url, self._key)) for url in urls]
        self._next = itertools.cycle(self._endpoints)
        self._config, self._kind = config, kind
        self._timeout_s, self._retry_s = timeout_s, retry_s
        self._wanted = batch_size
        self._learnt: int | None = None  # the largest batch that no endpoint has refused
        self._doors: dict[asyncio.AbstractEventLoop, _Door] = {}

    def __repr__(self) -> str:
        return f"HttpEmbedder({[e.shown for e in self._endpoints]})"

    @property
    def batch_size(self) -> int:
        """Texts in one request, as far as is known now."""
        known = [size for size in (self._wanted, self._learnt) if size is not None]
        return max(1, min(known, default=FIRST_BATCH))

    async def embed(self, texts: Sequence[str]) -> FloatMatrix:
        """One row per text, in order: float32, shape (n, dims), checked, and normalised for cosine.

        Requests go out several at a time. The first one goes alone as long as no server has said how many
        inputs it takes, so that the others have the right size.

        Raises:
            EndpointRefusedError: it refuses an input, or one is empty; see `embedders.embed_each`.
            EndpointUnavailableError, EndpointAnswerError: it was down, or lied, until `retry_s` was over.
            EndpointForbiddenError: no retry helps: a key, a redirect, no /embed there.
        """
        for i, text in enumerate(texts):
            if not has_text(text):
                raise EndpointRefusedError(f"text {i} is empty: it has no vector and is never sent", {"row": i})
        done = 0
        parts: list[FloatMatrix] = [np.empty((0, self._config.dims), np.float32)]
        if texts and all(e.info is None for e in self._endpoints):
            done = min(self.batch_size, len(texts))
            parts.append(await self._batch(texts[:done]))
        step = self.batch_size
        rest = [self._batch(texts[i : i + step]) for i in range(done, len(texts), step)]
        return np.concatenate(parts + await _all(rest))

    def endpoints(self) -> list[dict[str, Any]]:
        """How each endpoint does: [{url, in_flight, docs_per_s, errors, last_error}], since this was made."""
        return [endpoint.told() for endpoint in self._endpoints]

    async def close(self) -> None:
        """Close the connections of every event loop that still runs."""
        here, doors = asyncio.get_running_loop(), self._doors
        self._doors = {}
        for loop, door in doors.items():
            if loop is here:
                await door.session.close()
            elif loop.is_running():
                await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(door.session.close(), loop))

    async def _batch(self, texts: Sequence[str]) -> FloatMatrix:
        """The rows of texts that are meant to be one request; in halves where a server wants fewer."""
        try:
            async with self._door().slots:
                return await self._persist(texts)
        except _TooManyError as refusal:
            if len(texts) == 1:
                raise EndpointRefusedError(str(refusal), {"status": 413}) from None
            step = min(self.batch_size, (len(texts) + 1) // 2)
        halves = [self._batch(texts[i : i + step]) for i in range(0, len(texts), step)]
        return np.concatenate(await _all(halves))

    async def _persist(self, texts: Sequence[str]) -> FloatMatrix:
        """Try until it succeeds, time is up, or no retry can help."""
        patience = _Patience(max(self._retry_s, self._timeout_s), len(self._endpoints) - 1)
        # No pause is longer than a quarter of the whole, so the last one cannot run far past the end.
        retries: dict[str, Any] = {"attempts": None, "timeout": self._retry_s, "wait_max": min(5, self._retry_s / 4)}
        if self._retry_s <= 0:
            retries = {"attempts": len(self._endpoints), "timeout": None}
        async for attempt in stamina.retry_context(on=patience, **retries):
            with attempt:
                timeout_s = min(self._timeout_s, patience.left_s())
                if timeout_s == 0 and patience.last is not None:
                    raise patience.last
                patience.retry_after_s = None
                endpoint = next(self._next)
                with endpoint.asked(len(texts)):
                    return await self._attempt(endpoint, texts, patience, timeout_s)
        raise AssertionError("unreachable: stamina re-raises the last error")

    async def _attempt(
        self, endpoint: _Endpoint, texts: Sequence[str], patience: _Patience, timeout_s: float
    ) -> FloatMatrix:
        info = endpoint.info or await self._describe(endpoint, timeout_s)
        if len(texts) > self.batch_size:
            raise _TooManyError(f"{endpoint.shown} takes {self.batch_size} inputs")
        body = encode_request({"inputs": texts, **request_options(self._config, self._kind, info)})
        limit = len(texts) * self._config.dims * NUMBER_BYTES + INFO_BYTES
        answer = await self._request(endpoint, endpoint.url, timeout_s, limit, body)
        if answer.status == 200:
            return self._read_rows(endpoint, answer.body, len(texts))
        patience.retry_after_s = retry_after_s(answer.headers.get("Retry-After"), time.time())
        raise self._failure(endpoint, answer, len(texts), patience)

    def _failure(self, endpoint: _Endpoint, answer: _Answer, count: int, patience: _Patience) -> Exception:
        """The error that an answer other than 200 stands for."""
        body = answer.body
        for secret in endpoint.secrets:
            body = body.replace(secret, b"***")
        said = read_said(body)
        detail = f"{endpoint.shown} answered {answer.status}{': ' + said.reason if said.reason else ''}"
        fields = {"endpoint": endpoint.shown, "status": answer.status}
        match meaning(answer.status, said):
            case Meaning.TOO_MANY:
                self._learn(smaller_batch(count, said))
                return _TooManyError(detail)
            case Meaning.TOO_LARGE:
                return _TooManyError(detail)
            case Meaning.REFUSED:
                return EndpointRefusedError(detail, fields)
            case Meaning.BACKEND:
                patience.backend_failures += 1
                persists = patience.backend_failures >= BACKEND_ATTEMPTS or self._retry_s <= 0
                return (EndpointRefusedError if persists else EndpointUnavailableError)(detail, fields)
            case Meaning.BUSY:
                return EndpointUnavailableError(detail, fields)
        redirect = "redirects are not followed, give the final URL" if 300 <= answer.status < 400 else None
        advice = _ADVICE.get(answer.status, redirect)
        return EndpointForbiddenError(f"{detail} ({advice})" if advice else detail, fields)

    def _read_rows(self, endpoint: _Endpoint, body: bytes, count: int) -> FloatMatrix:
        dims, metric = self._config.dims, self._config.metric
        rows, reason = decode_rows(self._door().parser, body, count, dims)
        if rows is not None:
            reason = why_unfit(rows, dims)
            if reason is None:
                return prepare_vectors(rows, metric)
        detail = f"{endpoint.shown} answered 200, but not with vectors of this space: {reason}"
        raise EndpointAnswerError(detail, {"endpoint": endpoint.shown})

    async def _describe(self, endpoint: _Endpoint, timeout_s: float) -> ServerInfo:
        """Ask `/info`, once per endpoint. Only a server that is not up leaves the question open.

        To take a server for what it is not because it was not up would send a TEI no `truncate`, and long
        texts would be refused for good.
        """
        head, mark, query = endpoint.url.partition("?")
        url = head.removesuffix("/embed") + "/info" + mark + query
        answer = await self._request(endpoint, url, min(timeout_s, INFO_TIMEOUT_S), INFO_BYTES)
        if answer.status in (429, 502, 503, 504):
            detail = f"{endpoint.shown} is not up: its /info answered {answer.status}"
            raise EndpointUnavailableError(detail, {"endpoint": endpoint.shown, "status": answer.status})
        endpoint.info = read_info(answer.status, answer.body)
        if endpoint.info.max_batch is not None:
            self._learn(endpoint.info.max_batch)
        return endpoint.info

    async def _request(
        self, endpoint: _Endpoint, url: str, timeout_s: float, limit: int, body: bytes | None = None
    ) -> _Answer:
        """One request, never redirected. No error of aiohttp's leaves here: they hold headers and URLs."""
        headers = {"Accept": "application/json", "Accept-Encoding": "identity"}
        if body is not None:
            headers["Content-Type"] = "application/json"
        if self._key is not None:
            headers["Authorization"] = f"Bearer {self._key}"
        ask = self._door().session.request(
            "GET" if body is None else "POST",
            URL(url, encoded=True),
            data=body,
            headers=headers,
            allow_redirects=False,
        )
        what = "/embed" if body is not None else "/info"
        kind: type[CompassError] = EndpointUnavailableError
        try:
            async with asyncio.timeout(timeout_s), ask as response:
                return _Answer(response.status, response.headers, await read_body(response, limit))
        except CompassError as error:  # the resolver's, or a body without end
            kind, fault = type(error), error.detail
        except TimeoutError:
            fault = f"{what} did not answer within {timeout_s:.3g} s"
        except (aiohttp.ClientError, OSError, ValueError) as error:
            fault = f"{what} failed: {transport_reason(error)}"
        raise kind(f"{endpoint.shown}: {fault}", {"endpoint": endpoint.shown})

    def _door(self) -> _Door:
        loop = asyncio.get_running_loop()
        door = self._doors.get(loop)
        if door is None:
            self._doors = {old: d for old, d in self._doors.items() if not old.is_closed()}
            at_once = REQUESTS_PER_ENDPOINT * len(self._endpoints)
            session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(resolver=CheckedResolver(), limit=0),
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=aiohttp.ClientTimeout(),
                trust_env=False,
                read_bufsize=READ_BUFFER_BYTES,
            )
            door = self._doors[loop] = _Door(session, asyncio.Semaphore(at_once))
        return door

    def _learn(self, limit: int) -> None:
        self._learnt = limit if self._learnt is None else min(limit, self._learnt)


async def _all(work: Sequence[Coroutine[Any, Any, _T]]) -> list[_T]:
    """The results of all, in order; the first error ends the others and is raised as itself."""
    if len(work) == 1:
        return [await work[0]]
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one) for one in work]
        return [task.result() for task in tasks]
    except ExceptionGroup as faults:
        first = faults.exceptions[0]
    raise first
