"""An account never lets more be held than its budget, nor more than its stored mark."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compass.domain.rebuild.budget import FRAME_TOKENS, Account, Price, Spending, guessed_tokens, most_tokens


@given(st.floats(1, 1e6), st.lists(st.tuples(st.floats(0, 1e4), st.floats(0, 1)), max_size=60))
def test_spent_and_held_stay_within_the_mark_and_the_mark_within_the_budget(
    budget: float, requests: list[tuple[float, float]]
) -> None:
    """Whatever is asked for and whatever it costs, as long as it costs no more than was held."""
    account, under_way = Account(budget), []
    for amount, share in requests:
        if account.fits(amount):
            if not account.covers(amount):
                account.advance(amount)
            assert account.covers(amount)
            account.hold(amount)
            under_way.append((amount, share * amount))
        if len(under_way) > 3:
            account.settle(*under_way.pop(0))
        assert account.spent + account.held <= account.mark * (1 + 1e-9)
        assert account.mark <= budget
    account.close()
    assert account.held == 0
    assert account.spent <= budget * (1 + 1e-9)


def test_without_a_budget_everything_fits() -> None:
    """It only counts."""
    account = Account()
    assert account.fits(1e12)
    assert account.covers(1e12)
    account.hold(5)
    account.settle(5, 3)
    assert account.spending() == Spending(3.0, None, 3.0)


def test_the_stored_mark_covers_what_is_under_way() -> None:
    """Whoever goes on after a crash begins with it."""
    account = Account(100.0)
    account.advance(10)
    account.hold(10)
    assert account.spending() == Spending(0.0, 100.0, 10.5)


@pytest.mark.parametrize(("text", "least"), [("", 0), ("word", 4), ("漢字", 6), ("\ud800", 1)])
def test_no_text_is_more_tokens_than_its_bytes(text: str, least: int) -> None:
    """And what a model puts around it; half of a surrogate pair, which is never sent, does no harm."""
    assert most_tokens([text]) == least + FRAME_TOKENS
    assert guessed_tokens(len(text)) <= most_tokens([text])


def test_a_price_is_of_a_million_tokens_or_of_an_hour() -> None:
    """Per endpoint."""
    assert Price(2.0).of_token == pytest.approx(2e-6)
    assert Price(None, 3.6).of_time(10, 2) == pytest.approx(0.02)
    assert Price(2.0).of_time(10, 2) == 0
