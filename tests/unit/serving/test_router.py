"""The router changes who answers what: each change is checked, committed once, and known everywhere on return."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import Any

import numpy as np
import pytest
from waiting import until
from world import DIMS, NEW, OLD, FakeRebuild, Faulty, Model, World, raises

from compass.adapters.builtin_model import HashingModel
from compass.domain.chunk import ChunkInput
from compass.domain.embedding import ServerInfo
from compass.domain.history import By
from compass.domain.memory import SMALL_BYTES, Room
from compass.domain.search import Query
from compass.domain.space import BuiltBy, Space, SpaceConfig
from compass.errors import (
    CollectionExistsError,
    ConfirmationNeededError,
    DefaultSpaceError,
    EpochMismatchError,
    FingerprintMismatchError,
    InvalidRequestError,
    NotFoundError,
    RebuildRunningError,
    SpaceExistsError,
    SpaceLagsError,
    SpaceNotActiveError,
    SpaceQuarantinedError,
    StorageError,
    TakenOverError,
    UnavailableError,
)
from compass.serving.collection import CollectionService
from compass.serving.ports import CollectionSpec, RebuildSpec, SwapSpec
from compass.storage import incarnation

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
    await world.router.set_space("docs", "old", {"embed_endpoint": "http://moved", "ef_search": 99})
    config = world.space("old").config
    assert (config.embed_endpoint, config.hnsw.ef_search, config.hnsw.m) == ("http://moved", 99, OLD.hnsw.m)
    assert world.cluster.indexes[world.space("old").id]._space.config == config


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
        await world.router.set_space("docs", "old", {"embed_endpoint": "http://other-model"})
    assert refused.value.fields["cosine"] < 0.999
    assert world.space("old").config.embed_endpoint == OLD.embed_endpoint
    world.cluster.models[OLD.model] = same
    await world.router.set_space("docs", "old", {"embed_endpoint": "http://moved"})
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


async def built_by_a(world: World) -> None:
    world.cluster.models["a"].says = ServerInfo(model_id="a")
    await world.create("one", "two")
    await world.level(world.space("old"))
    await until(lambda: world.publisher.table.route("docs").spaces["old"].built_by is not None)


async def test_another_name_of_a_model_is_taken_only_on_word_and_proof(world: World) -> None:
    """PATCH to a server that names its model otherwise is 409 with both fingerprints, unless it is accepted; then
    its vectors of stored texts must agree.
    """
    await built_by_a(world)
    world.cluster.models["a"].says = ServerInfo(model_id="a-renamed", pooling="mean")
    moved = {"embed_endpoint": "http://moved"}
    with pytest.raises(FingerprintMismatchError, match="'a-renamed', not 'a'") as refused:
        await world.router.set_space("docs", "old", moved)
    both = refused.value.fields
    assert (both["recorded"]["model_id"], both["found"]["model_id"]) == ("a", "a-renamed")
    assert both["recorded"]["dims"] == DIMS
    assert world.space("old").config.embed_endpoint == OLD.embed_endpoint
    await world.router.set_space("docs", "old", {**moved, "accept_new_fingerprint": True})
    assert world.space("old").built_by == BuiltBy("a-renamed", pooling="mean")
    world.cluster.models["a"] = Model("b")
    world.cluster.models["a"].says = ServerInfo()
    with pytest.raises(FingerprintMismatchError, match="cosine"):
        await world.router.set_space("docs", "old", {"embed_endpoint": "http://b", "accept_new_fingerprint": True})
    assert world.space("old").built_by == BuiltBy("a-renamed", pooling="mean")


async def test_a_resume_at_another_model_is_refused(world: World) -> None:
    """A rebuild whose endpoint says, or shows by its vectors, that it is another model is 409; nothing starts."""
    await built_by_a(world)
    world.cluster.models["a"].says = ServerInfo(model_id="other")
    with pytest.raises(FingerprintMismatchError, match="'other', not 'a'"):
        await world.router.start_rebuild("docs", "old", RebuildSpec())
    world.cluster.models["a"] = Model("b")
    world.cluster.models["a"].says = ServerInfo()  # it says nothing, but embeds otherwise
    with pytest.raises(FingerprintMismatchError, match="embeds stored texts otherwise"):
        await world.router.start_rebuild("docs", "old", RebuildSpec())
    assert world.cluster.rebuilds == {}


async def test_a_resume_at_a_renamed_model_is_taken_on_word_and_proof(world: World) -> None:
    """As PATCH does, an order may accept another name of the model, if its vectors of stored texts agree."""
    await built_by_a(world)
    world.cluster.models["a"].says = ServerInfo(model_id="a-renamed")
    await world.router.start_rebuild("docs", "old", RebuildSpec(accept_new_fingerprint=True))
    assert world.space("old").built_by == BuiltBy("a-renamed")
    run = world.cluster.rebuilds[world.space("old").id]
    assert len(run.jobs) == 1
    run.runs = False
    world.cluster.models["a"] = Model("b")
    world.cluster.models["a"].says = ServerInfo(model_id="b")
    with pytest.raises(FingerprintMismatchError, match="cosine"):
        await world.router.start_rebuild("docs", "old", RebuildSpec(accept_new_fingerprint=True))
    assert (len(run.jobs), world.space("old").built_by) == (1, BuiltBy("a-renamed"))


async def test_a_space_of_two_models_is_only_restarted(world: World) -> None:
    """A run that found the model changed under way leaves a space that is neither resumed nor swapped to."""
    await world.create("one")
    await world.router.add_space("docs", "new", NEW)
    space = world.space("new")
    vectors = world.root.space_vectors(world.route().uuid, space.id, DIMS)
    vectors.write_run({"state": "failed", "attempt": "x", "error": "changed", "tainted": True})
    with pytest.raises(FingerprintMismatchError, match="more than one model"):
        await world.router.start_rebuild("docs", "new", RebuildSpec())
    await world.router.start_rebuild("docs", "new", RebuildSpec(restart=True))
    assert world.space("new").id != space.id


async def test_a_swap_to_an_endpoint_that_is_another_model_now_is_refused(world: World) -> None:
    """Not even force swaps to a space whose queries would be embedded by another model."""
    await world.create("one", "two", new=NEW)
    await world.level(world.space("new"))
    world.cluster.models["b"] = Model("a")
    world.cluster.models["b"].says = ServerInfo()
    with pytest.raises(FingerprintMismatchError):
        await world.router.swap("docs", SwapSpec("new", force=True))
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
    await world.cluster.indexes[space.id].absorb([key])
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
    await world.router.start_rebuild("docs", "new", RebuildSpec())
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


async def test_a_drop_waits_only_so_long(world: World) -> None:
    """A query that does not end holds a drop up for the drain's time, not for ever; then the bytes are gone."""
    uuid = await world.create("one", new=NEW)
    space = world.space("new")
    async with world.tables[1].route("docs", "new"):
        began = time.monotonic()
        await world.router.drop_space("docs", "new")
        assert 1.0 <= time.monotonic() - began < 5
    assert not world.folder_of(space, uuid).exists()
    assert space.id not in world.cluster.indexes


