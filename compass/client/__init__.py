"""Compass from Python."""

from __future__ import annotations

from compass.client.handle import APP, AsyncClient, Client, connect, connect_async

__all__ = ["APP", "AsyncClient", "Client", "connect", "connect_async"]
