"""A fleet of endpoints that serve one model, as a rebuild uses it: work flows to whoever has room for it.

Texts wait in one queue. Each endpoint takes as many as one of its requests holds, as often as its window allows
(`domain/aimd.py`). What fails goes back to the front of the queue, for another endpoint if there is one. An
endpoint that does not answer counts as down, is asked again from time to time, and taken back on a good answer. While
none is there, work waits. A text that is refused for itself is found by halving, and never fails the others.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import numpy as np

from compass.domain.chunk import FloatMatrix
from compass.domain.embedding.contract import Embedded, Kind, ServerInfo
from compass.domain.embedding.endpoint_stats import EndpointStats
from compass.domain.embedding.endpoint_url import EndpointUrl
from compass.domain.rebuild.budget import Meter
from compass.domain.space import SpaceConfig
from compass.embedding.endpoint.base import TooManyError
from compass.embedding.endpoint.connections import Connections
from compass.embedding.endpoint.open import open_endpoint
from compass.embedding.endpoint.wire import check_key
from compass.embedding.fleet.backlog import Backlog, Job, Piece
from compass.embedding.fleet.faults import Faults
from compass.embedding.fleet.health import FleetHealth
from compass.embedding.fleet.member import Member
from compass.embedding.isolate import split_at_empty
from compass.embedding.rate_limit import Pace
from compass.errors import (
    BudgetSpentError,
    CompassError,
    EmbeddingError,
    EndpointRefusedError,
    EndpointUnavailableError,
    InvalidRequestError,
)

WATCH_S = 0.5


class FleetEmbedder:
    """The `Embedder` of a rebuild over one or several endpoints; used from one event loop.

    Args:
        endpoints: Each by its URL; none is "builtin".
        config: dims and metric that the rows are checked against; the options that the space sends.
        timeout_s: Of one request, connecting included.
        endpoint_timeout_s: How long work waits while no endpoint gives a good answer.
        batch_size: Texts a request at most; the server's own limit counts if it is smaller.
        concurrency: Requests at once at most, over all endpoints.
        max_docs_per_s: Texts a second at most, over all endpoints.
        api_key: Sent as `Authorization: Bearer`.
        kind: Which of the space's prompt names is sent.
        meter: Asked before each request that embeds.
        connections: Theirs alone; closed with the embedder.
        clock: Gives seconds that only grow.

    Raises:
        InvalidRequestError: there is no endpoint, or the key cannot be a header.
    """

    def __init__(
        self,
        endpoints: Sequence[EndpointUrl],
        config: SpaceConfig,
        *,
        timeout_s: float,
        endpoint_timeout_s: float,
        batch_size: int | None = None,
        concurrency: int | None = None,
        max_docs_per_s: float | None = None,
        api_key: str | None = None,
        kind: Kind = "document",
        meter: Meter | None = None,
        connections: Connections | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if not endpoints:
            raise InvalidRequestError("a fleet wants at least one endpoint")
        key = check_key(api_key)
        self._connections = connections or Connections()
        clients = (open_endpoint(url, config, kind, key, self._connections, meter) for url in endpoints)
        self._members = [Member(client) for client in clients]
        self._turn = itertools.cycle(range(len(self._members)))
        self._config = config
        self._timeout_s, self._endpoint_timeout_s = timeout_s, endpoint_timeout_s
        self._concurrency = concurrency
        self._clock = clock
        self._pace = Pace(max_docs_per_s, clock)
        self._backlog = Backlog()
        self._tasks: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._watch: asyncio.Task[None] | None = None
        self._stopped: BudgetSpentError | None = None  # from then on nothing is sent
        self._health = FleetHealth(
            self._members,
            timeout_s,
            batch_size,
            self._spawn,
            has_room=self._pump,
            lost=self._backlog.fail_all,
            clock=clock,
        )
        self._faults = Faults(self._health, self._backlog, self._ask, clock)

    def __repr__(self) -> str:
        return f"FleetEmbedder({[m.client.shown for m in self._members]})"

    async def embed(self, texts: Sequence[str]) -> FloatMatrix:
        """One row per text, in order: float32, shape (n, dims), checked, and normalised for cosine.

        Raises:
            EndpointRefusedError: a text is refused for itself; see `embed_each`.
            BudgetSpentError: the meter did not let all of them go.
            EmbeddingError: as `embed_each`.
        """
        done = await self.embed_each(texts)
        if done.stopped is not None:
            raise done.stopped
        if done.refused:
            row, reason = min(done.refused.items())
            raise EndpointRefusedError(f"text {row}: {reason}", {"row": row})
        return done.vectors

    async def embed_each(self, texts: Sequence[str]) -> Embedded:
        """Embed all that can be embedded: a text that is refused for itself fails alone, the rest goes on.

        Where the meter lets no more requests go, the answer has what was embedded until then, and says why.

        Raises:
            EndpointUnavailableError: no endpoint gave a good answer for `endpoint_timeout_s`.
            EndpointForbiddenError, EndpointAnswerError: no endpoint is left that serves this space.
        """
        rows = np.empty((len(texts), self._config.dims), np.float32)
        stretches, refused = split_at_empty(texts)
        left = len(texts) - len(refused)
        job = Job(texts, rows, left, asyncio.get_running_loop().create_future(), refused=refused)
        if self._stopped is not None:
            return Embedded([], rows[:0], {}, self._stopped)
        if not self._backlog.jobs:
            self._health.good_at = self._clock()
        self._backlog.add(job, stretches)
        try:
            if job.left:
                self._watch = self._watch or self._spawn(self._watch_progress())
                self._health.probe_new()
                self._pump()
                await job.done
        except BudgetSpentError:
            if job.requests:  # what is under way is paid for
                await asyncio.wait(job.requests)
        finally:
            self._backlog.remove(job)
        kept = sorted(job.landed)
        some = rows if len(kept) == len(rows) else rows[kept]
        stopped = self._stopped if job.left else None
        return Embedded(kept, some, dict(sorted(job.refused.items())), stopped)

    async def describe(self) -> list[ServerInfo]:
        """What each endpoint's `/info` says now, in their order.

        Raises:
            EndpointUnavailableError: one is not up.
        """
        return [await member.client.describe() for member in self._members]

    def endpoints(self) -> list[EndpointStats]:
        """How each endpoint does, since the fleet was made."""
        return [member.stats() for member in self._members]

    async def close(self) -> None:
        """End what goes on, and close the connections."""
        for job in list(self._backlog.jobs):
            job.fail(EndpointUnavailableError("the embedder was closed"))
            self._backlog.remove(job)
        tasks, self._watch = list(self._tasks), None
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._connections.close()

    def _pump(self) -> None:
        """Give every endpoint what it has room for, in turn."""
        progress = True
        while self._backlog and progress and self._stopped is None:
            progress = False
            for _ in self._members:
                member = self._members[next(self._turn)]
                if self._may_start() and member.has_room() and (piece := self._take(member)):
                    self._start(member, piece)
                    progress = True

    def _may_start(self) -> bool:
        """Whether the limits of the whole allow one more request now; if it is a matter of time, ask again then."""
        if self._concurrency is not None and sum(m.busy for m in self._members) >= self._concurrency:
            return False
        wait_s = self._pace.wait_s()
        if not wait_s:
            return True
        self._pump_after(wait_s)
        return False

    def _pump_after(self, wait_s: float) -> None:
        if self._timer is None:

            def fire() -> None:
                self._timer = None
                self._pump()

            self._timer = asyncio.get_running_loop().call_later(wait_s, fire)

    def _take(self, member: Member) -> Piece | None:
        """The next piece for this endpoint, as large as its batch."""
        others = {m.client for m in self._members if m.state == "up"} - {member.client}
        return self._backlog.take(member.client, member.batch.size, others)

    def _start(self, member: Member, piece: Piece) -> None:
        self._pace.take(piece.count)
        member.busy += 1
        task = self._spawn(self._request(member, piece))
        piece.job.requests.add(task)
        task.add_done_callback(piece.job.requests.discard)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run in the background; a bug there fails the work instead of leaving it to wait for ever."""
        task = asyncio.create_task(work)
        self._tasks.add(task)

        def done(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            if not task.cancelled() and (error := task.exception()) is not None:
                if isinstance(error, BudgetSpentError):  # of a question that was to tell what is wrong
                    self._stopped = error
                self._backlog.fail_all(error)

        task.add_done_callback(done)
        return task

    async def _request(self, member: Member, piece: Piece) -> None:
        """One request, and what follows from how it ends."""
        sent_at, held = self._clock(), True

        def release() -> None:
            """Let its next request go before these rows are read: a GPU that waits for that is not busy."""
            nonlocal held
            member.busy, held = member.busy - held, False
            self._pump()

        try:
            rows = await member.client.embed(piece.texts, self._timeout_s, release)
            self._health.good_at = self._clock()
            member.answered(piece.count, self._health.good_at - sent_at)
            piece.land(rows)
        except BudgetSpentError as error:
            if piece.count > 1:
                self._backlog.put_back_halved(piece)  # a part of it may fit into what is left
            else:
                self._stopped = error
                self._backlog.fail_all(error)
        except (TooManyError, EmbeddingError) as error:
            await self._faults.handle(member, piece, error, sent_at)
        except CompassError as error:  # the request cannot be made, wherever it goes
            piece.job.fail(error)
        finally:
            release()

    async def _ask(self, member: Member, texts: Sequence[str]) -> FloatMatrix:
        """One request while a member's texts are isolated; it has its place among those in flight already."""
        wait_s = self._pace.wait_s()
        self._pace.take(len(texts))  # before the wait: who comes next waits for these
        if wait_s:
            await asyncio.sleep(wait_s)
        sent_at = self._clock()
        rows = await member.client.embed(texts, self._timeout_s)
        self._health.good_at = self._clock()
        member.answered(len(texts), self._health.good_at - sent_at)
        return rows

    async def _watch_progress(self) -> None:
        """Give the work up when nobody has given a good answer for too long."""
        while True:
            await asyncio.sleep(WATCH_S)
            if self._clock() - max(self._health.good_at, self._pace.free_at) < self._endpoint_timeout_s:
                continue
            reasons = "; ".join(f"{m.client.shown}: {m.client.last_error or 'no answer'}" for m in self._members)
            detail = f"no endpoint gave a good answer for {self._endpoint_timeout_s:g} s: {reasons}"
            self._backlog.fail_all(EndpointUnavailableError(detail))
