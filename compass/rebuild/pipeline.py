"""How descriptors reach the stages: in the run's own process at once, and in Ray Data's actors once they are there.

Ray Data takes two or three seconds to start, in which one process embeds as many chunks as many a collection has. So
the head of a rebuild is embedded here while the actors for the rest start; a small one is all head. The results
stream back as they land, in any order, and what a stage raised is raised here.
"""

from __future__ import annotations

import asyncio
import bisect
import contextlib
import itertools
import logging
import os
import pickle
import threading
from collections.abc import AsyncGenerator, Coroutine, Generator, Sequence
from typing import Any, TypeVar

from compass.domain.rebuild.order import RebuildOrder
from compass.errors import CompassError, UnavailableError
from compass.rebuild.plan import Descriptor
from compass.rebuild.stage import OpenStage, Stage, StageResult

LOCAL_ROWS = 200_000  # up to here one process is done before Ray Data and its actors would be
AT_ONCE = 3  # descriptors at once in one stage: one reads, one embeds, one is being written
STAGE_CPUS = 0.25  # what an actor reserves: it waits for an endpoint most of the time
CLOSE_S = 1.0

T = TypeVar("T")
log = logging.getLogger(__name__)


def stream(
    descriptors: Sequence[Descriptor],
    open_stage: OpenStage,
    order: RebuildOrder,
    attempt: str,
    *,
    actors: int,
    local_rows: int,
) -> AsyncGenerator[StageResult, None]:
    """Fill all descriptors, yielding each as it lands.

    Args:
        descriptors: The first ones are filled here.
        open_stage: Opens a stage in whatever process it is called.
        order: One with a limit on its speed or its requests is filled here alone, so that one counter sees all.
        attempt: Of the run.
        actors: Processes of Ray Data.
        local_rows: Chunks that are filled here.

    Raises:
        CompassError: what a stage raised, or UnavailableError for a fault of the cluster.
    """
    head, rest = (descriptors, ()) if order.limited else _split(descriptors, local_rows)
    if not rest:
        return run_inline(head, open_stage, order, attempt)
    local, remote = (
        run_inline(head, open_stage, order, attempt),
        run_ray_data(rest, open_stage, order, attempt, actors),
    )
    return _merged(local, remote) if head else remote


def _split(descriptors: Sequence[Descriptor], rows: int) -> tuple[Sequence[Descriptor], Sequence[Descriptor]]:
    """The first ones, as many as `rows` allows, and the others."""
    ends = list(itertools.accumulate(d.count for d in descriptors))
    at = bisect.bisect_right(ends, rows)
    return descriptors[:at], descriptors[at:]


async def _merged(*streams: AsyncGenerator[StageResult, None]) -> AsyncGenerator[StageResult, None]:
    """What several streams yield, as it comes; an error of one ends all."""
    pending = {asyncio.ensure_future(anext(stream)): stream for stream in streams}
    try:
        while pending:
            done, _ = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                stream = pending.pop(task)
                with contextlib.suppress(StopAsyncIteration):
                    result = task.result()
                    pending[asyncio.ensure_future(anext(stream))] = stream
                    yield result
    finally:
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
        for stream in streams:
            await stream.aclose()


