"""The arithmetic of an estimate: a sample in, figures with their uncertainty out."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compass.domain.rebuild.budget import Price
from compass.domain.rebuild.estimate import (
    Answer,
    Built,
    Probed,
    Span,
    Terms,
    Work,
    cost,
    fleet_speed,
    refused_in_all,
    sample_order,
    speed,
    times,
    tokens_in_all,
)


def steady(docs_per_s: float, answers: int = 40, docs: int = 10) -> list[Answer]:
    """Answers at a constant pace, after a warm-up that took long."""
    return [Answer(5 + i * docs / docs_per_s, docs) for i in range(answers)]


@given(st.lists(st.integers(0, 10_000), min_size=1, max_size=300), st.integers(1, 300))
def test_a_sample_is_a_set_of_positions_with_the_longest_first(lengths: list[int], most: int) -> None:
    """As many as asked for, none twice, the longest first, the shortest second, and the same each time."""
    array = np.array(lengths, np.int64)
    order = sample_order(array, most)
    assert len(order) == min(most, len(lengths))
    assert len(set(order.tolist())) == len(order)
    assert set(order.tolist()) <= set(range(len(lengths)))
    assert array[order[0]] == max(lengths)
    if len(order) > 1:
        assert array[order[1]] == min(lengths)
    assert order.tolist() == sample_order(array, most).tolist()


@pytest.mark.parametrize("head", [32, 100, 400])
def test_every_first_part_of_a_sample_is_spread_over_the_lengths(head: int) -> None:
    """Each tenth of the chunks by length has about a tenth of the sample, wherever one stops."""
    lengths = np.random.default_rng(0).permutation(np.arange(20_000, dtype=np.int64) ** 2)
    order = sample_order(lengths, 1_000)[2:head]
    tenth = np.argsort(np.argsort(lengths))[order] // 2_000
    counts = np.bincount(tenth, minlength=10)
    assert counts.max() - counts.min() <= 4


def test_the_speed_counts_neither_the_warm_up_nor_its_time() -> None:
    """What was answered after the first answer, over the time since."""
    found = speed(steady(200))
    assert found is not None
    assert found.estimate == pytest.approx(200)
    assert found.low == pytest.approx(180)
    assert speed([]) is None


def bounds(span: Span | None) -> tuple[float, float]:
    assert span is not None
    assert span.low <= span.estimate <= span.high
    return span.low, span.high


def test_a_single_answer_tells_little() -> None:
    """By the time it took, and between a tenth of that and nearly twice."""
    assert bounds(speed([Answer(2.0, 10)])) == pytest.approx((0.5, 9.5))


def test_few_or_unsteady_answers_make_a_wide_span() -> None:
    """Half of it, for three answers or less than a second; more than a tenth where it goes up and down."""
    assert bounds(speed(steady(1_000))) == pytest.approx((500, 1_500))
    few, uneven = speed(steady(100, 3)), [Answer(float(i * i), 10) for i in range(40)]
    assert bounds(few) == pytest.approx((50, 150))
    found = speed(uneven)
    assert found is not None
    assert found.high > 1.3 * found.estimate


def test_a_fleet_is_the_sum_and_no_faster_than_allowed() -> None:
    """Endpoints that did not answer add nothing; without any there is no speed."""
    probed = [Probed("a", steady(100)), Probed("b", steady(300)), Probed("c")]
    total, capped = fleet_speed(probed, None), fleet_speed(probed, 150.0)
    assert total is not None
    assert total.estimate == pytest.approx(400)
    assert capped == Span(150, 150, 150)
    assert fleet_speed([Probed("c")], None) is None


LENGTHS = np.arange(1_000, dtype=np.int64)


def test_refusals_by_length_are_counted_by_length() -> None:
    """All that are as long as a refused one, at least; all that are longer than any that was taken, at most."""
    sampled = np.array([999, 950, 900, 500, 0])
    probed = Probed("a", refused={0: "too long", 1: "too long"}, taken=(2, 3, 4))
    assert refused_in_all(probed, sampled, LENGTHS) == Span(50, 74.5, 99)


def test_refusals_of_other_kinds_are_a_share() -> None:
    """A refused text that is shorter than one that was taken: the share of the sample, with its interval."""
    sampled = np.arange(0, 1_000, 10)
    probed = Probed("a", refused={50: "poison", 20: "poison"}, taken=[i for i in range(100) if i not in (20, 50)])
    found = refused_in_all(probed, sampled, LENGTHS)
    assert found.estimate == pytest.approx(20)
    assert 2 <= found.low < 20 < found.high < 100
    assert refused_in_all(Probed("a", taken=(1,)), sampled, LENGTHS) == Span(0, 0, 0)


def test_tokens_go_with_the_length_of_the_text() -> None:
    """Counted by the server if all do; else four characters each, and a wide span."""
    sampled = np.array([100, 300])
    counted = Probed("a", docs=2, chars=400, tokens=80, taken=(0, 1))
    silent = Probed("b", docs=2, chars=400, taken=(0, 1))
    found = tokens_in_all([counted], sampled, LENGTHS)
    assert found is not None
    assert found[0].estimate == pytest.approx(LENGTHS.sum() * 0.2)
    assert found[1] == "server"
    found = tokens_in_all([counted, silent], sampled, LENGTHS)
    assert found is not None
    assert found[0].estimate == pytest.approx(LENGTHS.sum() * 0.225)
    assert (found[0].high, found[1]) == (2 * found[0].estimate, "characters")
    assert tokens_in_all([Probed("c")], sampled, LENGTHS) is None


def test_the_longer_of_embedding_and_building_decides() -> None:
    """They go on side by side."""
    work = Work(1_000, 1_000, LENGTHS)
    built = Built(0, 1_000, 30.0, 200)
    slow = times(work, Span.exactly(10), built)
    fast = times(work, Span.exactly(1_000), built)
    assert slow["embedding"] == Span(100, 100, 100)
    assert slow["total"] == Span(103, 103, 103)
    assert fast["building"] is not None
    assert fast["building"].estimate == pytest.approx(30)
    assert fast["total"] is not None
    assert fast["total"].estimate == pytest.approx(33)
    assert times(work, None, None)["total"] is None


def test_a_row_costs_more_in_a_larger_graph() -> None:
    """Twice the rows take more than twice the time; what is there already takes none."""
    built = Built(2_000, 4_000, 1.0, 200)
    whole = built.time_for(0, 100_000).estimate
    assert built.time_for(0, 200_000).estimate > 2 * whole
    assert built.time_for(100_000, 200_000).estimate == pytest.approx(built.time_for(0, 200_000).estimate - whole)
    assert built.time_for(100_000, 100_000).estimate == 0


def test_the_cost_is_by_the_token_or_by_the_hour_of_each_endpoint() -> None:
    """No price, no cost."""
    tokens, total_s = Span(1e6, 2e6, 4e6), Span.exactly(1_800)
    assert cost(Terms(3, price=Price(0.5)), tokens, total_s) == Span(0.5, 1.0, 2.0)
    assert cost(Terms(3, price=Price(None, 2.0)), tokens, total_s) == Span(3, 3, 3)
    assert cost(Terms(3), tokens, total_s) is None
    assert cost(Terms(3, price=Price(0.5)), None, total_s) is None
