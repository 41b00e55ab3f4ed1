"""How an endpoint does: what its caller counts, a rebuild stores, and the status shows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

EndpointState = Literal["new", "up", "paused", "down", "refused"]


@dataclass(frozen=True, slots=True)
class EndpointStats:
    """One endpoint, since it was first asked.

    Attributes:
        url: Without secrets.
        in_flight: Requests that it has not answered yet.
        window: Requests that it may have in flight now; 0 where nobody limits them.
        batch_size: Texts of one request, as far as that is known.
        docs: Texts that it has embedded.
        tokens: Of those, as the server counted them; 0 if it does not.
        errors: Requests that failed.
    """

    url: str
    state: EndpointState = "up"
    in_flight: int = 0
    window: int = 0
    batch_size: int | None = None
    docs_per_s: float = 0.0
    docs: int = 0
    tokens: int = 0
    errors: int = 0
    last_error: str | None = None

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return asdict(self)

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> EndpointStats:
        """The inverse of `to_json`; what a record of another version has beyond it is left out."""
        return EndpointStats(**{f.name: data[f.name] for f in fields(EndpointStats) if f.name in data})
