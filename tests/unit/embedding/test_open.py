"""Which embedder a space has, and how poison is told from good text."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.responses import JSONResponse, Response

from compass.domain.chunk import FloatMatrix
from compass.domain.space import SpaceConfig
from compass.embedding.builtin import BuiltinEmbedder, HashingModel
from compass.embedding.open import embed_each, open_embedder
from compass.embedding.pool import HttpEmbedder
from compass.errors import (
    EndpointAnswerError,
    EndpointForbiddenError,
    EndpointRefusedError,
    EndpointUnavailableError,
    InvalidRequestError,
)
from compass.testing.embed_server import served

KEY_VARIABLE = "COMPASS_EMBED_KEY_TEST"
URL = "http://127.0.0.1:9/embed"


class Picky:
    """An embedder that refuses a batch with a text that begins with "bad"; it counts the inputs it was sent."""

    def __init__(self, bad: str = "bad", status: int = 422) -> None:
        self.bad, self.status, self.inputs = bad, status, 0

    async def embed(self, texts: Sequence[str]) -> FloatMatrix:
        self.inputs += len(texts)
        if any(text.startswith(self.bad) for text in texts):
            raise EndpointRefusedError("it is poison", {"status": self.status})
        return np.asarray([[len(text), 1] for text in texts], np.float32).reshape(len(texts), 2)

    async def close(self) -> None:
        """Nothing to close."""


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
        embedder = open_embedder(SpaceConfig(16, "m", server.url), kind="document", timeout_s=5, retry_s=0)
        done = await embed_each(embedder, texts)
        await embedder.close()
    assert list(done.refused) == [13]
    assert "cannot tokenize" in done.refused[13]
    np.testing.assert_allclose(done.vectors, HashingModel("m", 16).embed(texts[:13] + texts[14:]), atol=1e-6)


def test_builtin_needs_no_network() -> None:
    """The endpoint "builtin" is the model of this package, salted with the space's model."""
    embedder = open_embedder(SpaceConfig(8, "m", "builtin"), kind="query", timeout_s=1, retry_s=0)
    assert isinstance(embedder, BuiltinEmbedder)


def test_a_rebuilds_endpoints_come_before_the_spaces_own() -> None:
    """Endpoints that are named serve; the space's own only where none is."""
    config = SpaceConfig(8, "m", "builtin")
    embedder = open_embedder(config, kind="document", timeout_s=1, retry_s=0, endpoints=[URL])
    assert isinstance(embedder, HttpEmbedder)
    assert URL in repr(embedder)


def test_a_space_without_an_endpoint_has_no_embedder() -> None:
    """The error says what to do instead."""
    with pytest.raises(InvalidRequestError, match="no embed_endpoint"):
        open_embedder(SpaceConfig(8, "m"), kind="query", timeout_s=1, retry_s=0)


def test_builtin_and_urls_do_not_mix() -> None:
    """A fleet serves one model."""
    with pytest.raises(InvalidRequestError, match="builtin"):
        open_embedder(SpaceConfig(8, "m"), kind="query", timeout_s=1, retry_s=0, endpoints=["builtin", URL])


def test_a_variable_that_is_not_set_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing key is said at once, by the variable's name."""
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    config = SpaceConfig(8, "m", URL, api_key_env=KEY_VARIABLE)
    with pytest.raises(InvalidRequestError, match=KEY_VARIABLE):
        open_embedder(config, kind="query", timeout_s=1, retry_s=0)


def test_no_other_variable_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """A request that names a variable cannot name the server's other secrets."""
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
    with pytest.raises(InvalidRequestError) as caught:
        open_embedder(
            SpaceConfig(8, "m", URL), kind="query", timeout_s=1, retry_s=0, api_key_env="AWS_SECRET_ACCESS_KEY"
        )
    assert "hunter2" not in repr(caught.value)


async def test_the_spaces_key_goes_to_the_spaces_own_endpoint_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other endpoints get a key only if one is named for them: a rebuild must not carry a key to a stranger."""
    monkeypatch.setenv(KEY_VARIABLE, "hunter2")
    with served("m", 8, api_key="hunter2") as own, served("m", 8, api_key="hunter2") as other:
        config = SpaceConfig(8, "m", own.url, api_key_env=KEY_VARIABLE)
        mine = open_embedder(config, kind="query", timeout_s=5, retry_s=0)
        strange = open_embedder(config, kind="query", timeout_s=5, retry_s=0, endpoints=[other.url])
        named = open_embedder(
            config, kind="query", timeout_s=5, retry_s=0, endpoints=[other.url], api_key_env=KEY_VARIABLE
        )
        assert (await mine.embed(["a"])).shape == (1, 8)
        with pytest.raises(EndpointForbiddenError, match="401"):
            await strange.embed(["a"])
        assert (await named.embed(["a"])).shape == (1, 8)
        for embedder in (mine, strange, named):
            await embedder.close()
