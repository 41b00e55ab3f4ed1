"""A model behind the contract of text-embeddings-inference (TEI): over HTTP, or asked by a handle.

Whoever asks it without HTTP calls `TeiServer.reply`, and is refused by the same rules in the same words.
"""

from __future__ import annotations

import hmac
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import msgspec
import numpy as np
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from compass import __version__
from compass.domain.chunk import FloatMatrix, has_text
from compass.domain.embedding.contract import Reply
from compass.embedder.tei import (
    Backend,
    Computed,
    EmbedRequest,
    Input,
    Limits,
    PlainRequest,
    RefusalError,
    does_not_fit,
    invalid,
)

DECIMALS = 8  # of a number in an answer: finer than float32 for all but the smallest components


class TeiServer:
    """A model as TEI serves one.

    Args:
        backend: The model.
        limits: What is taken at once.
        api_key: Wanted as `Authorization: Bearer`; else 401.
        tei: False: a plain server, that refuses every member but `inputs`.
    """

    def __init__(
        self, backend: Backend, limits: Limits | None = None, *, api_key: str | None = None, tei: bool = True
    ) -> None:
        self._backend, self._limits = backend, limits or Limits()
        self._key, self._tei = api_key, tei
        self._at_work = 0

    async def embed(self, request: EmbedRequest) -> Computed:
        """The rows of a request.

        Raises:
            RefusalError: there are none.
        """
        inputs = _inputs(request)
        self._check(inputs, request)
        with self._permits(len(inputs)):
            return await self._backend.embed(inputs, request)

    async def reply(self, texts: Sequence[str], options: Mapping[str, Any]) -> Reply:
        """The answer to `{"inputs": texts, **options}`; refusals are answers too, as they are over HTTP."""
        try:
            computed = await self.embed(_request(texts, options))
        except RefusalError as refusal:
            return Reply(refusal.status, error=refusal.error, error_type=refusal.error_type)
        return Reply(200, computed.rows, computed.tokens)

    def info(self) -> dict[str, Any]:
        """The members of `GET /info`."""
        model, limits = self._backend.model(), self._limits
        return {
            "model_id": model.model_id,
            "model_sha": model.model_sha,
            "model_dtype": model.dtype,
            "served_model_name": model.model_id,
            "model_type": {"embedding": {"pooling": model.pooling}},
            "max_concurrent_requests": limits.max_concurrent_requests,
            "max_input_length": model.max_input_length,
            "max_batch_tokens": limits.max_batch_tokens,
            "max_batch_requests": limits.max_batch_requests,
            "max_client_batch_size": limits.max_client_batch_size,
            "auto_truncate": limits.auto_truncate,
            "tokenization_workers": 1,
            "version": f"compass-{__version__}",
        }

    async def is_healthy(self) -> bool:
        """Whether the model can embed."""
        return await self._backend.is_healthy()

    def routes(self) -> list[Route]:
        """The contract's routes."""
        return [
            Route("/embed", self.post_embed, methods=["POST"]),
            Route("/info", self.get_info),
            Route("/health", self.get_health),
        ]

    async def post_embed(self, request: Request) -> Response:
        """`POST /embed`."""
        if not self._allowed(request):
            return Response(status_code=401)
        started = time.perf_counter()
        try:
            body = self._decode(await self._body(request))
            computed = await self.embed(body)
        except RefusalError as refusal:
            return refusal.response()
        headers = {
            "x-compute-characters": str(sum(map(len, _inputs(body)))),
            "x-compute-tokens": str(computed.tokens),
            "x-compute-time": str(round((time.perf_counter() - started) * 1_000)),
        }
        return Response(encode_rows(computed.rows), headers=headers, media_type="application/json")

    async def get_info(self, request: Request) -> Response:
        """`GET /info`."""
        return JSONResponse(self.info()) if self._allowed(request) else Response(status_code=401)

    async def get_health(self, request: Request) -> Response:
        """`GET /health`; open to all."""
        if await self.is_healthy():
            return Response()
        return RefusalError(503, "the model does not answer", "Unhealthy").response()

    def _allowed(self, request: Request) -> bool:
        header = request.headers.get("authorization", "")
        return self._key is None or hmac.compare_digest(header.encode(), f"Bearer {self._key}".encode())

    async def _body(self, request: Request) -> bytes:
        body = bytearray()
        async for part in request.stream():
            body += part
            if len(body) > self._limits.payload_limit:
                raise RefusalError(413, "Failed to buffer the request body: length limit exceeded")
        return bytes(body)

    def _decode(self, body: bytes) -> EmbedRequest:
        try:
            if not self._tei:
                return EmbedRequest(list(_listed(msgspec.json.decode(body, type=PlainRequest).inputs)))
            return msgspec.json.decode(body, type=EmbedRequest)
        except msgspec.ValidationError as error:
            raise does_not_fit(str(error)) from None
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise RefusalError(400, f"Failed to parse the request body as JSON: {error}") from None

    def _check(self, inputs: Sequence[Input], request: EmbedRequest) -> None:
        """TEI's refusals, in its order: no inputs, too many, then what is wrong with one of them."""
        most, dims = self._limits.max_client_batch_size, self._backend.model().dims
        if not inputs:
            raise RefusalError(400, "`inputs` cannot be empty", "Empty")
        if len(inputs) > most:
            detail = f"batch size {len(inputs)} > maximum allowed batch size {most}"
            raise RefusalError(422, detail, "Validation")
        if request.truncation_direction.lower() not in ("left", "right"):
            raise does_not_fit("unknown truncation_direction")
        if request.dimensions is not None and not 1 <= request.dimensions <= dims:
            raise invalid(f"`dimensions` must be within 1 and {dims}. Given: {request.dimensions}")
        if not all(has_text(one) if isinstance(one, str) else one for one in inputs):
            raise invalid("`inputs` cannot be empty")

    @contextmanager
    def _permits(self, count: int) -> Iterator[None]:
        if self._at_work + count > self._limits.max_concurrent_requests:
            raise RefusalError(429, "Model is overloaded", "Overloaded")
        self._at_work += count
        try:
            yield
        finally:
            self._at_work -= count


def encode_rows(vectors: FloatMatrix) -> bytes:
    """Rows as JSON arrays, each number to 8 decimals."""
    return msgspec.json.encode(np.round(vectors.astype(np.float64), DECIMALS).tolist())


def _request(texts: Sequence[str], options: Mapping[str, Any]) -> EmbedRequest:
    """The request that holds these texts.

    Raises:
        RefusalError: an option is of another type than the contract's.
    """
    try:
        return msgspec.convert({"inputs": list(texts), **options}, EmbedRequest)
    except msgspec.ValidationError as error:
        raise does_not_fit(str(error)) from None


def _inputs(request: EmbedRequest) -> list[Input]:
    """The inputs, one or many; a list of numbers is one input, given as tokens.

    Raises:
        RefusalError: it mixes tokens with texts.
    """
    listed = _listed(request.inputs)
    tokens = [one for one in listed if isinstance(one, int)]
    if not tokens:
        return [one for one in listed if not isinstance(one, int)]
    if len(tokens) < len(listed) or min(tokens) < 0:
        raise does_not_fit("data did not match any variant of Input")
    return [tokens]


def _listed(inputs: str | Sequence[Any]) -> Sequence[Any]:
    return [inputs] if isinstance(inputs, str) else inputs
