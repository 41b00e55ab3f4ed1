"""The model is sentence-transformers' own: all-MiniLM-L6-v2, real, from a package."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compass.embedder.backend import SentenceBackend
from compass.embedder.model import SentenceModel
from compass.embedder.tei import EmbedRequest, Limits
from compass.errors import UnavailableError

TEXTS = [
    "A man is eating food.",
    "The quick brown fox jumps over the lazy dog, again and again, until nobody looks any more.",
    "naïve café, 東京, 👩🏽‍💻",
    "x",
    "A long one: " + "many words follow each other, " * 30,
    "Rotate a log file when it grows too large.",
]


@pytest.fixture(scope="module")
def model(minilm: str) -> SentenceModel:
    """The model, on the CPU."""
    return SentenceModel(minilm, device="cpu")


@pytest.fixture(scope="module")
def backend(model: SentenceModel) -> SentenceBackend:
    """It behind the contract."""
    return SentenceBackend(model, Limits())


@pytest.fixture(scope="module")
def original(minilm: str) -> Any:
    """The same model as sentence-transformers gives it."""
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(minilm, device="cpu")


async def _embed(backend: SentenceBackend, *texts: str, **options: Any) -> Any:
    request = EmbedRequest(list(texts), **{"truncate": True, **options})
    return (await backend.embed(texts, request)).rows


def test_what_it_is(model: SentenceModel, minilm: str) -> None:
    """Name, precision, pooling, dims and limit, as `/info` tells them."""
    info = model.info
    assert (info.model_id, info.model_sha, info.dtype, info.pooling) == (minilm, None, "float32", "mean")
    assert (info.dims, info.max_input_length) == (384, 256)


async def test_rows_are_the_librarys_own(backend: SentenceBackend, original: Any) -> None:
    """As `encode` of sentence-transformers gives them, to 1e-5: long texts, other scripts and prompts too."""
    np.testing.assert_allclose(await _embed(backend, *TEXTS), original.encode(TEXTS), atol=1e-5)
    own = original.encode(TEXTS, prompt_name="query")
    np.testing.assert_allclose(await _embed(backend, *TEXTS, prompt_name="query"), own, atol=1e-5)


async def test_company_does_not_change_a_vector(backend: SentenceBackend) -> None:
    """Alone, among others, and beside other requests: the same to 1e-4, whatever is padded."""
    together = await _embed(backend, *TEXTS)
    alone = [await _embed(backend, text) for text in TEXTS]
    at_once = await asyncio.gather(*(_embed(backend, text) for text in reversed(TEXTS)))
    np.testing.assert_allclose(np.concatenate(alone), together, atol=1e-4)
    np.testing.assert_allclose(np.concatenate(at_once[::-1]), together, atol=1e-4)


async def test_meaning_is_near_meaning(backend: SentenceBackend) -> None:
    """A paraphrase that shares no word is nearer than a text that does."""
    question, same, other = await _embed(
        backend,
        "How do I make my automobile run faster?",
        "Ways to increase the speed of a car",
        "How do I make my bread rise?",
    )
    assert question @ same > question @ other + 0.2


async def test_what_is_not_normalised_is_longer_or_shorter(backend: SentenceBackend) -> None:
    """`normalize: false` is what the pooling gives, though the model comes with a step that normalises."""
    plain = await _embed(backend, *TEXTS, normalize=False)
    lengths = np.linalg.norm(plain, axis=1, keepdims=True)
    assert (np.abs(lengths - 1) > 0.1).all()
    np.testing.assert_allclose(plain / lengths, await _embed(backend, *TEXTS), atol=1e-5)


async def test_a_long_text_is_cut_at_the_side_that_was_asked_for(backend: SentenceBackend) -> None:
    """254 tokens are left of it, beside the two that the model puts around them."""
    words = [f"{i % 10}" for i in range(300)]
    for side, kept in (("right", words[:254]), ("left", words[-254:])):
        rows = await _embed(backend, " ".join(words), truncation_direction=side)
        np.testing.assert_allclose(rows, await _embed(backend, " ".join(kept)), atol=1e-5)


def test_tokens_are_counted_as_the_model_reads_them(model: SentenceModel) -> None:
    """With those around them, and uncut."""
    assert model.count(["hello world", "hello", "hello " * 400]) == [4, 3, 402]
    assert model.count(["world"], "hello ") == [4]
    assert model.text_of([101, 7592, 2088, 102]) == "hello world"


def test_a_model_that_is_no_transformer_is_served_too(minilm: str, tmp_path: Path) -> None:
    """A table of vectors, loaded from its folder: rows as the library's own, and no limit of length."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    from tokenizers import Tokenizer

    table = StaticEmbedding(Tokenizer.from_file(f"{minilm}/tokenizer.json"), embedding_dim=32)
    original = SentenceTransformer(modules=[table], device="cpu")
    original.save(str(tmp_path))
    model = SentenceModel(str(tmp_path), device="cpu")
    long = "a long text " * 500
    np.testing.assert_allclose(model.encode([*TEXTS, long]), original.encode([*TEXTS, long]), atol=1e-5)
    assert (model.info.dims, model.info.pooling) == (32, "mean")
    assert model.info.max_input_length > model.count([long])[0] > 1_500


def test_half_precision_is_near(minilm: str, model: SentenceModel) -> None:
    """bfloat16 here, float16 by default on a GPU: rows are float32 all the same, and point the same way."""
    half = SentenceModel(minilm, device="cpu", dtype="bfloat16")
    assert half.info.dtype == "bfloat16"
    rough, fine = half.encode(TEXTS), model.encode(TEXTS)
    assert rough.dtype == np.float32
    cosines = (rough * fine).sum(axis=1) / np.linalg.norm(rough, axis=1) / np.linalg.norm(fine, axis=1)
    assert cosines.min() > 0.99


def test_a_model_that_there_is_not_is_said_in_one_line(minilm: str) -> None:
    """Which, and why."""
    with pytest.raises(UnavailableError, match="'/no/such/folder' cannot be loaded") as caught:
        SentenceModel("/no/such/folder")
    assert "\n" not in caught.value.detail


def test_without_the_extra_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """In one line, at the start."""
    monkeypatch.setitem(__import__("sys").modules, "sentence_transformers", None)
    with pytest.raises(UnavailableError, match=r"pip install 'compass-search\[embedder\]'"):
        SentenceModel("any")
