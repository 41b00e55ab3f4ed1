"""An embedding server that speaks the contract of text-embeddings-inference (TEI), with the built-in model.

For demos and tests, yours included: what it answers, and with which status, is what TEI answers, so code
that works against it meets no surprise at a real one. The vectors are lexical, see
`compass.adapters.builtin_model`. Faults are put in by `reply`.

    with served("tiny", 64) as server:
        httpx.post(server.url, json={"inputs": ["hello"]}).json()
"""

from __future__ import annotations

import asyncio
import hmac
import inspect
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypedDict, Unpack

import msgspec
import numpy as np
import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from compass import __version__
from compass.adapters.builtin_model import HashingModel
from compass.domain.chunk import FloatMatrix, has_text
from compass.errors import UnavailableError

START_TIMEOUT_S, STOP_TIMEOUT_S = 10.0, 10.0
DECIMALS = 8  # of a number in an answer: finer than float32 for all but the smallest components

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


class EmbedRequest(msgspec.Struct):
    """The body of `POST /embed`, as TEI's OpenAPI document has it; token ids are not taken."""

    inputs: str | list[str]
    normalize: bool = True
    truncate: bool | None = None
    truncation_direction: str = "Right"
    prompt_name: str | None = None
    dimensions: int | None = None


class PlainRequest(msgspec.Struct, forbid_unknown_fields=True):
    """The body that a server takes which knows `inputs` alone."""

    inputs: str | list[str]


class EmbedServer:
    """The server as an ASGI application, `app`; `stats` counts what it was asked.

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
        self._requests = self._inputs = self._at_work = 0
        self._gpu_free_at = 0.0
        routes = [
            Route("/embed", self._embed, methods=["POST"]),
            Route("/health", self._health),
            Route("/stats", self._stats),
        ]
        if self._set["tei"]:
            routes.append(Route("/info", self._info))
        self.app = Starlette(routes=routes)

    def stats(self) -> dict[str, int]:
        """{requests, inputs}: calls of `/embed`, and the inputs of those that were in order."""
        return {"requests": self._requests, "inputs": self._inputs}

    async def _embed(self, request: Request) -> Response:
        self._requests += 1
        if not self._allowed(request):
            return Response(status_code=401)
        body = await request.body()
        if len(body) > self._set["payload_limit"]:
            return PlainTextResponse("Failed to buffer the request body: length limit exceeded", 413)
        asked = self._decode(body)
        if isinstance(asked, Response):
            return asked
        texts = [asked.inputs] if isinstance(asked.inputs, str) else asked.inputs
        refusal = self._refusal(texts, asked)
        if refusal is not None:
            return refusal
        if self._at_work + len(texts) > self._set["max_concurrent_requests"]:
            return _error(429, "Model is overloaded", "Overloaded")
        self._inputs += len(texts)
        self._at_work += len(texts)
        try:
            return await self._answer(texts, asked)
        finally:
            self._at_work -= len(texts)

    async def _answer(self, texts: list[str], asked: EmbedRequest) -> Response:
        started = time.perf_counter()
        await asyncio.sleep(self._set["delay_ms"] / 1_000)
        if self._set["docs_per_s"]:
            self._gpu_free_at = max(time.monotonic(), self._gpu_free_at) + len(texts) / self._set["docs_per_s"]
            await asyncio.sleep(self._gpu_free_at - time.monotonic())
        reply = self._set["reply"]
        said = reply(texts) if reply is not None else None
        if inspect.isawaitable(said):
            said = await said
        if said is not None:
            return said
        vectors = await run_in_threadpool(self._model.embed, [self._cut(text, asked) for text in texts])
        if asked.dimensions is not None:
            vectors = _shortened(vectors, asked.dimensions)
        headers = {
            "x-compute-characters": str(sum(map(len, texts))),
            "x-compute-tokens": str(sum(map(_length, texts))),
            "x-compute-time": str(round((time.perf_counter() - started) * 1_000)),
        }
        return Response(encode_rows(vectors), headers=headers, media_type="application/json")

    def _decode(self, body: bytes) -> EmbedRequest | Response:
        try:
            if not self._set["tei"]:
                return EmbedRequest(msgspec.json.decode(body, type=PlainRequest).inputs)
            return msgspec.json.decode(body, type=EmbedRequest)
        except msgspec.ValidationError as error:
            return PlainTextResponse(f"Failed to deserialize the JSON body into the target type: {error}", 422)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            return PlainTextResponse(f"Failed to parse the request body as JSON: {error}", 400)

    def _refusal(self, texts: Sequence[str], asked: EmbedRequest) -> Response | None:
        """TEI's refusals, in its order: no inputs, too many, then what is wrong with one of them."""
        most, longest = self._set["max_client_batch_size"], self._set["max_input_length"]
        if not texts:
            return _error(400, "`inputs` cannot be empty", "Empty")
        if len(texts) > most:
            return _error(422, f"batch size {len(texts)} > maximum allowed batch size {most}", "Validation")
        if asked.truncation_direction.lower() not in ("left", "right"):
            return PlainTextResponse("Failed to deserialize the JSON body: unknown truncation_direction", 422)
        if asked.dimensions is not None and not 1 <= asked.dimensions <= self._model.dims:
            said = f"`dimensions` must be within 1 and {self._model.dims}. Given: {asked.dimensions}"
            return _error(422, f"Input validation error: {said}", "Validation")
        if not all(map(has_text, texts)):
            return _error(422, "Input validation error: `inputs` cannot be empty", "Validation")
        words = max(map(_length, texts))
        if not asked.truncate and words > longest:
            said = f"`inputs` must have less than {longest} tokens. Given: {words}"
            return _error(422, f"Input validation error: {said}", "Validation")
        return None

    def _cut(self, text: str, asked: EmbedRequest) -> str:
        longest = self._set["max_input_length"]
        if _length(text) <= longest:
            return text
        words = text.split()
        return " ".join(words[:longest] if asked.truncation_direction.lower() == "right" else words[-longest:])

    async def _info(self, request: Request) -> Response:
        if not self._allowed(request):
            return Response(status_code=401)
        return JSONResponse(
            {
                "model_id": self._model.name,
                "model_sha": None,
                "model_dtype": "float32",
                "served_model_name": self._model.name,
                "model_type": {"embedding": {"pooling": "hashing"}},
                "max_concurrent_requests": self._set["max_concurrent_requests"],
                "max_input_length": self._set["max_input_length"],
                "max_batch_tokens": 16_384,
                "max_batch_requests": None,
                "max_client_batch_size": self._set["max_client_batch_size"],
                "auto_truncate": False,
                "tokenization_workers": 1,
                "version": f"compass-{__version__}",
            }
        )

    async def _health(self, request: Request) -> Response:
        return Response()

    async def _stats(self, request: Request) -> Response:
        return JSONResponse(self.stats())

    def _allowed(self, request: Request) -> bool:
        key = self._set["api_key"]
        given = request.headers.get("authorization", "")
        return key is None or hmac.compare_digest(given.encode(), f"Bearer {key}".encode())


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
    with _bound(host, port) as listener:
        ready = (lambda: on_ready(_url(listener))) if on_ready is not None else None
        _Uvicorn(EmbedServer(model, dims, **options).app, ready).run(sockets=[listener])


