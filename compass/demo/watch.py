"""Queries at a steady rate beside the main job, and what each answer must be.

An answer is right when it is a 200, is not empty, comes from a space that was the default at some moment
between the question and the answer, and is not of an older epoch than one that was seen before it was asked.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Collection, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from itertools import cycle

import httpx
import numpy as np

QUERIES_PER_S = 20.0
REMEMBERED = 5  # failures that are kept in words


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back for one query; `latency_s` counts from when it was due, so a stall is not hidden."""

    status: int
    latency_s: float
    results: int = 0
    space: str | None = None
    epoch: int | None = None
    detail: str = ""


def why_wrong(answer: Answer, spaces: Collection[str], min_epoch: int) -> str | None:
    """What is wrong with an answer in one sentence, or None.

    Args:
        answer: The answer.
        spaces: The spaces that were the default at some moment while it was on its way.
        min_epoch: The newest epoch that was known when it was asked.
    """
    if answer.status != 200:
        return f"status {answer.status}: {answer.detail}"
    if answer.results == 0:
        return "no results"
    if answer.space not in spaces:
        return f"answered by {answer.space!r}, expected {' or '.join(sorted(spaces))}"
    if answer.epoch is None or answer.epoch < min_epoch:
        return f"of epoch {answer.epoch}, after epoch {min_epoch} had been seen"
    return None


def read_answer(response: httpx.Response, latency_s: float) -> Answer:
    """A response of `POST /collections/{c}/search` in the terms of the check."""
    try:
        body = response.json()
    except ValueError:  # a proxy's page, a cut body
        return Answer(response.status_code, latency_s, detail=response.text[:200])
    if response.status_code != 200 or not isinstance(body, dict):
        return Answer(response.status_code, latency_s, detail=str(_detail(body)))
    return Answer(200, latency_s, len(body.get("results", ())), body.get("vector_space"), body.get("epoch"))


def _detail(body: object) -> object:
    return body.get("detail", body) if isinstance(body, dict) else body


@dataclass
class Tally:
    """What was asked and what came back."""

    answered: Counter[str] = field(default_factory=Counter)
    latencies_s: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    failed: int = 0
    epoch: int = 0

    def add(self, answer: Answer, spaces: Collection[str], min_epoch: int) -> None:
        """Count one answer and judge it."""
        self.latencies_s.append(answer.latency_s)
        if wrong := why_wrong(answer, spaces, min_epoch):
            self.failed += 1
            if len(self.failures) < REMEMBERED:
                self.failures.append(wrong)
            return
        self.answered[str(answer.space)] += 1
        self.epoch = max(self.epoch, answer.epoch or 0)

    @property
    def asked(self) -> int:
        """How many queries have come back, rightly or wrongly."""
        return len(self.latencies_s)

    def percentile_ms(self, percent: float) -> float:
        """A percentile of the latencies, milliseconds; 0.0 before the first answer."""
        return float(np.percentile(self.latencies_s, percent)) * 1000 if self.latencies_s else 0.0


class Querier:
    """Asks a collection's default space and judges every answer.

    Args:
        client: Its base URL is the service.
        collection: Whom to ask.
        queries: What to ask, in turn.
        default: The name of the default space now.
    """

    def __init__(self, client: httpx.AsyncClient, collection: str, queries: Sequence[str], default: str) -> None:
        self.tally = Tally()
        self._client = client
        self._path = f"/collections/{collection}/search"
        self._queries = cycle(queries)
        self._defaults = frozenset({default})
        self._pending: dict[object, set[str]] = {}

    @contextmanager
    def swapping(self, target: str) -> Iterator[None]:
        """Within it both spaces may answer; what is asked after it only the target may."""
        self._allow(self._defaults | {target})
        yield
        self._allow(frozenset({target}))

    @asynccontextmanager
    async def running(self, rate: float = QUERIES_PER_S) -> AsyncIterator[Tally]:
        """Ask `rate` times a second, whether or not the earlier ones are back; leaving it waits for all."""
        asked: list[asyncio.Task[None]] = []
        ticker = asyncio.create_task(self._tick(asked, 1 / rate))
        try:
            yield self.tally
        finally:
            ticker.cancel()
            await asyncio.gather(*asked)

    async def ask(self, due: float | None = None) -> None:
        """Ask one query and judge the answer."""
        key = object()
        spaces = self._pending[key] = set(self._defaults)
        min_epoch, due = self.tally.epoch, due if due is not None else time.monotonic()
        body = {"query": next(self._queries), "mode": "semantic", "top_k": 3}
        try:
            response = await self._client.post(self._path, json=body)
            answer = read_answer(response, time.monotonic() - due)
        except httpx.HTTPError as error:
            answer = Answer(0, time.monotonic() - due, detail=f"{type(error).__name__} {error}")
        finally:
            del self._pending[key]
        self.tally.add(answer, spaces, min_epoch)

    async def _tick(self, asked: list[asyncio.Task[None]], interval_s: float) -> None:
        due = time.monotonic()
        while True:
            asked.append(asyncio.create_task(self.ask(due)))
            due += interval_s
            await asyncio.sleep(max(0.0, due - time.monotonic()))

    def _allow(self, spaces: frozenset[str]) -> None:
        self._defaults = spaces
        for pending in self._pending.values():
            pending |= spaces
