"""Texts of all requests are embedded in batches of like length, and none pays for another."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compass.domain.chunk import FloatMatrix
from compass.embedder.batching import Pool, Treatment, Waiting, next_batch
from compass.embedder.tei import RefusalError

PLAIN = Treatment()


def _waiting(tokens: list[int], treatments: list[Treatment] | None = None) -> list[Waiting]:
    request: Any = None
    return [
        Waiting("", count, (treatments or [PLAIN] * len(tokens))[i], request, i) for i, count in enumerate(tokens)
    ]


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 40), st.booleans()), min_size=1, max_size=30),
    st.integers(1, 200),
    st.none() | st.integers(1, 8),
)
def test_a_batch_keeps_its_bounds_and_begins_with_the_oldest(
    texts: list[tuple[int, bool]], max_tokens: int, max_texts: int | None
) -> None:
    """One treatment, no more texts and padded tokens than allowed; the oldest text is in it, however long."""
    treatments = [Treatment("p" if prompted else "") for _, prompted in texts]
    waiting = _waiting([tokens for tokens, _ in texts], treatments)
    batch = next_batch(waiting, max_tokens, max_texts)
    assert batch[0] == 0
    assert len(set(batch)) == len(batch) <= (max_texts or len(batch))
    assert {treatments[i] for i in batch} == {treatments[0]}
    assert len(batch) == 1 or max(waiting[i].tokens for i in batch) * len(batch) <= max_tokens


def test_a_batch_holds_what_is_alike_in_length() -> None:
    """Of many, those nearest to the oldest in length, so that padding is little."""
    waiting = _waiting([10, 500, 11, 3, 9, 480, 10])
    assert sorted(next_batch(waiting, 50, None)) == [0, 2, 4, 6]


def _pool(encode: Any, **bounds: Any) -> Pool:
    return Pool(encode, 2, **{"max_tokens": 1_000, **bounds})


async def _ask(pool: Pool, *texts: str) -> FloatMatrix:
    return await pool.embed(texts, [len(text) for text in texts], [PLAIN] * len(texts))


async def test_requests_that_wait_share_a_batch(fake: Any) -> None:
    """What arrives while the model works goes together in the next batch, and each gets its own rows."""
    pool = Pool(fake.encode, 8, 1_000)
    fake.gate.clear()
    first = asyncio.create_task(_ask(pool, "a"))
    assert await asyncio.to_thread(fake.started.wait, 60)
    others = [asyncio.create_task(_ask(pool, *texts)) for texts in (["b", "c"], ["d"], ["e", "f", "g"])]
    await asyncio.sleep(0)  # each has put its texts into the pool
    fake.gate.set()
    rows = [await one for one in (first, *others)]
    assert [sorted(batch) for batch in fake.batches] == [["a"], ["b", "c", "d", "e", "f", "g"]]
    np.testing.assert_array_equal(np.concatenate(rows), fake.encode(list("abcdefg")))
    pool.close()


async def test_a_text_that_makes_the_model_fail_fails_its_own_request() -> None:
    """Its request is 424, those that shared its batch have their rows."""
    batches = []

    def encode(texts: list[str], prompt: str, side: str) -> FloatMatrix:
        batches.append(list(texts))
        if "poison" in texts:
            raise RuntimeError("device-side assert\nand a long story")
        return np.ones((len(texts), 2), np.float32)

    pool = _pool(encode)
    first = asyncio.create_task(_ask(pool, "first"))
    await asyncio.sleep(0)
    bad = asyncio.create_task(_ask(pool, "good", "poison", "better"))
    good = [asyncio.create_task(_ask(pool, str(i))) for i in range(6)]
    with pytest.raises(RefusalError, match="device-side assert") as caught:
        await bad
    assert (caught.value.status, caught.value.error_type) == (424, "Backend")
    assert "story" not in caught.value.error
    for one in (first, *good):
        assert (await one).shape == (1, 2)
    assert len(batches) <= 8, "halving, not one by one"
    pool.close()


async def test_rows_that_are_no_numbers_are_a_failure_of_the_model() -> None:
    """NaN never leaves: fp16 overflows where a model was made for more."""
    pool = _pool(lambda texts, prompt, side: np.full((len(texts), 2), np.nan, np.float32))
    with pytest.raises(RefusalError, match="NaN"):
        await _ask(pool, "a")
    assert pool.failed
    pool.close()


async def test_rows_of_another_shape_are_a_failure_of_the_model() -> None:
    """A model that gives fewer rows than texts, or wider ones, leaves no request waiting."""
    pool = _pool(lambda texts, prompt, side: np.zeros((len(texts), 3), np.float32))
    with pytest.raises(RefusalError, match="shape"):
        await _ask(pool, "a")
    pool.close()


async def test_a_request_that_nobody_waits_for_is_not_embedded(fake: Any) -> None:
    """A client that has gone costs the model nothing more."""
    pool = Pool(fake.encode, 8, 1_000)
    fake.gate.clear()
    first = asyncio.create_task(_ask(pool, "a"))
    assert await asyncio.to_thread(fake.started.wait, 60)
    gone, other = asyncio.create_task(_ask(pool, "gone")), asyncio.create_task(_ask(pool, "b"))
    await asyncio.sleep(0)
    gone.cancel()
    await asyncio.gather(gone, return_exceptions=True)
    fake.gate.set()
    await asyncio.gather(first, other)
    assert fake.batches == [["a"], ["b"]]
    pool.close()