async def run_inline(
    descriptors: Sequence[Descriptor], open_stage: OpenStage, order: RebuildOrder, attempt: str
) -> AsyncGenerator[StageResult, None]:
    """Fill the descriptors in this process, a few at once."""
    stage = open_stage(order, attempt)
    waiting = list(reversed(descriptors))
    filling: set[asyncio.Task[StageResult]] = set()
    try:
        while waiting or filling:
            while waiting and len(filling) < AT_ONCE:
                filling.add(asyncio.create_task(stage.fill(waiting.pop())))
            done, filling = await asyncio.wait(filling, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                yield task.result()
    finally:
        for task in filling:
            task.cancel()
        await asyncio.gather(*filling, return_exceptions=True)
        await stage.close()


async def run_ray_data(
    descriptors: Sequence[Descriptor], open_stage: OpenStage, order: RebuildOrder, attempt: str, actors: int
) -> AsyncGenerator[StageResult, None]:
    """Fill the descriptors in `actors` processes under Ray Data, which places and restarts them."""
    loop = asyncio.get_running_loop()
    landed: asyncio.Queue[StageResult | BaseException | None] = asyncio.Queue()
    stopped = threading.Event()

    def pull() -> None:
        """Ray Data's iterator blocks, so it has a thread of its own."""
        last: BaseException | None = None
        try:
            with contextlib.closing(_through_ray_data(descriptors, open_stage, order, attempt, actors)) as results:
                for result in results:
                    if stopped.is_set():
                        return
                    loop.call_soon_threadsafe(landed.put_nowait, result)
        except BaseException as error:  # noqa: BLE001 - it is raised where the results are awaited
            last = error
        with contextlib.suppress(RuntimeError):  # the loop has gone: nobody waits any more
            loop.call_soon_threadsafe(landed.put_nowait, last)

    thread = threading.Thread(target=pull, name="ray-data", daemon=True)
    thread.start()
    try:
        while (result := await landed.get()) is not None:
            if isinstance(result, BaseException):
                raise result
            yield result
    finally:
        stopped.set()


def _through_ray_data(
    descriptors: Sequence[Descriptor], open_stage: OpenStage, order: RebuildOrder, attempt: str, actors: int
) -> Generator[StageResult, None, None]:
    """The results as Ray Data yields them.

    Errors of a stage come back as values, not as exceptions: so they arrive as they were, whatever Ray wraps
    an exception in, and Ray prints no stack of them.
    """
    import ray  # here, not above: the head of a rebuild and a unit test never need it
    from ray.data import ActorPoolStrategy, DataContext, ExecutionResources

    os.environ.setdefault("RAY_WARN_BLOCKING_GET_INSIDE_ASYNC", "0")  # a thread of its own blocks no event loop
    size = max(1, min(actors, len(descriptors)))
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.enable_auto_log_stats = False
    context.execution_options.resource_limits = ExecutionResources.for_limits(cpu=size * STAGE_CPUS + 1)
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    items = [{"descriptor": pickle.dumps(d)} for d in descriptors]
    results = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
        RemoteStage,
        batch_size=1,
        compute=ActorPoolStrategy(
            size=size,
            max_tasks_in_flight_per_actor=2 * AT_ONCE,
            max_concurrent_calls_per_actor=AT_ONCE,
            enable_true_multi_threading=True,
        ),
        num_cpus=STAGE_CPUS,
        fn_constructor_args=(open_stage, order, attempt),
    )
    try:
        for row in results.iter_rows():
            result = pickle.loads(row["result"])
            if isinstance(result, CompassError):
                raise result
            yield result
    except ray.exceptions.RayError as error:
        raise _unwrapped(error) from error


class RemoteStage:
    """A stage in an actor of Ray Data: threads call it, its one event loop does the work."""

    def __init__(self, open_stage: OpenStage, order: RebuildOrder, attempt: str) -> None:
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="stage", daemon=True).start()

        async def opened() -> Stage:
            return open_stage(order, attempt)

        self._stage = self._await(opened())

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[bytes]]:
        """Fill a batch of pickled descriptors: a pickled `StageResult`, or the CompassError, for each."""
        return {"result": [pickle.dumps(self._fill(pickle.loads(d))) for d in batch["descriptor"]]}

    def __del__(self) -> None:
        """Close the stage; Ray Data deletes a stage before it ends the process."""
        asyncio.run_coroutine_threadsafe(self._stage.close(), self._loop).result(CLOSE_S)
        self._loop.call_soon_threadsafe(self._loop.stop)

    def _fill(self, descriptor: Descriptor) -> StageResult | CompassError:
        try:
            return self._await(self._stage.fill(descriptor))
        except CompassError as error:
            return error

    def _await(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()


def _unwrapped(error: BaseException) -> CompassError:
    """The CompassError inside what Ray raised, or what the cluster did as one."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, CompassError):
            return cause
        cause = getattr(cause, "cause", None) or cause.__cause__
    return UnavailableError(f"Ray Data gave the rebuild up: {str(error).splitlines()[-1]}")
