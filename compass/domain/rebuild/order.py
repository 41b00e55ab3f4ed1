"""What a rebuild is asked to do: one form from the request to the stage that embeds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from compass.domain.embedding.endpoint_url import check_endpoint
from compass.domain.flaws import Flaw, invalid
from compass.domain.names import check_key_variable
from compass.domain.space import Space, Status

_ROUTERS_OWN = ("restart", "accept_new_fingerprint")  # carried out before the run begins, so no part of its record


@dataclass(frozen=True, slots=True)
class RebuildOrder:
    """An order to rebuild a space.

    Attributes:
        endpoints: What embeds, URLs or `builtin`; empty, before the router has accepted it: the space's own.
        job_id: Named by the router when it accepts; it stays the same when the run resumes after a crash.
        api_key_env: The variable that holds the endpoints' key; the space's own key goes to its own endpoint alone.
        batch_size: Texts of one request.
        concurrency: Requests at once.
        max_docs_per_s: The most that may be embedded in a second; None for no limit.
        restart: Whether the space is emptied first.
        endpoint_timeout_s: How long work waits while no endpoint gives a good answer, before the run fails.
        max_failed: Chunks that may stay quarantined in a space that turns active.
        accept_new_fingerprint: Take endpoints that name their model otherwise, if their vectors agree.
        cost_per_million_tokens: What the endpoints cost by the token.
        cost_per_hour: What each of them costs by the hour.
        budget: The most that the run may spend, by one of these two; None for no limit.
    """

    endpoints: tuple[str, ...] = ()
    job_id: str = ""
    api_key_env: str | None = None
    batch_size: int | None = None
    concurrency: int | None = None
    max_docs_per_s: float | None = None
    restart: bool = False
    endpoint_timeout_s: float = 900.0
    max_failed: int = 0
    accept_new_fingerprint: bool = False
    cost_per_million_tokens: float | None = None
    cost_per_hour: float | None = None
    budget: float | None = None

    @property
    def limited(self) -> bool:
        """Whether it may not embed as fast as it can."""
        return any(limit is not None for limit in (self.max_docs_per_s, self.concurrency, self.budget))

    @property
    def metered(self) -> bool:
        """Whether each request is paid for before it goes."""
        return self.budget is not None or self.cost_per_million_tokens is not None

    def to_json(self) -> dict[str, Any]:
        """What is stored of it, as plain JSON values."""
        stored = {name: value for name, value in asdict(self).items() if name not in _ROUTERS_OWN}
        return {**stored, "endpoints": list(self.endpoints)}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> RebuildOrder:
        """The order among the values of a stored record."""
        stored = {f.name: data[f.name] for f in fields(RebuildOrder) if f.name in data}
        return RebuildOrder(**{**stored, "endpoints": tuple(stored["endpoints"])})


@dataclass(frozen=True, slots=True)
class RebuildStarted:
    """The answer to an order: the status of the space, and the name of the job."""

    status: Status
    job_id: str


def check_order(order: RebuildOrder, space: Space) -> RebuildOrder:
    """The order to rebuild this space, with each endpoint once and as it is called.

    Raises:
        InvalidRequestError: there is no endpoint anywhere, or one does not fit; a budget has no price, or two.
    """
    if not order.endpoints and space.config.embed_endpoint is None:
        detail = f"vector space {space.name!r} has no endpoint of its own: name one"
        raise invalid([Flaw("embed_endpoint", detail)])
    if order.api_key_env is not None:
        check_key_variable(order.api_key_env)
    _check_prices(order)
    return replace(order, endpoints=tuple(dict.fromkeys(check_endpoint(url) for url in order.endpoints)))


def _check_prices(order: RebuildOrder) -> None:
    by_token, by_hour = order.cost_per_million_tokens is not None, order.cost_per_hour is not None
    if by_token and by_hour:
        detail = "is given beside cost_per_million_tokens: an endpoint is paid by the token or by the hour"
        raise invalid([Flaw("cost_per_hour", detail)])
    if order.budget is not None and not by_token and not by_hour:
        detail = f"{order.budget:g} of what? Give cost_per_million_tokens or cost_per_hour too"
        raise invalid([Flaw("budget", detail)])
