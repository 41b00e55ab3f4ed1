"""What a run says of its endpoints, put together from what its stages say."""

from __future__ import annotations

from compass.domain.embedding.endpoint_stats import EndpointState, EndpointStats
from compass.rebuild.endpoint_stats import FRESH_S, RunEndpoints

URL = "http://e/embed"


class ManualClock:
    """Seconds that a test sets."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def word(
    state: EndpointState, docs: int = 100, docs_per_s: float = 10.0, last_error: str | None = None
) -> EndpointStats:
    return EndpointStats(
        URL,
        state,
        in_flight=2,
        window=4,
        batch_size=32,
        docs_per_s=docs_per_s,
        docs=docs,
        errors=1,
        last_error=last_error,
    )


def test_stages_that_work_are_added_up() -> None:
    """The best state that any of them sees counts."""
    fleet = RunEndpoints(ManualClock())
    fleet.report("a", [word("up")])
    fleet.report("b", [word("down", last_error="refused")])
    (told,) = fleet.endpoints()
    assert (told.state, told.docs, told.docs_per_s, told.in_flight) == ("up", 200, 20.0, 4)
    assert told.last_error == "refused"
    assert fleet.waiting() is None


def test_a_stage_that_has_ended_hides_no_outage() -> None:
    """It is heard no more: what it counted stays, how its endpoints did does not."""
    clock = ManualClock()
    fleet = RunEndpoints(clock)
    fleet.report("ended", [word("up", docs_per_s=3_000.0)])
    clock.now_s = FRESH_S + 1
    fleet.report("works", [word("down", docs=5, last_error="connection refused")])
    (told,) = fleet.endpoints()
    assert (told.state, told.docs_per_s, told.docs, told.errors) == ("down", 10.0, 105, 2)
    assert "connection refused" in str(fleet.waiting())


def test_when_all_stages_have_ended_their_last_words_count() -> None:
    """While the index catches up nobody asks an endpoint, and nobody waits for one."""
    clock = ManualClock()
    fleet = RunEndpoints(clock)
    fleet.report("a", [word("up")])
    clock.now_s = 100 * FRESH_S
    assert fleet.endpoints()[0].state == "up"
    assert fleet.waiting() is None