async def test_the_default_is_neither_dropped_nor_restarted(world: World) -> None:
    """What answers queries is not emptied under them."""
    await world.create("one")
    before = world.route()
    with pytest.raises(DefaultSpaceError):
        await world.router.drop_space("docs", "old")
    with pytest.raises(DefaultSpaceError):
        await world.router.start_rebuild("docs", "old", RebuildSpec(restart=True))
    assert world.route() == before
    assert await world.found("one") == ["one"]


# ---- the swap


async def test_swap_and_rollback_lose_nothing(world: World) -> None:
    """The default changes everywhere, epochs grow, and what was written in between is in both spaces."""
    await world.create("one", new=NEW)
    assert await world.router.swap("docs", SwapSpec("new", expected_epoch=1)) == {
        "previous": "old",
        "current": "new",
        "epoch": 2,
    }
    assert (world.route().default, world.route().epoch, world.route().next_default) == ("new", 2, None)
    await world.ingest("two")
    assert await world.router.swap("docs", SwapSpec("old")) == {"previous": "new", "current": "old", "epoch": 3}
    assert sorted(await world.found("two")) == ["one", "two"]
    assert sorted(await world.found("two", "new")) == ["one", "two"]


async def test_a_rollback_goes_to_the_previous_default(world: World) -> None:
    """Without a name it goes back and forth between the last two; what was dropped is no way back."""
    await world.create(new=NEW, third=NEW)
    with pytest.raises(NotFoundError, match="no previous default"):
        await world.router.swap("docs", SwapSpec(None, rollback=True))
    await world.router.swap("docs", SwapSpec("new"))
    await world.router.swap("docs", SwapSpec("third"))
    for name in ("new", "third"):
        assert (await world.router.swap("docs", SwapSpec(None, rollback=True)))["current"] == name
    await world.router.drop_space("docs", "new")
    assert (await world.router.swap("docs", SwapSpec(None, rollback=True)))["current"] == "old"


async def test_a_swap_waits_no_longer_than_it_is_told(world: World) -> None:
    """`wait_s` bounds the wait for a target that lags."""
    await world.create("one", new=NEW)
    await world.level(world.space("new"))
    world.cluster.models["b"].down = True
    await world.ingest("two")
    began = time.monotonic()
    with pytest.raises(SpaceLagsError, match=r"0\.2 s"):
        await world.router.swap("docs", SwapSpec("new", wait_s=0.2))
    assert 0.2 <= time.monotonic() - began < 2


