"""How much an endpoint is given: against simulated servers, in simulated time."""

from __future__ import annotations

import heapq

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compass.domain.embedding.aimd import FIRST_BATCH, MOST_TEXTS, BatchSize, Window


def driven(window: Window, permits: int, answer_s: float, lanes: int | None = None) -> tuple[float, float]:
    """The share of its capacity that a server gives, and of refusals, once the window has had time to learn.

    It keeps at most `permits` at once and refuses the others. `lanes`: how many it works at, None: all at once.
    """
    now, good, refused = 0.0, 0, 0
    learnt_at = 4_000 * answer_s
    flying: list[tuple[float, float]] = []  # (ends, sent)
    free = [0.0] * (lanes or permits)  # a heap: when each lane is free again
    while now < 2 * learnt_at:
        while len(flying) < window.size:
            if len(flying) >= permits:
                refused += now > learnt_at
                window.refused(now, now)
                now += 0.001  # nothing is answered faster
                break
            ends = max(now, free[0]) + answer_s
            heapq.heapreplace(free, ends)
            heapq.heappush(flying, (ends, now))
        if flying and (len(flying) >= window.size or flying[0][0] <= now):
            now, sent = heapq.heappop(flying)
            good += now > learnt_at
            window.answered(now - sent)
    return good * answer_s / (lanes or permits) / learnt_at, refused / good


@pytest.mark.parametrize("permits", [1, 2, 3, 5, 8, 16, 33, 64])
@pytest.mark.parametrize("answer_ms", [5, 40, 200])
def test_a_server_with_permits_is_used_to_the_full(permits: int, answer_ms: int) -> None:
    """Once it has been learnt, at least 95 % of what it can give, and hardly a refusal."""
    used, refused = driven(Window(), permits, answer_ms / 1e3)
    assert used >= 0.95
    assert refused <= 0.05


@pytest.mark.parametrize("lanes", [1, 2, 3, 4])
@pytest.mark.parametrize("answer_ms", [1, 20, 200])
def test_a_server_that_queues_is_not_flooded(answer_ms: int, lanes: int) -> None:
    """It is kept busy, and its queue is short: what waits there waits in vain."""
    window = Window()
    used, refused = driven(window, 1_000, answer_ms / 1e3, lanes)
    assert (used >= 0.95, refused) == (True, 0)
    assert window.size <= 16


def test_a_limit_that_has_moved_is_found_soon() -> None:
    """Another client was there and has gone: after the first try that is taken the others follow each other."""
    window = Window(size=3, ceiling=3)
    windows = 0
    while window.size < 16:
        windows += 1
        for _ in range(window.size):
            window.answered(0.04)
    assert windows < 75
    window.refused(sent_at=1.0, now=2.0)
    assert (window.size, window.ceiling) == (15, 15)
    for _ in range(15 * 29):
        window.answered(0.04)
    assert window.size == 15, "refused: it is patient again"


def test_refusals_of_one_flight_count_once() -> None:
    """A burst of 429 is one cut, not one for each request of the burst."""
    window = Window(size=16)
    for _ in range(16):
        window.refused(sent_at=1.0, now=2.0)
    assert (window.size, window.ceiling) == (8, 15)
    window.refused(sent_at=2.5, now=3.0)
    assert window.size == 4


def test_a_server_that_was_away_is_met_with_care() -> None:
    """Back from the dead it gets the first window, or its known limit where that is less."""
    window = Window(size=64)
    window.restart()
    assert window.size == 4
    window = Window(size=2, ceiling=2)
    window.restart()
    assert window.size == 2


@settings(deadline=None)
@given(wanted=st.none() | st.integers(1, 1_000), server=st.none() | st.integers(1, 1_000))
def test_what_is_said_is_never_exceeded(wanted: int | None, server: int | None) -> None:
    """The caller's size and the server's: the smaller counts, whatever is answered; neither: it may grow."""
    size = BatchSize.of(wanted, server)
    for _ in range(100):
        size.answered(size.size, 0.01)
    known = [n for n in (wanted, server) if n is not None]
    assert size.size == (min(known) if known else MOST_TEXTS)


@settings(deadline=None)
@given(takes=st.integers(1, 400))
def test_the_size_that_is_refused_is_remembered(takes: int) -> None:
    """It grows to what a silent server takes, or to half of it and more, and never asks for more again."""
    size, refusals = BatchSize(), 0
    for _ in range(200):
        if size.size > takes:
            assert not size.is_proven(size.size)
            size.refused(size.size, size.size // 2)
            refusals += 1
        else:
            size.answered(size.size, 0.02)
    assert min(takes, MOST_TEXTS) // 2 < size.size <= min(takes, MOST_TEXTS)
    assert refusals <= max(1, FIRST_BATCH // takes + 1)


def test_a_larger_batch_that_costs_more_is_taken_back() -> None:
    """Where the seconds per text rise with the size, the smaller size stays."""
    size = BatchSize()
    for _ in range(100):
        size.answered(size.size, (0.001 if size.size <= 64 else 0.002) * size.size)
    assert size.size == 64


def test_a_short_batch_says_nothing_of_the_size() -> None:
    """The last texts of a job are few: their answer neither grows nor settles anything."""
    size = BatchSize()
    for _ in range(100):
        assert not size.answered(3, 0.01)
    assert (size.size, size.settled) == (FIRST_BATCH, False)
