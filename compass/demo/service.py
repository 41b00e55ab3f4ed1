"""The calls of the HTTP interface that the main job makes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

import httpx

from compass.errors import CompassError, UnavailableError


class DemoCollection:
    """One collection of a running service.

    Args:
        client: Its base URL is the service.
        name: The collection's name.
        poll_s: Between two looks at a rebuild.
    """

    def __init__(self, client: httpx.AsyncClient, name: str, poll_s: float = 0.2) -> None:
        self.name, self._poll_s = name, poll_s
        self._client = client

    async def create(self, space: str, config: dict[str, Any]) -> None:
        """Create the collection with one space, which is its default."""
        await self._call("POST", "/collections", {"name": self.name, "vector_spaces": {space: config}})

    async def delete_if_there(self) -> None:
        """Delete what an interrupted run has left."""
        response = await self._client.delete(f"/collections/{self.name}")
        if response.status_code != 404:
            _checked(response)

    async def info(self) -> dict[str, Any]:
        """CollectionInfo."""
        return await self._call("GET", self._path())

    async def ingest(self, chunks: Sequence[dict[str, Any]], wait_s: float) -> dict[str, Any]:
        """Write chunks: durable, and searchable unless `pending` says otherwise."""
        return await self._call("POST", self._path("/ingest"), {"chunks": list(chunks), "wait_s": wait_s})

    async def search(self, query: str, space: str | None = None, top_k: int = 3) -> dict[str, Any]:
        """SearchResponse of the default space, or of the one named."""
        body: dict[str, Any] = {"query": query, "mode": "semantic", "top_k": top_k}
        return await self._call(
            "POST", self._path("/search"), body if space is None else {**body, "vector_space": space}
        )

    async def add_space(self, space: str, config: dict[str, Any]) -> None:
        """Add a space; it is building."""
        await self._call("POST", self._path("/vector-spaces"), {"name": space, **config})

    async def rebuild(self, space: str, endpoint: str, **options: Any) -> None:
        """Start the rebuild of a space through an endpoint; options as the interface names them."""
        body = {"embed_endpoint": endpoint, **options}
        await self._call("POST", self._path(f"/vector-spaces/{space}/rebuild"), body)

    async def rebuilding(self, space: str, timeout_s: float) -> AsyncIterator[dict[str, Any]]:
        """The RebuildStatus again and again; the last one is of an active space.

        Raises:
            CompassError: the rebuild has failed, or is not done after `timeout_s`.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            status = await self._call("GET", self._path(f"/vector-spaces/{space}/status"))
            yield status
            if status["status"] == "active":
                return
            if status["run"]["state"] in ("failed", "cancelled"):
                raise CompassError(f"the rebuild of {space!r} has {status['run']['state']}: {status.get('error')}")
            if time.monotonic() > deadline:
                raise UnavailableError(f"the rebuild of {space!r} is not done after {timeout_s:.0f} s: {status}")
            await asyncio.sleep(self._poll_s)

    async def space(self, space: str) -> dict[str, Any]:
        """SpaceInfo."""
        info: dict[str, Any] = (await self.info())["vector_spaces"][space]
        return info

    async def swap(self, space: str) -> float:
        """Make a space the default; how long the call took, seconds."""
        started = time.perf_counter()
        await self._call("PUT", self._path("/default-vector-space"), {"name": space})
        return time.perf_counter() - started

    async def drop(self, space: str) -> None:
        """Drop a space; its bytes are gone when this returns."""
        _checked(await self._client.delete(self._path(f"/vector-spaces/{space}")))

    def _path(self, rest: str = "") -> str:
        return f"/collections/{self.name}{rest}"

    async def _call(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        response = await self._client.request(method, path, json=body)
        _checked(response)
        answer: dict[str, Any] = response.json()
        return answer


def _checked(response: httpx.Response) -> None:
    if response.is_success:
        return
    request = f"{response.request.method} {response.request.url.path}"
    raise CompassError(
        f"{request} answered {response.status_code}: {response.text[:500]}", {"status": response.status_code}
    )
