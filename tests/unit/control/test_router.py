"""The router changes who answers what: each change is checked, committed once, and known everywhere on return."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from records import run_record
from waiting import until
from world import DIMS, NEW, OLD, Faulty, Model, World, hurried, raises

from compass.domain.chunk import ChunkInput
from compass.domain.embedding.contract import ServerInfo
from compass.domain.rebuild.order import RebuildOrder
from compass.domain.routing.swap import SwapOrder
from compass.domain.space import BuiltBy, SpaceChanges, SpaceConfig
from compass.embedding.builtin import HashingModel
from compass.errors import (
    CollectionExistsError,
    DefaultSpaceError,
    FingerprintMismatchError,
    NotFoundError,
    SpaceExistsError,
    SpaceLagsError,
    SpaceNotActiveError,
    StorageError,
    UnavailableError,
)

# ---- collections


async def test_a_created_collection_is_known_to_every_gateway(world: World) -> None:
    """When create returns its spaces are active, its default is set, and each gateway routes to it."""
    await world.create(new=NEW)
    route = world.route()
    assert (route.default, route.epoch) == ("old", 1)
    assert {s.name: (s.status, s.follows) for s in route.spaces.values()} == {
        "old": ("active", True),
        "new": ("active", True),
    }
    with pytest.raises(CollectionExistsError):
        await world.create()


async def test_a_collection_whose_index_does_not_start_is_created_nevertheless(world: World) -> None:
    """What the root holds is in the table, whatever the indexes do: a durable collection is never a 404."""
    world.cluster.wrap_index = lambda real, space: Faulty(real, configure=raises(StorageError("damaged")))
    await world.create()
    assert world.route().default == "old"


async def test_deleting_a_collection_deletes_every_byte(world: World) -> None:
    """After delete no gateway routes to it and no file of it is left; the name is free again."""
    uuid = await world.create("one")
    await world.router.delete_collection("docs")
    assert all("docs" not in table.table.collections for table in world.tables)
    assert not list((world.folder / "data").rglob(f"*{uuid}*/*"))
    assert not (world.folder / "cache" / uuid).exists()
    assert not world.cluster.collections
    assert not world.cluster.indexes
    with pytest.raises(NotFoundError):
        await world.router.delete_collection("docs")
    assert await world.create() != uuid


async def test_a_collection_that_could_not_be_deleted_comes_back(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A delete that fails before anything durable happened leaves the collection to be found again."""
    await world.create("one")

    def fail(name: str) -> None:
        raise UnavailableError("no space left")

    with monkeypatch.context() as patched:
        patched.setattr(world.root, "delete", fail)
        with pytest.raises(UnavailableError):
            await world.router.delete_collection("docs")
    await until(lambda: all("docs" in table.table.collections for table in world.tables))
    assert await world.found("one") == ["one"]


# ---- spaces


async def test_an_added_space_is_building_and_follows_nothing(world: World) -> None:
    """Adding a space starts no work; a search by its name is refused; its name is taken."""
    await world.create("one")
    await world.router.add_space("docs", "new", NEW)
    space = world.space("new")
    assert (space.status, space.follows) == ("building", False)
    with pytest.raises(SpaceNotActiveError):
        await world.found("one", "new")
    with pytest.raises(SpaceExistsError):
        await world.router.add_space("docs", "new", NEW)


async def test_a_change_of_a_config_reaches_gateways_and_index(world: World) -> None:
    """What PATCH changed is in the table, and in what the index works with, when the call returns."""
    await world.create()
    world.cluster.models["a"].says = ServerInfo()
    await world.router.set_space("docs", "old", SpaceChanges(embed_endpoint="http://moved", ef_search=99))
    config = world.space("old").config
    assert (config.embed_endpoint, config.hnsw.ef_search, config.hnsw.m) == ("http://moved", 99, OLD.hnsw.m)
    assert world.cluster.indexes[world.space("old").id].follower.space.config == config