async def test_quarantined_chunks_that_nobody_accepted_refuse_a_swap(world: World) -> None:
    """The count is in the answer; what the last run accepted does not count, and force overrides."""
    await world.create("one", new=NEW)
    known = {"quarantined": 2, "accepted": 1}

    async def lacks(seq: int, wait_s: float) -> dict[str, int]:
        return {"lag": 0, **known}

    world.cluster.wrap_index = lambda real, space: Faulty(real, lacks=lacks) if space.name == "new" else real
    with pytest.raises(SpaceQuarantinedError) as refused:
        await world.router.swap("docs", SwapSpec("new"))
    assert refused.value.fields == {"space": "new", **known}
    known["accepted"] = 2
    assert (await world.router.swap("docs", SwapSpec("new")))["epoch"] == 2
    known.update(accepted=0)
    await world.router.swap("docs", SwapSpec("old"))
    assert (await world.router.swap("docs", SwapSpec("new", force=True)))["epoch"] == 4


async def test_a_chunk_that_is_refused_during_the_swap_refuses_it(world: World) -> None:
    """What the target lacked at the call counts however its wait ends: found, late, or quarantined meanwhile."""
    await world.create("one", new=NEW)
    before = world.route()

    async def lacks(seq: int, wait_s: float) -> dict[str, int]:
        return {"lag": 0, "quarantined": 1, "accepted": 0}  # its endpoint has refused the text that the wait was for

    world.cluster.wrap_index = lambda real, space: Faulty(real, lacks=lacks)
    with pytest.raises(SpaceQuarantinedError):
        await world.router.swap("docs", SwapSpec("new"))
    assert world.route() == before


async def test_a_space_that_is_being_rebuilt_is_no_target(world: World) -> None:
    """Not by force either: what it holds is changing."""
    await world.create(new=NEW)
    await world.router.start_rebuild("docs", "new", RebuildSpec(("http://127.0.0.1:1/embed",)))
    for force in (False, True):
        with pytest.raises(RebuildRunningError):
            await world.router.swap("docs", SwapSpec("new", force=force))
    assert world.route().default == "old"


async def test_a_former_default_is_dropped_on_confirmation(world: World) -> None:
    """Within the guard's time its name must be said again; other spaces, and later, want nothing."""
    world.router._drop_guard_s = 60.0
    await world.create(new=NEW, third=NEW)
    await world.router.swap("docs", SwapSpec("new"))
    for confirm in (None, "new", ""):
        with pytest.raises(ConfirmationNeededError, match="confirm=old"):
            await world.router.drop_space("docs", "old", confirm)
    await world.router.drop_space("docs", "third")
    await world.router.drop_space("docs", "old", "old")
    await world.router.add_space("docs", "other", NEW)
    await world.router.activate("docs", world.space("other").id)
    await world.router.swap("docs", SwapSpec("other"))
    world.router._drop_guard_s = 0.0
    await world.router.drop_space("docs", "new")
    assert list(world.route().spaces) == ["other"]


async def test_the_history_tells_what_was_done(world: World) -> None:
    """Who, why, when, at which epoch and commit, how long: in the commit of the change, so no crash parts them."""
    uuid = await world.create()
    anna = By("anna", "a better model")
    await world.router.add_space("docs", "new", NEW, anna)
    await world.router.start_rebuild("docs", "new", RebuildSpec(), anna)
    world.cluster.rebuilds.clear()
    await world.router.fail("docs", world.space("new").id, "no endpoint")
    await world.router.activate("docs", world.space("new").id)
    await world.router.swap("docs", SwapSpec("new", force=True), anna)
    await world.router.swap("docs", SwapSpec(None, rollback=True), By("ben", "worse"))
    with pytest.raises(DefaultSpaceError):
        await world.router.drop_space("docs", "old", by=anna)
    await world.router.drop_space("docs", "new", by=anna)
    events = await world.cluster.collection(uuid).history()
    assert [(e.kind, e.space, e.epoch, e.who) for e in events] == [
        ("create", None, 1, None),
        ("add", "new", 1, "anna"),
        ("rebuild", "new", 1, "anna"),
        ("fail", "new", 1, None),
        ("activate", "new", 1, None),
        ("swap", "new", 2, "anna"),
        ("rollback", "old", 3, "ben"),
        ("drop", "new", 3, "anna"),
    ]
    assert events[5].details == {"previous": "old", "forced": True}
    assert events[6].reason == "worse"
    assert events[3].details["error"] == "no endpoint"
    assert [e.seq for e in events] == sorted({e.seq for e in events})
    assert all(e.took_s >= 0 and abs(e.at - time.time()) < 60 for e in events)


