"""What the router asks of the other actors, and where it finds them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from compass.domain.collection import Change, CollectionState, CollectionStats
from compass.domain.embedding.fingerprint import ModelCheck
from compass.domain.history import Note
from compass.domain.rebuild.order import RebuildOrder
from compass.domain.rebuild.report import EstimateReport, Failure
from compass.domain.space import Lag, Space


class CollectionPort(Protocol):
    """What the router asks of a collection's writer."""

    async def state(self, router: int) -> CollectionState:
        """The spaces, the default, the epoch, for a router of this incarnation."""

    async def change(self, change: Change, router: int, note: Note | None = None) -> CollectionState:
        """Commit a change and its note under its precondition, unless a newer router has asked."""

    async def stats(self) -> CollectionStats:
        """Its live chunks, and its last commit."""

    async def sweep(self) -> None:
        """Delete the bytes of dropped spaces."""


class IndexPort(Protocol):
    """What the router asks of a space's index."""

    async def lag_at(self, seq: int, wait_s: float) -> Lag:
        """Wait for a commit; then what the space does without."""

    async def configure(self, space: Space) -> None:
        """Take the space as the log records it now."""

    async def ensure_memory(self, afresh: bool) -> None:
        """Check that the index's node has the memory for every live chunk, `afresh` in place of what is held.

        Raises:
            InsufficientMemoryError: it has not.
        """

    async def examine(self, endpoints: Sequence[str], api_key_env: str | None = None) -> list[ModelCheck]:
        """What these endpoints say of their model, and how they embed a few of the stored texts."""

    async def ensure_same_model(self, endpoints: Sequence[str], api_key_env: str | None = None) -> None:
        """Check that these endpoints are the model that built the space; one that is silent passes.

        Raises:
            FingerprintMismatchError: one is another model.
        """


class RebuildPort(Protocol):
    """What the router asks of a rebuild."""

    async def start(self, order: RebuildOrder) -> None:
        """Begin the run, or go on with it."""

    async def cancel(self) -> None:
        """End the run and keep its work."""

    async def running(self) -> bool:
        """Whether the run goes on."""

    async def writing(self) -> bool:
        """Whether the run may still add vectors."""


class Cluster(Protocol):
    """Where the other actors are: found by id, started if they are not there."""

    def collection(self, uuid: str) -> CollectionPort:
        """The writer of a collection."""

    def index(self, uuid: str, space: Space) -> IndexPort:
        """The index of a space."""

    def rebuild(self, collection: str, uuid: str, space: Space) -> RebuildPort:
        """The rebuild of a space."""

    async def find_rebuild(self, space_id: str) -> RebuildPort | None:
        """The rebuild actor of a space, if there is one."""

    async def estimate(
        self, uuid: str, space: Space, order: RebuildOrder, known: Sequence[Failure]
    ) -> EstimateReport:
        """The estimate of a rebuild, by a process that lives no longer than that; see `Estimator.estimate`."""

    async def stop_collection(self, uuid: str) -> None:
        """Close the writer and end its process."""

    async def stop_index(self, space_id: str) -> None:
        """Close an index and end its process."""

    async def stop_rebuild(self, space_id: str) -> None:
        """End the process of a rebuild."""
