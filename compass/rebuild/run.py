"""A rebuild: from the order to the active space, over crashes, cancels and writes that go on meanwhile.

The vector files are the truth, and *done* is a set of vids. So resuming is starting: plan what is live and has
no vector, embed it, let the index catch up with what was written meanwhile, ask the router to activate.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from compass.clock import Clock, boot_clock
from compass.domain.embedding.endpoint_stats import EndpointStats
from compass.domain.rebuild.order import RebuildOrder
from compass.domain.rebuild.progress import Progress
from compass.domain.rebuild.run_record import EVERY_VID, RunRecord, RunState, check_quarantine
from compass.domain.rebuild.status import RebuildStatus, status_of_run
from compass.errors import (
    CompassError,
    EndpointUnavailableError,
    FingerprintMismatchError,
    RebuildRunningError,
    SpaceLagsError,
    UnavailableError,
)
from compass.rebuild.backlog import Backlog
from compass.rebuild.ledger import Ledger
from compass.rebuild.pipeline import LOCAL_ROWS, stream
from compass.rebuild.plan import Plan, read_plan
from compass.rebuild.ports import Collection, Router, SpaceIndex
from compass.rebuild.run_monitor import RunMonitor
from compass.rebuild.run_store import RunStore, StaleRunError
from compass.rebuild.stage import OpenStage, StageResult
from compass.rebuild.timings import DEFAULT_TIMINGS, RunTimings
from compass.storage.objects import Objects
from compass.storage.snapshot.parts import MissingObjectError, Snapshot
from compass.storage.spaces.vectors import SpaceVectors

SNAPSHOTS = 10

log = logging.getLogger(__name__)


class RebuildRun:
    """The rebuild of one space; one run at a time. Plain asyncio: in production an actor holds it."""

    def __init__(
        self,
        collection_name: str,
        space_id: str,
        *,
        collection: Collection,
        index: SpaceIndex,
        router: Router,
        vectors: SpaceVectors,
        objects: Objects,
        open_stage: OpenStage,
        actors: int = 2,
        local_rows: int = LOCAL_ROWS,
        clock: Clock = boot_clock,
        now: Callable[[], float] = time.time,
        timings: RunTimings = DEFAULT_TIMINGS,
    ) -> None:
        """Go on with the run that a crash has interrupted, if there is one; else wait for `start`.

        Made on a running event loop.

        The first `local_rows` chunks of a run are embedded in this process, the others by `actors` more. `clock` is
        seconds that only grow; `now` is Unix time, for the record.
        """
        self._name, self._space_id = collection_name, space_id
        self._collection, self._index, self._router = collection, index, router
        self._vectors, self._objects, self._open_stage = vectors, objects, open_stage
        self._actors, self._local_rows = actors, local_rows
        self._clock, self._wall_clock, self._timings = clock, now, timings
        self._store = RunStore(vectors)
        self._monitor = RunMonitor(space_id, clock, timings.stall_s)
        self._ledger = Ledger(RebuildOrder(), 0.0, self._save_progress)
        self._through = False  # whether nothing is left to do but to end
        self._starting = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None
        self._opened = asyncio.get_running_loop().create_task(self._resume())

    # ---- what others ask

    async def start(self, order: RebuildOrder) -> None:
        """Start a run, which goes on from what is durable; returns once the run is the accepted one.

        Starting the same order again changes nothing, as an answer may have been lost.

        Raises:
            RebuildRunningError: the run of another order goes on.
        """
        await self._opened
        async with self._starting:
            stored = await self._store.read()
            same = stored if stored is not None and stored.order.job_id == order.job_id else None
            if self._is_running() and same is None:
                record = self._store.record
                raise RebuildRunningError(
                    f"a rebuild of space {self._space_id} is running; see its status, or cancel it first",
                    {"job_id": record.order.job_id if record else None},
                )
            if self._is_running() or (same is not None and same.state == "done"):
                return
            await asyncio.to_thread(self._vectors.lift_quarantine)  # whoever asks again wants another try
            progress, spent = stored.progress if stored else Progress(), same.spent if same else 0.0
            await self._begin(order, self._wall_clock(), progress, spent=spent)

    async def running(self) -> bool:
        """Whether a run goes on."""
        await self._opened
        return self._is_running()

    async def writing(self) -> bool:
        """Whether a run may still add vectors; one that has had its space activated has only to say so."""
        return await self.running() and not self._through

    async def wait(self) -> RunRecord | None:
        """The record of the run once it has ended; None without a run."""
        await self._opened
        if self._task is not None:
            await asyncio.wait({self._task})
        return self._store.record

    async def cancel(self) -> None:
        """End the run within two seconds and keep its work; nothing to do without a run."""
        await self._opened
        if not self._is_running() or self._task is None:
            return
        await self._end("cancelled")
        await self._stop(self._task)
        await self._tell_index()

    async def close(self) -> None:
        """Stop working, but leave the run to whoever resumes it."""
        await asyncio.wait({self._opened})
        if self._task is not None:
            await self._stop(self._task)
        await self._store.close()

    async def report(self, attempt: str, stage: str, endpoints: Sequence[EndpointStats]) -> None:
        """Take a stage's report on how its endpoints do, also while nothing lands."""
        if self._store.is_attempt(attempt):
            self._monitor.endpoints(stage, endpoints)

    async def reserve(self, attempt: str, tokens: int) -> int:
        """Hold what a stage's next request may cost: the tokens that are held; 0 where it must not be sent."""
        with contextlib.suppress(StaleRunError):
            if self._store.is_attempt(attempt):
                return await self._ledger.reserve(tokens)
        return 0

    async def settle(self, attempt: str, held: int, tokens: int) -> None:
        """A stage's request has cost so many tokens."""
        if self._store.is_attempt(attempt):
            await self._ledger.settle(held, tokens)

    async def status(self) -> RebuildStatus:
        """How far the run is; the space's own status and its lag are for others to say."""
        record = self._store.record
        if record is None:
            return status_of_run(await self._store.read(), active=False)
        record = self._as_of_now(record) if self._is_running() else record
        return status_of_run(record, active=record.progress.active)

    # ---- from the beginning to the end of a run

    async def _resume(self) -> None:
        stored = await self._store.read()
        if stored is not None and stored.state == "running":
            log.info("the rebuild %s of space %s goes on", stored.order.job_id, self._space_id)
            await self._begin(stored.order, stored.started_at, stored.progress, stored.owns_below, stored.spent)

    async def _begin(
        self,
        order: RebuildOrder,
        started_at: float,
        progress: Progress,
        owns_below: int = EVERY_VID,
        spent: float = 0.0,
    ) -> None:
        """Accept the run before anything durable is listed: from here older attempts append nothing more.

        The vids from `owns_below` on are the follower's already, and it may have some of them in flight.
        """
        progress = replace(progress, active=False)
        self._monitor = RunMonitor(self._space_id, self._clock, self._timings.stall_s, progress)
        self._ledger = Ledger(order, spent, self._save_progress)
        self._through = False
        attempt, spending = uuid.uuid4().hex, self._ledger.spending()
        record = RunRecord(order, attempt, "running", started_at, owns_below=owns_below, progress=progress)
        await self._store.accept(replace(record, spending=spending))
        self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        """Work, report once a second, and leave a record that says how it ended."""
        work, watch = asyncio.create_task(self._work()), asyncio.create_task(self._watch_model())
        try:
            while not work.done():
                wait_s = min(self._timings.report_s, self._ledger.pay(self._clock()))
                await asyncio.wait({work, watch}, timeout=wait_s, return_when=asyncio.FIRST_COMPLETED)
                await self._save_progress()
                if watch.done():
                    await watch  # it ends by raising
            await work
            await self._end("done")
        except StaleRunError as error:
            log.info("the rebuild of space %s stops here: %s", self._space_id, error.detail)
        except FingerprintMismatchError as error:
            await self._fail(error.detail, mixed_models=self._monitor.has_landed)
        except CompassError as error:
            await self._fail(error.detail)
        except Exception as error:
            log.exception("the rebuild of space %s", self._space_id)
            await self._fail(f"unexpected: {type(error).__name__}: {error}")
        finally:
            watch.cancel()
            await self._stop(work)
        await self._tell_index()

    async def _watch_model(self) -> None:
        while True:
            await asyncio.sleep(self._timings.check_model_s)
            await self._ensure_same_model()

    async def _ensure_same_model(self) -> None:
        """Have stored texts embedded again; raises when the endpoints do it otherwise now."""
        order = self._store.accepted.order
        await self._index.ensure_same_model(order.endpoints, order.api_key_env)

    async def _work(self) -> None:
        await self._index.run_changed()
        await self._fill_from_snapshot()
        await self._catch_up()

    async def _fill_from_snapshot(self) -> None:
        """Embed what a snapshot holds; a new one when compaction has taken its parts away meanwhile."""
        if not self._store.accepted.owns_below:  # an earlier attempt was through with it
            return
        for _ in range(SNAPSHOTS):
            snapshot = await self._collection.checkpoint()
            try:
                plan = await asyncio.to_thread(self._plan, snapshot)
                await self._own(min(self._store.accepted.owns_below, plan.newest + 1))
                await self._fill(plan)
            except MissingObjectError as error:
                log.info("the snapshot at seq %d is gone, taking a new one: %s", snapshot.seq, error.detail)
            else:
                return
        raise UnavailableError(f"{SNAPSHOTS} snapshots were compacted away one after the other; start again")

    def _plan(self, snapshot: Snapshot) -> Plan:
        skip = np.fromiter(self._vectors.quarantined(), np.int64)
        plan = read_plan(self._objects, snapshot, self._vectors.have(), skip, self._store.accepted.owns_below)
        self._monitor.planned(plan)
        return plan

    async def _fill(self, plan: Plan) -> None:
        """Stream the plan through the stages into the index, which builds while later files land."""
        earlier = await asyncio.to_thread(self._vectors.files) if plan.had else []
        backlog = Backlog(self._index.load_files, self._monitor.loaded, [StageResult(key, 0) for key in earlier])
        try:
            run, stopped = self._store.accepted, False
            spread = {"actors": self._actors, "local_rows": self._local_rows}
            landing = stream(plan.descriptors, self._open_stage, run.order, run.attempt, **spread)
            async with contextlib.aclosing(landing):
                async for result in landing:
                    self._monitor.landed(result)
                    stopped = stopped or result.stopped
                    await backlog.put(result)
            await backlog.drain()
            if stopped:
                raise self._ledger.spent_error()
        finally:
            backlog.drop()

    async def _catch_up(self) -> None:
        """Let the index follow to the frontier until the router finds nothing lacking and activates."""
        await self._own(0)
        while True:
            seq = (await self._collection.stats()).seq
            lag = await self._index.follow(seq, self._timings.follow_s)
            self._monitor.counted((await self._collection.stats()).chunk_count, await self._index.stats())
            if not lag:
                await self._ensure_same_model()
                check_quarantine(self._monitor.progress.failed, self._store.accepted.order.max_failed)
                if await self._activated():
                    return
            if self._monitor.idle_s > self._store.accepted.order.endpoint_timeout_s:
                reason = (await self._index.stats()).error or "its follower gets nowhere"
                raise EndpointUnavailableError(f"the space still lacks {lag} chunks written meanwhile: {reason}")

    async def _activated(self) -> bool:
        self._through = True  # before the call: whoever sees the space active may swap to it at once
        try:
            await self._router.activate(self._name, self._space_id)
        except SpaceLagsError:
            self._through = False
            return False
        self._monitor.activated()
        return True

    async def _own(self, below: int) -> None:
        """Say which vids are this run's work; the index embeds what is written beyond by itself."""
        await self._store.save(lambda record: replace(self._as_of_now(record), owns_below=below))
        await self._index.run_changed()

    # ---- the record

    def _as_of_now(self, record: RunRecord) -> RunRecord:
        return self._monitor.as_of_now(record, self._ledger.spending())

    async def _save_progress(self) -> None:
        await self._store.save(self._as_of_now)

    async def _end(self, state: RunState, error: str | None = None, *, mixed_models: bool = False) -> None:
        self._ledger.close(self._clock())
        at = self._wall_clock()
        await self._store.save(lambda run: self._as_of_now(run).ended(state, at, error, mixed_models=mixed_models))

    async def _fail(self, reason: str, *, mixed_models: bool = False) -> None:
        log.warning("the rebuild of space %s failed: %s", self._space_id, reason)
        with contextlib.suppress(StaleRunError):
            await self._save_progress()  # nobody else's run is made to fail
            with contextlib.suppress(UnavailableError):  # the record below says it too
                await self._router.fail(self._name, self._space_id, reason)
            await self._end("failed", reason, mixed_models=mixed_models)

    async def _tell_index(self) -> None:
        """The follower takes over what an ended run left; it also finds out by itself."""
        with contextlib.suppress(CompassError, TimeoutError):
            async with asyncio.timeout(self._timings.last_word_s):
                await self._index.run_changed()

    def _is_running(self) -> bool:
        return self._task is not None and not self._task.done()

    async def _stop(self, task: asyncio.Task[None]) -> None:
        task.cancel()
        await asyncio.wait({task}, timeout=self._timings.last_word_s)
