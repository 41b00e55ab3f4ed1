"""A run ends with an active space, or says why not; nothing that is durable is embedded again."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from rebuild_world import MakeOrder, World, ended
from waiting import until

from compass.domain.chunk import ChunkInput
from compass.domain.embedding.endpoint_stats import EndpointStats
from compass.domain.rebuild.run_record import RunRecord
from compass.errors import (
    EndpointAnswerError,
    EndpointRefusedError,
    EndpointUnavailableError,
    FingerprintMismatchError,
    RebuildRunningError,
)
from compass.rebuild.plan import LEAST_ROWS as PIECE_ROWS
from compass.rebuild.timings import RunTimings
from compass.storage.snapshot.parts import PartRef, Snapshot


def texts(count: int, word: str = "text") -> list[str]:
    return [f"{word} number {i}" for i in range(count)]


async def test_ends_with_an_active_space(world: World, order: MakeOrder) -> None:
    """Every live chunk with a text has its vector, each text was sent once, and the progress is 1.0."""
    world.ingest([*texts(5_000), "", " "])
    run = world.new_run()
    await run.start(order())
    record = await ended(run)
    assert (record.state, world.status()) == ("done", "active")
    assert set(world.embedder.sent.values()) == {1}
    assert len(world.embedder.sent) == 5_000
    assert world.vectors.have().tolist() == world.embeddable()
    status = await run.status()
    assert (status.progress, status.percent, status.embedded, status.total) == (1.0, 100, 5_000, 5_002)
    assert status.run.state == "done"
    assert status.run.started_at is not None
    assert status.run.ended_at is not None
    assert status.run.ended_at >= status.run.started_at
    assert world.index.held == set(world.embeddable())


async def test_a_run_whose_space_is_active_writes_no_more(
    world: World, order: MakeOrder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the moment on at which anybody can see the space active, nobody is told that it is being rebuilt."""
    world.ingest(texts(10))
    run = world.new_run()
    seen: list[bool] = []
    activate = world.router.activate

    async def slowly(collection: str, space_id: str) -> None:
        await activate(collection, space_id)
        seen.append(await run.writing())

    monkeypatch.setattr(world.router, "activate", slowly)
    world.embedder.open_gate.clear()
    await run.start(order())
    await world.embedder.waiting.wait()
    assert await run.writing()
    world.embedder.open_gate.set()
    await run.wait()
    assert seen == [False]
    assert world.status() == "active"


async def test_an_empty_collection_is_done_at_once(world: World, order: MakeOrder) -> None:
    """A space of no chunks turns active without a request."""
    run = world.new_run()
    await run.start(order())
    assert (await ended(run)).state == "done"
    assert world.status() == "active"
    assert not world.embedder.sent


async def test_resumes_after_a_crash_and_embeds_nothing_durable_twice(world: World, order: MakeOrder) -> None:
    """A new process finds the running record, goes on with a new attempt, and only embeds what is missing."""
    world.ingest(texts(3 * PIECE_ROWS))
    world.embedder.before = stop_after(world, 2)
    run = world.new_run()
    await run.start(order())
    first = world.stored()
    await until(lambda: len(world.vectors.files()) == 2)
    await run.close()
    durable = world.vectors.have()
    assert len(durable) == 2 * PIECE_ROWS
    assert world.stored().state == "running"

    world.embedder.open_gate.set()
    world.embedder.before = lambda texts: None
    sent_before = world.embedder.sent.copy()
    world.index.held.clear()
    resumed = world.new_run()
    assert await resumed.running()
    record = await ended(resumed)
    assert record.state == "done"
    assert record.attempt != first.attempt
    assert (record.order.job_id, record.started_at) == ("job-1", first.started_at)
    sent_again = world.embedder.sent - sent_before
    already = set(world.store.view.texts(durable).values())
    assert not already & set(sent_again)
    assert sum(sent_again.values()) == PIECE_ROWS
    assert world.index.held == set(world.embeddable())


