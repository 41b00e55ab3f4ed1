"""What the service says of itself."""

from __future__ import annotations

from msgspec import Struct


class Health(Struct):
    """The process lives."""

    status: str
    collections: int
    version: str


class Ready(Struct):
    """The gateway holds a valid routing table and every default space answers."""

    status: str


class NotYet(Struct):
    """An answer that a later version defines."""
