"""A resumed run keeps to the bound that was stored: what the follower took over stays the follower's."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from rebuild_world import MakeOrder, World, ended
from waiting import until

from compass.domain.rebuild.run_record import RunRecord


async def test_what_the_follower_has_in_flight_is_not_sent_by_the_run_too(world: World, order: MakeOrder) -> None:
    """A new attempt plans the vids below the stored bound alone, though later ones have no vector yet."""
    world.ingest(["bulk one", "bulk two"])
    world.embedder.open_gate.clear()
    run = world.new_run()
    await run.start(order())
    await world.embedder.waiting.wait()
    bound = world.stored().owns_below
    world.ingest(["beyond"], "g")
    await run.close()  # as a crash would: the record still says that it runs
    world.embedder.sent.clear()
    following = asyncio.create_task(world.index.follow(world.store.seq, 0))
    await until(lambda: world.embedder.sent["beyond"])

    resumed = world.new_run()
    assert await resumed.running()
    await until(lambda: world.embedder.sent["bulk one"])
    assert world.stored().owns_below == bound
    world.embedder.open_gate.set()
    await following
    assert (await ended(resumed)).state == "done"
    assert world.embedder.sent == {"bulk one": 1, "bulk two": 1, "beyond": 1}
    assert world.vectors.have().tolist() == world.embeddable()
    assert world.status() == "active"


async def test_a_run_that_was_catching_up_plans_nothing(world: World, order: MakeOrder) -> None:
    """With the stored bound 0 the bulk is done: a new attempt takes no snapshot and only catches up."""
    world.ingest(["one", "two"])
    world.vectors.write_run(replace(record_of(order), owns_below=0))
    await world.index.run_changed()
    resumed = world.new_run()
    assert await resumed.running()
    record = await ended(resumed)
    assert (record.state, record.owns_below) == ("done", 0)
    assert world.collection.checkpoints == 0
    assert world.embedder.sent == {"one": 1, "two": 1}  # by the follower
    assert (await resumed.status()).progress == 1.0


async def test_a_new_order_owns_everything_again(world: World, order: MakeOrder) -> None:
    """The bound of an ended run binds nobody: another order plans all that lacks a vector."""
    world.ingest(["one"])
    world.vectors.write_run(replace(record_of(order), state="cancelled", owns_below=0))
    run = world.new_run()
    await run.start(order("job-2"))
    assert (await ended(run)).state == "done"
    assert world.collection.checkpoints == 1
    assert world.embedder.sent == {"one": 1}


def record_of(order: MakeOrder) -> RunRecord:
    """The record of a run that was interrupted."""
    return RunRecord(order(), "an-earlier-attempt", "running", 1.0)
