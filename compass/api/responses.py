"""What is answered: the domain's values as the HTTP interface shows them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

import msgspec

from compass.api import schemas
from compass.domain.chunk import Chunk
from compass.domain.embedding.endpoint_url import shown as without_secrets
from compass.domain.embedding.fingerprint import Fingerprint
from compass.domain.history import Event
from compass.domain.routing.table import CollectionRoute
from compass.domain.search.query import Hit
from compass.domain.space import BUILTIN, Space

ALMOST = 0.9999  # the most that a space which is not active may claim


def collection_info(
    route: CollectionRoute, info: Mapping[str, Any], spaces: Iterable[schemas.SpaceInfo]
) -> schemas.CollectionInfo:
    """A collection: its route, what its writer says, its spaces."""
    return schemas.CollectionInfo(
        name=route.name,
        created_at=_iso(route.created_at),
        embedding_dims=route.space(None).config.dims,
        chunk_count=info["chunk_count"],
        vector_spaces={space.name: space for space in spaces},
        default_vector_space=route.default,
        epoch=route.epoch,
        seq=info["seq"],
    )


def space_info(space: Space, known: Mapping[str, Any]) -> schemas.SpaceInfo:
    """A space: its record, and what its index knows."""
    endpoint = space.config.embed_endpoint
    shown = {
        **known,
        "name": space.name,
        "id": space.id,
        "dims": space.config.dims,
        "model": space.config.model,
        "status": space.status,
        "embed_endpoint": endpoint if endpoint in (None, BUILTIN) else without_secrets(endpoint),
        "created_at": _iso(space.created_at),
        "fingerprint": None if space.built_by is None else Fingerprint.of(space.config, space.built_by).digest,
        "error": known.get("error") or space.error,
    }
    return msgspec.convert(_without_none(shown, "embed_endpoint", "fingerprint", "error"), schemas.SpaceInfo)


def rebuild_status(space: Space, known: Mapping[str, Any]) -> schemas.RebuildStatus:
    """How far a space is.

    Its record and its index are asked one after the other, so the status decides: 1.0 is active, and only that.
    """
    progress = 1.0 if space.status == "active" else min(known.get("progress", 0.0), ALMOST)
    run = {k: _iso(v) if k in ("started_at", "ended_at") else v for k, v in known.get("run", {}).items()}
    shown = {**known, "status": space.status, "progress": progress, "percent": round(100 * progress, 2), "run": run}
    return msgspec.convert(_without_none(shown, "error"), schemas.RebuildStatus)


def history(events: Iterable[Event]) -> schemas.History:
    """What was done, oldest first."""
    shown = (msgspec.convert({**event.to_json(), "at": _iso(event.at)}, schemas.Event) for event in events)
    return schemas.History(list(shown))


def chunk_shown(chunk: Chunk) -> schemas.Chunk:
    """A chunk without its vectors."""
    return schemas.Chunk(**chunk.public())


def result(hit: Hit, space: Space) -> schemas.Result:
    """A hit, with its vector where the query asked for it."""
    shown = chunk_shown(hit.chunk)
    if hit.vector is not None:
        shown.embeddings = {space.name: hit.vector.tolist()}
    return schemas.Result(shown, float(hit.score))


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _without_none(shown: dict[str, Any], *optional: str) -> dict[str, Any]:
    return {k: v for k, v in shown.items() if v is not None or k not in optional}
