"""An ASGI application on a socket of this process: in the foreground, or in a thread while a block runs."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from compass.errors import UnavailableError

START_TIMEOUT_S, STOP_TIMEOUT_S = 10.0, 10.0


def run(app: ASGIApp, host: str, port: int, on_ready: Callable[[str], Any] | None = None) -> None:
    """Serve until SIGINT or SIGTERM.

    Args:
        app: The application.
        host: Address to bind.
        port: 0 for a free one.
        on_ready: Called with the base URL once the server takes requests.

    Raises:
        UnavailableError: the address cannot be bound.
    """
    with _bound(host, port) as listener:
        ready = (lambda: on_ready(_url(listener))) if on_ready is not None else None
        _Uvicorn(app, ready).run(sockets=[listener])


@contextmanager
def served(app: ASGIApp, what: str) -> Iterator[str]:
    """Serve in a thread of this process, on a free port of 127.0.0.1, while the block runs; the base URL.

    Raises:
        UnavailableError: `what`, as the message calls it, did not start.
    """
    ready = threading.Event()
    with _bound("127.0.0.1", 0) as listener:
        http = _Uvicorn(app, ready.set)
        thread = threading.Thread(target=http.run, kwargs={"sockets": [listener]}, name=what, daemon=True)
        thread.start()
        try:
            if not ready.wait(START_TIMEOUT_S):
                raise UnavailableError(f"the {what} did not start within {START_TIMEOUT_S} s")
            yield _url(listener)
        finally:
            http.should_exit = http.force_exit = True
            thread.join(STOP_TIMEOUT_S)


class _Uvicorn(uvicorn.Server):
    """uvicorn, that says when it takes requests."""

    def __init__(self, app: ASGIApp, ready: Callable[[], Any] | None) -> None:
        super().__init__(uvicorn.Config(app, lifespan="off", log_level="warning", access_log=False))
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self._ready is not None:
            self._ready()


def _bound(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=512)
    except OSError as error:
        raise UnavailableError(f"cannot listen on {host}:{port}: {error.strerror}") from error


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