async def test_an_endpoint_moves_only_to_the_same_model(world: World) -> None:
    """PATCH embeds stored texts again at the new endpoint: another model is 409, and nothing changes."""
    await world.create()
    for model in world.cluster.models.values():
        model.says = ServerInfo()
    assert (
        await world.cluster.indexes[world.space("old").id].follow(await world.ingest("one", "two", "three"), 5) == 0
    )
    same, world.cluster.models[OLD.model] = world.cluster.models[OLD.model], world.cluster.models[NEW.model]
    with pytest.raises(FingerprintMismatchError) as refused:
        await world.router.set_space("docs", "old", SpaceChanges(embed_endpoint="http://other-model"))
    assert refused.value.fields["cosine"] < 0.999
    assert world.space("old").config.embed_endpoint == OLD.embed_endpoint
    world.cluster.models[OLD.model] = same
    await world.router.set_space("docs", "old", SpaceChanges(embed_endpoint="http://moved"))
    assert world.space("old").config.embed_endpoint == "http://moved"


async def test_who_built_a_space_is_known_from_its_first_vectors_on(world: World) -> None:
    """Nobody has to ask for it: what the endpoint says of itself is recorded when it has embedded something."""
    await world.create()
    assert world.space("old").built_by is None
    world.cluster.models["a"].says = ServerInfo(model_id="a")
    await world.ingest("one")
    await world.level(world.space("old"))
    await until(lambda: world.publisher.table.route("docs").spaces["old"].built_by is not None)
    assert world.space("old").built_by == BuiltBy("a")


async def test_another_name_of_a_model_is_taken_only_on_word_and_proof(world: World) -> None:
    """PATCH to a server that names its model otherwise is 409 with both fingerprints, unless it is accepted; then
    its vectors of stored texts must agree.
    """
    await world.create_built_by_a()
    world.cluster.models["a"].says = ServerInfo(model_id="a-renamed", pooling="mean")
    moved = SpaceChanges(embed_endpoint="http://moved")
    with pytest.raises(FingerprintMismatchError, match="'a-renamed', not 'a'") as refused:
        await world.router.set_space("docs", "old", moved)
    both = refused.value.fields
    assert (both["recorded"]["model_id"], both["found"]["model_id"]) == ("a", "a-renamed")
    assert both["recorded"]["dims"] == DIMS
    assert world.space("old").config.embed_endpoint == OLD.embed_endpoint
    await world.router.set_space("docs", "old", replace(moved, accept_new_fingerprint=True))
    assert world.space("old").built_by == BuiltBy("a-renamed", pooling="mean")
    world.cluster.models["a"] = Model("b")
    world.cluster.models["a"].says = ServerInfo()
    with pytest.raises(FingerprintMismatchError, match="cosine"):
        await world.router.set_space(
            "docs", "old", SpaceChanges(embed_endpoint="http://b", accept_new_fingerprint=True)
        )
    assert world.space("old").built_by == BuiltBy("a-renamed", pooling="mean")


async def test_a_resume_at_another_model_is_refused(world: World) -> None:
    """A rebuild whose endpoint says, or shows by its vectors, that it is another model is 409; nothing starts."""
    await world.create_built_by_a()
    world.cluster.models["a"].says = ServerInfo(model_id="other")
    with pytest.raises(FingerprintMismatchError, match="'other', not 'a'"):
        await world.router.start_rebuild("docs", "old", RebuildOrder())
    world.cluster.models["a"] = Model("b")
    world.cluster.models["a"].says = ServerInfo()  # it says nothing, but embeds otherwise
    with pytest.raises(FingerprintMismatchError, match="embeds stored texts otherwise"):
        await world.router.start_rebuild("docs", "old", RebuildOrder())
    assert world.cluster.rebuilds == {}


