"""An embedding endpoint `serve://<application>`: an embedder of this cluster, asked by its handle.

The same contract as over HTTP, said in arrays: texts go out as a list, rows come back as float32. What is
refused, and how that is told, is the same too, so whoever holds an endpoint need not know which kind it is.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, Protocol

from compass.domain.chunk import FloatMatrix
from compass.domain.embedding.contract import Reply, Said, ServerInfo, read_info, request_options
from compass.embedding.endpoint.base import INFO_TIMEOUT_S, Ask, Endpoint
from compass.errors import EndpointUnavailableError

TURNED_AWAY = 429
EMBED, INFO = "tei_embed", "tei_info"  # the methods of an embedder's replica


class Application(Protocol):
    """What is called; `ServeApplication`."""

    async def call(self, method: str, *arguments: Any, timeout_s: float) -> Any:
        """What the method returns; an EmbeddingError where it cannot be called."""


@dataclass(slots=True, eq=False)
class ServeEndpoint(Endpoint):
    """One Serve application; its `url` is `serve://` and the name."""

    application: Application = field(repr=False)

    async def _exchange(self, ask: Ask) -> FloatMatrix:
        options, count = request_options(self.config, self.kind, ask.info), len(ask.texts)
        try:
            reply = await self.application.call(EMBED, list(ask.texts), options, timeout_s=ask.timeout_s)
        except EndpointUnavailableError as error:
            self.info = None  # ask first, before texts wait for it again: that takes seconds at most
            if error.fields.get("unreachable") or error.fields.get("status") == TURNED_AWAY:
                ask.cost_tokens = 0
            raise
        if not isinstance(reply, Reply):
            return self._fit(None, count, f"it is a {type(reply).__name__}")
        if reply.status != 200:
            ask.cost_tokens = 0
            said = Said(reply.error, reply.error_type is not None, reply.error_type)
            raise self._failure(reply.status, said, count, None, None)
        await self._arrived(ask, reply.tokens)
        return self._fit(reply.rows, count, "no rows")

    async def describe(self, timeout_s: float = INFO_TIMEOUT_S) -> ServerInfo:
        """As `Endpoint.describe`."""
        with self._asked(0):
            told = await self.application.call(INFO, timeout_s=min(timeout_s, INFO_TIMEOUT_S))
        self.info = read_info(200, json.dumps(told).encode())
        return self.info
