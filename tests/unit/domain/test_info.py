"""What a caller is told of a space and of a listing."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest

from compass.domain.info import SpaceRebuild
from compass.domain.page import Page
from compass.domain.rebuild.status import RebuildStatus
from compass.domain.space import Space, SpaceConfig

BUILDING = Space("a-1", "a", SpaceConfig(2, "m"), "building", 0.0)


@pytest.mark.parametrize("progress", [0.0, 0.5, 0.9999, 1.0])
def test_progress_is_one_exactly_when_the_space_is_active(progress: float) -> None:
    """Whatever its index says: the record of the space decides."""
    status = RebuildStatus(progress=progress)
    active = SpaceRebuild(replace(BUILDING, status="active"), status)
    assert (active.progress, active.percent) == (1.0, 100.0)
    building = SpaceRebuild(BUILDING, status)
    assert building.progress == min(progress, 0.9999)
    assert building.percent == round(100 * building.progress, 2)


@dataclass(frozen=True, slots=True)
class Item:
    id: int


def test_a_full_page_says_where_the_next_one_begins() -> None:
    """One that is not full is the last."""
    items = [Item(3), Item(8)]
    assert Page.of(items, 2) == Page(items, 8)
    assert Page.of(items, 3) == Page(items, None)
    assert Page.of(items[:0], 2) == Page([], None)
