"""What the router and its gateways say to each other, and what a lease lets a gateway do: pure.

A gateway answers from its table only while its lease runs. The lease runs from the instant *before* the
gateway sent the poll that was answered; the router counts it from the instant that poll *arrived*. So the
router never takes a lease for expired that its gateway still holds, whatever the network did in between and
however the two clocks are set.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from compass.domain.routing.table import CollectionRoute, RoutingTable
from compass.domain.space import Space

# How far the rates of two machines' clocks may differ (NTP slews each by 500 ppm at most). A gateway is
# granted this share less than the router counts.
DRIFT = 0.001

Stamp = tuple[int, int]  # (incarnation of the router, its revision): the greater one is the newer one
NOTHING: Stamp = (0, 0)


@dataclass(frozen=True, slots=True)
class Scope:
    """Which queries of a collection a transition concerns: those to these names, those to the default.

    An empty scope concerns none; its transition is published, and waited for, but holds nothing.
    """

    collection: str
    names: frozenset[str] = frozenset()
    default: bool = False

    @property
    def empty(self) -> bool:
        """Whether no query is concerned."""
        return not self.names and not self.default


@dataclass(frozen=True, slots=True)
class Fence:
    """An order to hold the queries of a scope; `id` is the revision that raised it."""

    id: int
    scope: Scope


@dataclass(frozen=True, slots=True)
class Ack:
    """What a gateway has applied, sent with each poll.

    Attributes:
        stamp: The newest directive it has applied; `NOTHING` before the first.
        draining: Ids of spaces that its table does not have any more, with queries still in flight.
    """

    stamp: Stamp = NOTHING
    draining: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Directive:
    """The whole of what a gateway must hold, not a difference: losing one, or getting it twice, is harmless.

    Attributes:
        lease_s: How long the gateway may answer, from the instant before it sent the poll.
        fences: All fences in force.
        table: None if the gateway has the newest one, by its acknowledgement.
    """

    stamp: Stamp
    lease_s: float
    fences: tuple[Fence, ...] = ()
    table: RoutingTable | None = None


class Leases:
    """The router's book of leases: no gateway holds one for longer than what is written here."""

    def __init__(self, lease_s: float, now: float, *, checked: bool) -> None:
        """Begin with no lease given.

        Args:
            lease_s: How long a lease lasts.
            now: An instant after the router has claimed its incarnation.
            checked: Whether the router re-reads its claim and says so to `confirm`. Then no lease outlives
                the last reading by more than `lease_s`: a router that was superseded without noticing cannot
                keep a gateway that it alone can reach alive.
        """
        self._lease_s = lease_s
        self._confirmed = now if checked else float("inf")
        self._until: dict[str, float] = {}

    def grant(self, gateway: str, arrived: float) -> float:
        """Give a lease for a poll that arrived then: seconds that the gateway may count from its sending."""
        until = min(arrived, self._confirmed) + self._lease_s
        self._until[gateway] = max(self._until.get(gateway, until), until)
        return max(0.0, (until - arrived) * (1 - DRIFT))

    def release(self, gateway: str) -> None:
        """Take note that a gateway has stopped answering for good."""
        self._until.pop(gateway, None)

    def confirm(self, at: float) -> None:
        """Take note that a reading of the claim that began `at` found this router the newest."""
        self._confirmed = max(self._confirmed, at)

    def until(self, gateway: str) -> float:
        """When the last lease of a gateway has run out for certain; minus infinity without any."""
        return self._until.get(gateway, float("-inf"))

    def live(self, now: float) -> set[str]:
        """The gateways that may hold a lease; forgets the others."""
        self._until = {gateway: until for gateway, until in self._until.items() if now < until}
        return set(self._until)


@dataclass(frozen=True, slots=True)
class Routed:
    """Where a query goes: the route of its collection and the space, out of one table."""

    route: CollectionRoute
    space: Space


@dataclass(slots=True)
class Holding:
    """What one gateway holds, and whether it may answer a query from it.

    Attributes:
        table: The newest table it was given.
        stamp: The newest directive it has applied.
        fences: Those of that directive.
        until: When its lease ends, on its own clock.
        in_flight: Queries under way, by space id.
    """

    table: RoutingTable = field(default_factory=RoutingTable)
    stamp: Stamp = NOTHING
    fences: tuple[Fence, ...] = ()
    until: float = float("-inf")
    in_flight: Counter[str] = field(default_factory=Counter)

    def receive(self, directive: Directive, sent_at: float) -> None:
        """Apply the answer to a poll; `sent_at` is an instant before that poll was sent.

        An older router's answer is worth nothing, not even its lease. Of the same router's answers that
        overtook each other the older one renews the lease and changes nothing else.
        """
        if directive.stamp[0] < self.stamp[0]:
            return
        granted = sent_at + directive.lease_s
        same_router = directive.stamp[0] == self.stamp[0]
        self.until = max(self.until, granted) if same_router else granted
        if directive.stamp > self.stamp:
            self.stamp, self.fences = directive.stamp, directive.fences
            self.table = self.table if directive.table is None else directive.table

    def leased(self, now: float) -> bool:
        """Whether it may answer from its table at all."""
        return now < self.until

    def fenced(self, collection: str, space: str | None) -> bool:
        """Whether a query to this space, or to the default for None, has to wait."""
        return any(
            (fence.scope.default and space is None) or self._name(collection, space) in fence.scope.names
            for fence in self.fences
            if fence.scope.collection == collection
        )

    def begin(self, collection: str, space: str | None) -> Routed:
        """Route a query that is neither fenced nor without a lease, and count it as in flight.

        Raises:
            NotFoundError: there is no such collection or space.
            SpaceNotActiveError: the space is building or failed.
        """
        route = self.table.route(collection)
        routed = Routed(route, route.active_space(space))
        self.in_flight[routed.space.id] += 1
        return routed

    def end(self, routed: Routed) -> bool:
        """Count a query as answered; whether it was the last one on a space that is in no table any more."""
        space_id = routed.space.id
        self.in_flight[space_id] -= 1
        if self.in_flight[space_id]:
            return False
        del self.in_flight[space_id]
        return space_id not in self._space_ids()

    def ack(self) -> Ack:
        """What the next poll says."""
        draining = self.in_flight.keys() - self._space_ids() if self.in_flight else ()
        return Ack(self.stamp, frozenset(draining))

    def _name(self, collection: str, space: str | None) -> str | None:
        route = self.table.collections.get(collection)
        return route.default if space is None and route else space

    def _space_ids(self) -> set[str]:
        routes = self.table.collections.values()
        return {space.id for route in routes for space in route.spaces.values()}
