"""The built-in embedding model: words and letters hashed into a vector, in numpy. No download, no network.

What it is: *lexical*. Two texts are near when they share words, word stems or runs of letters, so a query
finds the text that uses its vocabulary, in spite of plurals and typing errors. It is there for the first
five minutes, for demos and for tests: deterministic, fast, any number of dims.

What it is not: *semantic*. It knows no synonyms, no translations, no word order and no meaning; "car" and
"automobile" are strangers to it. For real use point a space at a real model's endpoint.

The method is feature hashing with signs (Weinberger et al. 2009, arXiv:0902.2206) over words and the
character 3- to 5-grams of each word. The model's name salts the hash: two names are two incompatible
spaces, as with any two models, which is what makes it good for showing what a swap must get right.

All weights are whole numbers or eighths until the last step, so sums are exact in float64 whatever their
order, and every machine gets the same bits.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from compass.domain.chunk import FloatMatrix, FloatVector, has_text
from compass.domain.embedding.contract import ServerInfo
from compass.domain.embedding.endpoint_stats import EndpointStats
from compass.domain.names import check_dims
from compass.embedding.rate_limit import Pace
from compass.errors import EndpointRefusedError

WORD_WEIGHT = 64
GRAMS_WEIGHT = 64  # of all n-grams of a word together (root of the sum of squares)
STOP_WORD_SHARE = 8  # a stop word weighs an eighth
TF_SCALE = 16  # a power of two: tf weights are sixteenths, so products and sums of weights stay exact
GRAM_SIZES = (3, 4, 5)
MAX_WORD_CHARS = 64  # a longer run of letters is data, not a word
CACHED_TOKENS, CACHED_GRAMS = 1 << 16, 1 << 17  # about 20 MB each when full

_WORD = re.compile(r"[^\W_]+")
_HUMPS = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_STOP_WORDS = frozenset(
    _WORD.findall(
        "a about all also an and any are as at be been but by can could did do does for from had has have how i "
        "if in into is it its may more most no not of on one only or other our out over shall should so some such "
        "than that the their them then there these they this those to up use used using was we were what when "
        "where which while who whose why will with would you your"
    )
)

# Cells of a vector and their signed integer weights: what one token adds to its text.
Features = tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]


class HashingModel:
    """A model of this module: `name` salts it, `dims` sizes it. Thread-safe.

    Args:
        name: Two names are two spaces whose vectors have nothing to do with each other.
        dims: 1..16384; below some hundreds, words begin to collide.
    """

    def __init__(self, name: str, dims: int) -> None:
        self.name, self.dims = name, check_dims(dims)
        self._salt = hashlib.blake2b(name.encode("utf-8", "replace"), digest_size=16).digest()
        self._hash = lru_cache(CACHED_GRAMS)(self._hash_of)
        self._token = lru_cache(CACHED_TOKENS)(self._features_of)

    def __repr__(self) -> str:
        return f"HashingModel({self.name!r}, {self.dims})"

    def __reduce__(self) -> tuple[type[HashingModel], tuple[str, int]]:
        return HashingModel, (self.name, self.dims)

    def embed(self, texts: Sequence[str]) -> FloatMatrix:
        """One row of length 1 per text: float32, shape (n, dims); the same on every machine.

        Raises:
            EndpointRefusedError: a text is empty; it has no vector.
        """
        rows = np.empty((len(texts), self.dims), np.float32)
        for row, text in enumerate(texts):
            if not has_text(text):
                raise EndpointRefusedError(f"text {row} is empty: it has no vector", {"row": row})
            rows[row] = self._embed_one(Counter(tokens(text)))
        return rows

    def _embed_one(self, counts: Counter[str]) -> FloatVector:
        """Cell c ← Σ over tokens: tf weight × the token's weight in c; then divided by the length."""
        features = [self._token(token) for token in counts]
        cells = np.concatenate([where for where, _ in features])
        weights = [
            weight if count == 1 else weight * np.float32(round(TF_SCALE * math.sqrt(count)) / TF_SCALE)
            for (_, weight), count in zip(features, counts.values(), strict=True)
        ]
        sums = np.bincount(cells, np.concatenate(weights), self.dims)
        length = math.sqrt(np.dot(sums, sums))
        if length == 0.0:  # signs may cancel exactly, with one dim they often do: then the first word counts
            sums[cells[0]] = length = 1.0
        return np.asarray(sums / length, np.float32)

    def _features_of(self, token: str) -> Features:
        share = STOP_WORD_SHARE if token in _STOP_WORDS else 1
        grams = list(_grams(token))
        each = max(1, round(GRAMS_WEIGHT / math.sqrt(len(grams)))) if grams else 0
        hashes = [self._hash("w" + stem(token)), *map(self._hash, grams)]
        sizes = [WORD_WEIGHT, *[each] * len(grams)]
        where = np.asarray([h % self.dims for h in hashes], np.int32)
        signed = [s if h >> 63 else -s for h, s in zip(hashes, sizes, strict=True)]
        return where, np.asarray(signed, np.float32) * np.float32(TF_SCALE // share)

    def _hash_of(self, feature: str) -> int:
        digest = hashlib.blake2b(feature.encode("utf-8", "replace"), digest_size=8, key=self._salt)
        return int.from_bytes(digest.digest(), "little")


class BuiltinEmbedder:
    """The `Embedder` of a space whose endpoint is "builtin": the model of this module, in a thread."""

    def __init__(self, model: HashingModel, max_docs_per_s: float | None = None) -> None:
        """Embed at most so many texts a second; None: as fast as it goes."""
        self._model, self._pace = model, Pace(max_docs_per_s)

    async def embed(self, texts: Sequence[str]) -> FloatMatrix:
        """As `HashingModel.embed`; rows of length 1 fit every metric."""
        wait_s = self._pace.wait_s()
        self._pace.take(len(texts))  # before the wait: who comes next waits for these
        if wait_s:
            await asyncio.sleep(wait_s)
        return await asyncio.to_thread(self._model.embed, texts)

    async def describe(self) -> list[ServerInfo]:
        """The model's name; it runs in this process."""
        return [ServerInfo(model_id=f"builtin/{self._model.name}", pooling="hashing")]

    def endpoints(self) -> list[EndpointStats]:
        """None: it runs in this process."""
        return []

    async def close(self) -> None:
        """Nothing to let go of."""


def tokens(text: str) -> list[str]:
    """The words of a text in lower case: snake_case and camelCase taken apart; never empty for a text.

    A text without a letter or a digit is one token as it stands, so that it too has a vector.
    """
    words = [part.lower() for word in _WORD.findall(text) for part in _parts(word)]
    return words or [text.strip()[:MAX_WORD_CHARS]]


def stem(word: str) -> str:
    """A word without its commonest English endings: plural, -ing, -ed. Rough on purpose, and only a key."""
    if len(word) > 4 and word.endswith("ies"):
        word = word[:-3] + "y"
    elif len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")):
        word = word[:-1]
    for ending in ("ing", "ed"):
        if len(word) > len(ending) + 3 and word.endswith(ending):
            word = word.removesuffix(ending)
            if word[-1] == word[-2] and word[-1] not in "lsz":
                word = word[:-1]
    return word[:-1] if len(word) > 3 and word.endswith("e") else word


def _parts(word: str) -> list[str]:
    if word.islower() or word.isdigit() or (len(word) > 1 and word[1:].islower()):
        return [word[:MAX_WORD_CHARS]]
    return [part[:MAX_WORD_CHARS] for part in _HUMPS.split(word)]


def _grams(token: str) -> Iterator[str]:
    bounded = f"<{token}>"
    for size in GRAM_SIZES:
        for i in range(len(bounded) - size + 1):
            yield bounded[i : i + size]
