"""What callers ask for, as the domain says it: every check that needs no state."""

from __future__ import annotations

from msgspec import UnsetType

from compass.api import schemas
from compass.api.vectors import by_space, is_left_out, read_vector
from compass.domain.collection import CollectionSpec
from compass.domain.embedding.endpoint_url import check_endpoint
from compass.domain.filters import Filter, parse_filter
from compass.domain.flaws import Flaw, invalid
from compass.domain.ingest import INT64_MAX, IncomingChunk, IngestOrder
from compass.domain.names import check_dims, check_name
from compass.domain.rebuild.order import RebuildOrder
from compass.domain.routing.swap import SwapOrder
from compass.domain.search.request import QueryVector, SearchRequest
from compass.domain.space import BUILTIN, UNCHANGED, HnswConfig, NewSpace, SpaceChanges, SpaceConfig
from compass.errors import NotFoundError, NotImplementedYetError

DEFAULT_SPACE, BUILTIN_MODEL, BUILTIN_DIMS = "default", "compass-builtin", 384


def collection_spec(body: schemas.NewCollection) -> CollectionSpec:
    """A collection to create, checked.

    Raises:
        InvalidRequestError: a name, the dims, an endpoint or the default does not fit.
    """
    check_name("collection", body.name)
    if body.embedding_dims is not None:
        check_dims(body.embedding_dims)
    if body.vector_spaces is None:
        dims = body.embedding_dims or BUILTIN_DIMS
        spaces = {DEFAULT_SPACE: SpaceConfig(dims, BUILTIN_MODEL, BUILTIN)}
    else:
        spaces = {check_name("vector space", n): space_config(s) for n, s in body.vector_spaces.items()}
    if not spaces:
        raise invalid([Flaw("vector_spaces", "names no space; leave it out for the built-in one")])
    default = next(iter(spaces)) if body.default_vector_space is None else body.default_vector_space
    if default not in spaces:
        raise invalid([Flaw("default_vector_space", f"{default!r} is not one of the spaces")])
    if body.embedding_dims not in (None, spaces[default].dims):
        detail = f"{body.embedding_dims} is not the {spaces[default].dims} dims of the default space"
        raise invalid([Flaw("embedding_dims", detail)])
    bare = body.config.bare_vectors if body.config else None
    return CollectionSpec(body.name, spaces, default, {"bare_vectors": bare} if bare else {})


def new_space(body: schemas.NewSpace) -> NewSpace:
    """A space to add, checked.

    Raises:
        InvalidRequestError: the name, the dims, the endpoint or the key's variable does not fit.
    """
    return NewSpace(check_name("vector space", body.name), space_config(body))


def space_config(body: schemas.SpaceConfig) -> SpaceConfig:
    """A space's config, checked.

    Raises:
        InvalidRequestError: the dims, the endpoint or the key's variable does not fit.
    """
    hnsw = body.hnsw or schemas.Hnsw()
    return SpaceConfig(
        dims=body.dims,
        model=body.model,
        embed_endpoint=None if body.embed_endpoint is None else check_endpoint(body.embed_endpoint),
        api_key_env=body.api_key_env,
        query_prompt_name=body.query_prompt_name,
        document_prompt_name=body.document_prompt_name,
        query_prompt=body.query_prompt,
        document_prompt=body.document_prompt,
        template=body.template,
        truncate=body.truncate,
        dimensions=body.dimensions,
        normalize=body.normalize,
        metric=body.metric,
        hnsw=HnswConfig(hnsw.m, hnsw.ef_construction, hnsw.ef_search),
    )


def space_changes(body: schemas.SpacePatch) -> SpaceChanges:
    """The fields of a space's config to change.

    Raises:
        InvalidRequestError: there is none, or the endpoint does not fit.
    """
    endpoint, prompt, hnsw = body.embed_endpoint, body.query_prompt_name, body.hnsw
    changes = SpaceChanges(
        embed_endpoint=None if isinstance(endpoint, UnsetType) else check_endpoint(endpoint),
        query_prompt_name=UNCHANGED if isinstance(prompt, UnsetType) else prompt,
        ef_search=None if isinstance(hnsw, UnsetType) else hnsw.ef_search,
        accept_new_fingerprint=body.accept_new_fingerprint,
    )
    if not changes.names():
        raise invalid([Flaw("embed_endpoint", "nothing to change is named")])
    return changes


def swap_order(body: schemas.SwapRequest) -> SwapOrder:
    """A swap, checked.

    Raises:
        InvalidRequestError: no space is named, and it is no rollback.
    """
    if body.name is None and not body.rollback:
        raise invalid([Flaw("name", "name the space, or send rollback: true")])
    return SwapOrder(body.name, body.rollback, body.force, body.expected_epoch, body.wait_s)


