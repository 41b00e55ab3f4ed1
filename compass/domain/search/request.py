"""What a search asks, before it is known which space answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from compass.domain.chunk import FloatVector
from compass.domain.filters import Filter
from compass.domain.flaws import Flaw, invalid
from compass.domain.space import Space
from compass.domain.vector import SentVector, Unreadable, prepare_row, why_unfit_row


@dataclass(frozen=True, slots=True)
class QueryVector:
    """A vector to search with. `field`: where it was sent.

    `vector` is one that names no space, or several by the names of their spaces.
    """

    field: str
    vector: SentVector | Mapping[str, SentVector]


@dataclass(frozen=True, slots=True)
class SearchRequest:
    """A search of one space.

    Attributes:
        query: A text, embedded by the space's own model; may be empty beside a vector.
        space: By name; None for the default.
        vectors: What to search with in place of the text, at most one.
        top_k: The most hits to answer.
        where: Which chunks may be hits.
        exact: Compare with every vector instead of walking the graph.
        ef_search: Beam width; None for the space's own.
        min_seq: The answer must not be older than this commit.
        expected_epoch: The epoch that the caller knows of.
        timeout_s: How long the answer may take.
    """

    query: str = ""
    space: str | None = None
    vectors: Sequence[QueryVector] = ()
    top_k: int = 10
    where: Filter = field(default_factory=Filter)
    exact: bool = False
    ef_search: int | None = None
    include_vectors: bool = False
    min_seq: int | None = None
    expected_epoch: int | None = None
    timeout_s: float = 30.0

    @property
    def query_vector(self) -> QueryVector | None:
        """The vector to search with, if one was sent.

        Raises:
            InvalidRequestError: there are two of them.
        """
        if len(self.vectors) > 1:
            other = self.vectors[0].field
            raise invalid([Flaw(self.vectors[1].field, f"is given beside {other}: send one of them")])
        return self.vectors[0] if self.vectors else None

    def is_bare(self, query_vector: QueryVector) -> bool:
        """Whether nothing says which space the vector is of."""
        return self.space is None and not isinstance(query_vector.vector, Mapping)


def vector_in(space: Space, query_vector: QueryVector) -> FloatVector:
    """A vector to search a space with, checked and prepared. shape (dims,).

    Raises:
        InvalidRequestError: it does not fit, or it is for another space.
    """
    name, vector = query_vector.field, query_vector.vector
    if isinstance(vector, Mapping):
        if set(vector) != {space.name}:
            raise invalid([Flaw(name, f"wants exactly one vector, for space {space.name!r}")])
        vector = vector[space.name]
    if isinstance(vector, Unreadable):
        raise invalid([Flaw(name, vector.reason)])
    reason = why_unfit_row(vector, space)
    if reason is not None:
        dims = space.config.dims
        counts = {"expected_dims": dims, "got_dims": len(vector)} if len(vector) != dims else {}
        raise invalid([Flaw(name, f"{reason} (space {space.name!r})")], **counts)
    return prepare_row(vector, space)
