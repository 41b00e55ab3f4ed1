"""Between Python and the wire: requests to bytes, bytes to float32 rows, faults to words without secrets."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping
from typing import Any, NoReturn

import aiohttp
import msgspec
import numpy as np
import simdjson
from yarl import URL

from compass.domain.chunk import FloatMatrix
from compass.domain.embedding.endpoint_url import EndpointUrl
from compass.errors import EndpointAnswerError, EndpointRefusedError, InvalidRequestError

SECRET_CHARS = 8  # a shorter value in a query string is no secret, and may be part of any message


def decode_rows(parser: Any, body: bytes, count: int, dims: int) -> tuple[FloatMatrix | None, str | None]:
    """JSON rows as float32, shape (count, dims), or None and the reason.

    pysimdjson flattens nested arrays, so the brackets are counted: one for the list and one a row.
    """
    try:
        document = parser.parse(body)
        if not isinstance(document, simdjson.Array):
            return None, f"expected a list of {count} rows, got {_json_type(document)}"
        if len(document) != count:
            return None, f"expected {count} rows, got {len(document)}"
        wrong = next((row for row in document if not isinstance(row, simdjson.Array) or len(row) != dims), None)
        if wrong is not None:
            got = f"{len(wrong)} dims" if isinstance(wrong, simdjson.Array) else _json_type(wrong)
            return None, f"expected {dims} dims, got {got}"
        if np.count_nonzero(np.frombuffer(body, np.uint8) == ord("[")) != count + 1:  # bytes.count is 5 times slower
            return None, "expected rows of numbers, got deeper lists"
        rows = np.frombuffer(document.as_buffer(of_type="d")).reshape(count, dims)
        with np.errstate(over="ignore"):  # 1e39 becomes infinite, which the check of the rows finds
            return rows.astype(np.float32), None
    except TypeError:
        return None, "a row holds null or something else that is not a number"
    except (ValueError, RuntimeError):
        return None, "the body is not JSON of finite numbers"


async def read_body(response: aiohttp.ClientResponse, limit: int) -> bytes:
    """The body.

    Raises:
        EndpointAnswerError: it is longer than `limit` bytes, which no answer is.
    """
    chunks, size = [], 0
    async for chunk in response.content.iter_any():
        chunks.append(chunk)
        size += len(chunk)
        if size > limit:
            raise EndpointAnswerError(f"answered {response.status} with more than {limit} bytes")
    return b"".join(chunks)


def encode_request(request: Mapping[str, Any]) -> bytes:
    """The request as JSON.

    Raises:
        EndpointRefusedError: a text is not Unicode.
    """
    try:
        return msgspec.json.encode(request)
    except UnicodeEncodeError:
        pass  # the error holds the text
    raise EndpointRefusedError("a text holds half of a surrogate pair: it is not Unicode and cannot be sent")


def transport_reason(error: Exception) -> str:
    """What went wrong, without the URL and the headers that aiohttp puts into its messages."""
    if isinstance(error, aiohttp.ClientConnectorError):
        error = error.os_error
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, aiohttp.ServerDisconnectedError | aiohttp.ClientPayloadError):
        return "it closed the connection before its answer was whole"
    return type(error).__name__


def check_key(key: str | None) -> str | None:
    """Return `key` if a header can carry it.

    Raises:
        InvalidRequestError: it cannot; the message does not repeat it.
    """
    if key is not None and (not key.isascii() or not key.isprintable() or not key.strip()):
        _refuse_key()
    return key


def _refuse_key() -> NoReturn:
    """Apart from the key, which is then no local of the traceback's last frame."""
    raise InvalidRequestError("the endpoint's API key is empty, or holds what a header cannot carry")


def secrets_of(url: EndpointUrl, key: str | None) -> tuple[bytes, ...]:
    """The key and the query string's values, as they are and as JSON and HTML spell them."""
    parsed = URL(url.canonical, encoded=True)
    values = [parsed.raw_query_string, *parsed.query.values()]
    secrets = [*([key] if key else []), *(value for value in values if len(value) >= SECRET_CHARS)]
    return tuple({spelling.encode() for s in secrets for spelling in (s, json.dumps(s)[1:-1], html.escape(s))})


def _json_type(value: Any) -> str:
    return {simdjson.Object: "an object", simdjson.Array: "a list", type(None): "null"}.get(type(value), "a scalar")