def rebuild_order(body: schemas.RebuildRequest) -> RebuildOrder:
    """A rebuild as it is asked for; `check_order` checks it, which wants to know the space."""
    endpoint = body.embed_endpoint
    return RebuildOrder(
        endpoints=(endpoint,) if isinstance(endpoint, str) else tuple(endpoint or ()),
        api_key_env=body.api_key_env,
        batch_size=body.batch_size,
        concurrency=body.concurrency,
        max_docs_per_s=body.max_docs_per_s,
        restart=body.restart,
        endpoint_timeout_s=body.endpoint_timeout_s,
        max_failed=body.max_failed,
        accept_new_fingerprint=body.accept_new_fingerprint,
        cost_per_million_tokens=body.cost_per_million_tokens,
        cost_per_hour=body.cost_per_hour,
        budget=body.budget,
    )


def ingest_order(body: schemas.IngestRequest) -> IngestOrder:
    """Chunks to write, with their vectors read; `chunks_to_store` checks them, which wants to know the spaces."""
    return IngestOrder([_incoming(chunk) for chunk in body.chunks], body.wait_s, body.expected_epoch)


def deletion(body: schemas.DeleteRequest) -> tuple[list[int], Filter | None]:
    """What to delete: ids or a filter; an empty request never means all.

    Raises:
        InvalidRequestError: both, or neither.
    """
    if body.ids and body.filters:
        raise invalid([Flaw("filters", "is given beside ids: these are two calls")])
    if not body.ids and not body.filters:
        raise invalid([Flaw("ids", "name ids or filters; an empty request deletes nothing")])
    return body.ids or [], parse_filter(body.filters) if body.filters else None


def chunk_id(collection: str, value: str | int) -> int:
    """The id of a chunk, as a path or a Python caller names it.

    Raises:
        NotFoundError: it is no id, so there is no such chunk.
    """
    text = str(value)
    if not (text.isascii() and text.isdigit() and len(text) <= 19 and int(text) <= INT64_MAX):
        raise NotFoundError(f"collection {collection!r} has no chunk {text!r}", {"id": text})
    return int(text)


def search_request(body: schemas.SearchRequest) -> SearchRequest:
    """A search, with its vectors read; `vector_in` checks them, which wants to know the space.

    Raises:
        InvalidRequestError: an empty list of spaces, or a filter that does not fit.
        NotImplementedYetError: the request asks for something of a later version; the message says what.
    """
    fields = {"query_vector": body.query_vector, "vector": body.vector}
    return SearchRequest(
        query=body.query,
        space=_searched_space(body),
        where=parse_filter(body.filters or {}),
        vectors=[_query_vector(name, value) for name, value in fields.items() if not is_left_out(value)],
        top_k=body.top_k,
        exact=body.exact,
        ef_search=body.ef_search,
        include_vectors=body.include_vectors,
        min_seq=body.min_seq,
        expected_epoch=body.expected_epoch,
        timeout_s=body.timeout_s,
    )


def _searched_space(body: schemas.SearchRequest) -> str | None:
    """The space that a search names, None for the default; refuses what a later version brings."""
    names = [body.vector_space] if isinstance(body.vector_space, str) else body.vector_space
    spaces = None if names is None else list(dict.fromkeys(names))
    if spaces == []:
        raise invalid([Flaw("vector_space", "an empty list names no space")])
    later = {
        "mode": body.mode != "semantic",
        "vector_space": spaces is not None and len(spaces) > 1,
        "score_weights": body.score_weights not in (None, schemas.ScoreWeights()),
        "explain": body.explain,
        **{n: bool(getattr(body, n)) for n in ("recency", "boosts", "relationship_boost")},
        **{n: getattr(body, n) is not None for n in ("recency_preset", "recency_field")},
    }
    for field, is_wanted in later.items():
        if is_wanted:
            what = "more than one space" if field == "vector_space" else repr(getattr(body, field))
            raise NotImplementedYetError(
                f"{field}: this version does not have {what}; it searches one space by vectors", {"field": field}
            )
    return spaces[0] if spaces else None


def _query_vector(field: str, value: object) -> QueryVector:
    named = by_space(value)
    if named is None:
        return QueryVector(field, read_vector(value))
    return QueryVector(field, {space: read_vector(vector) for space, vector in named.items()})


def _incoming(chunk: schemas.ChunkIn) -> IncomingChunk:
    return IncomingChunk(
        file_id=chunk.file_id,
        chunk_index=chunk.chunk_index,
        text=chunk.text,
        metadata=chunk.metadata,
        doc_type=chunk.doc_type,
        page=chunk.page,
        parent_id=chunk.parent_id,
        parent_ref=chunk.parent_ref,
        group_id=chunk.group_id,
        client_id=None if chunk.client_id is None else str(chunk.client_id),
        vectors={space: read_vector(vector) for space, vector in (chunk.embeddings or {}).items()},
        bare_vector=None if is_left_out(chunk.embedding) else read_vector(chunk.embedding),
    )
