"""A service without gateways ends by itself, and a router that has a successor ends nothing but itself."""

from __future__ import annotations

import pytest

from compass.domain.routing.idle_exit import Decision, IdleExit, may_release

IDLE_S = 3.0
BEGAN = 100.0  # when the router was opened, as the clock of its polls has it


def idle() -> IdleExit:
    return IdleExit(IDLE_S, router_epoch=5, last_renewal=BEGAN)


def after(*renewals: float) -> Decision:
    """The decision after so many seconds; each has the instant of the last poll that has arrived."""
    state, decision = idle(), Decision.GO_ON
    for last_renewal in renewals:
        assert decision is Decision.GO_ON, "nobody is asked again after a decision"
        state, decision = state.on_awake(1.0, last_renewal, superseded=False)
    return decision


def test_silence_ends_it_after_its_time() -> None:
    """Counted from the start, where no gateway has ever asked; it looks for a successor first."""
    assert after(BEGAN, BEGAN) is Decision.GO_ON
    assert after(BEGAN, BEGAN, BEGAN) is Decision.LOOK_FOR_SUCCESSOR


def test_a_poll_begins_the_count_anew() -> None:
    """The second in which it arrived is not one of silence."""
    assert after(BEGAN, BEGAN, 102.5, 102.5, 102.5) is Decision.GO_ON
    assert after(BEGAN, BEGAN, 102.5, 102.5, 102.5, 102.5) is Decision.LOOK_FOR_SUCCESSOR


def test_gateways_that_go_on_asking_keep_it() -> None:
    """However long that is."""
    assert after(*(BEGAN + second for second in range(1, 100))) is Decision.GO_ON


def test_a_suspension_of_the_machine_is_no_silence() -> None:
    """Only seconds that the process was awake are counted, however far the clock of the polls has jumped."""
    state, decision = idle().on_awake(1.0, last_renewal=BEGAN + 86_400, superseded=False)
    assert (state.silent_s, decision) == (0.0, Decision.GO_ON)


def test_a_time_between_two_looks_is_rounded_up() -> None:
    """It never ends a service early."""
    state = IdleExit(1.5, router_epoch=5, last_renewal=BEGAN)
    state, first = state.on_awake(1.0, BEGAN, superseded=False)
    _, second = state.on_awake(1.0, BEGAN, superseded=False)
    assert (first, second) == (Decision.GO_ON, Decision.LOOK_FOR_SUCCESSOR)


@pytest.mark.parametrize("last_renewal", [BEGAN, BEGAN + 0.5])
def test_a_superseded_router_ends_at_once(last_renewal: float) -> None:
    """Whether or not gateways still ask it; it leaves the actors to its successor."""
    _, decision = idle().on_awake(1.0, last_renewal, superseded=True)
    assert decision is Decision.END_ROUTER


@pytest.mark.parametrize(
    ("latest", "decision"),
    [
        (5, Decision.END_SERVICE),  # its own claim is the newest
        (4, Decision.END_SERVICE),
        (6, Decision.END_ROUTER),  # the gateways ask that one
        (None, Decision.END_ROUTER),  # nobody can tell
    ],
)
def test_silence_ends_the_service_only_where_no_successor_can_be(latest: int | None, decision: Decision) -> None:
    """The actors of a newer router must not be ended by an older one."""
    assert idle().on_look(latest) is decision


def test_a_router_releases_its_root_only_if_no_lease_can_run() -> None:
    """Its own gateways have ended; those of a predecessor hold a lease for as long as one lasts."""
    assert may_release(first=True, served_s=0.0, lease_s=30.0)
    assert not may_release(first=False, served_s=30.0, lease_s=30.0)
    assert may_release(first=False, served_s=30.1, lease_s=30.0)
