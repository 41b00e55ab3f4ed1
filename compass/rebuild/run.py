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
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

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
from compass.rebuild.endpoint_stats import RunEndpoints
from compass.rebuild.ledger import Ledger
from compass.rebuild.pipeline import LOCAL_ROWS, stream
from compass.rebuild.plan import Plan, read_plan
from compass.rebuild.ports import Collection, Router, SpaceIndex
from compass.rebuild.stage import Filled, OpenStage, StaleRunError, check_accepted
from compass.storage.objects import Objects
from compass.storage.snapshot.parts import MissingObjectError, Snapshot
from compass.storage.spaces.vectors import SpaceVectors

REPORT_S = 1.0  # how often the stored progress moves
STALL_S = 60.0  # nothing lands for so long: somebody should look
CANARY_S = 30.0  # how often stored texts are embedded again, to find a model that was changed under way
FOLLOW_S = 2.0
LAST_WORD_S = 1.0  # what an ended run may still wait for, so that a cancel takes less than two seconds
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
    ) -> None:
        """Go on with the run that a crash has interrupted, if there is one; else wait for `start`.

        Made on a running event loop.

        The first `local_rows` chunks of a job are embedded in this process, the others by `actors` more; `clock` is
        seconds that only grow.
        """
        self._name, self._space_id = collection_name, space_id
        self._collection, self._index, self._router = collection, index, router
        self._vectors, self._objects, self._open_stage = vectors, objects, open_stage
        self._actors, self._local_rows, self._clock = actors, local_rows, clock
        self._record: RunRecord | None = None
        self._progress = Progress()
        self._endpoints = RunEndpoints(self._clock)
        self._ledger: Ledger | None = None
        self._moved_at_s = self._clock()
        self._closed = False
        self._landed = False  # whether this attempt has added vectors
        self._through = False  # whether nothing is left to do but to end
        self._starting, self._writing = asyncio.Lock(), asyncio.Lock()
        self._task: asyncio.Task[None] | None = None
        self._opened = asyncio.get_running_loop().create_task(self._resume())

    # ---- what others ask

    async def start(self, order: RebuildOrder) -> None:
        """Start a run, which goes on from what is durable; returns once the run is the accepted one.

        Starting the same job again changes nothing, as an answer may have been lost.

        Raises:
            RebuildRunningError: another job runs.
        """
        await self._opened
        async with self._starting:
            stored = await self._stored()
            same = stored is not None and stored.order.job_id == order.job_id
            if self._is_running() and not same:
                raise RebuildRunningError(
                    f"a rebuild of space {self._space_id} is running; see its status, or cancel it first",
                    {"job_id": self._record.order.job_id if self._record else None},
                )
            if self._is_running() or (same and stored is not None and stored.state == "done"):
                return
            await asyncio.to_thread(self._vectors.lift_quarantine)  # whoever asks again wants another try
            spent = stored.spent if same and stored is not None else 0.0
            await self._begin(order, time.time(), stored.progress if stored else Progress(), spent=spent)

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
        return self._record

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
        async with self._writing:  # the record is that of whoever resumes
            self._closed = True

    async def report(self, attempt: str, stage: str, endpoints: Sequence[EndpointStats]) -> None:
        """Take a stage's report on how its endpoints do, also while nothing lands."""
        if self._record is not None and self._record.attempt == attempt:
            self._endpoints.report(stage, endpoints)

    async def reserve(self, attempt: str, tokens: int) -> int:
        """Hold what a stage's next request may cost: the tokens that are held; 0 where it must not be sent."""
        with contextlib.suppress(StaleRunError):
            if self._ledger is not None and self._record is not None and self._record.attempt == attempt:
                return await self._ledger.reserve(tokens)
        return 0

    async def settle(self, attempt: str, held: int, tokens: int) -> None:
        """A stage's request has cost so many tokens."""
        if self._ledger is not None and self._record is not None and self._record.attempt == attempt:
            await self._ledger.settle(held, tokens)

    async def status(self) -> RebuildStatus:
        """How far the run is; the space's own status and its lag are for others to say."""
        if self._record is None:
            return status_of_run(await self._stored(), active=False)
        record = self._now() if self._is_running() else self._record
        return status_of_run(record, active=record.progress.active)

    # ---- from the beginning to the end of a run

    async def _resume(self) -> None:
        stored = await self._stored()
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
        self._progress, self._endpoints = replace(progress, active=False), RunEndpoints(self._clock)
        self._ledger = Ledger(order, spent, self._save)
        self._moved_at_s, self._landed, self._through = self._clock(), False, False
        attempt = uuid.uuid4().hex
        record = RunRecord(order, attempt, "running", started_at, owns_below=owns_below, progress=self._progress)
        await self._accept(replace(record, spending=self._ledger.spending()))
        self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        """Work, report once a second, and leave a record that says how it ended."""
        assert self._ledger is not None
        work, canary = asyncio.create_task(self._work()), asyncio.create_task(self._watch_model())
        try:
            while not work.done():
                wait_s = min(REPORT_S, self._ledger.pay(self._clock()))
                await asyncio.wait({work, canary}, timeout=wait_s, return_when=asyncio.FIRST_COMPLETED)
                await self._save()
                if canary.done():
                    await canary  # it ends by raising
            await work
            await self._end("done")
        except StaleRunError as error:
            log.info("the rebuild of space %s stops here: %s", self._space_id, error.detail)
        except FingerprintMismatchError as error:
            await self._fail(error.detail, mixed_models=self._landed)
        except CompassError as error:
            await self._fail(error.detail)
        except Exception as error:
            log.exception("the rebuild of space %s", self._space_id)
            await self._fail(f"unexpected: {type(error).__name__}: {error}")
        finally:
            canary.cancel()
            await self._stop(work)
        await self._tell_index()

    async def _watch_model(self) -> None:
        while True:
            await asyncio.sleep(CANARY_S)
            await self._ensure_same_model()

    async def _ensure_same_model(self) -> None:
        """Have stored texts embedded again; raises when the endpoints do it otherwise now."""
        assert self._record is not None
        await self._index.ensure_same_model(self._record.order.endpoints, self._record.order.api_key_env)

    async def _work(self) -> None:
        await self._index.run_changed()
        await self._fill_from_snapshot()
        await self._catch_up()

    async def _fill_from_snapshot(self) -> None:
        """Embed what a snapshot holds; a new one when compaction has taken its parts away meanwhile."""
        assert self._record is not None
        if not self._record.owns_below:  # an earlier attempt was through with it
            return
        for _ in range(SNAPSHOTS):
            snapshot = await self._collection.checkpoint()
            try:
                plan = await asyncio.to_thread(self._plan, snapshot)
                await self._own(min(self._record.owns_below, plan.newest + 1))
                await self._fill(plan)
            except MissingObjectError as error:
                log.info("the snapshot at seq %d is gone, taking a new one: %s", snapshot.seq, error.detail)
            else:
                return
        raise UnavailableError(f"{SNAPSHOTS} snapshots were compacted away one after the other; start again")

    def _plan(self, snapshot: Snapshot) -> Plan:
        skip = np.fromiter(self._vectors.quarantined(), np.int64)
        assert self._record is not None
        plan = read_plan(self._objects, snapshot, self._vectors.have(), skip, self._record.owns_below)
        now_s = self._clock()
        counts = {"embedded": plan.had, "failed": plan.skipped, "blank": plan.blank}
        self._progress = self._progress.planned(now_s, total=plan.live, **counts)
        return plan

    async def _fill(self, plan: Plan) -> None:
        """Stream the plan through the stages into the index, which builds while later files land."""
        assert self._record is not None
        earlier = await asyncio.to_thread(self._vectors.files) if plan.had else []
        backlog = Backlog(self._index.load_files, self._loaded, [Filled(key, 0) for key in earlier])
        try:
            order, attempt, stopped = self._record.order, self._record.attempt, False
            spread = {"actors": self._actors, "local_rows": self._local_rows}
            landing = stream(plan.descriptors, self._open_stage, order, attempt, **spread)
            async with contextlib.aclosing(landing):
                async for filled in landing:
                    self._moved()
                    self._landed = self._landed or filled.key is not None
                    self._refused(filled)
                    stopped = stopped or filled.stopped
                    await backlog.put(filled)
            await backlog.drain()
            if stopped and self._ledger is not None:
                raise self._ledger.spent_error()
        finally:
            backlog.drop()

    async def _catch_up(self) -> None:
        """Let the index follow to the frontier until the router finds nothing lacking and activates."""
        assert self._record is not None
        await self._own(0)
        while True:
            seq = (await self._collection.stats()).seq
            lag = await self._index.follow(seq, FOLLOW_S)
            await self._count()
            if not lag:
                await self._ensure_same_model()
                check_quarantine(self._progress.failed, self._record.order.max_failed)
                if await self._activated():
                    return
            if self._idle_s() > self._record.order.endpoint_timeout_s:
                reason = (await self._index.stats()).error or "its follower gets nowhere"
                raise EndpointUnavailableError(f"the space still lacks {lag} chunks written meanwhile: {reason}")

    async def _activated(self) -> bool:
        self._through = True  # before the call: whoever sees the space active may swap to it at once
        try:
            await self._router.activate(self._name, self._space_id)
        except SpaceLagsError:
            self._through = False
            return False
        self._progress = self._progress.activated()
        return True

    async def _count(self) -> None:
        """Take the counts of now from those who know them."""
        total = (await self._collection.stats()).chunk_count
        index = await self._index.stats()
        if index.vectors != self._progress.embedded:
            self._moved()
        self._progress = replace(self._progress, total=total, failed=index.quarantined)
        self._progress = self._progress.observe(self._clock(), embedded=index.vectors)

    async def _own(self, below: int) -> None:
        """Say which vids are this run's work; the index embeds what is written beyond by itself."""
        await self._save(owns_below=below)
        await self._index.run_changed()

    # ---- the record

    def _loaded(self, count: int) -> None:
        self._moved()
        embedded = self._progress.embedded + count
        self._progress = self._progress.observe(self._clock(), embedded=embedded)

    def _refused(self, filled: Filled) -> None:
        """Take note of what a stage has done beside vectors."""
        self._endpoints.report(filled.stage, filled.endpoints)
        self._progress = replace(self._progress, failed=self._progress.failed + filled.refused)

    def _moved(self) -> None:
        self._moved_at_s = self._clock()

    def _idle_s(self) -> float:
        return self._clock() - self._moved_at_s

    def _now(self) -> RunRecord:
        """The running record, with what can be said at this moment."""
        assert self._record is not None
        now_s, idle_s = self._clock(), self._idle_s()
        stalled_s = round(idle_s, 1) if idle_s > STALL_S else None
        if stalled_s is not None and self._record.stalled_s is None:
            log.warning("the rebuild of space %s stalls: nothing landed for %.0f s", self._space_id, idle_s)
        return replace(
            self._record,
            progress=self._progress,
            docs_per_s=round(self._progress.docs_per_s(now_s), 1),
            eta_s=self._progress.eta_s(now_s),
            fleet=self._endpoints.endpoints(),
            stalled_s=stalled_s,
            waiting=self._endpoints.waiting(),
            spending=self._ledger.spending() if self._ledger is not None else None,
        )

    async def _accept(self, record: RunRecord) -> None:
        """Store the record of a new attempt, whatever was stored before."""
        async with self._writing:
            self._record = record
            await asyncio.to_thread(self._vectors.write_run, record)

    async def _save(self, **changes: Any) -> None:
        """Store the record of now with these changes.

        Raises:
            StaleRunError: the run has ended, or another attempt has been accepted meanwhile.
        """
        async with self._writing:
            if self._closed or self._record is None or self._record.state != "running":
                raise StaleRunError(f"the run of space {self._space_id} has ended")
            await asyncio.to_thread(check_accepted, self._vectors, self._record.attempt)
            self._record = replace(self._now(), **changes)
            await asyncio.to_thread(self._vectors.write_run, self._record)

    async def _end(self, state: RunState, error: str | None = None, *, mixed_models: bool = False) -> None:
        if self._ledger is not None:
            self._ledger.close(self._clock())
        eta_s = 0.0 if state == "done" else None
        ended = {"state": state, "error": error, "ended_at": time.time(), "mixed_models": mixed_models}
        await self._save(**ended, docs_per_s=0.0, eta_s=eta_s, stalled_s=None, waiting=None)

    async def _stored(self) -> RunRecord | None:
        return await asyncio.to_thread(self._vectors.read_run)

    async def _fail(self, reason: str, *, mixed_models: bool = False) -> None:
        log.warning("the rebuild of space %s failed: %s", self._space_id, reason)
        with contextlib.suppress(StaleRunError):
            await self._save()  # nobody else's run is made to fail
            with contextlib.suppress(UnavailableError):  # the record below says it too
                await self._router.fail(self._name, self._space_id, reason)
            await self._end("failed", reason, mixed_models=mixed_models)

    async def _tell_index(self) -> None:
        """The follower takes over what an ended run left; it also finds out by itself."""
        with contextlib.suppress(CompassError, TimeoutError):
            async with asyncio.timeout(LAST_WORD_S):
                await self._index.run_changed()

    def _is_running(self) -> bool:
        return self._task is not None and not self._task.done()

    async def _stop(self, task: asyncio.Task[None]) -> None:
        task.cancel()
        await asyncio.wait({task}, timeout=LAST_WORD_S)
