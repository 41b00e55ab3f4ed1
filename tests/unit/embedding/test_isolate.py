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
from compass.domain.space import BuiltBy, Space, SpaceConfig
from compass.embedding.builtin import HashingModel
from compass.embedding.isolate import Isolation, embed_each, split_at_empty
from compass.embedding.open import open_embedder
from compass.embedding.verified import CheckedEmbedder
from compass.errors import (
    EmbeddingError,
    EndpointAnswerError,
    EndpointForbiddenError,
    EndpointRefusedError,
    EndpointUnavailableError,
    FingerprintMismatchError,
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
    """Of an embedder that does not look itself only a refusal is bisected: other faults are not blamed on a text."""

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


async def test_a_checked_embedder_finds_texts_at_fault_as_its_own_does() -> None:
    """Around a pool, as a follower has it, a null row costs one text; the server is checked beside."""

    def reply(texts: list[str]) -> Response | None:
        rows = [[None] * 16 if text == "poison" else [1.0] * 16 for text in texts]
        return JSONResponse(rows) if "poison" in texts else None

    with served("m", 16, reply=reply) as server:
        config = SpaceConfig(16, "m", server.url)
        pool = open_embedder(config, kind="document", timeout_s=60, retry_s=10)
        for built_by in (None, BuiltBy("m")):
            space = Space("s-1", "s", config, "active", 0.0, built_by=built_by)
            done = await embed_each(CheckedEmbedder(pool, space), ["a", "poison", "b"])
            assert (done.rows, list(done.refused)) == ([0, 2], [1])
        other = Space("s-1", "s", config, "active", 0.0, built_by=BuiltBy("another"))
        with pytest.raises(FingerprintMismatchError):
            await embed_each(CheckedEmbedder(pool, other, check_timeout_s=60.0), ["a"])
        await pool.close()


class Recorded:
    """Where an isolation puts its outcomes."""

    def __init__(self) -> None:
        self.landed: list[int] = []
        self.refused: list[int] = []

    def land(self, start: int, rows: FloatMatrix) -> None:
        self.landed += range(start, start + len(rows))

    def refuse(self, at: int, reason: str) -> None:
        self.refused.append(at)


@settings(deadline=None)
@given(
    st.lists(st.sampled_from(["bad", "good"]), min_size=1, max_size=20),
    st.lists(st.sampled_from(["ok", "down", "overloaded"]), max_size=30),
)
async def test_what_is_found_is_final_and_what_is_left_is_the_rest(texts: list[str], moments: list[str]) -> None:
    """Whenever the endpoint goes away: each text is found once or left, and no good one is refused."""
    script = iter(moments)

    async def send(some: Sequence[str]) -> FloatMatrix:
        match next(script, "ok"):
            case "down":
                raise EndpointUnavailableError("down", {"status": 503})
            case "overloaded":
                raise EndpointUnavailableError("full", {"status": 429})
        return await Picky(status=500).embed(some)

    async def pause(_: float) -> None:
        """Time does not pass."""

    outcome = Recorded()
    isolation = Isolation(texts, send, outcome, pause=pause)
    try:
        await isolation.settle(0, len(texts), EndpointAnswerError("null"))
    except EmbeddingError:
        left = [at for start, stop in isolation.left for at in range(start, stop)]
        assert left
    else:
        assert isolation.left == []
        left = []
    assert sorted(outcome.landed + outcome.refused + left) == list(range(len(texts)))
    assert isolation.left == sorted(isolation.left)
    if "down" not in moments:
        assert all(texts[at] == "bad" for at in outcome.refused)
    assert all(texts[at] == "good" for at in outcome.landed)
