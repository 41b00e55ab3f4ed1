"""An application of Ray Serve on this process's own cluster, called by handle.

The only adapter that names Ray, and only where it calls: a process that has no endpoint `serve://…` never
imports it.
"""

from __future__ import annotations

import asyncio
import threading
from functools import lru_cache
from typing import Any

from compass.errors import EmbeddingError, EndpointForbiddenError, EndpointUnavailableError

FAILED = 500  # the status of a fault inside the application, as HTTP would have it


class ServeApplication:
    """One application by its name; finds it again after it was deployed anew. For any event loop of the process."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._handle: Any = None
        self._looking_up = threading.Lock()

    async def call(self, method: str, *arguments: Any, timeout_s: float) -> Any:
        """What a method of one of its replicas returns.

        Raises:
            EndpointUnavailableError: the cluster has no such application now, it did not answer in time, or its
                replica ended or failed meanwhile.
            EndpointForbiddenError: it has no such method.
        """
        handle: Any = None
        try:
            async with asyncio.timeout(timeout_s):
                # Held until the answer is there: with the last handle its router goes, and who waits in it for ever.
                handle = self._handle or await asyncio.to_thread(self._shared_handle)
                return await handle.options(method_name=method).remote(*arguments)
        except TimeoutError:
            self._forget(handle)
            raise self._error(f"did not answer within {timeout_s:.3g} s", timed_out=True) from None
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            raise self._error("its replica ended meanwhile") from None  # Serve cancels what a replica leaves behind
        except EmbeddingError:
            raise
        except Exception as error:  # noqa: BLE001 - Ray's, Serve's and the application's own have no common root
            failure = self._failure(method, error)
            if "status" not in failure.fields:
                self._forget(handle)
            raise failure from None

    def _shared_handle(self) -> Any:
        """The handle, looked up once by however many callers: each has a router with connections of its own."""
        with self._looking_up:
            if self._handle is None:
                self._handle = self._look_up()
            return self._handle

    def _forget(self, handle: Any) -> None:
        """Look for the application again the next time: a handle may not have heard that it was deployed anew."""
        if self._handle is handle:
            self._handle = None

    def _look_up(self) -> Any:
        import ray

        if not ray.is_initialized():  # Serve would start a cluster of its own to look for it
            raise self._error("is called from inside a Ray cluster, and this process is in none", unreachable=True)
        from ray import serve

        return serve.get_app_handle(self._name)

    def _failure(self, method: str, error: Exception) -> EmbeddingError:
        from ray.exceptions import RayActorError, RayTaskError
        from ray.serve.exceptions import BackPressureError, RayServeException

        if isinstance(error, AttributeError) or "does not exist. Available methods" in str(error):
            detail = f"serve://{self._name}: the application is no embedder of Compass, it has no {method}"
            return EndpointForbiddenError(detail, {"endpoint": f"serve://{self._name}"})
        if isinstance(error, BackPressureError):
            return self._error("has too many requests waiting", status=429)
        if isinstance(error, RayServeException):
            return self._error(_line(error), unreachable=True)
        if isinstance(error, RayActorError):
            return self._error("its replica ended meanwhile")
        if isinstance(error, RayTaskError):
            return self._error(f"failed: {_line(error)}", status=FAILED)
        return self._error(f"cannot be called: {type(error).__name__}: {_line(error)}")

    def _error(self, what: str, **fields: Any) -> EndpointUnavailableError:
        endpoint = f"serve://{self._name}"
        return EndpointUnavailableError(f"{endpoint}: {what}", {"endpoint": endpoint, **fields})


@lru_cache(maxsize=64)
def shared_application(name: str) -> ServeApplication:
    """The application of this name: one for the process, because a handle holds a router with threads of its own."""
    return ServeApplication(name)


def _line(error: Exception) -> str:
    """The last line of a message, which is where Ray puts the cause."""
    lines = str(error).strip().splitlines()
    return lines[-1] if lines else type(error).__name__
