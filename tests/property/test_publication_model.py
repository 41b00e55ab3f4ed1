"""The swap's protocol against everything that a network, a clock and a kill can do to it.

`publication_world` is played at random; the last test plants faults in the protocol, one at a time, and the world
must notice each.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test
from publication_world import Gateway, PollMessage, World

from compass.domain.routing.lease import Directive, Holding
from compass.domain.routing.publication import Drain, Publication
from compass.domain.routing.publication import Phase as Step

SLOW = pytest.mark.timeout(1_200)  # a search of thousands of plays: minutes beside other work


def check(world: type[World], examples: int, **options: Any) -> None:
    """Let Hypothesis play a world."""
    run_state_machine_as_test(
        world,
        settings=settings(
            max_examples=examples,
            stateful_step_count=30,
            database=None,
            suppress_health_check=list(HealthCheck),
            **options,
        ),
    )


@SLOW
def test_protocol_never_lets_an_old_answer_follow_a_new_one() -> None:
    """Whatever is lost, late, doubled, stopped or killed: no stale default, no dropped space, no epoch back."""
    check(World, 2000, derandomize=True)


@pytest.mark.long
def test_protocol_holds_in_a_long_random_search() -> None:
    """The same, fifty thousand times and never the same ones."""
    check(World, 50_000)


# ---- the planted faults


class IgnoresSilentGatewaysAtTheFence(Publication):
    def _awaited(self, gateway: str, t: Any, now: float) -> bool:
        return t.phase is not Step.FENCE and super()._awaited(gateway, t, now)


class CountsAcksOfALoweredFence(Publication):
    def _require_acks(self, t: Any, now: float) -> None:
        lowered = t.revision
        super()._require_acks(t, now)
        if t.phase is Step.FENCE and lowered:
            t.revision = lowered


class PublishesWithoutWaiting(Publication):
    def _awaited(self, gateway: str, t: Any, now: float) -> bool:
        return t.phase is not Step.PUBLISH and super()._awaited(gateway, t, now)


class DrainsAtOnce(Publication):
    def _still(self, drain: Drain) -> frozenset[str]:
        return frozenset()


class BelievesAnyRouter(Holding):
    def receive(self, directive: Directive, sent_at: float) -> None:
        if directive.stamp[0] < self.stamp[0] and directive.table is not None:
            self.stamp, self.table, self.fences = directive.stamp, directive.table, directive.fences
        super().receive(directive, sent_at)


class NoFence(World):
    def sent_directive(self, directive: Directive) -> Directive:
        return replace(directive, fences=())


class FenceIgnoresLeases(World):
    publication = IgnoresSilentGatewaysAtTheFence


class SecondFenceIsNotAcknowledged(World):
    publication = CountsAcksOfALoweredFence


class PublishIgnoresLeases(World):
    publication = PublishesWithoutWaiting


class DropForgetsQueries(World):
    publication = DrainsAtOnce


class LeaseFromArrival(World):
    def lease_begins(self, gateway: Gateway, poll: PollMessage) -> float:
        return self.now + gateway.skew


class SuccessorDoesNotWait(World):
    successors_wait = False


class ZombieRenewsForEver(World):
    routers_check_claims = False


class LogTakesAnyRoutersCommit(World):
    log_fences_routers = False


class GatewayBelievesAnOlderRouter(World):
    holding = BelievesAnyRouter


class SaysFarewellAndGoesOn(World):
    def ends(self, gateway: int) -> None:
        pass


FAULTS = [
    SaysFarewellAndGoesOn,
    NoFence,
    FenceIgnoresLeases,
    SecondFenceIsNotAcknowledged,
    PublishIgnoresLeases,
    DropForgetsQueries,
    LeaseFromArrival,
    SuccessorDoesNotWait,
    ZombieRenewsForEver,
    LogTakesAnyRoutersCommit,
    GatewayBelievesAnOlderRouter,
]


@SLOW
@pytest.mark.parametrize("fault", FAULTS)
def test_planted_fault_is_found(fault: type[World]) -> None:
    """The model can fail: each way to get the protocol wrong is noticed."""
    with pytest.raises(AssertionError):
        check(fault, 20_000, derandomize=True, phases=[Phase.generate], report_multiple_bugs=False)
