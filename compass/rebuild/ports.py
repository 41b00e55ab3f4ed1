"""What a rebuild asks of the rest of the service; in production each port is an actor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from compass.domain.collection import CollectionStats
from compass.domain.space import SpaceStats
from compass.storage.snapshot.parts import Snapshot


class Collection(Protocol):
    """The only writer of the collection that is rebuilt."""

    async def checkpoint(self) -> Snapshot:
        """Everything committed so far, as parts that can be read."""

    async def stats(self) -> CollectionStats:
        """Its chunks; its last commit is the frontier of the log."""


class SpaceIndex(Protocol):
    """The index of the space that is rebuilt; it follows the log by itself."""

    async def load_files(self, keys: list[str]) -> None:
        """Take these vector files in; returns when they can be found. What it holds already costs nothing."""

    async def follow(self, seq: int, wait_s: float) -> int:
        """Wait until the space can find what was written up to `seq`; how many chunks it still lacks."""

    async def run_changed(self) -> None:
        """The run's record says something new of who embeds what."""

    async def stats(self) -> SpaceStats:
        """What it holds, and what it lacks."""

    async def ensure_same_model(self, endpoints: Sequence[str], api_key_env: str | None) -> None:
        """Check that these endpoints are the model that built the space; one that is silent passes.

        Raises:
            FingerprintMismatchError: one is another model.
        """


class Router(Protocol):
    """The authority over the state of spaces."""

    async def activate(self, collection: str, space_id: str) -> None:
        """Decide the activation: it returns when the space is active for every gateway.

        Raises:
            SpaceLagsError: the space lacks chunks; catch up and ask again.
        """

    async def fail(self, collection: str, space_id: str, error: str) -> None:
        """Mark a space that was never active as failed, with the reason; an active one stays as it is."""
