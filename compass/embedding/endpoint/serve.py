"""An embedding endpoint `serve://<application>`: an embedder of this cluster, asked by its handle.

The same contract as over HTTP, in arrays: texts go out as a list, rows come back as float32. Refusals are the same
too, so whoever holds an endpoint need not know which kind it is.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, Protocol

from compass.domain.chunk import FloatMatrix
from compass.domain.embedding.contract import ErrorBody, Reply, ServerInfo, read_info, request_options
from compass.embedding.endpoint.base import INFO_TIMEOUT_S, Endpoint, PendingRequest
from compass.errors import EndpointUnavailableError

TOO_MANY_REQUESTS = 429
EMBED, INFO = "tei_embed", "tei_info"  # the methods of an embedder's replica


class Application(Protocol):
    """What is called; `ServeApplication`."""

    async def call(self, method: str, *arguments: Any, timeout_s: float) -> Any:
        """What the method returns; an EmbeddingError where it cannot be called."""


@dataclass(slots=True, eq=False)
class ServeEndpoint(Endpoint):
    """One Serve application."""

    application: Application = field(repr=False)

    async def _exchange(self, pending: PendingRequest) -> FloatMatrix:
        options, count = request_options(self.config, self.kind, pending.info), len(pending.texts)
        try:
            reply = await self.application.call(EMBED, list(pending.texts), options, timeout_s=pending.timeout_s)
        except EndpointUnavailableError as error:
            self.info = None  # ask first, before texts wait for it again: that takes seconds at most
            if error.fields.get("unreachable") or error.fields.get("status") == TOO_MANY_REQUESTS:
                pending.cost_tokens = 0
            raise
        if not isinstance(reply, Reply):
            return self._checked_rows(None, count, f"it is a {type(reply).__name__}")
        if reply.status != 200:
            pending.cost_tokens = 0
            body = ErrorBody(reply.error, reply.error_type is not None, reply.error_type)
            raise self._error_of(reply.status, body, count)
        await self._received(pending, reply.tokens)
        return self._checked_rows(reply.rows, count, "no rows")

    async def describe(self, timeout_s: float = INFO_TIMEOUT_S) -> ServerInfo:
        """As `Endpoint.describe`."""
        with self._counted(0):
            members = await self.application.call(INFO, timeout_s=min(timeout_s, INFO_TIMEOUT_S))
        self.info = read_info(200, json.dumps(members).encode())
        return self.info