async def test_a_swap_to_the_default_changes_nothing(world: World) -> None:
    """PUT of the present default answers it, and neither epoch nor log move."""
    uuid = await world.create()
    before = (world.publisher.table, (await world.cluster.collection(uuid).info())["seq"])
    assert await world.router.swap("docs", SwapSpec("old")) == {"previous": "old", "current": "old", "epoch": 1}
    assert (world.publisher.table, (await world.cluster.collection(uuid).info())["seq"]) == before


async def test_a_swap_to_what_may_not_answer_is_refused(world: World) -> None:
    """A space that is building or not there, or an epoch that is not the present one, changes nothing."""
    await world.create(ready=NEW)
    await world.router.add_space("docs", "new", NEW)
    before = world.route()
    with pytest.raises(SpaceNotActiveError):
        await world.router.swap("docs", SwapSpec("new", force=True))
    with pytest.raises(NotFoundError):
        await world.router.swap("docs", SwapSpec("nothing"))
    with pytest.raises(EpochMismatchError) as mismatch:
        await world.router.swap("docs", SwapSpec("ready", force=True, expected_epoch=2))
    assert mismatch.value.fields == {"epoch": 1, "expected_epoch": 2}
    assert world.route() == before


async def test_a_lagging_target_is_refused_unless_forced(world: World) -> None:
    """While the target's endpoint is down a swap is refused with the lag; by force it goes; the rest heals."""
    await world.create("one", new=NEW)
    assert await world.level(world.space("new")) == 0
    world.cluster.models["b"].down = True
    await world.ingest("two", "three")
    with pytest.raises(SpaceLagsError) as lags:
        await world.router.swap("docs", SwapSpec("new"))
    assert lags.value.fields["lag"] == 2
    assert (world.route().default, world.route().next_default) == ("old", None)
    assert (await world.router.swap("docs", SwapSpec("new", force=True)))["epoch"] == 2
    world.cluster.models["b"].down = False
    assert await world.level(world.space("new")) == 0
    assert sorted(await world.found("two")) == ["one", "three", "two"]


async def test_an_old_model_that_is_no_longer_served(world: World) -> None:
    """The old space says how many chunks it lacks, answers by name for what it has and without what has changed; a
    rollback to it is refused with the lag. Once its model is back it catches up by itself, and the way is open.
    """
    uuid = await world.create("one", "two", new=NEW)
    await world.router.swap("docs", SwapSpec("new"))
    assert await world.level(world.space("old")) == 0
    world.cluster.models["a"].down = True
    await world.cluster.collection(uuid).ingest(
        [ChunkInput("two", 0, "two has changed"), ChunkInput("f", 0, "three")]
    )
    index = world.cluster.indexes[world.space("old").id]
    await until(lambda: len(index._missing) == 2 and index._error)
    known = await index.info()
    assert (known["lag"], known["error"]) == (2, "the endpoint is down")
    vector = HashingModel("a", DIMS).embed(["two"])[0]
    assert [hit.chunk.text for hit in (await index.search([Query(vector)]))[0]] == ["one"]
    with pytest.raises(SpaceLagsError) as refused:
        await world.router.swap("docs", SwapSpec(None, rollback=True, wait_s=0.1))
    assert refused.value.fields == {"space": "old", "lag": 2}
    assert world.route().default == "new"
    world.cluster.models["a"].down = False
    assert await world.level(world.space("old")) == 0
    assert (await world.router.swap("docs", SwapSpec(None, rollback=True)))["current"] == "old"
    assert sorted(await world.found("three")) == ["one", "three", "two has changed"]


async def test_acknowledgements_wait_for_both_while_a_swap_is_under_way(world: World) -> None:
    """Every gateway knows the target before the frontier is read, and forgets it when the swap is over."""
    await world.create(new=NEW)
    asked, go_on = asyncio.Event(), asyncio.Event()

    def held(real: Any, space: Space) -> Any:
        async def lacks(seq: int, wait_s: float) -> dict[str, int]:
            asked.set()
            await go_on.wait()
            return dict(await real.lacks(seq, wait_s))

        return Faulty(real, lacks=lacks) if space.name == "new" else real

    world.cluster.wrap_index = held
    swap = asyncio.create_task(world.router.swap("docs", SwapSpec("new")))
    await asked.wait()
    assert (world.route().default, world.route().next_default) == ("old", "new")
    go_on.set()
    await swap
    assert (world.route().default, world.route().next_default) == ("new", None)


