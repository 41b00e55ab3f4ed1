"""One text or the endpoint: how poison is told from good text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.responses import JSONResponse, Response

from compass.domain.chunk import FloatMatrix
from compass.domain.embedding.contract import ServerInfo
from compass.domain.space import SpaceConfig
from compass.embedding.builtin import HashingModel
from compass.embedding.isolate import embed_each, split_at_empty
from compass.embedding.open import open_embedder
from compass.errors import (
    EndpointAnswerError,
    EndpointForbiddenError,
    EndpointRefusedError,
    EndpointUnavailableError,
)
from compass.testing.embed_server import served


def test_empty_texts_are_refused_before_anything_is_sent() -> None:
    """What is left are stretches without a gap."""
    stretches, refused = split_at_empty(["", "a", "b", " ", "c"])
    assert stretches == [(1, 3), (4, 5)]
    assert sorted(refused) == [0, 3]
    assert split_at_empty([]) == ([], {})


class Picky:
    """An embedder that refuses a batch with a text that begins with "bad"; it counts the inputs it was sent."""

    def __init__(self, bad: str = "bad", status: int = 422) -> None:
        self.bad, self.status, self.inputs = bad, status, 0

    async def embed(self, texts: Sequence[str]) -> FloatMatrix:
        self.inputs += len(texts)
        if any(text.startswith(self.bad) for text in texts):
            raise EndpointRefusedError("it is poison", {"status": self.status})
        return np.asarray([[len(text), 1] for text in texts], np.float32).reshape(len(texts), 2)

    async def describe(self) -> list[ServerInfo]:
        return [ServerInfo()]

    def endpoints(self) -> list[Any]:
        return []

    async def close(self) -> None:
        """Nothing to close."""


@settings(deadline=None)
@given(st.lists(st.sampled_from(["bad", "good", "better", "", "  "]), max_size=40))
async def test_a_refused_text_fails_alone(texts: list[str]) -> None:
    """Every text is either a row or refused, in order, and exactly the poison and the empty are refused."""
    done = await embed_each(Picky(), texts)
    assert done.rows == [i for i, text in enumerate(texts) if text in ("good", "better")]
    assert sorted(done.refused) == [i for i, text in enumerate(texts) if text not in ("good", "better")]
    assert done.vectors.shape == (len(done.rows), 2)
    assert done.vectors[:, 0].tolist() == [len(texts[i]) for i in done.rows]
    assert all(done.refused[i] == "it is poison" for i, text in enumerate(texts) if text == "bad")


async def test_bisecting_is_cheap() -> None:
    """One poison text among 1,024 costs about three times the inputs, not a request per text."""
    embedder = Picky()
    texts = ["good"] * 1_024
    texts[700] = "bad"
    assert list((await embed_each(embedder, texts)).refused) == [700]
    assert embedder.inputs <= 3 * 1_024 + 1


async def test_an_endpoint_that_refuses_everything_is_to_blame_and_no_text() -> None:
    """Before a first text is given up a harmless one must pass; else a wrong option would empty a collection."""
    with pytest.raises(EndpointForbiddenError, match="refuses every text"):
        await embed_each(Picky(bad=""), ["good", "better"])
    with pytest.raises(EndpointUnavailableError, match="refuses every text"):
        await embed_each(Picky(bad="", status=424), ["good", "better"])


async def test_a_lone_poison_text_is_refused_by_a_working_endpoint() -> None:
    """A batch of nothing but poison blames the texts, once the endpoint has taken a harmless one."""
    done = await embed_each(Picky(), ["bad", "bad"])
    assert sorted(done.refused) == [0, 1]
    assert done.vectors.shape == (0, 2)


async def test_other_faults_go_through() -> None:
    """Only a refusal is bisected: what a retry may mend is not blamed on a text."""

    class Liar(Picky):
        async def embed(self, texts: Sequence[str]) -> FloatMatrix:
            raise EndpointAnswerError("too few rows")

    with pytest.raises(EndpointAnswerError, match="too few rows"):
        await embed_each(Liar(), ["good"])


async def test_a_real_server_loses_only_its_poison() -> None:
    """Over HTTP: one text that the server refuses, the others have their vectors."""

    def reply(texts: list[str]) -> Response | None:
        poison = any("poison" in text for text in texts)
        return JSONResponse({"error": "cannot tokenize", "error_type": "Tokenizer"}, 422) if poison else None

    texts = [f"text {i}" for i in range(50)]
    texts[13] = "poison"
    with served("m", 16, reply=reply) as server:
        embedder = open_embedder(SpaceConfig(16, "m", server.url), kind="document", timeout_s=60, retry_s=0)
        done = await embed_each(embedder, texts)
        await embedder.close()
    assert list(done.refused) == [13]
    assert "cannot tokenize" in done.refused[13]
    np.testing.assert_allclose(done.vectors, HashingModel("m", 16).embed(texts[:13] + texts[14:]), atol=1e-6)
