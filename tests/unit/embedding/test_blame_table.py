"""Who is to blame, by fault, control, kind of embedder and kind of server; and how many requests that takes.

Real servers throughout. One text of a batch, the culprit, meets a fault; or every text does, the control too.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import numpy as np
import pytest
from fleets import CONFIG, DIMS, MODEL, UNTIL_S, Reply
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.types import Receive, Scope, Send
from waiting import until

from compass.domain.embedding.contract import CONTROL_TEXT, Embedded, Embedder
from compass.domain.embedding.endpoint_url import EndpointUrl
from compass.embedding.fleet.fleet import FleetEmbedder
from compass.embedding.isolate import ATTEMPTS, embed_each
from compass.embedding.pool import PoolEmbedder
from compass.embedding.probe import Probe
from compass.errors import (
    EmbeddingError,
    EndpointAnswerError,
    EndpointForbiddenError,
    EndpointRefusedError,
    EndpointUnavailableError,
)
from compass.testing.clock import ManualClock
from compass.testing.embed_server import Served, served

CULPRIT = "the culprit"
SIZES = (1, 2, 32, 256)
KINDS = ("pool", "fleet")


class BrokenOff(Response):
    """Closes the connection in the middle of its answer."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"100")]})
        await send({"type": "http.response.body", "body": b"[[", "more_body": False})


def rows(texts: list[str]) -> list[list[float | None]]:
    return [[float(number) for number in row] for row in MODEL.embed(texts)]


def with_row(row: Any) -> Callable[[list[str]], Response]:
    """Right rows for all but the culprit, or for none where it is not there; its own is `row`."""

    def response(texts: list[str]) -> Response:
        told: list[Any] = rows(texts)
        every = CULPRIT not in texts
        told = [row if every or text == CULPRIT else good for text, good in zip(texts, told, strict=True)]
        return Response(json.dumps([one for one in told if one != "left out"]), media_type="application/json")

    return response


def tei_error(status: int, error: str, error_type: str) -> Callable[[list[str]], Response]:
    return lambda texts: JSONResponse({"error": error, "error_type": error_type}, status)


def blocked(status: int) -> Callable[[list[str]], Response]:
    page = "<html><head><title>Request blocked</title></head><body>Ray ID: 1</body></html>"
    return lambda texts: HTMLResponse(page, status)


# Each fault: what answers, the error where the control meets it too, words of the reason, and how often a text is
# asked alone before it is blamed. What may be away for a moment is tried some times more, and counted by itself.
FAULTS: dict[str, tuple[Callable[[list[str]], Response], type[EmbeddingError], str, int]] = {
    "400": (tei_error(400, "bad input", "Validation"), EndpointForbiddenError, "answered 400: bad input", 1),
    "422": (tei_error(422, "too long", "Validation"), EndpointForbiddenError, "answered 422: too long", 1),
    "plain 422": (lambda _: PlainTextResponse("no", 422), EndpointForbiddenError, "answered 422: no", 1),
    "403": (blocked(403), EndpointForbiddenError, "answered 403: Request blocked", 1),
    "406": (blocked(406), EndpointForbiddenError, "answered 406: Request blocked", 1),
    "451": (blocked(451), EndpointForbiddenError, "answered 451: Request blocked", 1),
    "302": (lambda _: Response(status_code=302), EndpointForbiddenError, "answered 302", 1),
    "424": (tei_error(424, "CUDA", "Backend"), EndpointUnavailableError, "answered 424: CUDA", 2),
    "500": (lambda _: PlainTextResponse("boom", 500), EndpointUnavailableError, "answered 500: boom", 2),
    "null row": (with_row([None] * DIMS), EndpointAnswerError, "not with vectors of this space", 2),
    "null": (with_row(None), EndpointAnswerError, "not with vectors of this space", 2),
    "NaN": (with_row([math.nan] * DIMS), EndpointAnswerError, "not with vectors of this space", 2),
    "zeros": (with_row([0.0] * DIMS), EndpointAnswerError, "zero vector", 2),
    "short row": (with_row([1.0]), EndpointAnswerError, "expected 8 dims", 2),
    "too few rows": (with_row("left out"), EndpointAnswerError, "rows, got", 2),
}
PASSING: dict[str, tuple[Callable[[list[str]], Response], str]] = {
    "503": (tei_error(503, "unhealthy", "Unhealthy"), "answered 503: unhealthy"),
    "502": (blocked(502), "answered 502: Request blocked"),
    "broken off": (lambda _: BrokenOff(), "closed the connection before its answer was whole"),
}


