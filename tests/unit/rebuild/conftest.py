"""What the tests of a rebuild share."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from rebuild_world import MakeOrder, World

from compass.domain.rebuild.order import RebuildOrder
from compass.errors import CompassError


@pytest_asyncio.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    """A collection whose space `new` is to be rebuilt."""
    made = World(tmp_path)
    yield made
    await made.close()


@pytest.fixture
def order() -> MakeOrder:
    """Make orders by the id of their job."""

    def make(job_id: str = "job-1", **fields: Any) -> RebuildOrder:
        return RebuildOrder(("http://embed",), job_id, **fields)

    return make


@pytest.fixture
def error_once() -> Callable[[CompassError], Callable[[Sequence[str]], None]]:
    """What raises an error at the first call, and nothing later."""

    def make(error: CompassError) -> Callable[[Sequence[str]], None]:
        left = [error]

        def raise_once(texts: Sequence[str]) -> None:
            if left:
                raise left.pop()

        return raise_once

    return make
