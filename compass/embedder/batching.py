"""Texts of all requests in one pool: a model is given batches of texts of about one length.

No request waits on a timer: while the model works, what arrives gathers. The next batch begins with the text
that has waited longest, so none is left behind, and is filled with those most like it in length, so little of
it is padding.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from compass.domain.chunk import FloatMatrix
from compass.embedder.model import Side
from compass.embedder.tei import RefusalError

log = logging.getLogger(__name__)


class Treatment(NamedTuple):
    """What a model does to a text; the texts of a batch are treated alike."""

    prompt: str = ""
    side: Side = "right"


Encode = Callable[[Sequence[str], str, Side], FloatMatrix]


@dataclass(slots=True, eq=False)
class _Request:
    rows: FloatMatrix
    left: int
    done: asyncio.Future[FloatMatrix]

    def take(self, row: int, vector: FloatMatrix) -> None:
        self.rows[row] = vector
        self.left -= 1
        if not self.left and not self.done.done():
            self.done.set_result(self.rows)

    def fail(self, error: RefusalError) -> None:
        if not self.done.done():
            self.done.set_exception(error)


@dataclass(frozen=True, slots=True, eq=False)
class Waiting:
    """A text that waits to be embedded: the row-th of its request."""

    text: str
    tokens: int
    treatment: Treatment
    request: _Request
    row: int


def next_batch(waiting: Sequence[Waiting], max_tokens: int, max_texts: int | None) -> list[int]:
    """The positions of the texts to embed next: the first one, and those most like it in length.

    Args:
        waiting: In the order of their arrival, at least one.
        max_tokens: Of the batch, all as long as its longest; a single text may be longer.
        max_texts: Of the batch; None: any number.
    """
    first = waiting[0]
    alike = [i for i, text in enumerate(waiting) if text.treatment == first.treatment]
    alike.sort(key=lambda i: (abs(waiting[i].tokens - first.tokens), i))
    batch, longest = [0], first.tokens
    for i in alike[1:]:
        if max_texts is not None and len(batch) >= max_texts:
            break
        would_be = max(longest, waiting[i].tokens)
        if would_be * (len(batch) + 1) <= max_tokens:
            batch.append(i)
            longest = would_be
    return batch


class Pool:
    """A model's one queue; used from one event loop.

    Args:
        encode: The model: texts, their prompt, and the side that is cut, to float32 rows. Called in a thread.
        dims: Numbers in a row.
        max_tokens: Of a batch, padding included.
        max_texts: Of a batch.
    """

    def __init__(self, encode: Encode, dims: int, max_tokens: int, max_texts: int | None = None) -> None:
        self._encode, self._dims = encode, dims
        self._max_tokens, self._max_texts = max_tokens, max_texts
        self._thread = ThreadPoolExecutor(1, "model")
        self._waiting: list[Waiting] = []
        self._working: asyncio.Task[None] | None = None
        self.failed = False  # whether the last text that was tried by itself made the model fail

    async def embed(
        self, texts: Sequence[str], tokens: Sequence[int], treatments: Sequence[Treatment]
    ) -> FloatMatrix:
        """The rows of one request: float32, shape (n, dims).

        Raises:
            RefusalError: the model failed at one of these texts (424); a text of another request is no reason.
        """
        rows = np.empty((len(texts), self._dims), np.float32)
        request = _Request(rows, len(texts), asyncio.get_running_loop().create_future())
        inputs = enumerate(zip(texts, tokens, treatments, strict=True))
        self._waiting += [Waiting(text, count, how, request, row) for row, (text, count, how) in inputs]
        if self._working is None or self._working.done():
            self._working = asyncio.create_task(self._work())
        try:
            return await request.done
        finally:
            if request.left:  # it failed, or nobody waits for it any more
                self._waiting = [one for one in self._waiting if one.request is not request]

    def close(self) -> None:
        """End the model's thread once it has done what it does."""
        self._thread.shutdown(wait=False)

    async def _work(self) -> None:
        while self._waiting:
            places = next_batch(self._waiting, self._max_tokens, self._max_texts)
            batch, taken = [self._waiting[i] for i in places], set(places)
            self._waiting = [one for i, one in enumerate(self._waiting) if i not in taken]
            await self._run(batch)

    async def _run(self, batch: Sequence[Waiting]) -> None:
        """Embed a batch. One that fails is halved, so that only the text that is to blame fails."""
        wanted = [one for one in batch if not one.request.done.done()]
        if not wanted:
            return
        try:
            rows = await asyncio.get_running_loop().run_in_executor(self._thread, self._rows, wanted)
        except Exception as error:  # noqa: BLE001 - a model may raise anything
            if len(wanted) == 1:
                self.failed = True
                log.warning("the model failed at a text of %d tokens: %s", wanted[0].tokens, error)
                wanted[0].request.fail(RefusalError(424, f"the model failed: {_line(error)}", "Backend"))
                return
            middle = len(wanted) // 2
            await self._run(wanted[:middle])
            await self._run(wanted[middle:])
            return
        self.failed = False
        for one, row in zip(wanted, rows, strict=True):
            one.request.take(one.row, row)

    def _rows(self, batch: Sequence[Waiting]) -> FloatMatrix:
        prompt, side = batch[0].treatment
        rows = self._encode([one.text for one in batch], prompt, side)
        if rows.shape != (len(batch), self._dims):
            raise ValueError(f"rows of shape {rows.shape}, not {(len(batch), self._dims)}")
        if not np.isfinite(rows).all():
            raise ValueError("a vector holds NaN or infinity")
        return rows


def _line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
