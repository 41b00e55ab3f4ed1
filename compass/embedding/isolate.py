"""Who is to blame when texts are refused: one of the texts, or the endpoint.

A refused list is halved until the refused text stands alone. Before a first text is blamed, the endpoint must take
a harmless one: an endpoint that refuses everything is misconfigured, and no text is to blame.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import Protocol, runtime_checkable

import numpy as np

from compass.domain.chunk import FloatMatrix, has_text
from compass.domain.embedding.contract import CONTROL_TEXT, Embedded, Embedder
from compass.errors import (
    EmbeddingError,
    EndpointForbiddenError,
    EndpointRefusedError,
    EndpointUnavailableError,
)

MODEL_FAILED = 424  # the status of a model that failed; that may be mended
EMPTY_TEXT = "the text is empty: it has no vector"


class Blame(Enum):
    """What the answer to a harmless text says about one that was refused."""

    TEXT = "text"  # the harmless one is taken: the text is refused for itself
    ENDPOINT = "endpoint"  # the harmless one is refused too: no request of this form succeeds
    MODEL = "model"  # the model fails at the harmless one too: it may be mended
    UNKNOWN = "unknown"  # another fault came between


def blame(control_error: EmbeddingError | None) -> Blame:
    """Who is to blame for a text that was refused alone, by the error that a harmless text has met since."""
    match control_error:
        case None:
            return Blame.TEXT
        case EndpointRefusedError():
            return Blame.MODEL if control_error.fields.get("status") == MODEL_FAILED else Blame.ENDPOINT
    return Blame.UNKNOWN


def refuses_everything(reason: str) -> str:
    """The detail of an error that blames the endpoint."""
    return f"{reason} (it refuses every text, a harmless one too)"


def split_at_empty(texts: Sequence[str]) -> tuple[list[tuple[int, int]], dict[int, str]]:
    """The stretches (start, stop) of texts that are not empty, and why the empty ones are refused, by position.

    No endpoint is asked for an empty text.
    """
    stretches: list[tuple[int, int]] = []
    refused: dict[int, str] = {}
    start = 0
    for i, text in enumerate(texts):
        if not has_text(text):
            refused[i] = EMPTY_TEXT
            stretches.append((start, i))
            start = i + 1
    stretches.append((start, len(texts)))
    return [(a, b) for a, b in stretches if a < b], refused


@runtime_checkable
class IsolatingEmbedder(Embedder, Protocol):
    """An embedder that finds refused texts itself, request by request."""

    async def embed_each(self, texts: Sequence[str]) -> Embedded:
        """As `embed_each` of this module."""


async def embed_each(embedder: Embedder, texts: Sequence[str]) -> Embedded:
    """Embed all that can be embedded: a text that the endpoint refuses fails alone, the rest goes on.

    One poison text among n costs about 3 n inputs, so give a few batches at a time, not a corpus.

    Raises:
        EndpointForbiddenError: it refuses everything.
        EndpointUnavailableError: its model fails on everything (424), or it is down.
        EndpointAnswerError: it lied until the retries were over.
    """
    if isinstance(embedder, IsolatingEmbedder):
        return await embedder.embed_each(texts)
    stretches, refused = split_at_empty(texts)
    bisection = Bisection(embedder, texts)
    for start, stop in stretches:
        await bisection.embed(start, stop)
    return await bisection.result(refused)


class Bisection:
    """Halves a list of texts until each has a vector or is refused alone."""

    def __init__(self, embedder: Embedder, texts: Sequence[str]) -> None:
        self._embedder, self._texts = embedder, texts
        self._rows: list[int] = []
        self._parts: list[FloatMatrix] = []
        self._refused: dict[int, str] = {}
        self._trusted = False  # whether the endpoint has taken any text

    async def embed(self, start: int, stop: int) -> None:
        """Put each text of the range among the rows or the refused.

        Raises:
            EmbeddingError: as `embed_each`.
        """
        try:
            vectors = await self._embedder.embed(self._texts[start:stop])
        except EndpointRefusedError as error:
            if stop - start == 1:
                await self._ensure_trusted()
                self._refused[start] = error.detail
                return
        else:
            self._trusted = True
            self._rows.extend(range(start, stop))
            self._parts.append(vectors)
            return
        middle = (start + stop) // 2
        await self.embed(start, middle)
        await self.embed(middle, stop)

    async def result(self, refused: dict[int, str]) -> Embedded:
        """What became of all the texts; `refused`: those that were never sent."""
        parts = self._parts or [await self._embedder.embed([])]
        return Embedded(self._rows, np.concatenate(parts), refused | self._refused)

    async def _ensure_trusted(self) -> None:
        """Return once the endpoint has taken a text.

        Raises:
            EndpointForbiddenError: it refuses a harmless one.
            EndpointUnavailableError: its model fails at a harmless one.
            EmbeddingError: another fault came between.
        """
        if self._trusted:
            return
        try:
            await self._embedder.embed([CONTROL_TEXT])
        except EmbeddingError as error:
            match blame(error):
                case Blame.ENDPOINT:
                    fault: EmbeddingError = EndpointForbiddenError(refuses_everything(error.detail), error.fields)
                case Blame.MODEL:
                    fault = EndpointUnavailableError(refuses_everything(error.detail), error.fields)
                case _:
                    raise
        else:
            self._trusted = True
            return
        raise fault