@asynccontextmanager
async def opened(embedder_kind: str, *servers: Served, size: int = 32, **options: Any) -> AsyncIterator[Embedder]:
    """The embedder of a follower or of a rebuild."""
    urls = [EndpointUrl.parse(server.url) for server in servers]
    common: dict[str, Any] = {"timeout_s": 60.0, "batch_size": size, **options}
    embedder: Embedder
    if embedder_kind == "pool":
        embedder = PoolEmbedder(urls, CONFIG, **{"retry_s": 0.0, "kind": "document", **common})
    else:
        embedder = FleetEmbedder(urls, CONFIG, **{"endpoint_timeout_s": 60.0, "clock": ManualClock(), **common})
    try:
        async with asyncio.timeout(120):
            yield embedder
    finally:
        await embedder.close()


def meeting(fault: Callable[[list[str]], Response], asked: list[list[str]], *, control_passes: bool = True) -> Reply:
    """A server at which the culprit, or everything, meets the fault; it notes what it is asked."""

    def reply(texts: list[str]) -> Response | None:
        asked.append(texts)
        return fault(texts) if CULPRIT in texts or not control_passes else None

    return reply


def batch(size: int, at: int) -> list[str]:
    return [CULPRIT if i == at else f"text {i}" for i in range(size)]


def check(done: Embedded, texts: list[str], reason: str, url: str) -> None:
    """The culprit alone is refused, with the endpoint's words; every other text has its own row."""
    at = texts.index(CULPRIT)
    assert list(done.refused) == [at]
    assert reason in done.refused[at]
    assert url in done.refused[at]
    assert "<" not in done.refused[at]
    assert done.rows == [i for i in range(len(texts)) if i != at]
    np.testing.assert_allclose(done.vectors, MODEL.embed([texts[i] for i in done.rows]), atol=1e-6)


def limit(size: int) -> int:
    """Further requests that one text at fault among so many may cost."""
    return 2 * round(math.log2(size)) + 2


