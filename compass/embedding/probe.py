"""What one endpoint can do: real texts for a few seconds, with as many requests in flight as in a rebuild."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from compass.domain.chunk import FloatMatrix
from compass.domain.embedding.aimd import FIRST_BATCH, FIRST_WINDOW
from compass.domain.embedding.contract import Embedded, Embedder
from compass.domain.embedding.endpoint_stats import EndpointStats
from compass.domain.rebuild.estimate import Answer, Fault, Probed
from compass.embedding.isolate import embed_each
from compass.errors import CompassError, EndpointUnavailableError

MEASURE_S, MEASURE_DOCS = 3.0, 128  # a measure goes on until it has both, or its time or its texts are over
WARM_UP = 4  # texts of the first request, whose time is not counted: a model may be loaded by it
EXTREMES = 2  # a longest and a shortest text, asked for at the end: one that is refused makes a fleet cautious
FEW = 64  # texts that are measured in any order
LAST_S = 5.0  # for those two
DOWN_S = 2.0  # an endpoint that is down for so long is told as down
LOOK_S = 0.1
SHARES = 4  # of the time that is left: no request may take longer, as far as can be known


@dataclass(slots=True)
class Probe:
    """The measure of one endpoint.

    Attributes:
        name: The endpoint without secrets.
        embedder: Of this endpoint alone.
        texts: In the order of the sample; the longest and the shortest one first.
        deadline_s: Seconds from now that it may take; what was answered until then counts.
    """

    name: str
    embedder: Embedder
    texts: Sequence[str]
    deadline_s: float
    vectors: list[FloatMatrix] = field(default_factory=list)
    _answers: list[Answer] = field(default_factory=list)
    _taken: list[int] = field(default_factory=list)
    _refused: dict[int, str] = field(default_factory=dict)
    _waiting: dict[asyncio.Task[Embedded], int] = field(default_factory=dict)  # by where its texts begin
    _next: int = 0
    _most: int = WARM_UP  # texts of a request
    _began_s: float = 0.0
    _down_at_s: float | None = None

    async def run(self) -> Probed:
        """Measure, and tell; what goes wrong at the endpoint is told, not raised."""
        self._began_s = time.monotonic()
        fault: Fault | None = None
        self._next = EXTREMES if len(self.texts) >= FEW else 0
        try:
            self._send(WARM_UP)
            while self._waiting:
                await self._land()
                if self._is_enough():
                    break
                self._feed()
            await self._ask_extremes()
        except CompassError as error:
            fault = Fault(error.type, error.detail)
        finally:
            self._drop()
            await asyncio.gather(*self._waiting, return_exceptions=True)
        return self._result(fault)

    def _feed(self) -> None:
        """Keep twice as many texts waiting as are in flight, as a rebuild does."""
        stats = self._stats()
        batch = max(1, min(stats.batch_size or FIRST_BATCH, self._most))
        wanted = 2 * batch * (stats.window or FIRST_WINDOW)
        while self._next < len(self.texts) and len(self._waiting) * batch < wanted:
            self._send(batch)

    def _send(self, count: int) -> None:
        texts = self.texts[self._next : self._next + count]
        if texts:
            self._waiting[asyncio.create_task(embed_each(self.embedder, texts))] = self._next
            self._next += len(texts)

    async def _ask_extremes(self) -> None:
        """Find out whether it takes the longest text; an endpoint that is too slow for that is not told on."""
        self._drop()
        if len(self.texts) < FEW or len(self._answers) == 0:
            return
        try:
            async with asyncio.timeout(LAST_S):
                self._take(0, await embed_each(self.embedder, self.texts[:EXTREMES]))
        except TimeoutError:
            return

    def _drop(self) -> None:
        for task in self._waiting:
            task.cancel()

    def _take(self, start: int, embedded: Embedded) -> None:
        self.vectors.append(embedded.vectors)
        self._taken += [start + row for row in embedded.rows]
        self._refused |= {start + row: why for row, why in embedded.refused.items()}

    async def _land(self) -> None:
        """Take what has been answered, or look after the endpoint while nothing is."""
        done, _ = await asyncio.wait(self._waiting, timeout=LOOK_S, return_when=asyncio.FIRST_COMPLETED)
        now_s = time.monotonic() - self._began_s
        if not done:
            self._check_alive(now_s)
        for task in done:
            start = self._waiting.pop(task)
            embedded = task.result()
            self._take(start, embedded)
            self._answers.append(Answer(now_s, len(embedded.rows) + len(embedded.refused)))
            self._allow(now_s)

    def _allow(self, now_s: float) -> None:
        """As many texts in a request as it can answer in a share of the time that is left, at the speed so far."""
        docs = sum(a.docs for a in self._answers)
        left_s = max(0.0, self.deadline_s - now_s)
        self._most = max(self._most, int(docs / max(now_s, 1e-6) * left_s / SHARES))

    def _check_alive(self, now_s: float) -> None:
        """Raise if the endpoint has been down for a while."""
        if self._stats().state != "down":
            self._down_at_s = None
            return
        self._down_at_s = now_s if self._down_at_s is None else self._down_at_s
        if now_s - self._down_at_s >= DOWN_S:
            raise EndpointUnavailableError(self._stats().last_error or f"{self.name} is down")

    def _is_enough(self) -> bool:
        now_s = time.monotonic() - self._began_s
        if now_s >= self.deadline_s:
            if not self._answers:
                raise EndpointUnavailableError(f"{self.name} answered nothing within {self.deadline_s:g} s")
            return True
        if len(self._answers) < 2:
            return False
        docs = sum(a.docs for a in self._answers[1:])
        return docs >= MEASURE_DOCS and now_s - self._answers[0].at_s >= MEASURE_S

    def _stats(self) -> EndpointStats:
        return next(iter(self.embedder.endpoints()), EndpointStats(self.name))

    def _result(self, fault: Fault | None) -> Probed:
        stats = self._stats()
        return Probed(
            self.name,
            tuple(self._answers),
            len(self._taken),
            sum(len(self.texts[at]) for at in self._taken),
            stats.tokens,
            dict(sorted(self._refused.items())),
            tuple(self._taken),
            stats.batch_size,
            fault,
        )

    def rows(self, most: int) -> FloatMatrix | None:
        """Up to `most` of the vectors that came; None without any."""
        some = [part for part in self.vectors if len(part)]
        return np.concatenate(some)[:most] if some else None
