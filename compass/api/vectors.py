"""What callers send, made into what is stored and asked: every flaw is found, and named by its index."""

from __future__ import annotations

import base64
import binascii
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import simdjson
from msgspec import Raw, UnsetType
from msgspec.json import Decoder

from compass.api import schemas
from compass.domain.chunk import ChunkInput, FloatVector, has_text
from compass.domain.routing.table import CollectionRoute
from compass.domain.space import Space, prepare_vectors, why_unfit
from compass.errors import BareVectorError, EpochMismatchError, InvalidRequestError

MAX_ERRORS = 100  # named in one answer
_BY_SPACE = Decoder(dict[str, Raw])
Flaw = dict[str, Any]


def invalid(flaws: Sequence[Flaw], **fields: Any) -> InvalidRequestError:
    """The error of these flaws, each {index?, field, detail}; its sentence tells of the first."""
    first = flaws[0]
    where = f"chunk {first['index']}: " if "index" in first else ""
    more = f" (and {len(flaws) - 1} more)" if len(flaws) > 1 else ""
    detail = f"{where}{first['field']}: {first['detail']}{more}"
    return InvalidRequestError(detail, {"errors": list(flaws[:MAX_ERRORS]), **fields})


def read_vector(raw: Raw) -> FloatVector:
    """The vector that JSON holds: an array of numbers, or base64 of little-endian float32. shape (n,).

    Raises:
        ValueError: it is neither, or a number is out of range; the message says which.
    """
    text = bytes(raw)
    if text[:1] == b'"':
        return _read_base64(text[1:-1])
    if text[:1] != b"[" or b"[" in text[1:]:
        raise ValueError("is neither an array of numbers nor base64 of float32")
    try:
        array = cast(simdjson.Array, simdjson.Parser().parse(text))
        numbers = array.as_buffer(of_type="d")
    except TypeError:
        raise ValueError("holds something that is not a number") from None
    except (ValueError, RuntimeError):
        raise ValueError("holds a number that is out of range") from None
    with np.errstate(over="ignore"):  # what overflows becomes infinite, which `why_unfit` finds
        return np.frombuffer(numbers, np.float64).astype(np.float32)


def given(raw: Raw | UnsetType) -> Raw | None:
    """What a field holds, if anything: null counts as left out."""
    return None if isinstance(raw, UnsetType) or bytes(raw) == b"null" else raw


def chunks_to_store(chunks: Sequence[schemas.ChunkIn], route: CollectionRoute) -> list[ChunkInput]:
    """The chunks of a batch with their vectors by space id, checked and prepared.

    Raises:
        InvalidRequestError: it names the index of each bad chunk; nothing of the batch may be written.
    """
    flaws = [flaw for index, chunk in enumerate(chunks) for flaw in _flaws_of(index, chunk)]
    flaws += _repeated_client_ids(chunks)
    vectors: list[dict[str, FloatVector]] = [{} for _ in chunks]
    wrong_dims: dict[str, int] = {}
    for space, sent in _by_space(chunks, route, flaws).items():
        _check_rows(route.spaces[space], sent, vectors, flaws, wrong_dims)
    if flaws:
        raise invalid(sorted(flaws, key=lambda f: int(f["index"])), **wrong_dims)
    return [_to_store(chunk, own) for chunk, own in zip(chunks, vectors, strict=True)]


def has_bare_vectors(chunks: Sequence[schemas.ChunkIn]) -> bool:
    """Whether some chunk has a vector that names no space."""
    return any(given(chunk.embedding) is not None for chunk in chunks)


def guard_bare_vector(route: CollectionRoute, expected_epoch: int | None, how: str) -> None:
    """Refuse a vector without a space once the default has changed: it may come from the old model.

    Raises:
        BareVectorError: the epoch is past 1 and nothing says that the caller knows.
        EpochMismatchError: the caller knows of another epoch.
    """
    if expected_epoch is not None and expected_epoch != route.epoch:
        raise EpochMismatchError(
            f"the epoch of {route.name!r} is {route.epoch}, not {expected_epoch}; its default is {route.default!r}",
            {"epoch": route.epoch, "expected_epoch": expected_epoch, "default_vector_space": route.default},
        )
    guarded = route.epoch > 1 and route.config.get("bare_vectors") != "follow-default"
    if guarded and expected_epoch is None:
        raise BareVectorError(
            f"the default of {route.name!r} has changed (epoch {route.epoch}, now {route.default!r}), so a vector "
            f"without a space may come from another model: {how}",
            {"epoch": route.epoch, "default_vector_space": route.default},
        )


def query_vector(request: schemas.SearchRequest, space: Space) -> tuple[FloatVector | None, bool]:
    """The vector of a search, checked and prepared for the space, and whether it was bare (named no space).

    Raises:
        InvalidRequestError: it does not fit, or it is for another space, or there are two of them.
    """
    sent = {"query_vector": given(request.query_vector), "vector": given(request.vector)}
    named = [(field, raw) for field, raw in sent.items() if raw is not None]
    if not named:
        return None, False
    if len(named) == 2:
        raise invalid([{"field": "vector", "detail": "is given beside query_vector: send one of them"}])
    field, raw = named[0]
    bare = request.vector_space is None
    if bytes(raw)[:1] == b"{":
        raw, bare = _of_space(raw, space, field), False
    try:
        row = read_vector(raw)
    except ValueError as error:
        raise invalid([{"field": field, "detail": str(error)}]) from None
    reason = why_unfit(row[None, :], space.config.dims)
    if reason is not None:
        counts = {"expected_dims": space.config.dims, "got_dims": len(row)} if len(row) != space.config.dims else {}
        raise invalid([{"field": field, "detail": f"{_of_one(reason)} (space {space.name!r})"}], **counts)
    return prepare_vectors(row[None, :], space.config.metric)[0], bare