@pytest.mark.parametrize("error", [UnavailableError("gone"), RuntimeError("a bug")])
async def test_a_failed_swap_leaves_no_trace(world: World, error: Exception) -> None:
    """Whatever breaks a swap before its commit, acknowledgements stop waiting for its target."""
    await world.create(new=NEW)
    before = world.route()
    world.cluster.wrap_index = lambda real, space: Faulty(real, lacks=raises(error))
    with pytest.raises(type(error)):
        await world.router.swap("docs", SwapSpec("new"))
    assert world.route() == before


async def test_a_committed_swap_is_never_reported_as_failed(world: World) -> None:
    """An index that does not answer after the commit neither fails the swap nor brings the old table back."""
    await world.create(new=NEW)
    world.cluster.wrap_index = lambda real, space: Faulty(real, configure=raises(UnavailableError("restarting")))
    assert (await world.router.swap("docs", SwapSpec("new")))["epoch"] == 2
    assert (world.route().default, world.route().epoch) == ("new", 2)


async def test_a_lost_answer_is_settled_by_the_log(world: World) -> None:
    """A change whose answer was lost has happened if the log has it."""
    await world.create(new=NEW)

    def losing(real: CollectionService) -> Any:
        async def change(change: Any, router: int, note: Any = None) -> Any:
            await real.change(change, router, note)
            raise UnavailableError("the connection broke")

        return Faulty(real, change=change)

    world.cluster.wrap_collection = losing
    assert (await world.router.swap("docs", SwapSpec("new")))["epoch"] == 2
    assert (world.route().default, world.route().epoch) == ("new", 2)


async def test_a_change_that_never_was_committed_is_an_error(world: World) -> None:
    """A change that the log does not have is reported as failed, and nothing changes."""
    await world.create(new=NEW)
    before = world.route()
    world.cluster.wrap_collection = lambda real: Faulty(real, change=raises(UnavailableError("it was not there")))
    with pytest.raises(UnavailableError, match="it was not there"):
        await world.router.swap("docs", SwapSpec("new"))
    assert world.route() == before