async def test_progress_never_falls_over_a_crash(world: World, order: MakeOrder) -> None:
    """The mark that was stored is the least that a resumed run shows."""
    world.ingest(texts(2 * PIECE_ROWS))
    world.embedder.before = stop_after(world, 1)
    run = world.new_run()
    await run.start(order())
    await until(lambda: world.stored().progress.mark == 0.5)
    await run.close()
    world.store.delete([c.id for c in world.store.view.page(0, 1_000)], None)
    resumed = world.new_run()
    assert await resumed.running()
    assert (await resumed.status()).progress >= 0.5


async def test_a_failure_says_why_and_stores_nothing_wrong(world: World, order: MakeOrder, error_once: Any) -> None:
    """What the endpoint did is the run's error and the space's; the next run goes on and succeeds."""
    world.ingest(texts(10))
    world.embedder.before = error_once(EndpointAnswerError("http://embed sent 3 rows for 10 texts"))
    run = world.new_run()
    await run.start(order())
    record = await ended(run)
    assert record.state == "failed"
    assert record.error == "http://embed sent 3 rows for 10 texts"
    assert world.vectors.files() == []
    assert world.status() == "failed"
    assert world.store.state.by_id("new-1").error == record.error
    status = await run.status()
    assert status.error == record.error
    assert status.progress < 1.0
    await run.start(order("job-2"))
    assert (await ended(run)).state == "done"
    assert (await run.status()).error is None
    assert world.status() == "active"


async def test_a_failure_of_our_own_ends_the_run_too(world: World, order: MakeOrder) -> None:
    """An error that nobody foresaw makes the run failed; it never stays running for ever."""

    def broken(texts: Any) -> None:
        raise ZeroDivisionError("oops")

    world.ingest(texts(1))
    world.embedder.before = broken
    run = world.new_run()
    await run.start(order())
    record = await ended(run)
    assert record.state == "failed"
    assert "ZeroDivisionError" in str(record.error)


async def test_an_active_space_survives_a_failed_run(world: World, order: MakeOrder, error_once: Any) -> None:
    """A run of a space that was active before fails alone: the space stays active."""
    run = world.new_run()
    await run.start(order())
    await run.wait()
    world.ingest(texts(3))
    world.embedder.before = error_once(EndpointUnavailableError("down"))
    await run.start(order("job-2"))
    assert (await ended(run)).state == "failed"
    assert world.status() == "active"


async def test_cancel_keeps_the_work_and_waits_for_nobody(world: World, order: MakeOrder) -> None:
    """A cancelled run does not wait for its endpoint, which hangs; a later run embeds the rest only."""
    world.ingest(texts(3 * PIECE_ROWS))
    world.embedder.before = stop_after(world, 1)
    run = world.new_run()
    await run.start(order())
    await until(lambda: len(world.vectors.files()) == 1)
    await asyncio.wait_for(run.cancel(), 60)  # the endpoint never answers
    assert not await run.running()
    assert (await run.status()).run.state == "cancelled"
    assert world.stored().state == "cancelled"
    assert world.status() == "building"
    world.embedder.open_gate.set()
    world.embedder.before = lambda texts: None
    world.embedder.sent.clear()
    await run.start(order("job-2"))
    assert (await ended(run)).state == "done"
    assert sum(world.embedder.sent.values()) == 2 * PIECE_ROWS


async def test_a_second_job_is_refused_and_the_same_one_is_not(world: World, order: MakeOrder) -> None:
    """While a run goes on another order is a conflict; the same order, sent twice, is one run."""
    world.ingest(texts(1))
    world.embedder.open_gate.clear()
    run = world.new_run()
    await run.start(order())
    attempt = world.stored().attempt
    with pytest.raises(RebuildRunningError):
        await run.start(order("job-2"))
    await run.start(order())
    assert world.stored().attempt == attempt
    world.embedder.open_gate.set()
    assert (await ended(run)).state == "done"
    await run.start(order())
    assert world.stored().attempt == attempt


async def test_a_replaced_run_leaves_the_record_of_its_successor(world: World, order: MakeOrder) -> None:
    """A process that was cut off, and finds another attempt accepted, writes neither vectors nor the record."""
    world.ingest(texts(10))
    world.embedder.open_gate.clear()
    run = world.new_run()
    await run.start(order())
    await world.embedder.waiting.wait()
    successor = replace(world.stored(), attempt="successor")
    world.vectors.write_run(successor)
    await asyncio.wait_for(run.wait(), 60)
    world.embedder.open_gate.set()
    await run.close()
    assert world.stored() == successor
    assert world.vectors.files() == []
    assert world.status() == "building"


