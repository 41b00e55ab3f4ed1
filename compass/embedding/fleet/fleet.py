"""A fleet of endpoints that serve one model, as a rebuild uses it: work flows to whoever has room for it.

Texts wait in one queue. Each endpoint takes as many as one of its requests holds, as often as its window allows
(`domain/aimd.py`). What fails goes back to the front of the queue, for another endpoint if there is one. An
endpoint that does not answer is put aside, asked again from time to time, and taken back on a good answer. While
none is there, work waits. A text that is refused for itself is found by halving, and never fails the others.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import deque
from collections.abc import Coroutine, Sequence
from typing import Any

import numpy as np

from compass.domain.chunk import FloatMatrix
from compass.domain.embedding.contract import Embedded, Kind, ServerInfo
from compass.domain.embedding.endpoint_url import EndpointUrl
from compass.domain.rebuild.budget import Meter
from compass.domain.space import SpaceConfig
from compass.embedding.endpoint.base import TooManyError
from compass.embedding.endpoint.connections import Connections
from compass.embedding.endpoint.open import open_endpoint
from compass.embedding.endpoint.wire import check_key
from compass.embedding.fleet.health import FleetHealth
from compass.embedding.fleet.member import Job, Member, Piece
from compass.embedding.isolate import Blame, blame, refuses_everything, split_at_empty
from compass.embedding.rate_limit import Pace
from compass.errors import (
    BudgetSpentError,
    CompassError,
    EmbeddingError,
    EndpointAnswerError,
    EndpointForbiddenError,
    EndpointRefusedError,
    EndpointUnavailableError,
    InvalidRequestError,
)

SUSPICIONS = 2  # faults of a batch, at whatever endpoints, that may be its own: then it is halved
WATCH_S = 0.5
OVERLOADED = 429
MAYBE_ITS_OWN = frozenset({424, 500})  # the model failed: at this input, or at any


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
        self._pace = Pace(max_docs_per_s)
        self._queue: deque[Piece] = deque()
        self._jobs: set[Job] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._watch: asyncio.Task[None] | None = None
        self._stopped: BudgetSpentError | None = None  # from then on nothing is sent
        self._health = FleetHealth(
            self._members, timeout_s, batch_size, self._spawn, has_room=self._pump, lost=self._fail_all
        )

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
        if not self._jobs:
            self._health.good_at = time.monotonic()
        self._jobs.add(job)
        self._queue.extend(Piece(job, start, stop) for start, stop in stretches)
        try:
            if job.left:
                self._watch = self._watch or self._spawn(self._look())
                self._health.meet()
                self._pump()
                await job.done
        except BudgetSpentError:
            if job.asking:  # what is under way is paid for
                await asyncio.wait(job.asking)
        finally:
            self._forget(job)
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

    def endpoints(self) -> list[dict[str, Any]]:
        """How each endpoint does, since the fleet was made.

        [{url, state: new | up | paused | down | refused, in_flight, window, batch_size, docs_per_s, docs, tokens,
        errors, last_error}].
        """
        return [member.stats() for member in self._members]

    async def close(self) -> None:
        """End what goes on, and close the connections."""
        for job in list(self._jobs):
            self._fail(job, EndpointUnavailableError("the embedder was closed"))
            self._forget(job)
        tasks, self._watch = list(self._tasks), None
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._connections.close()

    # ---- giving out work

    def _pump(self) -> None:
        """Give every endpoint what it has room for, in turn."""
        progress = True
        while self._queue and progress and self._stopped is None:
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
        """The next piece for this endpoint, as large as its batch; one that failed here waits for another."""
        others = {m.client for m in self._members if m.state == "up"} - {member.client}
        for place, piece in enumerate(self._queue):
            if member.client in piece.tried and others - piece.tried:
                continue
            del self._queue[place]
            size = member.batch.size
            if piece.count > size:
                rest = Piece(piece.job, piece.start + size, piece.stop, piece.suspicions, piece.tried, piece.reason)
                self._queue.insert(place, rest)
                piece.stop = piece.start + size
            return piece
        return None

    def _start(self, member: Member, piece: Piece) -> None:
        self._pace.take(piece.count)
        member.busy += 1
        task = self._spawn(self._ask(member, piece))
        piece.job.asking.add(task)
        task.add_done_callback(piece.job.asking.discard)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run in the background; a bug there fails the work instead of leaving it to wait for ever."""
        task = asyncio.create_task(work)
        self._tasks.add(task)

        def done(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            if not task.cancelled() and (error := task.exception()) is not None:
                if isinstance(error, BudgetSpentError):  # of a question that was to tell what is wrong
                    self._stopped = error
                self._fail_all(error)

        task.add_done_callback(done)
        return task

    async def _ask(self, member: Member, piece: Piece) -> None:
        """One request, and what follows from how it ends."""
        sent_at, held = time.monotonic(), True

        def release() -> None:
            """Let its next request go before these rows are read: a GPU that waits for that is not busy."""
            nonlocal held
            member.busy, held = member.busy - held, False
            self._pump()

        try:
            rows = await member.client.embed(piece.texts, self._timeout_s, release)
            self._land(member, piece, rows, time.monotonic() - sent_at)
        except TooManyError as error:
            self._too_many(member, piece, error)
        except EndpointRefusedError as error:
            if piece.count > 1 and not member.says_its_limit and not member.batch.is_proven(piece.count):
                self._shrink(member, piece)  # a server may say "too many" in words of its own
            else:
                await self._blame(member, piece, error.detail)
        except EndpointForbiddenError as error:
            self._health.refuse_new(member, error)
            self._put_back(piece, member)
        except EndpointAnswerError as error:
            if "dims" in error.detail and isinstance(await self._health.control(member), EndpointAnswerError):
                self._health.refuse_new(member, error)  # another model: nothing of it fits this space
                self._put_back(piece, member)
            else:
                await self._suspect(member, piece, error)
        except EndpointUnavailableError as error:
            await self._unavailable(member, piece, error, sent_at)
        except BudgetSpentError as error:
            if piece.count > 1:
                self._halve(piece)  # a part of it may fit into what is left
            else:
                self._stop(error)
        except CompassError as error:  # the request cannot be made, wherever it goes
            self._fail(piece.job, error)
        finally:
            release()

    def _land(self, member: Member, piece: Piece, rows: FloatMatrix, latency_s: float) -> None:
        self._health.good_at = time.monotonic()
        member.answered(piece.count, latency_s)
        piece.job.rows[piece.start : piece.stop] = rows
        piece.job.landed.update(range(piece.start, piece.stop))
        self._settle(piece)

    def _settle(self, piece: Piece) -> None:
        """The texts of a piece are through, this way or that."""
        piece.job.left -= piece.count
        if not piece.job.left and not piece.job.done.done():
            piece.job.done.set_result(None)

    # ---- when a request fails

    def _put_back(self, piece: Piece, member: Member | None = None) -> None:
        """To the front of the queue: what is oldest goes first."""
        if member is not None:
            piece.tried |= {member.client}
        if piece.job in self._jobs:
            self._queue.appendleft(piece)

    def _halve(self, piece: Piece) -> None:
        middle = (piece.start + piece.stop) // 2
        for start, stop in ((middle, piece.stop), (piece.start, middle)):
            self._put_back(Piece(piece.job, start, stop, reason=piece.reason))

    def _too_many(self, member: Member, piece: Piece, error: TooManyError) -> None:
        if piece.count == 1:
            self._refuse(piece, str(error))
        elif error.limit is None:  # bytes: of this request alone
            self._halve(piece)
        else:
            self._shrink(member, piece, error.limit)

    def _shrink(self, member: Member, piece: Piece, limit: int | None = None) -> None:
        """Send fewer texts at once from now on, these among them."""
        if member.batch.refused(piece.count, limit or piece.count // 2):
            member.window.other_batches()
        self._put_back(piece)

    async def _suspect(self, member: Member, piece: Piece, error: EmbeddingError) -> None:
        """A fault that may be the endpoint's or a text's: try again, then look for the text."""
        self._health.strike(member)
        piece.suspicions += 1
        if piece.suspicions < SUSPICIONS:
            self._put_back(piece, member)
        else:
            await self._blame(member, piece, error.detail)

    async def _blame(self, member: Member, piece: Piece, reason: str) -> None:
        """One of these texts is refused for itself; a last one is, unless a harmless one is refused as well."""
        piece.reason = reason
        if piece.count > 1:
            self._halve(piece)
            return
        control_error = await self._health.control(member)
        match blame(control_error):
            case Blame.TEXT:
                self._refuse(piece, reason)
                return
            case Blame.ENDPOINT if control_error is not None:
                fault = EndpointForbiddenError(refuses_everything(reason), control_error.fields)
                self._health.refuse_new(member, fault)
            case _:
                self._health.strike(member)
        self._put_back(piece, member)

    def _refuse(self, piece: Piece, reason: str) -> None:
        piece.job.refused[piece.start] = reason
        self._settle(piece)

    async def _unavailable(
        self, member: Member, piece: Piece, error: EndpointUnavailableError, sent_at: float
    ) -> None:
        status, after_s = error.fields.get("status"), error.fields.get("retry_after")
        unproven = piece.count > 1 and not member.batch.is_proven(piece.count)
        if status in MAYBE_ITS_OWN:
            if unproven:
                self._shrink(member, piece)
            else:
                await self._suspect(member, piece, error)
            return
        if status == OVERLOADED:
            member.window.refused(sent_at, time.monotonic())
            self._health.overloaded(member, after_s)
        elif after_s:
            self._health.pause(member, after_s)
        elif error.fields.get("unreachable"):
            self._health.put_aside(member)
        else:
            if status is None:  # it was silent, or broke off
                member.window.refused(sent_at, time.monotonic())
                if unproven:
                    member.batch.refused(piece.count, piece.count // 2)
            self._health.strike(member)
        self._put_back(piece, None if status == OVERLOADED else member)

    async def _look(self) -> None:
        """Give the work up when nobody has given a good answer for too long."""
        while True:
            await asyncio.sleep(WATCH_S)
            now = time.monotonic()
            if now - max(self._health.good_at, self._pace.free_at) < self._endpoint_timeout_s:
                continue
            said = "; ".join(f"{m.client.shown}: {m.client.last_error or 'no answer'}" for m in self._members)
            detail = f"no endpoint gave a good answer for {self._endpoint_timeout_s:g} s: {said}"
            self._fail_all(EndpointUnavailableError(detail))

    def _stop(self, error: BudgetSpentError) -> None:
        self._stopped = error
        self._fail_all(error)

    def _fail_all(self, error: BaseException) -> None:
        for job in list(self._jobs):
            self._fail(job, error)

    def _fail(self, job: Job, error: BaseException) -> None:
        if not job.done.done():
            job.done.set_exception(error)

    def _forget(self, job: Job) -> None:
        self._jobs.discard(job)
        self._queue = deque(piece for piece in self._queue if piece.job is not job)
        for task in list(job.asking):
            task.cancel()
