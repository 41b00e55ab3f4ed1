"""Unit tests take seconds and no Ray: whoever starts one here fails. What they share is in `tests/support`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from fake_service import FakeService
from world import World, hurried


@pytest.fixture(autouse=True)
def _no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make `ray.init` an error, where Ray is imported at all."""
    import sys

    if "ray" in sys.modules:

        def refuse(*_: Any, **__: Any) -> None:
            raise AssertionError("a unit test must not start Ray")

        monkeypatch.setattr(sys.modules["ray"], "init", refuse)


@pytest.fixture
def new_service() -> Callable[..., FakeService]:
    """Make a service with these settings."""
    return FakeService


@pytest.fixture
def service() -> FakeService:
    """An open service on the default address, without collections."""
    return FakeService()


@pytest.fixture
async def http(service: FakeService) -> AsyncIterator[httpx.AsyncClient]:
    """A client of it."""
    async with service.http() as client:
        yield client


@pytest.fixture
async def docs(service: FakeService, http: httpx.AsyncClient) -> FakeService:
    """A collection `docs` of two active spaces: `old` (default, 4 dims, built-in) and `fed` (3 dims, no embedder)."""
    spaces = {
        "old": {"dims": 4, "model": "m-old", "embed_endpoint": "builtin"},
        "fed": {"dims": 3, "model": "m-fed"},
    }
    answer = await http.post("/collections", json={"name": "docs", "vector_spaces": spaces})
    assert answer.status_code == 201, answer.text
    return service


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    """A service without collections: the real parts behind the gateway, in this process."""
    async with hurried(tmp_path) as made:
        yield made
