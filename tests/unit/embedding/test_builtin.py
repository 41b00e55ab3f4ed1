"""The built-in model: what it finds, and that it is the same everywhere."""

from __future__ import annotations

import hashlib
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from compass.domain.space import why_unfit
from compass.embedding.builtin import BuiltinEmbedder, HashingModel, stem, tokens
from compass.errors import EndpointRefusedError, InvalidRequestError

PACKAGES = {
    "json": (
        "Encode and decode JavaScript object notation, a lightweight data interchange format",
        "JSON (JavaScript Object Notation) is a subset of JavaScript syntax used as a lightweight data "
        "interchange format. Encoding basic Python object hierarchies and decoding.",
    ),
    "zipfile": (
        "Read and write ZIP-format archive files",
        "Classes and functions for reading and writing ZIP archives: ZipFile opens an archive, extracts members.",
    ),
    "sched": (
        "A general purpose event scheduler",
        "Each instance of this class manages its own queue of events, scheduled by a delay and a priority.",
    ),
    "statistics": (
        "Mathematical statistics of numeric data",
        "Calculate statistical averages: mean, median, mode, and measures of spread such as variance, of numbers "
        "in the data.",
    ),
    "email": (
        "Parse, handle and generate email messages",
        "A package for parsing, handling, and generating email messages, MIME headers included.",
    ),
    "socket": (
        "Low-level networking interface over BSD sockets",
        "This module provides socket operations: create a network connection, listen on an interface, send bytes.",
    ),
}


def cosine(model: HashingModel, a: str, b: str) -> float:
    rows = model.embed([a, b])
    return float(rows[0] @ rows[1])


def test_a_packages_summary_finds_its_docstring() -> None:
    """The nearest docstring of each summary is the package's own: shared words and stems are found."""
    model = HashingModel("demo", 384)
    summaries = model.embed([summary for summary, _ in PACKAGES.values()])
    docstrings = model.embed([docstring for _, docstring in PACKAGES.values()])
    assert (summaries @ docstrings.T).argmax(axis=1).tolist() == list(range(len(PACKAGES)))


def test_other_forms_and_misspellings_of_a_word_are_near() -> None:
    """Plurals, camelCase and a typing error stay nearer than another word."""
    model = HashingModel("demo", 384)
    other = cosine(model, "parse file", "random walk")
    assert cosine(model, "parse file", "parsing files") > 0.6
    assert cosine(model, "parse file", "parseFile parse_file") > 0.9
    assert cosine(model, "embedding", "embeding") > other + 0.2


def test_stop_words_weigh_little() -> None:
    """Two texts that share only "the", "of" and "a" are not near."""
    model = HashingModel("demo", 384)
    assert cosine(model, "the speed of a train", "the colour of a flower") < 0.3


def test_two_names_are_two_incompatible_spaces() -> None:
    """A text is a stranger to itself across two models, as with any two models."""
    texts = [docstring for _, docstring in PACKAGES.values()]
    a, b = HashingModel("blue", 384).embed(texts), HashingModel("green", 384).embed(texts)
    assert np.abs((a * b).sum(axis=1)).max() < 0.3
    assert not np.array_equal(np.sort(np.abs(a)), np.sort(np.abs(b))), "one is no permutation of the other"


def test_vectors_are_the_same_in_every_process() -> None:
    """Neither the hash seed of Python nor the batch a text comes in changes one bit."""
    code = (
        "import hashlib; from compass.embedding.builtin import HashingModel; "
        "print(hashlib.sha256(HashingModel('m', 100).embed(['a b b b', 'snake_case ünï'])[1].tobytes()).hexdigest())"
    )
    env = {"PYTHONHASHSEED": "7"}
    other = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    alone = HashingModel("m", 100).embed(["snake_case ünï"])
    assert other.stdout.strip() == hashlib.sha256(alone.tobytes()).hexdigest()


def test_vectors_stay_the_same_across_versions() -> None:
    """Stored vectors of the built-in model outlive an upgrade: these numbers must not change."""
    row = HashingModel("golden", 6).embed(["The quick brown fox jumps over the lazy dogs twice, twice."])[0]
    np.testing.assert_array_equal(row, np.asarray(GOLDEN, np.float32))


@pytest.mark.parametrize("dims", [1, 2, 3, 384, 16_384])
def test_every_text_has_a_vector_of_length_one(dims: int) -> None:
    """In any number of dims, for signs, one letter, other scripts and very long texts."""
    texts = ["!!!", "。", "x", "数据库检索", "a" * 100_000, "the", "🙂", "word " * 5_000, "\ud800"]
    texts += [f"w{i} v{i}" for i in range(50)]  # with one dim many of these cancel exactly
    rows = HashingModel("m", dims).embed(texts)
    assert rows.dtype == np.float32
    assert rows.shape == (len(texts), dims)
    assert why_unfit(rows, dims) is None
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)


def test_an_empty_text_is_refused() -> None:
    """A text without a character has no vector; the error says which."""
    with pytest.raises(EndpointRefusedError, match="text 1 is empty"):
        HashingModel("m", 8).embed(["a", " \n"])


def test_dims_out_of_range_are_refused() -> None:
    """1..16384, as for any space."""
    for dims in (0, 16_385):
        with pytest.raises(InvalidRequestError):
            HashingModel("m", dims)


def test_words_are_taken_apart_at_humps_and_underscores() -> None:
    """camelCase, snake_case and acronyms fall into lower-case words; a text without words is one token."""
    expected = ["read", "csv", "file", "snake", "case", "http", "server2", "éclair"]
    assert tokens("readCSVFile snake_case HTTPServer2 Éclair") == expected
    assert tokens(" !? ") == ["!?"]


@pytest.mark.parametrize(
    "forms",
    [("parse", "parses", "parsed", "parsing"), ("query", "queries"), ("class", "classes"), ("stop", "stopped")],
)
def test_forms_of_a_word_have_one_stem(forms: tuple[str, ...]) -> None:
    """The commonest English endings do not make another word."""
    assert len({stem(form) for form in forms}) == 1


def test_no_texts_are_no_rows() -> None:
    """Shape (0, dims), so that callers may concatenate."""
    assert HashingModel("m", 8).embed([]).shape == (0, 8)


def test_a_model_travels_by_its_name() -> None:
    """A pickled model embeds as it did, and its cache stays at home."""
    model = HashingModel("m", 64)
    before = model.embed(["some words to cache"])
    pickled = pickle.dumps(model)
    assert len(pickled) < 200
    np.testing.assert_array_equal(pickle.loads(pickled).embed(["some words to cache"]), before)


def test_threads_share_a_model() -> None:
    """Several threads get what one gets."""
    model, texts = HashingModel("m", 64), [f"word{i} common text" for i in range(200)]
    expected = HashingModel("m", 64).embed(texts)
    with ThreadPoolExecutor(4) as pool:
        for rows in pool.map(lambda _: model.embed(texts), range(8)):
            np.testing.assert_array_equal(rows, expected)


async def test_the_builtin_embedder_gives_the_models_rows() -> None:
    """The embedder of a space is the model, in a thread."""
    embedder = BuiltinEmbedder(HashingModel("m", 16))
    np.testing.assert_array_equal(await embedder.embed(["a", "b"]), HashingModel("m", 16).embed(["a", "b"]))
    await embedder.close()


GOLDEN = [
    -0.1256857067346573,
    0.6289148330688477,
    -0.08599745482206345,
    0.2625185549259186,
    -0.5844385623931885,
    0.4132665693759918,
]