@pytest.mark.parametrize("tei", [True, False], ids=["tei", "plain"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fault", FAULTS)
async def test_a_text_that_alone_meets_a_fault_is_to_blame(fault: str, kind: str, tei: bool) -> None:
    """Its control passes: it is refused with the endpoint's words, and the others have their rows."""
    response, _, reason, alone = FAULTS[fault]
    asked: list[list[str]] = []
    texts = batch(8, 5)
    with served("m", DIMS, tei=tei, reply=meeting(response, asked)) as server:
        async with opened(kind, server) as embedder:
            check(await embed_each(embedder, texts), texts, reason, server.url)
    assert asked.count([CULPRIT]) == alone
    assert len(asked) - 1 == 2 * 3 + alone, "two halves three times, a control, and once more where it may pass"


@pytest.mark.parametrize(("kind", "tei"), [("pool", True), ("pool", False), ("fleet", True)])
@pytest.mark.parametrize("fault", FAULTS)
async def test_where_the_control_meets_it_too_the_endpoint_is_to_blame(fault: str, kind: str, tei: bool) -> None:
    """No text is; the error says at which URL, with which status, for which reason, and what to do."""
    response, expected, _, _ = FAULTS[fault]
    asked: list[list[str]] = []
    clock = ManualClock()
    options: dict[str, Any] = {"clock": clock} if kind == "fleet" else {}
    with served("m", DIMS, tei=tei, reply=meeting(response, asked, control_passes=False)) as server:
        async with opened(kind, server, **options) as embedder:
            work = asyncio.create_task(embed_each(embedder, batch(8, 5)))
            if expected is EndpointUnavailableError and kind == "fleet":
                error = await _given_up(embedder, clock, work)  # it may be mended: the fleet waits
            else:
                with pytest.raises(expected, match="every text, a harmless one too") as caught:
                    await work
                error = caught.value
                assert error.fields.get("status") == (int(fault[-3:]) if fault[-3:].isdigit() else None)
    assert server.url in error.detail
    assert ("wants another key" in error.detail) is (fault == "403")
    assert asked[:4] == [batch(8, 5), batch(8, 5)[:4], batch(8, 5)[4:], [CONTROL_TEXT]]


async def _given_up(embedder: Embedder, clock: ManualClock, work: asyncio.Task[Embedded]) -> EmbeddingError:
    """The error of a fleet's work when its time without a good answer is over."""
    await until(lambda: embedder.endpoints()[0].state == "down", UNTIL_S)
    clock.advance(60.0)
    with pytest.raises(EndpointUnavailableError) as caught:
        await work
    return caught.value


@pytest.mark.parametrize("tei", [True, False], ids=["tei", "plain"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fault", PASSING)
async def test_a_fault_that_passes_elsewhere_is_tried_with_patience_first(fault: str, kind: str, tei: bool) -> None:
    """The culprit is asked again and again, and blamed only as it fails on after a control that passes."""
    response, reason = PASSING[fault]
    asked: list[list[str]] = []
    texts = batch(4, 2)
    with served("m", DIMS, tei=tei, reply=meeting(response, asked)) as server:
        async with opened(kind, server) as embedder:
            check(await embed_each(embedder, texts), texts, reason, server.url)
    alone = [i for i, some in enumerate(asked) if some == [CULPRIT]]
    assert len(alone) > ATTEMPTS
    assert CULPRIT not in asked[alone[-ATTEMPTS] - 1], "a control, before the last ones"


@pytest.mark.parametrize("fault", ["422", "403", "500", "null row"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tei", [True, False], ids=["tei", "plain"])
async def test_a_text_at_fault_costs_few_requests(kind: str, fault: str, tei: bool) -> None:
    """At most 2 log2(n) + 2 further ones among n texts, wherever it stands."""
    response, _, reason, _ = FAULTS[fault]
    asked: list[list[str]] = []
    reply = meeting(response, asked)
    costs: dict[tuple[int, int], int] = {}
    with served("m", DIMS, tei=tei, max_client_batch_size=256, reply=reply) as server:
        for size in SIZES:
            for at in {0, 1 % size, size // 2, size - 2 if size > 1 else 0, size - 1}:
                asked.clear()
                async with opened(kind, server, size=size) as embedder:
                    texts = batch(size, at)
                    check(await embed_each(embedder, texts), texts, reason, server.url)
                assert server.stats()["requests"] == sum(costs.values()) + len(costs) + len(asked)
                costs[size, at] = len(asked) - 1
    assert all(cost <= limit(size) for (size, _), cost in costs.items()), costs


def momentary(count: int, fault: Callable[[list[str]], Response]) -> Iterator[Response | None]:
    for _ in range(count):
        yield fault([])
    while True:
        yield None


@pytest.mark.parametrize("count", [1, 2, 3, 4])
@pytest.mark.parametrize("size", [1, 2, 32])
@pytest.mark.parametrize("fault", ["500", "null row", "503"])
@pytest.mark.parametrize("kind", KINDS)
async def test_an_endpoint_that_fails_for_a_moment_costs_no_text(
    kind: str, fault: str, size: int, count: int
) -> None:
    """Its first answers are bad: a rebuild waits, a follower raises the endpoint's error and comes back."""
    script = momentary(count, (FAULTS | PASSING)[fault][0])
    with served("m", DIMS, reply=lambda _: next(script)) as server:
        async with opened(kind, server, size=size) as embedder:
            texts = [f"text {i}" for i in range(size)]
            for _ in range(count):
                with suppress(*([EndpointUnavailableError, EndpointAnswerError] if kind == "pool" else [])):
                    done = await embed_each(embedder, texts)
                    break
            else:
                done = await embed_each(embedder, texts)
    assert (done.rows, done.refused) == (list(range(size)), {})


@pytest.mark.parametrize("kind", KINDS)
async def test_a_connection_that_is_closed_every_other_time_costs_no_text(kind: str) -> None:
    """The same request is tried again before anybody is suspected."""
    turn = [0]

    def reply(texts: list[str]) -> Response | None:
        turn[0] += 1
        return BrokenOff() if turn[0] % 2 else None

    texts = [f"text {i}" for i in range(64)]
    with served("m", DIMS, reply=reply) as server:
        async with opened(kind, server, size=8, **({"retry_s": 60.0} if kind == "pool" else {})) as embedder:
            done = await embed_each(embedder, texts)
    assert (done.rows, done.refused) == (list(range(64)), {})


@pytest.mark.parametrize("kind", KINDS)
async def test_an_endpoint_that_fails_every_other_time_costs_no_text_of_a_batch(kind: str) -> None:
    """As a broken server behind a proxy does: a text that is left of a batch is asked twice in a row."""
    turn = [0]

    def reply(texts: list[str]) -> Response | None:
        turn[0] += 1
        return PlainTextResponse("boom", 500) if turn[0] % 2 else None

    texts = [f"text {i}" for i in range(32)]
    with served("m", DIMS, reply=reply) as server:
        async with opened(kind, server) as embedder:
            for _ in range(3):
                done = await embed_each(embedder, texts)
                assert (done.rows, done.refused) == (list(range(32)), {})


@pytest.mark.parametrize("kind", KINDS)
async def test_a_text_that_is_never_answered_is_to_blame_where_others_are(kind: str) -> None:
    """Silence takes its time each time: it is not tried three times over."""
    asked: list[list[str]] = []

    async def reply(texts: list[str]) -> None:
        asked.append(texts)
        if CULPRIT in texts:
            await asyncio.sleep(30)

    texts = batch(4, 2)
    with served("m", DIMS, reply=reply) as server:
        async with opened(kind, server, timeout_s=1.0) as embedder:
            check(await embed_each(embedder, texts), texts, "did not answer within", server.url)
    assert asked.count([CULPRIT]) == 2


@pytest.mark.parametrize("kind", KINDS)
async def test_an_overload_blames_nobody(kind: str) -> None:
    """429 for one text, for as long as it lasts: it is no text's fault."""
    asked: list[list[str]] = []
    reply = meeting(tei_error(429, "overloaded", "Overloaded"), asked)
    with served("m", DIMS, reply=reply) as server:
        async with opened(kind, server) as embedder:
            work = asyncio.create_task(embed_each(embedder, batch(4, 2)))
            if kind == "pool":
                with pytest.raises(EndpointUnavailableError, match="429"):
                    await work
                return
            await until(lambda: len(asked) >= 5, UNTIL_S)
            assert not work.done()
            assert {len(texts) for texts in asked} == {4}
            work.cancel()


@pytest.mark.parametrize("kind", KINDS)
async def test_the_control_is_a_text_that_was_embedded_before(kind: str) -> None:
    """The shortest of the first ones: it is known to be harmless here, in whatever language."""
    asked: list[list[str]] = []
    with served("m", DIMS, reply=meeting(FAULTS["422"][0], asked)) as server:
        async with opened(kind, server) as embedder:
            await embed_each(embedder, ["un texte plus long", "court"])
            asked.clear()
            assert list((await embed_each(embedder, [CULPRIT])).refused) == [0]
    assert asked == [[CULPRIT], ["court"]]


@pytest.mark.parametrize("fault", ["403", "500", "null row"])
@pytest.mark.parametrize("kind", KINDS)
async def test_what_one_endpoint_will_not_do_another_may(kind: str, fault: str) -> None:
    """Turned away or failed at, though not refused as an input, a batch goes to the next endpoint first."""
    with (
        served("m", DIMS, reply=meeting(FAULTS[fault][0], [])) as filtered,
        served("m", DIMS) as good,
    ):
        async with opened(kind, filtered, good) as embedder:
            await embed_each(embedder, ["harmless"])
            await until(lambda: all(endpoint.state != "new" for endpoint in embedder.endpoints()), UNTIL_S)
            for _ in range(4):
                done = await embed_each(embedder, batch(8, 3))
                assert (done.rows, done.refused) == (list(range(8)), {})


@pytest.mark.parametrize("kind", KINDS)
async def test_an_endpoint_that_is_to_blame_leaves_the_texts_to_another(kind: str) -> None:
    """One refuses everything, the other a text: that one is found, and the first holds up nobody."""
    everything = meeting(FAULTS["500"][0], [], control_passes=False)
    with (
        served("m", DIMS, reply=everything) as broken,
        served("m", DIMS, reply=meeting(FAULTS["500"][0], [])) as good,
    ):
        async with opened(kind, broken, good) as embedder:
            for texts in (batch(8, 3), batch(8, 0)):
                check(await embed_each(embedder, texts), texts, "answered 500", good.url)


@pytest.mark.parametrize("kind", KINDS)
async def test_several_culprits_are_all_found(kind: str) -> None:
    """In both halves of a batch: one control tells that the endpoint is not to blame."""
    texts = [f"text {i}" for i in range(100)]
    for at in (0, 1, 40, 63, 64, 99):
        texts[at] = CULPRIT
    with served("m", DIMS, reply=meeting(FAULTS["null row"][0], [])) as server:
        async with opened(kind, server) as embedder:
            done = await embed_each(embedder, [*texts, ""])
    assert sorted(done.refused) == [0, 1, 40, 63, 64, 99, 100]
    assert len(done.rows) == 94


@pytest.mark.parametrize("fault", ["403", "500", "null row"])
async def test_an_estimate_goes_by_the_same_rule(fault: str) -> None:
    """What a rebuild would quarantine is told with its reason, and the endpoint is not at fault."""
    response, _, reason, _ = FAULTS[fault]
    with served("m", DIMS, reply=meeting(response, [])) as server:
        async with opened("fleet", server) as embedder:
            probed = await Probe("endpoint", embedder, batch(40, 7), 60.0).run()
    assert probed.fault is None
    assert list(probed.refused) == [7]
    assert reason in probed.refused[7]


@pytest.mark.parametrize(("fault", "further"), [("403", 1), ("451", 1), ("500", 2), ("null row", 2)])
async def test_a_query_that_alone_meets_a_fault_is_its_callers_error(fault: str, further: int) -> None:
    """A control and no bisection; the endpoint is not forbidden, nor down, and the next query is answered."""
    response, _, reason, _ = FAULTS[fault]
    asked: list[list[str]] = []
    with served("m", DIMS, reply=meeting(response, asked)) as server:
        async with opened("pool", server, kind="query") as embedder:
            await embedder.embed(["a query"])
            asked.clear()
            with pytest.raises(EndpointRefusedError, match=reason):
                await embedder.embed([CULPRIT])
            assert len(asked) == 1 + further
            assert (await embedder.embed(["another query"])).shape == (1, DIMS)


@pytest.mark.parametrize(
    ("fault", "expected"),
    [("403", EndpointForbiddenError), ("500", EndpointUnavailableError), ("null row", EndpointAnswerError)],
)
async def test_a_query_at_an_endpoint_that_is_to_blame_has_its_error(
    fault: str, expected: type[EmbeddingError]
) -> None:
    """After one control."""
    asked: list[list[str]] = []
    with served("m", DIMS, reply=meeting(FAULTS[fault][0], asked, control_passes=False)) as server:
        async with opened("pool", server, kind="query") as embedder:
            with pytest.raises(expected, match="a harmless one too"):
                await embedder.embed(["a query"])
    assert asked == [["a query"], [CONTROL_TEXT]]
