"""The connections of an embedder, whichever way its endpoints are reached."""

from __future__ import annotations

import asyncio
import atexit
from collections.abc import Callable
from weakref import WeakSet

import aiohttp

from compass.embedding.endpoint.resolver import CheckedResolver
from compass.embedding.endpoint.serve import Application
from compass.embedding.endpoint.serve_application import shared_application

READ_BUFFER_BYTES = 2 << 20


class Connections:
    """What an embedder calls its endpoints by: an HTTP session for each event loop, and Serve applications by name.

    Args:
        application: The application of a name.
    """

    def __init__(self, application: Callable[[str], Application] = shared_application) -> None:
        self.application = application
        self._sessions: dict[asyncio.AbstractEventLoop, aiohttp.ClientSession] = {}
        _open.add(self)

    def session(self) -> aiohttp.ClientSession:
        """The session of the running loop."""
        loop = asyncio.get_running_loop()
        session = self._sessions.get(loop)
        if session is None:
            self._sessions = {old: kept for old, kept in self._sessions.items() if not old.is_closed()}
            session = self._sessions[loop] = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(resolver=CheckedResolver(), limit=0),
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=aiohttp.ClientTimeout(),
                trust_env=False,
                read_bufsize=READ_BUFFER_BYTES,
            )
        return session

    async def close(self) -> None:
        """Close the sessions of every event loop that still runs."""
        here, sessions = asyncio.get_running_loop(), self._sessions
        self._sessions = {}
        for loop, session in sessions.items():
            if loop is here:
                await session.close()
            elif loop.is_running():
                await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(session.close(), loop))

    def abandon(self) -> None:
        """Let go at the end of the process, when no loop runs any more; the system closes the sockets."""
        for session in self._sessions.values():
            session.detach()
        self._sessions.clear()


_open: WeakSet[Connections] = WeakSet()


@atexit.register
def _abandon_all() -> None:
    """A process that Ray ends does not close its embedders; aiohttp would print a complaint for each."""
    for connections in list(_open):
        connections.abandon()
