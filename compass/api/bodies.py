"""Bodies as structs, from JSON or plain Python values; one that does not fit becomes an error that says where."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from functools import cache
from typing import Any, Protocol, TypeVar, cast

import msgspec
import numpy as np

from compass.api import schemas
from compass.domain.flaws import Flaw, invalid
from compass.errors import InvalidRequestError, MalformedBodyError

T = TypeVar("T", bound=schemas.Request)

_PLAIN: Mapping[type[schemas.Request], type[schemas.Request]] = {  # the same, with vectors as Python has them
    schemas.IngestRequest: schemas.PlainIngestRequest,
    schemas.RawIngestRequest: schemas.PlainRawIngestRequest,
    schemas.ChunkIn: schemas.PlainChunkIn,
    schemas.SearchRequest: schemas.PlainSearchRequest,
}
_MESSAGE = re.compile(r"(?P<detail>.*?)(?: - at `(?P<path>.+)`)?", re.DOTALL)
_INDEX = re.compile(r"chunks\[(\d+)\]")
_NAMED = re.compile(r"Object (?:contains unknown|missing required) field `(?P<name>.+)`", re.DOTALL)


def decode(kind: type[T], body: bytes) -> T:
    """A JSON body as a struct.

    Raises:
        MalformedBodyError: it is not JSON.
        InvalidRequestError: a field does not fit; of an ingest, every chunk that does not is named.
    """
    try:
        return _from_json(kind, body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        _check_json(body)
        raise _error_of(kind, body, error, _from_json) from None


def from_plain(kind: type[T], values: object) -> T:
    """Plain Python values as a struct, by the same checks; vectors may be numpy arrays, numbers numpy's scalars.

    Raises:
        InvalidRequestError: as `decode`, and for a value that JSON does not have.
    """
    try:
        plain = _plain(values)
    except (TypeError, ValueError, RecursionError) as error:
        raise invalid([Flaw("body", str(error))]) from None
    try:
        return _from_values(kind, plain)
    except msgspec.ValidationError as error:
        raise _error_of(kind, plain, error, _from_values) from None


def from_query(kind: type[T], parameters: Mapping[str, str]) -> T:
    """The parameters of a URL as a struct.

    Raises:
        InvalidRequestError: one does not fit.
    """
    try:
        return msgspec.convert(parameters, kind, strict=False)
    except msgspec.ValidationError as error:
        raise invalid([_flaw(error)]) from None


@cache
def _decoder(kind: type[T]) -> msgspec.json.Decoder[T]:
    return msgspec.json.Decoder(kind)


class _Read(Protocol):
    """Makes a struct of a body, or of a part of one."""

    def __call__(self, kind: type[T], source: Any) -> T:
        """The struct; raises what msgspec raises."""


def _from_json(kind: type[T], source: Any) -> T:
    body: T = _decoder(kind).decode(source)
    return body


def _from_values(kind: type[T], source: Any) -> T:
    plain: Any = _PLAIN.get(kind, kind)
    body: T = msgspec.convert(source, plain)
    return body


def _check_json(body: bytes) -> None:
    """Decoding stops at the first flaw; what comes after it may be no JSON at all.

    Raises:
        MalformedBodyError: it is not JSON.
    """
    try:
        msgspec.json.decode(body)
    except msgspec.ValidationError:
        pass  # a number out of range
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedBodyError(f"the body is not valid JSON: {error}") from None


def _error_of(kind: type[schemas.Request], source: Any, error: Exception, read: _Read) -> InvalidRequestError:
    """The error of a body that is JSON: of an ingest, each chunk that does not fit is found."""
    if not isinstance(error, msgspec.ValidationError):
        return MalformedBodyError(f"the body is not valid JSON: {error}")
    flaws = _flaws_of_chunks(source, read) if kind is schemas.IngestRequest else []
    return invalid(flaws or [_flaw(error)])


def _flaws_of_chunks(source: Any, read: _Read) -> list[Flaw]:
    """Each chunk read by itself."""
    try:
        chunks = read(schemas.RawIngestRequest, source).chunks
    except msgspec.DecodeError:
        return []
    flaws = []
    for index, chunk in enumerate(chunks):
        try:
            read(schemas.ChunkIn, chunk)
        except msgspec.ValidationError as error:
            flaws.append(_flaw(error, index))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            flaws.append(Flaw("body", str(error), index))
    return flaws


def _flaw(error: msgspec.ValidationError, index: int | None = None) -> Flaw:
    """What msgspec says of a value that does not fit; `index`: of the chunk that was read by itself."""
    message = _MESSAGE.fullmatch(str(error))
    assert message is not None  # the pattern matches every string
    path, detail = (message["path"] or "$").removeprefix("$").removeprefix("."), message["detail"]
    named = _NAMED.fullmatch(detail)
    if named:
        path = f"{path}.{named['name']}".removeprefix(".")
        detail = "is missing" if detail.startswith("Object missing") else "is not a field of this request"
    in_chunk = _INDEX.match(path)
    if in_chunk:
        index, path = int(in_chunk[1]), path[in_chunk.end() :].removeprefix(".")
    return Flaw(path or "body", detail, index)


def _plain(value: object) -> object:
    """A value as JSON has it, arrays aside: what reads the fields says where one may be.

    Raises:
        TypeError: JSON has no such value.
        ValueError: a string is no Unicode text.
    """
    if isinstance(value, np.ndarray):
        return value
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, str):
        value.encode()
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {_key(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return list(value) if _are_numbers(value) else [_plain(item) for item in value]
    return msgspec.to_builtins(value, enc_hook=_refuse)


def _are_numbers(values: Collection[object]) -> bool:
    """Whether these are floats or integers that JSON has; a vector is checked as a whole, not number by number."""
    kinds = set(map(type, values))
    if kinds == {float}:
        return math.isfinite(sum(cast("Collection[float]", values)))  # one that is not finite makes the sum so too
    return kinds == {int}


def _key(key: object) -> str:
    if not isinstance(key, str | int):
        raise TypeError(f"{type(key).__name__} is not a name of JSON")
    return str(key)


def _refuse(value: object) -> object:
    raise TypeError(f"{type(value).__name__} is not a value of JSON")
