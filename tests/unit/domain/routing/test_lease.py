"""What a lease lets a gateway do, and what the router may conclude from it."""

from __future__ import annotations

import pickle

import pytest

from compass.domain.routing.lease import DRIFT, Ack, Directive, Fence, Holding, Leases, Scope
from compass.domain.routing.table import CollectionRoute, RoutingTable
from compass.domain.space import Space, SpaceConfig, Status
from compass.errors import NotFoundError, SpaceNotActiveError


def space(name: str, status: Status = "active") -> Space:
    return Space(f"{name}-1", name, SpaceConfig(4, "m"), status, 0.0)


def table(*names: str, default: str = "old", version: int = 1, incarnation: int = 1) -> RoutingTable:
    spaces = {name: space(name) for name in names or ("old", "new")}
    return RoutingTable(incarnation, version, {"c": CollectionRoute("u", "c", 1, default, spaces)})


def holding(*fences: Scope) -> Holding:
    held = Holding()
    raised = tuple(Fence(i, scope) for i, scope in enumerate(fences))
    held.receive(Directive((1, 1), 10.0, raised, table()), sent_at=100.0)
    return held


def test_gateway_counts_its_lease_from_before_it_asked() -> None:
    """The lease ends `lease_s` after the sending, however late the answer came."""
    held = holding()
    assert held.leased(109.9)
    assert not held.leased(110.0)


def test_gateway_without_a_word_has_no_lease() -> None:
    """A gateway that was never answered does not answer."""
    assert not Holding().leased(-1e9)


def test_gateway_never_goes_back_to_an_older_table() -> None:
    """An answer that was overtaken renews the lease and changes nothing else."""
    held = holding()
    held.receive(Directive((1, 5), 10.0, (), table(default="new", version=5)), sent_at=101.0)
    held.receive(Directive((1, 3), 10.0, (Fence(3, Scope("c", default=True)),), table(version=3)), sent_at=105.0)
    assert held.table.route("c").default == "new"
    assert held.fences == ()
    assert held.leased(114.9)


def test_older_router_renews_no_lease() -> None:
    """Once a newer router has spoken, an older one's answer is worth nothing."""
    held = holding()
    held.receive(Directive((2, 1), 10.0, (), table(incarnation=2)), sent_at=101.0)
    held.receive(Directive((1, 99), 10.0, (), table(default="new", version=99)), sent_at=109.0)
    assert held.table.route("c").default == "old"
    assert not held.leased(112.0)


def test_newer_router_replaces_the_older_ones_lease() -> None:
    """A newer router knows nothing of older leases, so a gateway keeps only what it gave."""
    held = holding()
    held.receive(Directive((2, 1), 3.0, (), table(incarnation=2)), sent_at=101.0)
    assert not held.leased(104.0)


def test_directive_without_a_table_keeps_the_table() -> None:
    """Fences travel without the table that the gateway already has."""
    held = holding()
    held.receive(Directive((1, 2), 10.0, (Fence(2, Scope("c", default=True)),)), sent_at=101.0)
    assert held.table.route("c").default == "old"
    assert held.fenced("c", None)


@pytest.mark.parametrize(
    ("scope", "asked", "held"),
    [
        (Scope("c", default=True), None, True),
        (Scope("c", default=True), "old", False),
        (Scope("c", frozenset({"new"})), "new", True),
        (Scope("c", frozenset({"new"})), "old", False),
        (Scope("c", frozenset({"new"})), None, False),
        (Scope("c", frozenset({"old"})), None, True),  # the default by name: unnamed queries go there too
        (Scope("d", frozenset({"old"}), default=True), None, False),
        (Scope("c"), None, False),
    ],
)
def test_fence_holds_exactly_its_scope(scope: Scope, asked: str | None, held: bool) -> None:
    """A fence holds the queries that its change concerns and no others."""
    assert holding(scope).fenced("c", asked) is held


def test_fence_holds_queries_to_a_collection_that_is_only_being_created() -> None:
    """No gateway says 404 while another one answers already."""
    assert holding(Scope("new", frozenset({"x"}), default=True)).fenced("new", None)


def test_queries_on_a_space_that_left_the_table_are_draining() -> None:
    """A gateway tells which removed spaces it is still answering from, until the last query ends."""
    held = holding()
    first, second = held.begin("c", "old"), held.begin("c", None)
    assert held.ack() == Ack((1, 1), frozenset())
    held.receive(Directive((1, 2), 10.0, (), table("new", default="new", version=2)), sent_at=101.0)
    assert held.ack() == Ack((1, 2), frozenset({"old-1"}))
    assert not held.end(first)
    assert held.end(second)
    assert held.ack() == Ack((1, 2), frozenset())


def test_query_to_what_is_not_there_counts_nothing() -> None:
    """A refused query is not in flight."""
    held = holding()
    with pytest.raises(NotFoundError):
        held.begin("c", "nowhere")
    with pytest.raises(NotFoundError):
        held.begin("d", None)
    assert not held.in_flight


def test_building_space_is_refused() -> None:
    """Only an active space answers."""
    held = Holding()
    route = CollectionRoute("u", "c", 1, "old", {"old": space("old"), "new": space("new", "building")})
    held.receive(Directive((1, 1), 10.0, (), RoutingTable(1, 1, {"c": route})), sent_at=0.0)
    with pytest.raises(SpaceNotActiveError):
        held.begin("c", "new")


def test_router_never_takes_a_lease_for_expired_that_its_gateway_holds() -> None:
    """Sending comes before arrival, and the gateway is granted a little less than the router counts."""
    leases = Leases(10.0, 0.0, checked=False)
    granted = leases.grant("g", arrived=5.0)
    assert granted == pytest.approx(10.0 * (1 - DRIFT))
    assert leases.until("g") == 15.0
    assert leases.live(14.9) == {"g"}
    assert leases.live(15.0) == set()


def test_older_poll_does_not_shorten_a_lease() -> None:
    """Answers may leave in another order than the polls came."""
    leases = Leases(10.0, 0.0, checked=False)
    leases.grant("g", arrived=5.0)
    leases.grant("g", arrived=2.0)
    assert leases.until("g") == 15.0


def test_no_lease_outlives_the_routers_own_claim() -> None:
    """A router that cannot re-read its claim gives shorter and shorter leases, then none."""
    leases = Leases(10.0, 0.0, checked=True)
    assert leases.grant("g", arrived=4.0) == pytest.approx(6.0 * (1 - DRIFT))
    assert leases.grant("g", arrived=12.0) == 0.0
    leases.confirm(11.0)
    assert leases.grant("g", arrived=12.0) == pytest.approx(9.0 * (1 - DRIFT))


def test_words_cross_processes() -> None:
    """What routers and gateways say survives pickling as it was."""
    words = [
        Ack((1, 2), frozenset({"s"})),
        Directive((1, 2), 3.0, (Fence(1, Scope("c", frozenset({"n"}))),), table()),
    ]
    assert pickle.loads(pickle.dumps(words)) == words
