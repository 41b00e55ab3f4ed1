"""What callers ask for, as the domain says it: every check that needs no state."""

from __future__ import annotations

from msgspec import UnsetType

from compass.api import schemas
from compass.api.vectors import invalid
from compass.domain.collection import CollectionSpec
from compass.domain.embedding.endpoint_url import check_endpoint
from compass.domain.filters import Filter, parse_filter
from compass.domain.names import check_dims, check_key_variable, check_name
from compass.domain.rebuild.order import RebuildOrder
from compass.domain.routing.swap import SwapOrder
from compass.domain.space import BUILTIN, UNCHANGED, HnswConfig, Space, SpaceChanges, SpaceConfig
from compass.errors import NotImplementedYetError

DEFAULT_SPACE, BUILTIN_MODEL, BUILTIN_DIMS = "default", "compass-builtin", 384


def collection_spec(asked: schemas.NewCollection) -> CollectionSpec:
    """A collection to create, checked.

    Raises:
        InvalidRequestError: a name, the dims, an endpoint or the default does not fit.
    """
    check_name("collection", asked.name)
    if asked.embedding_dims is not None:
        check_dims(asked.embedding_dims)
    if asked.vector_spaces is None:
        dims = asked.embedding_dims or BUILTIN_DIMS
        spaces = {DEFAULT_SPACE: SpaceConfig(dims, BUILTIN_MODEL, BUILTIN)}
    else:
        spaces = {check_name("vector space", n): space_config(s) for n, s in asked.vector_spaces.items()}
    if not spaces:
        raise invalid([{"field": "vector_spaces", "detail": "names no space; leave it out for the built-in one"}])
    default = next(iter(spaces)) if asked.default_vector_space is None else asked.default_vector_space
    if default not in spaces:
        raise invalid([{"field": "default_vector_space", "detail": f"{default!r} is not one of the spaces"}])
    if asked.embedding_dims not in (None, spaces[default].dims):
        detail = f"{asked.embedding_dims} is not the {spaces[default].dims} dims of the default space"
        raise invalid([{"field": "embedding_dims", "detail": detail}])
    bare = asked.config.bare_vectors if asked.config else None
    return CollectionSpec(asked.name, spaces, default, {"bare_vectors": bare} if bare else {})


def space_config(asked: schemas.SpaceConfig) -> SpaceConfig:
    """A space's config, checked.

    Raises:
        InvalidRequestError: the dims, the endpoint or the key's variable does not fit.
    """
    hnsw = asked.hnsw or schemas.Hnsw()
    return SpaceConfig(
        dims=asked.dims,
        model=asked.model,
        embed_endpoint=None if asked.embed_endpoint is None else check_endpoint(asked.embed_endpoint),
        api_key_env=asked.api_key_env,
        query_prompt_name=asked.query_prompt_name,
        document_prompt_name=asked.document_prompt_name,
        query_prompt=asked.query_prompt,
        document_prompt=asked.document_prompt,
        template=asked.template,
        truncate=asked.truncate,
        dimensions=asked.dimensions,
        normalize=asked.normalize,
        metric=asked.metric,
        hnsw=HnswConfig(hnsw.m, hnsw.ef_construction, hnsw.ef_search),
    )


def space_changes(asked: schemas.SpacePatch) -> SpaceChanges:
    """The fields of a space's config to change.

    Raises:
        InvalidRequestError: there is none, or the endpoint does not fit.
    """
    endpoint, prompt, hnsw = asked.embed_endpoint, asked.query_prompt_name, asked.hnsw
    changes = SpaceChanges(
        embed_endpoint=None if isinstance(endpoint, UnsetType) else check_endpoint(endpoint),
        query_prompt_name=UNCHANGED if isinstance(prompt, UnsetType) else prompt,
        ef_search=None if isinstance(hnsw, UnsetType) else hnsw.ef_search,
        accept_new_fingerprint=asked.accept_new_fingerprint,
    )
    if not changes.names():
        raise invalid([{"field": "embed_endpoint", "detail": "nothing to change is named"}])
    return changes


