"""Compass: swap embedding models under a live collection.

Inside a Ray application, `compass.connect()` answers a client of the service that runs on the same cluster.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from compass.client import AsyncClient, Client, connect, connect_async

__version__ = "0.1.0"
__all__ = ["AsyncClient", "Client", "__version__", "connect", "connect_async"]


def __getattr__(name: str) -> Any:
    # The client brings Ray with it, which takes seconds to import; the store and the CLI do not need it.
    if name in ("AsyncClient", "Client", "connect", "connect_async"):
        from compass import client

        return getattr(client, name)
    raise AttributeError(f"module 'compass' has no attribute {name!r}")
