"""Bodies decoded straight into structs; one that does not fit becomes an error that names what and where."""

from __future__ import annotations

import base64
from typing import Any, TypeVar

import msgspec
import numpy as np

from compass.api import schemas
from compass.api.vectors import invalid
from compass.errors import InvalidRequestError
from compass.http import problems

Body = TypeVar("Body", bound=schemas.Request)

_DECODERS: dict[type[schemas.Request], msgspec.json.Decoder[Any]] = {}
_CHUNKS = msgspec.json.Decoder(schemas.RawIngestRequest)
_CHUNK = msgspec.json.Decoder(schemas.ChunkIn)


def decode(kind: type[Body], body: bytes) -> Body:
    """The body as a struct.

    Raises:
        MalformedBodyError: it is not JSON.
        InvalidRequestError: a field does not fit; of an ingest, every chunk that does not is named.
    """
    decoder = _DECODERS.get(kind) or _DECODERS.setdefault(kind, msgspec.json.Decoder(kind))
    try:
        found: Body = decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _why(kind, body, error) from None
    return found


def from_plain(kind: type[Body], values: Any) -> Body:
    """Plain Python values as a struct, by the same checks; vectors may be numpy arrays.

    Raises:
        InvalidRequestError: as `decode`, and for a value that JSON does not have.
    """
    try:
        body = msgspec.json.encode(values, enc_hook=_as_json)
    except (TypeError, ValueError, OverflowError) as error:
        raise invalid([{"field": "body", "detail": str(error)}]) from None
    return decode(kind, body)


def _as_json(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return base64.b64encode(value.astype("<f4").tobytes()).decode()
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} is not a value of JSON")


def _why(kind: type[schemas.Request], body: bytes, error: Exception) -> InvalidRequestError:
    """Decoding stops at the first flaw: what comes after it may be no JSON, or have flaws of its own."""
    try:
        msgspec.json.decode(body)
    except msgspec.ValidationError:
        pass  # a number out of range
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as malformed:
        return problems.of_decoding(malformed)
    if kind is schemas.IngestRequest and isinstance(error, msgspec.ValidationError):
        flaws = _flaws_of_chunks(body)
        if flaws:
            return invalid(flaws)
    return problems.of_decoding(error)


def _flaws_of_chunks(body: bytes) -> list[dict[str, Any]]:
    """Each chunk decoded by itself."""
    try:
        chunks = _CHUNKS.decode(body).chunks
    except msgspec.DecodeError:
        return []
    flaws = []
    for index, chunk in enumerate(chunks):
        try:
            _CHUNK.decode(chunk)
        except msgspec.ValidationError as error:
            flaws.append(problems.flaw(error, index=index))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            flaws.append({"index": index, "field": "body", "detail": str(error)})
    return flaws