def _of_space(raw: Raw, space: Space, field: str) -> Raw:
    by_space = _BY_SPACE.decode(raw)
    if set(by_space) != {space.name}:
        raise invalid([{"field": field, "detail": f"wants exactly one vector, for space {space.name!r}"}])
    return by_space[space.name]


def _read_base64(text: bytes) -> FloatVector:
    try:
        data = base64.b64decode(text.replace(b"\\/", b"/"), validate=True)
    except binascii.Error:
        raise ValueError("is a string, but not base64") from None
    if len(data) % 4:
        raise ValueError("is base64 of a number of bytes that is no multiple of 4")
    return np.frombuffer(data, "<f4").astype(np.float32)


def _flaws_of(index: int, chunk: schemas.ChunkIn) -> list[Flaw]:
    """What the types of the fields cannot say."""
    flaws = []
    for key, value in chunk.metadata.items():
        if key.startswith("$"):
            flaws.append({"index": index, "field": f"metadata.{key}", "detail": "a key may not begin with '$'"})
        elif isinstance(value, int) and not schemas.INT64_MIN <= value <= schemas.INT64_MAX:
            flaws.append({"index": index, "field": f"metadata.{key}", "detail": "an integer must fit in 64 bits"})
    if not has_text(chunk.text) and (chunk.embeddings or given(chunk.embedding) is not None):
        flaws.append({"index": index, "field": "embeddings", "detail": "a chunk without text has no vector"})
    return flaws


def _repeated_client_ids(chunks: Sequence[schemas.ChunkIn]) -> list[Flaw]:
    named = [(i, str(c.client_id)) for i, c in enumerate(chunks) if c.client_id is not None]
    counts = Counter(name for _, name in named)
    if len(counts) == len(named):
        return []
    detail = "{!r} is used by another chunk of the batch"
    return [{"index": i, "field": "client_id", "detail": detail.format(n)} for i, n in named if counts[n] > 1]


def _by_space(
    chunks: Sequence[schemas.ChunkIn], route: CollectionRoute, flaws: list[Flaw]
) -> Mapping[str, list[tuple[int, str, FloatVector]]]:
    """(index of the chunk, field, vector) by name of space; what cannot be read goes to `flaws`."""
    sent: dict[str, list[tuple[int, str, FloatVector]]] = defaultdict(list)
    for index, chunk in enumerate(chunks):
        named = [(name, f"embeddings.{name}", raw) for name, raw in (chunk.embeddings or {}).items()]
        bare = given(chunk.embedding)
        if bare is not None:
            if route.default in (chunk.embeddings or {}):
                detail = f"is given beside embeddings[{route.default!r}], and both mean the default space"
                flaws.append({"index": index, "field": "embedding", "detail": detail})
            named.append((route.default, "embedding", bare))
        for name, field, raw in named:
            try:
                if name not in route.spaces:
                    raise ValueError(f"there is no vector space {name!r}")
                row = read_vector(raw)
            except ValueError as error:
                flaws.append({"index": index, "field": field, "detail": str(error)})
            else:
                sent[name].append((index, field, row))
    return sent


def _check_rows(
    space: Space,
    sent: list[tuple[int, str, FloatVector]],
    vectors: list[dict[str, FloatVector]],
    flaws: list[Flaw],
    wrong_dims: dict[str, int],
) -> None:
    """Put the prepared vectors of one space into `vectors`, or what is wrong with them into `flaws`."""
    dims, metric = space.config.dims, space.config.metric
    fitting = [(index, field, row) for index, field, row in sent if len(row) == dims]
    if len(fitting) == len(sent):
        rows = np.stack([row for _, _, row in sent])
        if why_unfit(rows, dims) is None:
            for (index, _, _), row in zip(sent, prepare_vectors(rows, metric), strict=True):
                vectors[index][space.id] = row
            return
    for index, field, row in sent:
        reason = why_unfit(row[None, :], dims)
        if reason is not None:
            flaws.append({"index": index, "field": field, "detail": _of_one(reason)})
            if len(row) != dims:
                wrong_dims.update(expected_dims=dims, got_dims=len(row))


def _of_one(reason: str) -> str:
    """`why_unfit` counts rows; here there is one."""
    return reason.removeprefix("row 0 ")


def _to_store(chunk: schemas.ChunkIn, vectors: dict[str, FloatVector]) -> ChunkInput:
    return ChunkInput(
        file_id=chunk.file_id,
        chunk_index=chunk.chunk_index,
        text=chunk.text,
        metadata=chunk.metadata,
        doc_type=chunk.doc_type,
        page=chunk.page,
        parent_id=chunk.parent_id,
        parent_ref=chunk.parent_ref,
        group_id=chunk.group_id,
        vectors=vectors,
    )


def id_map(chunks: Sequence[schemas.ChunkIn], ids: Sequence[int]) -> dict[str, int]:
    """{client_id: id} of the chunks that have a client_id."""
    pairs = zip(chunks, ids, strict=True)
    return {str(chunk.client_id): given for chunk, given in pairs if chunk.client_id is not None}
