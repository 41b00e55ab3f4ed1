"""One embedding endpoint over HTTP: a batch out, checked float32 rows in, and every fault under its own name.

An answer is decoded from JSON straight into float32; no list of Python floats is ever made. An error names
the endpoint without its query string, gives the server's own reason, and never holds a key.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import simdjson
from yarl import URL

from compass.domain.chunk import FloatMatrix
from compass.domain.embedding.contract import ServerInfo, read_error_body, read_info, request_options, retry_after_s
from compass.domain.embedding.endpoint_url import EndpointUrl
from compass.embedding.endpoint.base import INFO_TIMEOUT_S, Endpoint, PendingRequest
from compass.embedding.endpoint.connections import Connections
from compass.embedding.endpoint.wire import decode_rows, encode_request, read_body, secrets_of, transport_reason
from compass.errors import CompassError, EndpointUnavailableError

INFO_BYTES = 1 << 20
NUMBER_BYTES = 64  # of JSON for one number, spaces included; a longer answer is not the answer

_ADVICE = {
    401: "it wants a key: name the variable that holds it by api_key_env",
    404: "is this the URL of an /embed endpoint?",
    405: "is this the URL of an /embed endpoint?",
}


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass(slots=True, eq=False)
class HttpEndpoint(Endpoint):
    """One server over HTTP.

    Attributes:
        key: Sent as `Authorization: Bearer`.
    """

    key: str | None = field(repr=False)
    connections: Connections
    _secrets: tuple[bytes, ...] = field(default=(), init=False, repr=False)  # never repeated from what it says
    _parser: Any = field(default_factory=simdjson.Parser, init=False, repr=False)

    def __post_init__(self) -> None:
        self._secrets = secrets_of(self.url, self.key)

    async def _exchange(self, pending: PendingRequest) -> FloatMatrix:
        count = len(pending.texts)
        body = encode_request({"inputs": pending.texts, **request_options(self.config, self.kind, pending.info)})
        limit = count * self.config.dims * NUMBER_BYTES + INFO_BYTES
        try:
            answer = await self._request(self.url.canonical, pending.timeout_s, limit, body)
        except EndpointUnavailableError as error:
            if error.fields.get("unreachable"):
                pending.cost_tokens = 0
            raise
        if answer.status != 200:
            pending.cost_tokens = 0
            raise self._error_of_answer(answer, count)
        tokens = answer.headers.get("x-compute-tokens", "")
        await self._received(pending, int(tokens) if tokens.isascii() and tokens.isdigit() else 0)
        rows, reason = decode_rows(self._parser, answer.body, count, self.config.dims)
        return self._checked_rows(rows, count, reason)

    async def describe(self, timeout_s: float = INFO_TIMEOUT_S) -> ServerInfo:
        """Ask `/info`. Only a server that is not up leaves the question open.

        To take a server for what it is not because it was not up would send a TEI no `truncate`, and long
        texts would be refused for good.

        Raises:
            EndpointUnavailableError: it is not up.
        """
        with self._counted(0):
            answer = await self._request(_info_url(self.url), min(timeout_s, INFO_TIMEOUT_S), INFO_BYTES)
            if answer.status in (429, 502, 503, 504):
                detail = f"{self.shown} is not up: its /info answered {answer.status}"
                raise EndpointUnavailableError(detail, {"endpoint": self.shown, "status": answer.status})
        self.info = read_info(answer.status, answer.body)
        return self.info

    def _error_of_answer(self, answer: _Answer, count: int) -> Exception:
        """The error that an answer other than 200 stands for."""
        body = answer.body
        for secret in self._secrets:
            body = body.replace(secret, b"***")
        after_s = retry_after_s(answer.headers.get("Retry-After"), time.time())
        redirect = "redirects are not followed, give the final URL" if 300 <= answer.status < 400 else None
        advice = _ADVICE.get(answer.status, redirect)
        return self._error_of(answer.status, read_error_body(body), count, after_s, advice)

    async def _request(self, url: str, timeout_s: float, limit: int, body: bytes | None = None) -> _Answer:
        """One request, never redirected. No error of aiohttp's leaves here: they hold headers and URLs."""
        headers = {"Accept": "application/json", "Accept-Encoding": "identity"}
        if body is not None:
            headers["Content-Type"] = "application/json"
        if self.key is not None:
            headers["Authorization"] = f"Bearer {self.key}"
        exchange = self.connections.session().request(
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
            async with asyncio.timeout(timeout_s), exchange as response:
                return _Answer(response.status, response.headers, await read_body(response, limit))
        except CompassError as error:  # the resolver's, or a body without end
            kind, fault = type(error), error.detail
        except TimeoutError:
            fault, fields["timed_out"] = f"{what} did not answer within {timeout_s:.3g} s", True
        except (aiohttp.ClientError, OSError, ValueError) as error:
            fault = f"{what} failed: {transport_reason(error)}"
            if isinstance(error, aiohttp.ClientConnectorError):
                fields["unreachable"] = True
        raise kind(f"{self.shown}: {fault}", fields)


def _info_url(url: EndpointUrl) -> str:
    head, mark, query = url.canonical.partition("?")
    return head.removesuffix("/embed") + "/info" + mark + query
