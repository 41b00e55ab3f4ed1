"""An order to rebuild a space is checked against it before anything is started."""

from __future__ import annotations

import pytest

from compass.domain.rebuild.order import RebuildOrder, check_order
from compass.domain.space import Space, SpaceConfig
from compass.errors import InvalidRequestError

FED = Space("a-1", "a", SpaceConfig(2, "m"), "building", 0.0)
OWN = Space("b-1", "b", SpaceConfig(2, "m", "builtin"), "building", 0.0)
ENDPOINT = "http://127.0.0.1:9/embed"


def test_each_endpoint_is_called_once_and_by_its_whole_url() -> None:
    """Whatever form it was named in."""
    order = RebuildOrder((ENDPOINT, "http://127.0.0.1:9", "builtin"))
    assert check_order(order, FED).endpoints == (ENDPOINT, "builtin")


def test_a_space_with_an_endpoint_of_its_own_needs_no_other() -> None:
    """It is used then."""
    assert check_order(RebuildOrder(), OWN).endpoints == ()


@pytest.mark.parametrize(
    ("order", "field"),
    [
        (RebuildOrder(), "embed_endpoint"),
        (RebuildOrder(("ftp://host",)), "embed_endpoint"),
        (RebuildOrder((ENDPOINT,), api_key_env="HOME"), "api_key_env"),
        (RebuildOrder((ENDPOINT,), budget=1.0), "budget"),
        (RebuildOrder((ENDPOINT,), cost_per_hour=1.0, cost_per_million_tokens=1.0), "cost_per_hour"),
    ],
)
def test_orders_that_do_not_fit(order: RebuildOrder, field: str) -> None:
    """Each is refused by its field."""
    with pytest.raises(InvalidRequestError) as refused:
        check_order(order, FED)
    assert refused.value.fields["errors"][0]["field"] == field
