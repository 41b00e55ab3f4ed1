"""An endpoint as a member of a fleet: its state, and what is known of its capacity."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace
from typing import Literal

from compass.domain.embedding.aimd import BatchSize, Window
from compass.domain.embedding.endpoint_stats import EndpointStats
from compass.embedding.endpoint.base import Endpoint
from compass.errors import EmbeddingError

State = Literal["new", "up", "paused", "down", "refused"]


@dataclass(slots=True, eq=False)
class Member:
    """An endpoint of the fleet, and what is known of its capacity.

    Attributes:
        state: "new" until it has answered `/info` in some way; "refused" is for good.
        busy: Requests that were given to it and are not through.
        resuming: Ends its pause.
        failures: Failures since its last good answer.
        overloads: 429 since its last good answer.
        why: The error that it is refused for.
    """

    client: Endpoint
    batch: BatchSize = field(default_factory=BatchSize)
    window: Window = field(default_factory=Window)
    state: State = "new"
    busy: int = 0
    resuming: asyncio.TimerHandle | None = None
    failures: int = 0
    overloads: int = 0
    why: EmbeddingError | None = None

    @property
    def says_its_limit(self) -> bool:
        """Whether its `/info` tells how many texts it takes, so that no refusal has to be read as that."""
        return self.client.info is not None and self.client.info.max_batch is not None

    def has_room(self) -> bool:
        """Whether it may be given a request now."""
        return self.state == "up" and self.busy < self.window.size

    def answered(self, count: int, latency_s: float) -> None:
        """Count a good answer."""
        self.failures = self.overloads = 0
        full = count == self.batch.size
        if self.batch.answered(count, latency_s):
            self.window.other_batches()
        elif full and self.batch.settled:
            self.window.answered(latency_s)

    def stats(self) -> EndpointStats:
        """How it does."""
        return replace(
            self.client.stats(),
            state=self.state,
            window=self.window.size,
            in_flight=self.busy,
            batch_size=self.batch.size,
        )