async def test_a_resume_at_a_renamed_model_is_taken_on_word_and_proof(world: World) -> None:
    """As PATCH does, an order may accept another name of the model, if its vectors of stored texts agree."""
    await world.create_built_by_a()
    world.cluster.models["a"].says = ServerInfo(model_id="a-renamed")
    await world.router.start_rebuild("docs", "old", RebuildOrder(accept_new_fingerprint=True))
    assert world.space("old").built_by == BuiltBy("a-renamed")
    run = world.cluster.rebuilds[world.space("old").id]
    assert len(run.orders) == 1
    run.runs = False
    world.cluster.models["a"] = Model("b")
    world.cluster.models["a"].says = ServerInfo(model_id="b")
    with pytest.raises(FingerprintMismatchError, match="cosine"):
        await world.router.start_rebuild("docs", "old", RebuildOrder(accept_new_fingerprint=True))
    assert (len(run.orders), world.space("old").built_by) == (1, BuiltBy("a-renamed"))


async def test_a_space_of_two_models_is_only_restarted(world: World) -> None:
    """A run that found the model changed under way leaves a space that is neither resumed nor swapped to."""
    await world.create("one")
    await world.router.add_space("docs", "new", NEW)
    space = world.space("new")
    vectors = world.root.space_vectors(world.route().uuid, space.id, DIMS)
    vectors.write_run(run_record("x", "failed", error="changed", mixed_models=True))
    with pytest.raises(FingerprintMismatchError, match="more than one model"):
        await world.router.start_rebuild("docs", "new", RebuildOrder())
    await world.router.start_rebuild("docs", "new", RebuildOrder(restart=True))
    assert world.space("new").id != space.id


async def test_a_swap_to_an_endpoint_that_is_another_model_now_is_refused(world: World) -> None:
    """Not even force swaps to a space whose queries would be embedded by another model."""
    await world.create("one", "two", new=NEW)
    await world.level(world.space("new"))
    world.cluster.models["b"] = Model("a")
    world.cluster.models["b"].says = ServerInfo()
    with pytest.raises(FingerprintMismatchError):
        await world.router.swap("docs", SwapOrder("new", force=True))
    assert world.route().default == "old"


async def test_activation_wants_the_frontier(world: World) -> None:
    """A building space that lacks a chunk is not activated; one that lacks none is, once and for good."""
    await world.create("one")
    await world.router.add_space("docs", "new", NEW)
    space = world.space("new")
    with pytest.raises(SpaceLagsError) as refused:
        await world.router.activate("docs", space.id)
    assert refused.value.fields == {"space": "new", "lag": 1}
    vectors = world.root.space_vectors(world.route().uuid, space.id, DIMS)
    vids = world.root.view(world.route().uuid).embeddable_vids()
    key = vectors.append(vids, await world.cluster.models["b"].embed(["one"]))
    await world.cluster.indexes[space.id].load_files([key])
    await world.router.activate("docs", space.id)
    assert (world.space("new").status, world.space("new").follows) == ("active", True)
    assert await world.found("one", "new") == ["one"]
    await world.router.fail("docs", space.id, "too late")
    assert world.space("new").status == "active"


async def test_a_space_that_callers_feed_turns_active_by_itself(world: World) -> None:
    """Without an endpoint and a rebuild a space is active once each live chunk has its vector."""
    uuid = await world.create("one", "two")
    await world.router.add_space("docs", "fed", SpaceConfig(DIMS, "b"))
    space = world.space("fed")
    for text in ("one", "two"):
        assert world.space("fed").status == "building"
        vector = (await world.cluster.models["b"].embed([text]))[0]
        await world.cluster.collection(uuid).ingest([ChunkInput(text, 0, text, vectors={space.id: vector})])
    await until(lambda: world.publisher.table.route("docs").spaces["fed"].status == "active")
    assert (await world.found("two", "fed"))[0] == "two"


async def test_a_failure_is_recorded_of_a_space_that_never_was_active(world: World) -> None:
    """`fail` says why in the space's record; the next rebuild makes it building again."""
    await world.create()
    await world.router.add_space("docs", "new", NEW)
    await world.router.fail("docs", world.space("new").id, "the endpoint lied")
    assert (world.space("new").status, world.space("new").error) == ("failed", "the endpoint lied")
    await world.router.start_rebuild("docs", "new", RebuildOrder())
    assert (world.space("new").status, world.space("new").error) == ("building", None)


