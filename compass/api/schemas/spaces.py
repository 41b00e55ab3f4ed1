"""A vector space as it is asked for, changed, swapped and shown; and the history of all of them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

from compass.api.schemas.base import Beam, Dims, Int64, Name, Prompt, Reason, Request, Status, Text


class Hnsw(Request):
    """Parameters of a space's graph."""

    m: Annotated[int, Meta(ge=2, le=256)] = 16
    ef_construction: Beam = 200
    ef_search: Beam = 64


class SpaceConfig(Request):
    """What a user says of a vector space."""

    dims: Dims
    model: Text
    embed_endpoint: str | None = None
    api_key_env: str | None = None
    query_prompt_name: str | None = None
    document_prompt_name: str | None = None
    query_prompt: Prompt = None
    document_prompt: Prompt = None
    template: Annotated[str, Meta(max_length=4_000, description="Such as {title}\\n{text}.")] | None = None
    normalize: bool | None = None
    truncate: bool | None = None
    dimensions: Dims | None = None
    metric: Literal["cosine", "dot", "l2"] = "cosine"
    hnsw: Hnsw | None = None
    status: str | None = None  # of the reference's clients; without effect


class NewSpace(SpaceConfig, kw_only=True):
    """A vector space to add."""

    name: Name
    reason: Reason = None


class HnswPatch(Request):
    """What of a graph can change while it answers."""

    ef_search: Beam


class SpacePatch(Request):
    """What of a space can change while it answers."""

    embed_endpoint: str | UnsetType = UNSET
    query_prompt_name: str | UnsetType | None = UNSET
    hnsw: HnswPatch | UnsetType = UNSET
    accept_new_fingerprint: bool = False
    reason: Reason = None


class DropQuery(Request):
    """How a space is dropped; `confirm` is its name, wanted while it was the default a short while ago."""

    confirm: str | None = None
    reason: Reason = None


class SwapRequest(Request):
    """The space that becomes the default; with `rollback` and no name, the one that was it before."""

    name: str | None = None
    rollback: bool = False
    force: bool = False
    expected_epoch: Int64 | None = None
    wait_s: Annotated[float, Meta(ge=0, le=600)] = 5.0
    reason: Reason = None


class SpaceInfo(Struct, kw_only=True):
    """A vector space as it is now. `lag`: live chunks that it cannot find yet."""

    name: str
    id: str
    dims: int
    model: str
    status: Status
    embed_endpoint: str | UnsetType = UNSET
    fingerprint: str | UnsetType = UNSET
    vectors: int = 0
    lag: int = 0
    quarantined: int = 0
    bytes_on_disk: int = 0
    created_at: str
    error: str | UnsetType = UNSET


class SpaceAdded(Struct, kw_only=True):
    """A vector space that was added; rebuild it or feed it."""

    name: str
    dims: int
    model: str
    status: Status


class Swapped(Struct):
    """The default after the call; the epoch is unchanged if it was the default already."""

    previous: str
    current: str
    epoch: int


class Event(Struct, kw_only=True):
    """What was done, in commit `seq`. `who`: the caller's key; null where the service did it by itself."""

    seq: int
    at: str
    epoch: int
    kind: str
    space: str | None
    who: str | None
    reason: str | None
    took_s: float
    details: dict[str, Any]


class History(Struct):
    """What was done to the spaces of a collection, oldest first."""

    events: list[Event]