async def test_writes_during_the_run_are_in_the_space(world: World, order: MakeOrder) -> None:
    """What is written, changed and deleted meanwhile is right when the space turns active, each text sent once."""
    world.ingest(texts(2 * PIECE_ROWS))
    world.embedder.open_gate.clear()
    run = world.new_run()
    await run.start(order())
    await world.embedder.waiting.wait()
    bound = world.index.bound()
    world.ingest(texts(50, "meanwhile"), "g")
    world.store.ingest([ChunkInput("f", 7, "changed")])
    world.store.delete([world.store.view.page(0, 1)[0].id], None)
    assert bound <= min(set(world.embeddable()) - set(range(bound)))
    world.router.before_activation.append(lambda: world.ingest(texts(5, "at the last moment"), "h"))
    world.embedder.open_gate.set()
    assert (await ended(run)).state == "done"
    assert world.status() == "active"
    assert world.index.missing() == []
    assert set(world.embeddable()) <= set(world.vectors.have().tolist())
    assert set(world.embedder.sent.values()) == {1}
    assert len(world.embedder.sent) == 2 * PIECE_ROWS + 50 + 1 + 5


async def test_the_follower_leaves_the_bulk_to_the_run(
    world: World, order: MakeOrder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the first record on the run owns every vid, then those of its snapshot, at the end none."""
    world.ingest(texts(10))
    world.embedder.open_gate.clear()
    bounds: list[int] = []
    write = world.vectors.write_run

    def noted(record: RunRecord) -> None:
        bounds.append(record.owns_below)
        write(record)

    monkeypatch.setattr(world.vectors, "write_run", noted)
    run = world.new_run()
    await run.start(order())
    await world.embedder.waiting.wait()
    newest = world.embeddable()[-1]
    assert bounds[:2] == [2**63 - 1, newest + 1]
    assert world.index.bound() == newest + 1
    world.embedder.open_gate.set()
    await run.wait()
    assert bounds[-1] == 0


async def test_a_compacted_snapshot_is_replaced(world: World, order: MakeOrder) -> None:
    """When compaction has taken a part away the run takes a new snapshot and goes on."""
    world.ingest(texts(20))
    sound = world.store.checkpoint()
    world.collection.snapshots = [Snapshot(sound.uuid, sound.seq, (PartRef(f"{sound.uuid}/parts/gone", None, 20),))]
    run = world.new_run()
    await run.start(order())
    assert (await ended(run)).state == "done"
    assert world.collection.checkpoints == 2
    assert world.vectors.have().tolist() == world.embeddable()


def refuse_poison(world: Any) -> None:
    """The endpoint refuses each text with the word POISON, for itself."""

    def refuse(batch: Any) -> None:
        if any("POISON" in text for text in batch):
            raise EndpointRefusedError("too long")

    world.embedder.before = refuse


async def test_a_run_with_quarantined_chunks_fails_and_says_how_many(world: World, order: MakeOrder) -> None:
    """All others have their vectors, the count is in the status, and the space does not turn active."""
    world.ingest([*texts(8), "POISON one", "POISON two"])
    refuse_poison(world)
    run = world.new_run()
    await run.start(order())
    record = await ended(run)
    assert (record.state, record.progress.failed, record.progress.embedded) == ("failed", 2, 8)
    assert str(record.error).startswith("2 chunks quarantined")
    assert world.status() == "failed"
    assert len(world.vectors.have()) == 8


async def test_quarantined_chunks_may_be_accepted(world: World, order: MakeOrder) -> None:
    """`max_failed` allows so many, and no more."""
    world.ingest([*texts(8), "POISON one", "POISON two"])
    refuse_poison(world)
    run = world.new_run()
    await run.start(order("job-1", max_failed=1))
    assert (await ended(run)).state == "failed"
    await run.start(order("job-2", max_failed=2))
    record = await ended(run)
    assert (record.state, record.progress.fraction) == ("done", 1.0)
    assert world.status() == "active"


async def test_the_next_order_retries_just_the_quarantined(world: World, order: MakeOrder) -> None:
    """No durable vector is embedded again; an endpoint that takes them now ends the quarantine."""
    world.ingest([*texts(8), "POISON one", "POISON two"])
    refuse_poison(world)
    run = world.new_run()
    await run.start(order())
    await run.wait()
    world.embedder.before, sent = lambda batch: None, Counter(world.embedder.sent)
    await run.start(order("job-2"))
    assert (await ended(run)).state == "done"
    assert world.embedder.sent - sent == Counter({"POISON one": 1, "POISON two": 1})
    assert world.vectors.quarantined() == {}
    assert world.status() == "active"


async def test_a_crash_does_not_retry_the_quarantined(world: World, order: MakeOrder) -> None:
    """The same order, resumed, leaves alone what it has tried before."""
    world.ingest([*texts(8), "POISON one"])
    refuse_poison(world)
    world.router.before_activation.append(lambda: None)
    run = world.new_run()
    await run.start(order(max_failed=1))
    record = await ended(run)
    world.vectors.write_run(replace(record, state="running", ended_at=None))
    sent = Counter(world.embedder.sent)
    resumed = world.new_run()
    assert (await ended(resumed)).state == "done"
    assert world.embedder.sent == sent


async def test_a_fleet_that_is_down_is_said(world: World, order: MakeOrder) -> None:
    """While no endpoint answers the status names each with its error; once one is back it is over."""
    world.ingest(texts(1))
    world.embedder.open_gate.clear()
    run = world.new_run(RunTimings(report_s=0.02))
    await run.start(order())
    await world.embedder.waiting.wait()
    attempt = world.stored().attempt
    down = EndpointStats("http://a/embed", "down", errors=3, last_error="no route")
    await run.report("another attempt", "s1", (replace(down, state="up"),))
    await run.report(attempt, "s1", (down,))
    await until(lambda: world.stored().waiting)
    status = await run.status()
    assert "no endpoint answers" in str(status.error)
    assert "http://a/embed: no route" in str(status.error)
    assert status.endpoints[0].state == "down"
    await run.report(attempt, "s2", (replace(down, state="up", docs=4),))
    assert (await run.status()).error is None
    world.embedder.open_gate.set()
    assert (await ended(run)).waiting is None


async def test_a_model_that_changes_under_way_fails_the_run_for_good(world: World, order: MakeOrder) -> None:
    """Stored texts are embedded again while the run goes on; what has landed since is not to be trusted."""
    world.ingest(texts(3 * PIECE_ROWS))
    world.embedder.before = stop_after(world, 1)
    run = world.new_run(RunTimings(check_model_s=0.05))
    await run.start(order())
    await until(lambda: len(world.vectors.files()) == 1 and world.index.checked)
    world.index.mismatch = FingerprintMismatchError("another model answers", {})
    record = await ended(run)
    assert (record.state, record.error, record.mixed_models) == ("failed", "another model answers", True)
    assert world.stored().mixed_models
    assert world.status() == "failed"


async def test_the_model_is_asked_for_before_the_space_turns_active(world: World, order: MakeOrder) -> None:
    """A run that is too short for a look on the way looks at its end."""
    world.ingest(texts(3))
    world.index.mismatch = FingerprintMismatchError("another model answers", {})
    run = world.new_run()
    await run.start(order())
    assert (await ended(run)).state == "failed"
    assert world.status() == "failed"


async def test_a_stall_is_said(world: World, order: MakeOrder, caplog: pytest.LogCaptureFixture) -> None:
    """When nothing lands for long the log and the status say so."""
    world.ingest(texts(1))
    world.embedder.open_gate.clear()
    run = world.new_run(RunTimings(stall_s=0.05, report_s=0.02))
    await run.start(order())
    await until(lambda: world.stored().stalled_s)
    assert "nothing has landed for" in str((await run.status()).error)
    assert "stalls" in caplog.text
    world.embedder.open_gate.set()
    await run.wait()
    assert (await run.status()).error is None


def stop_after(world: Any, batches: int) -> Any:
    """Let so many batches through; the endpoint hangs at the next."""
    left = [batches]

    def count(texts: Any) -> None:
        left[0] -= 1
        if left[0] < 0:
            world.embedder.open_gate.clear()

    return count
