"""A budget stops a run before it is passed, and what was paid for is kept."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rebuild_world import World, ended
from starlette.responses import Response
from waiting import until

from compass.clock import Clock, boot_clock
from compass.domain.rebuild.budget import Spending
from compass.domain.rebuild.order import RebuildOrder
from compass.domain.rebuild.run_record import RunRecord
from compass.domain.rebuild.status import Cost
from compass.domain.space import SpaceConfig
from compass.errors import BudgetSpentError
from compass.rebuild.run import RebuildRun
from compass.rebuild.stage import StageOpener
from compass.rebuild.timings import DEFAULT_TIMINGS, RunTimings
from compass.testing.clock import ManualClock
from compass.testing.embed_server import served

DIMS = 16
PRICE = 1_000_000.0  # of a million tokens: a token costs 1, and so does a word of these servers


class RunMeter:
    """The meter of a stage in the process of its run."""

    def __init__(self, run: RebuildRun, attempt: str, settling: set[asyncio.Task[None]]) -> None:
        self.run, self.attempt, self.settling = run, attempt, settling

    async def reserve(self, tokens: int) -> int:
        held = await self.run.reserve(self.attempt, tokens)
        if not held:
            raise BudgetSpentError("the budget does not allow it")
        return held

    def settle(self, held: int, tokens: int) -> None:
        task = asyncio.ensure_future(self.run.settle(self.attempt, held, tokens))
        self.settling.add(task)
        task.add_done_callback(self.settling.discard)


class Counted:
    """A reply of an embed server that counts words and texts; it answers nothing itself."""

    def __init__(self) -> None:
        self.words = 0
        self.texts: Counter[str] = Counter()

    def __call__(self, texts: list[str]) -> Response | None:
        self.words += sum(len(text.split()) for text in texts)
        self.texts.update(texts)
        return None


NewRun = Callable[..., RebuildRun]


@pytest.fixture
def new_run(world: World, tmp_path: Path) -> NewRun:
    """Make runs with the stages and the meter that production opens."""

    def make(timings: RunTimings = DEFAULT_TIMINGS, clock: Clock = boot_clock) -> RebuildRun:
        settling: set[asyncio.Task[None]] = set()
        uuid = world.store.state.uuid
        runs: list[RebuildRun] = []
        world.open_stage = StageOpener(
            str(tmp_path / "data"),
            uuid,
            "new-1",
            SpaceConfig(DIMS, "m"),
            5.0,
            meter=lambda attempt: RunMeter(runs[0], attempt, settling),
        )
        runs.append(world.new_run(timings, clock))
        return runs[0]

    return make


def spending_of(record: RunRecord) -> Spending:
    assert record.spending is not None
    return record.spending


def order(job_id: str, url: str, **fields: Any) -> RebuildOrder:
    return RebuildOrder((url,), job_id, batch_size=8, cost_per_million_tokens=PRICE, **fields)


async def test_the_spending_never_passes_the_budget(world: World, new_run: NewRun) -> None:
    """With four and more requests in flight too: what the server counted is what was spent, and within the budget."""
    counted = Counted()
    world.ingest(f"text {i} about subject{i % 7}" for i in range(400))  # of 4 words each
    with served("m", DIMS, reply=counted, delay_ms=20) as endpoint:
        run = new_run()
        await run.start(order("j", endpoint.url, budget=600.0))
        record = await ended(run)
    assert record.state == "failed"
    assert "the budget is spent" in str(record.error)
    assert "of 600" in str(record.error)
    assert "a budget for the rest" in str(record.error)
    assert 500 <= counted.words <= 600
    status = await run.status()
    assert status.cost == Cost(float(counted.words), 600.0)
    assert len(world.vectors.have()) == counted.words // 4, "what was paid for is durable"


async def test_a_greater_budget_goes_on_and_pays_for_nothing_twice(world: World, new_run: NewRun) -> None:
    """The next order is a new account; no text is sent a second time, and the space turns active."""
    counted = Counted()
    world.ingest(f"text {i} about subject{i % 7}" for i in range(400))
    with served("m", DIMS, reply=counted, delay_ms=10) as endpoint:
        run = new_run()
        await run.start(order("j1", endpoint.url, budget=700.0))
        assert (await ended(run)).state == "failed"
        first = counted.words
        await run.start(order("j2", endpoint.url, budget=1_600.0))
        assert (await ended(run)).state == "done"
        status = await run.status()
    assert set(counted.texts.values()) == {1}
    assert status.cost == Cost(1_600.0 - first, 1_600.0)
    assert world.status() == "active"


async def test_a_crash_forgets_no_spending(world: World, new_run: NewRun) -> None:
    """A run that resumes counts what its predecessor may have spent, and stays within the budget of both."""
    counted = Counted()
    world.ingest(f"text {i} about subject{i % 7}" for i in range(2_000))
    with served("m", DIMS, reply=counted, docs_per_s=1_000) as endpoint:
        run = new_run()
        await run.start(order("j", endpoint.url, budget=6_000.0, concurrency=2))  # a request holds 8 times its price
        await until(lambda: counted.words > 1_000)
        await run.close()  # as a crash would: the record still says that it runs
        stored = world.stored()
        assert stored.state == "running"
        assert spending_of(stored).at_most >= 1_000
        resumed = new_run()
        assert await resumed.running()
        record = await ended(resumed)
    assert (record.state, record.order.job_id) == ("failed", "j")
    assert counted.words <= spending_of(record).spent <= 6_000
    assert counted.words >= 3_000


async def test_the_mark_is_stored_before_it_is_used(world: World, new_run: NewRun) -> None:
    """At each request that arrives the durable record covers all that was sent: a kill -9 cannot undercount."""
    seen: list[tuple[int, float]] = []
    words = [0]

    def reply(texts: list[str]) -> Response | None:
        words[0] += sum(len(text.split()) for text in texts)
        seen.append((words[0], spending_of(world.stored()).at_most))
        return None

    world.ingest(f"text {i} about subject{i % 7}" for i in range(300))
    with served("m", DIMS, reply=reply) as endpoint:
        run = new_run()
        await run.start(order("j", endpoint.url, budget=1_000.0))
        await run.wait()
    assert len(seen) > 10
    assert all(sent <= stored <= 1_000 for sent, stored in seen)


async def test_by_the_hour_the_run_ends_in_time(world: World, new_run: NewRun) -> None:
    """The wall time of the run times its endpoints is what counts; what was embedded until then is kept."""
    clock = ManualClock()
    world.ingest(f"text {i}" for i in range(2_000))

    async def reply(texts: list[str]) -> None:
        """A request takes a hundredth of a second, and time waits for the account: it is never far behind."""
        clock.advance(0.01)
        await until(
            lambda: not world.stored().running or spending_of(world.stored()).spent >= 2 * (clock() - 0.2), 60
        )

    with served("m", DIMS, reply=reply) as endpoint:
        run = new_run(RunTimings(report_s=0.01), clock)
        both = (endpoint.url, endpoint.url)  # each costs 1 a second: together for 3 s
        await run.start(RebuildOrder(both, "j", batch_size=4, cost_per_hour=3_600.0, budget=6.0))
        record = await ended(run)
    assert record.state == "failed"
    assert "the budget is spent" in str(record.error)
    assert 1.5 <= clock() <= 3.0
    assert 3.8 <= spending_of(record).spent <= 6.0, "a fifth, and half a second, are for what is under way"
    assert len(world.vectors.have()) >= 200


async def test_a_price_without_a_budget_is_counted(world: World, new_run: NewRun) -> None:
    """The status tells what a run has cost; nothing ends it."""
    counted = Counted()
    world.ingest(["one two", "three"])
    with served("m", DIMS, reply=counted) as endpoint:
        run = new_run()
        await run.start(order("j", endpoint.url))
        assert (await ended(run)).state == "done"
    assert (await run.status()).cost == Cost(3.0, None)


async def test_without_a_price_there_is_no_account(world: World, new_run: NewRun) -> None:
    """Nobody is told a cost that nobody named."""
    world.ingest(["one"])
    with served("m", DIMS) as endpoint:
        run = new_run()
        await run.start(RebuildOrder((endpoint.url,), "j"))
        assert (await ended(run)).state == "done"
    assert (await run.status()).cost is None
