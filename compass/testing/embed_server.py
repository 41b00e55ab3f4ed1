"""An embedding server that speaks the contract of text-embeddings-inference (TEI), with the built-in model.

For demos and tests, yours included: what it answers, and with which status, is what TEI answers, so code
that works against it meets no surprise at a real one. The vectors are lexical, see
`compass.embedding.builtin`. Faults are put in by `reply`.

    with served("tiny", 64) as server:
        httpx.post(server.url, json={"inputs": ["hello"]}).json()
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypedDict, Unpack

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from compass.domain.space import prepare_vectors
from compass.embedder import http_server
from compass.embedder.tei import (
    Computed,
    EmbedRequest,
    Input,
    Limits,
    ModelInfo,
    RefusalError,
    too_long,
)
from compass.embedder.tei_server import TeiServer, encode_rows
from compass.embedding.builtin import HashingModel

__all__ = ["EmbedServer", "Options", "Served", "encode_rows", "run", "served"]

Reply = Callable[[list[str]], Response | Awaitable[Response | None] | None]


class Options(TypedDict, total=False):
    """What can be said of an embed server beside its model.

    Attributes:
        max_client_batch_size: Inputs in one request; more: 422.
        max_concurrent_requests: Inputs at work at once, each takes a permit; more: 429, at once.
        max_input_length: Words of one input; more: 422, unless `truncate` is set.
        payload_limit: Bytes of a body; more: 413.
        delay_ms: Waited before each answer to `/embed`.
        docs_per_s: As one GPU: requests queue, and each takes its inputs' share of a second; 0: no such limit.
        api_key: Wanted as `Authorization: Bearer`; else 401.
        tei: False: a plain server without `/info`, that refuses every member but `inputs`.
        reply: Called with the inputs of each request that is in order; a response that it returns, or awaits,
            is sent in place of the vectors. This is where tests put faults in.
    """

    max_client_batch_size: int
    max_concurrent_requests: int
    max_input_length: int
    payload_limit: int
    delay_ms: float
    docs_per_s: float
    api_key: str | None
    tei: bool
    reply: Reply | None


_DEFAULTS: Options = {
    "max_client_batch_size": 32,
    "max_concurrent_requests": 512,
    "max_input_length": 8_192,
    "payload_limit": 2_000_000,
    "delay_ms": 0.0,
    "docs_per_s": 0.0,
    "api_key": None,
    "tei": True,
    "reply": None,
}


class EmbedServer:
    """The server as an ASGI application, `app`; `stats` counts what it was request.

    Args:
        model: The name that salts the built-in model.
        dims: Numbers in a vector.
        options: See `Options`.
    """

    def __init__(self, model: str, dims: int, **options: Unpack[Options]) -> None:
        unknown = options.keys() - _DEFAULTS.keys()
        if unknown:
            raise TypeError(f"an embed server has no option {', '.join(sorted(unknown))}")
        self._model = HashingModel(model, dims)
        self._set: Options = {**_DEFAULTS, **options}
        self._requests = self._inputs = 0
        self._gpu_free_at = 0.0
        limits = Limits(
            max_client_batch_size=self._set["max_client_batch_size"],
            max_concurrent_requests=self._set["max_concurrent_requests"],
            payload_limit=self._set["payload_limit"],
        )
        self._tei = TeiServer(self, limits, api_key=self._set["api_key"], tei=self._set["tei"])
        routes = [
            Route("/embed", self._embed, methods=["POST"]),
            Route("/health", self._tei.get_health),
            Route("/stats", self._stats),
        ]
        if self._set["tei"]:
            routes.append(Route("/info", self._tei.get_info))
        self.app = Starlette(routes=routes)

    def stats(self) -> dict[str, int]:
        """{requests, inputs}: calls of `/embed`, and the inputs of those that were in order."""
        return {"requests": self._requests, "inputs": self._inputs}

    def model(self) -> ModelInfo:
        """The built-in model."""
        longest = self._set["max_input_length"]
        return ModelInfo(self._model.name, None, "float32", "hashing", self._model.dims, longest)

    async def embed(self, inputs: Sequence[Input], request: EmbedRequest) -> Computed:
        """The built-in model's rows, or what `reply` says.

        Raises:
            RefusalError: tokens, or a text that is too long; or what `reply` says.
        """
        texts = [one for one in inputs if isinstance(one, str)]
        if len(texts) < len(inputs):
            raise RefusalError(422, "the built-in model takes texts, no tokens")
        longest, tokens = self._set["max_input_length"], sum(map(_length, texts))
        if not request.truncate and (words := max(map(_length, texts))) > longest:
            raise too_long(words, longest)
        self._inputs += len(texts)
        await self._wait(len(texts))
        reply = self._set["reply"]
        answer = reply(texts) if reply is not None else None
        if inspect.isawaitable(answer):
            answer = await answer
        if answer is not None:
            raise _RepliedError(answer)
        vectors = await run_in_threadpool(self._model.embed, [self._cut(text, request) for text in texts])
        if request.dimensions is not None:
            vectors = prepare_vectors(vectors[:, : request.dimensions], "cosine")
        return Computed(vectors, tokens)

    async def is_healthy(self) -> bool:
        """True, as long as it runs."""
        return True

    async def _embed(self, request: Request) -> Response:
        self._requests += 1
        return await self._tei.post_embed(request)

    async def _wait(self, count: int) -> None:
        """Take the time that the options say."""
        await asyncio.sleep(self._set["delay_ms"] / 1_000)
        if self._set["docs_per_s"]:
            self._gpu_free_at = max(time.monotonic(), self._gpu_free_at) + count / self._set["docs_per_s"]
            await asyncio.sleep(self._gpu_free_at - time.monotonic())

    def _cut(self, text: str, request: EmbedRequest) -> str:
        longest = self._set["max_input_length"]
        if _length(text) <= longest:
            return text
        words = text.split()
        return " ".join(words[:longest] if request.truncation_direction.lower() == "right" else words[-longest:])

    async def _stats(self, request: Request) -> Response:
        return JSONResponse(self.stats())


class _RepliedError(RefusalError):
    """What `reply` put in place of the vectors."""

    def __init__(self, reply: Response) -> None:
        super().__init__(reply.status_code, "a fault that was put in")
        self._reply = reply

    def response(self) -> Response:
        return self._reply


@dataclass(frozen=True, slots=True)
class Served:
    """A running embed server. `url` ends in /embed."""

    url: str
    server: EmbedServer

    def stats(self) -> dict[str, int]:
        """{requests, inputs}, see `EmbedServer.stats`."""
        return self.server.stats()


def run(
    model: str,
    dims: int,
    host: str = "127.0.0.1",
    port: int = 0,
    *,
    on_ready: Callable[[str], Any] | None = None,
    **options: Unpack[Options],
) -> None:
    """Serve until SIGINT or SIGTERM.

    Args:
        model: The name that salts the built-in model.
        dims: Numbers in a vector.
        host: Address to bind.
        port: 0 for a free one.
        on_ready: Called with the URL of `/embed` once the server takes requests.
        options: See `Options`.

    Raises:
        UnavailableError: the address cannot be bound.
    """
    ready = (lambda base: on_ready(f"{base}/embed")) if on_ready is not None else None
    http_server.run(EmbedServer(model, dims, **options).app, host, port, ready)


@contextmanager
def served(model: str, dims: int, **options: Unpack[Options]) -> Iterator[Served]:
    """A server in a thread of this process, on a free port of 127.0.0.1, while the block runs.

    Raises:
        UnavailableError: it did not start.
    """
    server = EmbedServer(model, dims, **options)
    with http_server.served(server.app, "embed server") as base:
        yield Served(f"{base}/embed", server)


def _length(text: str) -> int:
    return len(text.split())