def rebuild_spec(asked: schemas.RebuildRequest, space: Space) -> RebuildOrder:
    """A rebuild of this space, checked.

    Raises:
        InvalidRequestError: there is no endpoint anywhere, or one does not fit; a budget has no price, or two.
    """
    named = [asked.embed_endpoint] if isinstance(asked.embed_endpoint, str) else asked.embed_endpoint or []
    if not named and space.config.embed_endpoint is None:
        detail = f"vector space {space.name!r} has no endpoint of its own: name one"
        raise invalid([{"field": "embed_endpoint", "detail": detail}])
    if asked.api_key_env is not None:
        check_key_variable(asked.api_key_env)
    _check_prices(asked)
    return RebuildOrder(
        endpoints=tuple(dict.fromkeys(check_endpoint(url) for url in named)),
        api_key_env=asked.api_key_env,
        batch_size=asked.batch_size,
        concurrency=asked.concurrency,
        max_docs_per_s=asked.max_docs_per_s,
        restart=asked.restart,
        endpoint_timeout_s=asked.endpoint_timeout_s,
        max_failed=asked.max_failed,
        accept_new_fingerprint=asked.accept_new_fingerprint,
        cost_per_million_tokens=asked.cost_per_million_tokens,
        cost_per_hour=asked.cost_per_hour,
        budget=asked.budget,
    )


def _check_prices(asked: schemas.RebuildRequest) -> None:
    by_token, by_hour = asked.cost_per_million_tokens is not None, asked.cost_per_hour is not None
    if by_token and by_hour:
        detail = "is given beside cost_per_million_tokens: an endpoint is paid by the token or by the hour"
        raise invalid([{"field": "cost_per_hour", "detail": detail}])
    if asked.budget is not None and not by_token and not by_hour:
        detail = f"{asked.budget:g} of what? Give cost_per_million_tokens or cost_per_hour too"
        raise invalid([{"field": "budget", "detail": detail}])


def swap_spec(asked: schemas.SwapRequest) -> SwapOrder:
    """A swap, checked.

    Raises:
        InvalidRequestError: no space is named, and it is no rollback.
    """
    if asked.name is None and not asked.rollback:
        raise invalid([{"field": "name", "detail": "name the space, or send rollback: true"}])
    return SwapOrder(asked.name, asked.rollback, asked.force, asked.expected_epoch, asked.wait_s)


def deletion(asked: schemas.DeleteRequest) -> tuple[list[int], Filter | None]:
    """What to delete: ids or a filter; an empty request never means all.

    Raises:
        InvalidRequestError: both, or neither.
    """
    if asked.ids and asked.filters:
        raise invalid([{"field": "filters", "detail": "is given beside ids: these are two calls"}])
    if not asked.ids and not asked.filters:
        raise invalid([{"field": "ids", "detail": "name ids or filters; an empty request deletes nothing"}])
    return asked.ids or [], parse_filter(asked.filters) if asked.filters else None


def searched_space(request: schemas.SearchRequest) -> str | None:
    """The space that a search names, None for the default; refuses what a later version brings.

    Raises:
        InvalidRequestError: an empty list of spaces.
        NotImplementedYetError: the request asks for something of a later version; the message says what.
    """
    asked = [request.vector_space] if isinstance(request.vector_space, str) else request.vector_space
    spaces = None if asked is None else list(dict.fromkeys(asked))
    if spaces == []:
        raise invalid([{"field": "vector_space", "detail": "an empty list names no space"}])
    later = {
        "mode": request.mode != "semantic",
        "vector_space": spaces is not None and len(spaces) > 1,
        "score_weights": request.score_weights not in (None, schemas.ScoreWeights()),
        "explain": request.explain,
        **{n: bool(getattr(request, n)) for n in ("recency", "boosts", "relationship_boost")},
        **{n: getattr(request, n) is not None for n in ("recency_preset", "recency_field")},
    }
    for field, is_asked in later.items():
        if is_asked:
            what = "more than one space" if field == "vector_space" else repr(getattr(request, field))
            raise NotImplementedYetError(
                f"{field}: this version does not have {what}; it searches one space by vectors", {"field": field}
            )
    return spaces[0] if spaces else None
