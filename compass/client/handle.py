"""Compass from Python, inside a Ray application: from a driver, a task or an actor of the same cluster.

    import compass

    client = compass.connect()
    client.search("docs", query="rotate a log file", top_k=3)

    client = compass.connect_async()
    await client.search("docs", query="rotate a log file", top_k=3)

The methods mirror the HTTP interface: the same arguments by the same names, the same answers as plain dicts,
the same errors as exceptions of `compass.errors`. `Client` blocks; each method of `AsyncClient` is the same
one, awaited.
"""

from __future__ import annotations

from collections.abc import Awaitable, Iterable, Mapping
from typing import Any, cast

from ray import serve
from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from compass.errors import CompassError, UnavailableError

APP = "compass"
Json = dict[str, Any]


class Operations:
    """What can be asked of a Compass service; `_call` is how."""

    def _call(self, operation: str, **arguments: Any) -> Any:
        raise NotImplementedError

    def create_collection(self, name: str, **fields: Any) -> Any:
        """Create a collection; fields as of `POST /collections`."""
        return self._call("create_collection", body={"name": name, **fields})

    def collections(self) -> Any:
        """Every collection's info."""
        return self._call("list_collections")

    def collection(self, collection: str) -> Any:
        """One collection's info."""
        return self._call("collection_info", collection=collection)

    def delete_collection(self, collection: str) -> Any:
        """Delete a collection and every byte of it."""
        return self._call("delete_collection", collection=collection)

    def ingest(
        self,
        collection: str,
        chunks: Iterable[Mapping[str, Any]],
        wait_s: float = 10.0,
        expected_epoch: int | None = None,
    ) -> Any:
        """Write chunks; durable when it returns: {indexed, id_map, seq, pending, took_ms}."""
        body = {"chunks": [dict(c) for c in chunks], "wait_s": wait_s, "expected_epoch": expected_epoch}
        return self._call("ingest", collection=collection, body=body)

    def chunks(self, collection: str, after: int = -1, limit: int = 100) -> Any:
        """A page of chunks by id: {chunks, next}."""
        return self._call("chunks", collection=collection, after=after, limit=limit)

    def chunk(self, collection: str, chunk_id: int) -> Any:
        """One chunk."""
        return self._call("chunk", collection=collection, chunk_id=chunk_id)

    def delete_chunk(self, collection: str, chunk_id: int) -> Any:
        """Delete one chunk: {deleted, seq}."""
        return self._call("delete_chunk", collection=collection, chunk_id=chunk_id)

    def delete(self, collection: str, **what: Any) -> Any:
        """Delete by `ids` or by `filters`: {deleted, seq}."""
        return self._call("delete", collection=collection, body=what)

    def search(self, collection: str, query: str = "", **fields: Any) -> Any:
        """Search; fields as of `POST …/search`: {results, total, vector_space, epoch, …}."""
        return self._call("search", collection=collection, body={"query": query, **fields})

    def add_space(self, collection: str, name: str, dims: int, model: str, **config: Any) -> Any:
        """Add a building space."""
        body = {"name": name, "dims": dims, "model": model, **config}
        return self._call("add_space", collection=collection, body=body)

    def spaces(self, collection: str) -> Any:
        """The spaces of a collection."""
        return self._call("list_spaces", collection=collection)

    def set_space(self, collection: str, space: str, **changes: Any) -> Any:
        """Change what can change while a space answers; fields as of `PATCH …/vector-spaces/{space}`: its info."""
        return self._call("set_space", collection=collection, space=space, body=changes)

    def drop_space(self, collection: str, space: str, confirm: str | None = None, reason: str | None = None) -> Any:
        """Drop a space and its bytes; `confirm` is its name, wanted while it was the default a short while ago."""
        return self._call("drop_space", collection=collection, space=space, confirm=confirm, reason=reason)

    def rebuild(self, collection: str, space: str, **fields: Any) -> Any:
        """Start or resume a rebuild; fields as of `POST …/rebuild`: {status, job_id}."""
        return self._call("rebuild", collection=collection, space=space, body=fields)

    def estimate_rebuild(self, collection: str, space: str, **fields: Any) -> Any:
        """What a rebuild would take, what it would cost, and what would fail; fields as of `rebuild`."""
        return self._call("rebuild", collection=collection, space=space, body={**fields, "dry_run": True})

    def rebuild_status(self, collection: str, space: str) -> Any:
        """The status of a space's rebuild."""
        return self._call("rebuild_status", collection=collection, space=space)

    def quarantine(self, collection: str, space: str, after: int = -1, limit: int = 100) -> Any:
        """A page of the chunks that a space's endpoint refuses, by id: {chunks, next}."""
        return self._call("quarantine", collection=collection, space=space, after=after, limit=limit)

    def cancel_rebuild(self, collection: str, space: str, reason: str | None = None) -> Any:
        """Cancel a running rebuild; its work is kept."""
        return self._call("cancel_rebuild", collection=collection, space=space, reason=reason)

    def swap(self, collection: str, space: str, **fields: Any) -> Any:
        """Make a space the default: {previous, current, epoch}."""
        return self._call("swap", collection=collection, body={"name": space, **fields})

    def rollback(self, collection: str, **fields: Any) -> Any:
        """Make the previous default the default again: {previous, current, epoch}."""
        return self._call("swap", collection=collection, body={"rollback": True, **fields})

    def history(self, collection: str) -> Any:
        """What was done to the spaces of a collection: {events}, oldest first."""
        return self._call("history", collection=collection)


class Client(Operations):
    """A client whose calls block. Not for use on an event loop: see `AsyncClient`."""

    def __init__(self, handle: DeploymentHandle[Any]) -> None:
        """Call through a handle of the gateway deployment."""
        self._handle = handle

    def _call(self, operation: str, **arguments: Any) -> Any:
        try:
            return self._handle.call.remote(operation, arguments).result()
        except (RayError, RayServeException) as error:
            raise _cause(error) from None


class AsyncClient(Operations):
    """A client whose calls are awaited."""

    def __init__(self, handle: DeploymentHandle[Any]) -> None:
        """Call through a handle of the gateway deployment."""
        self._handle = handle

    def _call(self, operation: str, **arguments: Any) -> Awaitable[Any]:
        return self._await(operation, arguments)

    async def _await(self, operation: str, arguments: Json) -> Any:
        try:
            return await self._handle.call.remote(operation, arguments)
        except (RayError, RayServeException) as error:
            raise _cause(error) from None


def connect() -> Client:
    """A blocking client of the Compass that runs on this Ray cluster; joins the cluster if need be.

    Raises:
        UnavailableError: no Compass runs here.
    """
    return Client(_handle())


def connect_async() -> AsyncClient:
    """A client for event loops, of the Compass that runs on this Ray cluster.

    Raises:
        UnavailableError: no Compass runs here.
    """
    return AsyncClient(_handle())


def _handle() -> DeploymentHandle[Any]:
    try:
        return serve.get_app_handle(APP)
    except (RayServeException, ConnectionError) as error:
        raise UnavailableError(
            f"no Compass runs on this Ray cluster ({error}); start it with `compass serve` or `serve deploy`"
        ) from error


def _cause(error: Exception) -> BaseException:
    """What the gateway raised; a gateway that died, or that Serve cannot reach, is unavailable for now."""
    if isinstance(error, RayTaskError):
        cause = getattr(error, "cause", None)
        return cast(BaseException, cause) if isinstance(cause, CompassError) else error
    return UnavailableError(f"the gateway does not answer ({type(error).__name__}); try again", {"retry_after": 1})