async def test_nobody_answers_while_it_is_not_known_what_is_true(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until the log can be asked the fence stays up: no gateway answers from the default, old or new."""
    await world.create(new=NEW)
    reachable = True

    def losing(real: CollectionService) -> Any:
        async def change(change: Any, router: int, note: Any = None) -> Any:
            nonlocal reachable
            reachable = False
            await real.change(change, router, note)
            raise UnavailableError("the connection broke")

        async def state(router: int) -> Any:
            if not reachable:
                raise UnavailableError("the connection broke")
            return await real.state(router)

        return Faulty(real, change=change, state=state)

    world.cluster.wrap_collection = losing
    swap = asyncio.create_task(world.router.swap("docs", SwapSpec("new")))
    await until(lambda: not reachable)
    query = asyncio.create_task(world.found("one"))
    by_name = await world.found("one", "old")
    await asyncio.sleep(0.2)
    assert by_name == []
    assert not query.done()
    assert not swap.done()
    reachable = True
    assert (await swap)["epoch"] == 2
    await query


async def test_an_older_router_can_change_nothing(world: World) -> None:
    """Once a newer router has asked a collection, the older one's swap is refused and nothing is committed."""
    uuid = await world.create(new=NEW)
    before = world.route()
    newer = incarnation.claim(world.root.objects)
    state = await world.cluster.collection(uuid).state(newer)
    with pytest.raises(TakenOverError):
        await world.router.swap("docs", SwapSpec("new", force=True))
    assert await world.cluster.collection(uuid).state(newer) == state
    assert world.route() == before


# ---- rebuilds


async def test_a_rebuild_starts_with_its_endpoints(world: World) -> None:
    """The job names the endpoints of this run; the first becomes the space's own if it has none."""
    await world.create()
    await world.router.add_space("docs", "new", SpaceConfig(DIMS, "b"))
    with pytest.raises(InvalidRequestError):
        await world.router.start_rebuild("docs", "new", RebuildSpec())
    answer = await world.router.start_rebuild(
        "docs", "new", RebuildSpec(("http://b1", "http://b2"), "COMPASS_EMBED_KEY_B", 8)
    )
    space = world.space("new")
    job = world.cluster.rebuilds[space.id].jobs[0]
    assert answer == {"status": "building", "job_id": job["job_id"]}
    assert (job["endpoints"], job["batch_size"]) == (["http://b1", "http://b2"], 8)
    assert (space.config.embed_endpoint, space.config.api_key_env) == ("http://b1", "COMPASS_EMBED_KEY_B")
    assert space.follows


async def test_a_second_rebuild_is_refused(world: World) -> None:
    """One rebuild of a space at a time; an ended one is in nobody's way, and its process is ended."""
    await world.create()
    await world.router.add_space("docs", "new", NEW)
    await world.router.start_rebuild("docs", "new", RebuildSpec())
    space_id = world.space("new").id
    with pytest.raises(RebuildRunningError):
        await world.router.start_rebuild("docs", "new", RebuildSpec())
    world.cluster.rebuilds[space_id].runs = False
    await until(lambda: world.cluster.ended_rebuilds == [space_id])
    await world.router.start_rebuild("docs", "new", RebuildSpec())
    assert await world.cluster.rebuilds[space_id].running()


async def test_an_estimate_is_asked_of_a_pilot_and_leaves_no_trace(world: World) -> None:
    """It is given the order; no run starts, the space does not follow, the log has no further commit."""
    uuid = await world.create("one")
    await world.router.add_space("docs", "new", SpaceConfig(DIMS, "b"))
    before = world.space("new"), (await world.cluster.collection(uuid).info())["seq"]
    spec = RebuildSpec(("http://b1", "http://b2"), batch_size=8, budget=5.0, cost_per_hour=1.0)
    assert await world.router.estimate_rebuild("docs", "new", spec) == {"failures": []}
    (order,) = world.cluster.piloted
    assert (order["space"], order["endpoints"], order["batch_size"]) == ("new", ["http://b1", "http://b2"], 8)
    assert (order["budget"], order["cost_per_hour"], order["restart"]) == (5.0, 1.0, False)
    assert (world.space("new"), (await world.cluster.collection(uuid).info())["seq"]) == before
    assert world.cluster.rebuilds == {}


async def test_an_estimate_tells_of_memory_that_is_not_there(world: World) -> None:
    """As something that ends the run, with both numbers; an order would be refused for it."""
    world.cluster.room = Room(lambda: 1_000, "node-7")
    await world.create("one")
    await world.router.add_space("docs", "wide", SpaceConfig(16_384, "b"))

    def full(real: Any, space: Space) -> Any:
        async def afford(afresh: bool) -> None:
            world.cluster.room.require("a vector space", 2 * SMALL_BYTES, 0)

        return Faulty(real, afford=afford) if space.name == "wide" else real

    world.cluster.wrap_index = full
    (failure,) = (await world.router.estimate_rebuild("docs", "wide", RebuildSpec(("http://b1",))))["failures"]
    assert (failure["type"], failure["ends_run"]) == ("insufficient-memory", True)
    assert (failure["needed_bytes"], failure["free_bytes"], failure["node"]) == (2 * SMALL_BYTES, 1_000, "node-7")


async def test_an_estimate_is_refused_where_the_order_would_be(world: World) -> None:
    """An unknown space, no endpoint, a running rebuild, a restart of the default; and while another is made."""
    await world.create()
    await world.router.add_space("docs", "new", SpaceConfig(DIMS, "b"))
    spec = RebuildSpec(("http://b1",))
    for name, order, kind in [
        ("none", spec, NotFoundError),
        ("new", RebuildSpec(), InvalidRequestError),
        ("old", RebuildSpec(restart=True), DefaultSpaceError),
    ]:
        with pytest.raises(kind):
            await world.router.estimate_rebuild("docs", name, order)
    world.cluster.pilots_go.clear()
    first = asyncio.create_task(world.router.estimate_rebuild("docs", "new", spec))
    await until(lambda: world.cluster.piloted)
    with pytest.raises(RebuildRunningError, match="estimated already"):
        await world.router.estimate_rebuild("docs", "new", spec)
    world.cluster.pilots_go.set()
    await first
    await world.router.start_rebuild("docs", "new", spec)
    with pytest.raises(RebuildRunningError, match="is running"):
        await world.router.estimate_rebuild("docs", "new", spec)
    assert len(world.cluster.piloted) == 1


async def test_an_estimate_tells_of_another_model(world: World) -> None:
    """With both fingerprints, as something that ends the run; a restart asks only that the endpoints agree."""
    await built_by_a(world)
    world.cluster.models["a"].says = ServerInfo(model_id="other")
    (failure,) = (await world.router.estimate_rebuild("docs", "old", RebuildSpec()))["failures"]
    assert (failure["type"], failure["ends_run"]) == ("fingerprint-mismatch", True)
    assert (failure["recorded"]["model_id"], failure["found"]["model_id"]) == ("a", "other")
    await world.router.add_space("docs", "new", NEW)
    restart = RebuildSpec(restart=True)
    assert (await world.router.estimate_rebuild("docs", "new", restart))["failures"] == []


async def test_a_run_that_is_about_to_begin_is_not_taken_for_an_ended_one(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who ends the processes of ended runs waits until a starting one runs."""
    monkeypatch.setattr("compass.serving.rebuild_orders.REAP_S", 0.15)  # it looks while the second one starts
    await world.create()
    await world.router.add_space("docs", "new", NEW)
    await world.router.start_rebuild("docs", "new", RebuildSpec())
    space_id = world.space("new").id
    await asyncio.sleep(0.05)
    world.cluster.rebuilds[space_id].runs = False
    slow = FakeRebuild()

    async def start(job: dict[str, Any]) -> None:
        await asyncio.sleep(0.3)
        slow.runs = True

    slow.start = start  # type: ignore[method-assign]
    world.cluster.rebuild = lambda *_: world.cluster.rebuilds.setdefault(space_id, slow)  # type: ignore[method-assign]
    await world.router.start_rebuild("docs", "new", RebuildSpec())
    await asyncio.sleep(0.1)
    assert world.cluster.rebuilds.get(space_id) is slow


async def test_restart_empties_a_space_under_a_new_id(world: World) -> None:
    """The name stays, the id is new, it is building again, and the old one's bytes are gone."""
    uuid = await world.create("one", new=NEW)
    before = world.space("new")
    assert await world.level(before) == 0
    answer = await world.router.start_rebuild("docs", "new", RebuildSpec(restart=True))
    after = world.space("new")
    assert (answer["status"], after.status, after.config) == ("building", "building", before.config)
    assert after.id != before.id
    assert not world.folder_of(before, uuid).exists()
    assert world.cluster.rebuilds.keys() == {after.id}
    assert await world.found("one") == ["one"]


async def test_cancel_ends_the_run(world: World) -> None:
    """A cancelled rebuild's process ends; without a run it is a 404."""
    await world.create()
    await world.router.add_space("docs", "new", NEW)
    with pytest.raises(NotFoundError):
        await world.router.cancel_rebuild("docs", "new")
    await world.router.start_rebuild("docs", "new", RebuildSpec())
    await world.router.cancel_rebuild("docs", "new")
    assert world.cluster.ended_rebuilds == [world.space("new").id]
    with pytest.raises(NotFoundError):
        await world.router.cancel_rebuild("docs", "new")


async def test_a_run_that_does_not_answer_is_cancelled_nevertheless(world: World) -> None:
    """When its process hangs, it is ended and the record says cancelled, so that no restart resumes it."""
    uuid = await world.create()
    await world.router.add_space("docs", "new", NEW)
    await world.router.start_rebuild("docs", "new", RebuildSpec())
    space = world.space("new")
    vectors = world.root.space_vectors(uuid, space.id, DIMS)
    vectors.write_run({"job_id": "j", "state": "running", "attempt": "a"})
    world.cluster.rebuilds[space.id].hangs = True
    await world.router.cancel_rebuild("docs", "new")
    record = vectors.read_run()
    assert record is not None
    assert record["state"] == "cancelled"
    assert world.cluster.rebuilds == {}


async def test_a_drop_ends_the_rebuild_first(world: World) -> None:
    """No run is left that could write into what was dropped."""
    await world.create()
    await world.router.add_space("docs", "new", NEW)
    await world.router.start_rebuild("docs", "new", RebuildSpec())
    space_id = world.space("new").id
    await world.router.drop_space("docs", "new")
    assert world.cluster.ended_rebuilds == [space_id]


# ---- restarts and faults


@pytest.mark.parametrize("actors_survive", [True, False])
async def test_a_restarted_router_finds_everything(world: World, actors_survive: bool) -> None:
    """The logs tell a new router all: collections, default, epoch, spaces, and the rebuild that was running."""
    uuid = await world.create("one", new=NEW)
    await world.router.swap("docs", SwapSpec("new"))
    await world.router.add_space("docs", "third", NEW)
    world.root.space_vectors(uuid, world.space("third").id, DIMS).write_run({"state": "running", "attempt": "a"})
    before = world.route()
    await world.end()
    if not actors_survive:
        await world.cluster.close()
    world.begin()
    await until(lambda: all(table.ready for table in world.tables))
    assert world.route() == before
    assert await world.found("one") == ["one"]
    assert world.cluster.rebuilds.keys() == {before.spaces["third"].id}
    assert (await world.router.swap("docs", SwapSpec("old")))["epoch"] == 3


async def test_one_collection_that_does_not_open_leaves_the_others_alone(world: World) -> None:
    """The service comes up without it and opens it as soon as that can be done."""
    uuid = await world.create("one")
    await world.router.create_collection(CollectionSpec("other", {"old": OLD}, "old"))
    await world.end()
    broken = True
    open_one = world.cluster.collection

    def collection(asked: str) -> Any:
        if broken and asked == uuid:
            raise OSError("the disk is gone")
        return open_one(asked)

    world.cluster.collection = collection  # type: ignore[method-assign]
    world.begin()
    await until(lambda: all(table.ready for table in world.tables))
    assert world.tables[0].table.collections.keys() == {"other"}
    broken = False
    await until(lambda: all("docs" in table.table.collections for table in world.tables))
    assert await world.found("one") == ["one"]


async def test_an_index_that_does_not_open_leaves_the_service_up(world: World) -> None:
    """With one space's file damaged its queries fail and say why; the other space answers."""
    uuid = await world.create("one", new=NEW)
    assert await world.level(world.space("new")) == 0
    await world.end()
    await world.cluster.close()
    (damaged,) = world.folder_of(world.publisher.table.route("docs").spaces["new"], uuid).rglob("*.arrow")
    damaged.write_bytes(b"nonsense")
    world.begin()
    await until(lambda: all(table.ready for table in world.tables))
    assert await world.found("one") == ["one"]
    with pytest.raises(StorageError):
        await world.found("one", "new")


async def test_a_root_that_cannot_be_read_is_said_and_tried_again(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A router that cannot open tells each caller so within its time, and opens once it can."""
    await world.create("one")
    await world.end()
    monkeypatch.setattr("compass.serving.changes.OPEN_WAIT_S", 0.05)
    with monkeypatch.context() as patched:
        patched.setattr(world.root, "sweep", lambda: (_ for _ in ()).throw(OSError("no such disk")))
        world.begin()
        with pytest.raises(UnavailableError, match="still opening"):
            await world.router.add_space("docs", "new", NEW)
    assert "no such disk" in caplog.text
    await until(lambda: all(table.ready for table in world.tables))
    assert await world.found("one") == ["one"]


async def test_a_part_that_ended_for_good_is_started_again(world: World) -> None:
    """Nobody but the router starts writers and indexes, so it looks after them."""
    uuid = await world.create("one")
    space_id = world.space("old").id
    await world.cluster.stop_index(space_id)
    await world.cluster.stop_collection(uuid)
    await until(lambda: space_id in world.cluster.indexes and uuid in world.cluster.collections)
    assert await world.found("one") == ["one"]


async def test_a_collection_is_deleted_though_its_writer_is_dead(world: World) -> None:
    """Deleting asks nothing of the writer."""
    uuid = await world.create("one")
    world.cluster.wrap_collection = lambda real: Faulty(
        real, state=raises(UnavailableError("dead")), info=raises(UnavailableError("dead"))
    )
    await world.router.delete_collection("docs")
    assert uuid not in world.root.collections().values()
    assert not (world.folder / "data" / uuid).exists()


async def test_other_collections_never_notice(world: World) -> None:
    """While one collection's change hangs another one's goes through."""
    await world.create(new=NEW)
    await world.router.create_collection(CollectionSpec("other", {"old": OLD, "new": NEW}, "old"))
    go_on = asyncio.Event()
    uuid = world.route().uuid

    def held(real: CollectionService) -> Any:
        async def info() -> Any:
            if real is world.cluster.collections[uuid]:
                await go_on.wait()
            return await real.info()

        return Faulty(real, info=info)

    world.cluster.wrap_collection = held
    hanging = asyncio.create_task(world.router.swap("docs", SwapSpec("new")))
    async with asyncio.timeout(5):
        await world.router.swap("other", SwapSpec("new"))
    assert not hanging.done()
    go_on.set()
    await hanging


async def test_a_late_answer_brings_nothing_back(world: World) -> None:
    """A caller that goes away in the middle of a swap changes neither its outcome nor the table after it."""
    uuid = await world.create(new=NEW)
    committing, go_on = asyncio.Event(), asyncio.Event()

    def slow(real: CollectionService) -> Any:
        async def change(change: Any, router: int, note: Any = None) -> Any:
            committing.set()
            await go_on.wait()
            return await real.change(change, router, note)

        return Faulty(real, change=change)

    world.cluster.wrap_collection = slow
    swap = asyncio.create_task(world.router.swap("docs", SwapSpec("new")))
    await committing.wait()
    swap.cancel()
    go_on.set()
    with contextlib.suppress(asyncio.CancelledError):
        await swap
    await until(lambda: world.publisher.table.route("docs").epoch == 2)
    await world.router.set_space("docs", "old", {"ef_search": 70})
    assert (world.route().default, world.route().next_default) == ("new", None)
    assert (await world.cluster.collections[uuid].state(world.publisher.table.incarnation)).epoch == 2


def test_vectors_of_models_differ() -> None:
    """What these tests tell apart is really different: the two models give other vectors for one text."""
    a, b = (HashingModel(name, DIMS).embed(["one"]) for name in "ab")
    assert not np.allclose(a, b)
