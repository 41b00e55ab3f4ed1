"""What callers write: chunks with vectors by the names of spaces, checked as a batch before any is stored."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from compass.domain.chunk import ChunkInput, FloatVector, MetaValue, has_text
from compass.domain.flaws import Flaw, invalid
from compass.domain.routing.table import CollectionRoute
from compass.domain.space import Space, prepare_vectors, why_unfit
from compass.domain.vector import SentVector, Unreadable, why_unfit_row

INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1


@dataclass(frozen=True, slots=True)
class IncomingChunk:
    """A chunk as a caller sends it.

    Attributes:
        client_id: The caller's own name of it, for the answer's map of ids.
        vectors: The caller's own, by the name of a space.
        bare_vector: One that names no space: it means the default.
    """

    file_id: str
    chunk_index: int
    text: str
    metadata: Mapping[str, MetaValue] = field(default_factory=dict)
    doc_type: str = "chunk"
    page: int | None = None
    parent_id: int | None = None
    parent_ref: str | None = None
    group_id: str | None = None
    client_id: str | None = None
    vectors: Mapping[str, SentVector] = field(default_factory=dict)
    bare_vector: SentVector | None = None


@dataclass(frozen=True, slots=True)
class IngestOrder:
    """Chunks to write. `wait_s`: how long the default space may take to find them; `expected_epoch`: see `swap`."""

    chunks: Sequence[IncomingChunk]
    wait_s: float = 10.0
    expected_epoch: int | None = None

    @property
    def has_bare_vectors(self) -> bool:
        """Whether some chunk has a vector that names no space."""
        return any(chunk.bare_vector is not None for chunk in self.chunks)


@dataclass(frozen=True, slots=True)
class IngestReceipt:
    """Durable.

    Attributes:
        ids: By the callers' `client_id`, of the chunks that have one.
        pending: By space, how many live chunks it cannot find yet.
    """

    indexed: int
    ids: Mapping[str, int]
    seq: int
    pending: Mapping[str, int]
    took_s: float


def chunks_to_store(chunks: Sequence[IncomingChunk], route: CollectionRoute) -> list[ChunkInput]:
    """The chunks of a batch with their vectors by space id, checked and prepared.

    Raises:
        InvalidRequestError: it names the index of each bad chunk; nothing of the batch may be written.
    """
    batch = _Batch(chunks, route)
    if batch.flaws:
        raise invalid(sorted(batch.flaws, key=lambda flaw: flaw.index or 0), **batch.wrong_dims)
    return [_to_store(chunk, vectors) for chunk, vectors in zip(chunks, batch.vectors, strict=True)]


@dataclass(frozen=True, slots=True)
class _Sent:
    """A vector of a batch: the index of its chunk, and the field that it came in."""

    index: int
    field: str
    row: FloatVector


class _Batch:
    """A batch as it is checked: its vectors by space id, chunk by chunk, or its flaws."""

    def __init__(self, chunks: Sequence[IncomingChunk], route: CollectionRoute) -> None:
        self.flaws = [flaw for index, chunk in enumerate(chunks) for flaw in _flaws_of(index, chunk)]
        self.flaws += _repeated_client_ids(chunks)
        self.vectors: list[dict[str, FloatVector]] = [{} for _ in chunks]
        self.wrong_dims: dict[str, int] = {}
        for space, sent in self._by_space(chunks, route).items():
            self._prepare(route.spaces[space], sent)

    def _by_space(self, chunks: Sequence[IncomingChunk], route: CollectionRoute) -> Mapping[str, list[_Sent]]:
        """The vectors that can be read, by the name of their space."""
        sent: dict[str, list[_Sent]] = defaultdict(list)
        for index, chunk in enumerate(chunks):
            if chunk.bare_vector is not None and route.default in chunk.vectors:
                detail = f"is given beside embeddings[{route.default!r}], and both mean the default space"
                self.flaws.append(Flaw("embedding", detail, index))
            for space, name, vector in _vectors_of(chunk, route.default):
                if space not in route.spaces:
                    self.flaws.append(Flaw(name, f"there is no vector space {space!r}", index))
                elif isinstance(vector, Unreadable):
                    self.flaws.append(Flaw(name, vector.reason, index))
                else:
                    sent[space].append(_Sent(index, name, vector))
        return sent

    def _prepare(self, space: Space, sent: Sequence[_Sent]) -> None:
        """Put the vectors of one space into `vectors`, or what is wrong with them into `flaws`."""
        dims = space.config.dims
        if all(len(one.row) == dims for one in sent):
            rows = np.stack([one.row for one in sent])
            if why_unfit(rows, dims) is None:
                for one, row in zip(sent, prepare_vectors(rows, space.config.metric), strict=True):
                    self.vectors[one.index][space.id] = row
                return
        for one in sent:
            reason = why_unfit_row(one.row, space)
            if reason is not None:
                self.flaws.append(Flaw(one.field, reason, one.index))
                if len(one.row) != dims:
                    self.wrong_dims.update(expected_dims=dims, got_dims=len(one.row))


def _vectors_of(chunk: IncomingChunk, default: str) -> Iterator[tuple[str, str, SentVector]]:
    """(space, field, vector) of a chunk, the bare one last."""
    for space, vector in chunk.vectors.items():
        yield space, f"embeddings.{space}", vector
    if chunk.bare_vector is not None:
        yield default, "embedding", chunk.bare_vector


def _flaws_of(index: int, chunk: IncomingChunk) -> Iterator[Flaw]:
    """What the types of the fields cannot say."""
    for key, value in chunk.metadata.items():
        if key.startswith("$"):
            yield Flaw(f"metadata.{key}", "a key may not begin with '$'", index)
        elif isinstance(value, int) and not INT64_MIN <= value <= INT64_MAX:
            yield Flaw(f"metadata.{key}", "an integer must fit in 64 bits", index)
    if not has_text(chunk.text) and (chunk.vectors or chunk.bare_vector is not None):
        yield Flaw("embeddings", "a chunk without text has no vector", index)


def _repeated_client_ids(chunks: Sequence[IncomingChunk]) -> list[Flaw]:
    named = [(index, chunk.client_id) for index, chunk in enumerate(chunks) if chunk.client_id is not None]
    counts = Counter(name for _, name in named)
    return [
        Flaw("client_id", f"{name!r} is used by another chunk of the batch", index)
        for index, name in named
        if counts[name] > 1
    ]


def _to_store(chunk: IncomingChunk, vectors: Mapping[str, FloatVector]) -> ChunkInput:
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
