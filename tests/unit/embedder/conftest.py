"""A model that is no model, for what surrounds one."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np
import pytest

from compass.domain.chunk import FloatMatrix
from compass.embedder.model import Side
from compass.embedder.tei import ModelInfo
from compass.embedding.builtin import HashingModel

LENGTH = 3.0  # of each row that the fake gives


class FakeModel:
    """Hashed words as rows of length 3. A word is a token, and two more stand around each text.

    It fails at a text with the word "poison", and at any while it is `broken`; while `gate` is not set it
    stands still.
    """

    def __init__(self, dims: int = 8, longest: int = 12) -> None:
        self.info = ModelInfo("fake", None, "float32", "mean", dims, longest)
        self.prompts = {"query": "query: "}
        self.batches: list[list[str]] = []
        self.sides: list[Side] = []
        self.gate = threading.Event()
        self.gate.set()
        self.started = threading.Event()
        self.broken = False
        self._words = HashingModel("fake", dims)

    def count(self, texts: Sequence[str], prompt: str = "") -> list[int]:
        if any("untokenizable" in text for text in texts):
            raise ValueError("no such token")
        return [len((prompt + text).split()) + 2 for text in texts]

    def text_of(self, tokens: Sequence[int]) -> str:
        return " ".join(f"w{token}" for token in tokens)

    def encode(self, texts: Sequence[str], prompt: str = "", side: Side = "right") -> FloatMatrix:
        self.batches.append(list(texts))
        self.sides.append(side)
        self.started.set()
        self.gate.wait(60)
        if self.broken or any("poison" in text for text in texts):
            raise RuntimeError("device-side assert")
        rows = self._words.embed([prompt + text for text in texts]) * LENGTH
        if any("nan" in text for text in texts):
            rows[0, 0] = np.nan
        return rows


@pytest.fixture
def fake() -> FakeModel:
    """A model that is none."""
    return FakeModel()