@contextmanager
def served(model: str, dims: int, **options: Unpack[Options]) -> Iterator[Served]:
    """A server in a thread of this process, on a free port of 127.0.0.1, while the block runs.

    Raises:
        UnavailableError: it did not start.
    """
    server, ready = EmbedServer(model, dims, **options), threading.Event()
    with _bound("127.0.0.1", 0) as listener:
        http = _Uvicorn(server.app, ready.set)
        thread = threading.Thread(target=http.run, kwargs={"sockets": [listener]}, name="embed-server", daemon=True)
        thread.start()
        try:
            if not ready.wait(START_TIMEOUT_S):
                raise UnavailableError(f"the embed server did not start within {START_TIMEOUT_S} s")
            yield Served(_url(listener), server)
        finally:
            http.should_exit = http.force_exit = True
            thread.join(STOP_TIMEOUT_S)


class _Uvicorn(uvicorn.Server):
    """uvicorn, that says when it takes requests."""

    def __init__(self, app: Starlette, ready: Callable[[], Any] | None) -> None:
        super().__init__(uvicorn.Config(app, lifespan="off", log_level="warning", access_log=False))
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self._ready is not None:
            self._ready()


def encode_rows(vectors: FloatMatrix) -> bytes:
    """Rows as JSON arrays, each number to 8 decimals."""
    return msgspec.json.encode(np.round(vectors.astype(np.float64), DECIMALS).tolist())


def _bound(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=512)
    except OSError as error:
        raise UnavailableError(f"cannot listen on {host}:{port}: {error.strerror}") from error


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}/embed" if ":" in host else f"http://{host}:{port}/embed"


def _length(text: str) -> int:
    return len(text.split())


def _shortened(vectors: FloatMatrix, dims: int) -> FloatMatrix:
    """The first `dims` components, of length 1 again; a row whose first components are all zero stays so."""
    rows = vectors[:, :dims]
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / np.where(lengths == 0, 1, lengths), np.float32)


def _error(status: int, error: str, error_type: str) -> Response:
    return JSONResponse({"error": error, "error_type": error_type}, status)