async def test_a_dropped_space_is_gone_with_its_bytes(world: World) -> None:
    """After drop no gateway knows the name and no byte of it is left; the other spaces answer as before."""
    uuid = await world.create("one", new=NEW)
    await world.ingest("two")
    assert await world.level(world.space("new")) == 0
    assert await world.level(world.space("old")) == 0
    dropped, kept = world.space("new"), world.root.space_vectors(uuid, world.space("old").id, DIMS)
    assert list(world.folder_of(dropped, uuid).rglob("*.arrow"))
    before = kept.get(kept.have())
    await world.router.drop_space("docs", "new")
    assert not world.folder_of(dropped, uuid).exists()
    assert set(world.route().spaces) == {"old"}
    assert dropped.id not in world.cluster.indexes
    np.testing.assert_array_equal(kept.get(kept.have())[1], before[1])
    assert (await world.found("two"))[0] == "two"
    with pytest.raises(NotFoundError):
        await world.router.drop_space("docs", "new")


async def test_a_drop_waits_for_the_queries_in_flight(world: World) -> None:
    """A query that took the old table finishes on the index that it began with."""
    await world.create("one", new=NEW)
    async with world.tables[1].route("docs", "new") as routed:
        dropping = asyncio.create_task(world.router.drop_space("docs", "new"))
        await until(lambda: "new" not in world.tables[1].table.route("docs").spaces)
        await asyncio.sleep(0.1)
        assert routed.space.id in world.cluster.indexes
        assert not dropping.done()
    await dropping
    assert routed.space.id not in world.cluster.indexes


async def test_a_swap_does_not_wait_for_a_drop(world: World) -> None:
    """The way back is open while a slow query keeps another space from its end."""
    await world.create("one", new=NEW, third=NEW)
    async with world.tables[1].route("docs", "third") as routed:
        dropping = asyncio.create_task(world.router.drop_space("docs", "third"))
        await until(lambda: "third" not in world.tables[1].table.route("docs").spaces)
        assert (await world.router.swap("docs", SwapOrder("new"))).epoch == 2
        assert not dropping.done()
        assert routed.space.id in world.cluster.indexes
    await dropping
    assert routed.space.id not in world.cluster.indexes


async def test_a_drop_goes_on_though_its_collection_is_deleted_meanwhile(world: World) -> None:
    """What a drop has left to do is done by the delete; nothing of the collection is started again for it."""
    uuid = await world.create("one", new=NEW)
    async with world.tables[1].route("docs", "new"):
        dropping = asyncio.create_task(world.router.drop_space("docs", "new"))
        await until(lambda: "new" not in world.tables[1].table.route("docs").spaces)
        await world.router.delete_collection("docs")
        assert not dropping.done()
    await dropping
    assert (world.cluster.collections, world.cluster.indexes) == ({}, {})
    assert not list((world.folder / "data").rglob(f"*{uuid}*/*"))


async def test_a_drop_waits_only_so_long(tmp_path: Path) -> None:
    """A query that does not end holds a drop up for the drain's time, not for ever; then the bytes are gone."""
    async with hurried(tmp_path, drain_s=1.0) as world:
        uuid = await world.create("one", new=NEW)
        space = world.space("new")
        async with world.tables[1].route("docs", "new"):
            began = time.monotonic()
            await world.router.drop_space("docs", "new")
            assert time.monotonic() - began >= 1.0
        assert not world.folder_of(space, uuid).exists()
        assert space.id not in world.cluster.indexes


async def test_the_default_is_neither_dropped_nor_restarted(world: World) -> None:
    """What answers queries is not emptied under them."""
    await world.create("one")
    before = world.route()
    with pytest.raises(DefaultSpaceError):
        await world.router.drop_space("docs", "old")
    with pytest.raises(DefaultSpaceError):
        await world.router.start_rebuild("docs", "old", RebuildOrder(restart=True))
    assert world.route() == before
    assert await world.found("one") == ["one"]


def test_vectors_of_models_differ() -> None:
    """What these tests tell apart is really different: the two models give other vectors for one text."""
    a, b = (HashingModel(name, DIMS).embed(["one"]) for name in "ab")
    assert not np.allclose(a, b)
