"""A fleet of endpoints over real HTTP: faults, and texts that are refused for themselves."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest
from fleets import DIMS, TEXTS, UNTIL_S, answer, fleet, refusing, restarted, same
from held_replies import HeldReplies
from starlette.responses import JSONResponse, PlainTextResponse, Response
from waiting import until

from compass.domain.space import SpaceConfig
from compass.embedding.builtin import HashingModel
from compass.embedding.fleet.fleet import FleetEmbedder
from compass.errors import (
    EndpointAnswerError,
    EndpointForbiddenError,
    EndpointRefusedError,
    EndpointUnavailableError,
)
from compass.testing.clock import ManualClock
from compass.testing.embed_server import encode_rows, served


async def test_a_poison_text_in_the_first_batch_does_not_shrink_what_info_allows() -> None:
    """A server that tells how many texts it takes means the text when it refuses one."""
    with served("m", DIMS, max_input_length=50) as server:
        async with fleet(server, config=SpaceConfig(DIMS, "m", truncate=False)) as embedder:
            done = await embedder.embed_each(["word " * 60, *TEXTS])
            assert list(done.refused) == [0]
            assert embedder.endpoints()[0].batch_size == 32


async def test_a_dead_endpoint_is_put_aside_and_taken_back() -> None:
    """Its work goes to the other without loss; back on its port it gets work again."""
    held = HeldReplies()
    with restarted() as dying, served("m", DIMS, reply=held) as steady:
        async with fleet(dying.url, steady) as embedder:
            work = asyncio.create_task(embedder.embed_each(TEXTS * 40))
            await until(lambda: dying.server.stats()["inputs"] > 0, UNTIL_S)
            await asyncio.to_thread(dying.die)
            await until(lambda: [e.state for e in embedder.endpoints()] == ["down", "up"], UNTIL_S)
            assert not work.done()
            held.open()
            done = await work
            assert (len(done.rows), done.refused) == (8_000, {})
            same(done.vectors, TEXTS * 40)
            before = dying.server.stats()["inputs"]
            await asyncio.to_thread(dying.start)
            await until(lambda: embedder.endpoints()[0].state == "up", UNTIL_S)
            await embedder.embed(TEXTS * 2)
            assert dying.server.stats()["inputs"] - before > 30


async def test_while_all_are_down_work_waits() -> None:
    """It goes on when one is back, and nothing is lost; the states say so meanwhile."""
    with restarted() as server:
        async with fleet(server.url) as embedder:
            await embedder.embed(TEXTS)
            await asyncio.to_thread(server.die)
            work = asyncio.create_task(embedder.embed(TEXTS))
            await until(lambda: embedder.endpoints()[0].state == "down", UNTIL_S)
            assert not work.done()
            assert "/embed" in (embedder.endpoints()[0].last_error or "")
            await asyncio.to_thread(server.start)
            same(await work, TEXTS)


async def test_waiting_has_an_end() -> None:
    """After `endpoint_timeout_s` without a good answer the error names every endpoint and its reason."""
    down, clock = answer(503, "loading the model", "Unhealthy"), ManualClock()
    with served("m", DIMS, reply=lambda _: down()) as one, served("m", DIMS, reply=lambda _: down()) as two:
        async with fleet(one, two, endpoint_timeout_s=100.0, clock=clock) as embedder:
            work = asyncio.create_task(embedder.embed(TEXTS))
            await until(lambda: all(e.state == "down" for e in embedder.endpoints()), UNTIL_S)
            requests = one.stats()["requests"] + two.stats()["requests"]
            assert not work.done()
            clock.advance(100.0)
            with pytest.raises(EndpointUnavailableError, match="loading the model") as error:
                await work
    assert all(server.url.removesuffix("/embed") in error.value.detail for server in (one, two))
    assert requests < 25, "asked with patience"


async def test_overload_is_met_with_fewer_requests() -> None:
    """429 shrinks the window and costs nothing else: every text gets its row."""
    embedders: list[FleetEmbedder] = []

    async def reply(texts: list[str]) -> None:
        """Hold the one permit while others ask for it."""
        while embedders[0].endpoints()[0].in_flight > 1:  # noqa: ASYNC110 - nobody tells of it
            await asyncio.sleep(0.001)

    with served("m", DIMS, max_concurrent_requests=32, reply=reply) as server:
        async with fleet(server) as embedder:
            embedders.append(embedder)
            same(await embedder.embed(TEXTS * 5), TEXTS * 5)
            assert embedder.endpoints()[0].window <= 2
            assert embedder.endpoints()[0].state in ("up", "paused")


async def test_retry_after_is_honoured_by_endpoint() -> None:
    """The one that asked for a pause gets it; the other goes on."""
    overloaded, held = answer(429, "full", "Overloaded", **{"Retry-After": "3600"}), HeldReplies()
    with served("m", DIMS, reply=lambda _: overloaded()) as pausing, served("m", DIMS, reply=held) as steady:
        async with fleet(pausing, steady, batch_size=8) as embedder:
            work = asyncio.create_task(embedder.embed(TEXTS))

            def is_paused() -> bool:
                """Whether nothing is on its way to it either."""
                first, _ = embedder.endpoints()
                return bool((first.state, first.in_flight) == ("paused", 0))

            await until(is_paused, UNTIL_S)
            requests = pausing.stats()["requests"]
            held.open()
            same(await work, TEXTS)
        assert pausing.stats()["requests"] == requests


async def test_a_pause_ends_on_a_loop_that_calls_early(monkeypatch: pytest.MonkeyPatch) -> None:
    """As uvloop does, whose clock counts in milliseconds: the only endpoint is not left paused for ever."""
    loop = asyncio.get_running_loop()
    call_at = loop.call_at
    monkeypatch.setattr(loop, "call_at", lambda when, *args, **options: call_at(when - 0.005, *args, **options))
    refused: list[int] = []

    def reply(texts: list[str]) -> Response | None:
        refused.append(len(texts))
        return answer(429, "full", "Overloaded")() if len(refused) <= 4 else None

    with served("m", DIMS, reply=reply) as server:
        async with asyncio.timeout(60), fleet(server) as embedder:
            same(await embedder.embed(TEXTS), TEXTS)


@pytest.mark.parametrize("status", [401, 404])
async def test_an_endpoint_that_turns_us_down_is_left_out(status: int) -> None:
    """The others do its work; with no other left, its own words are the error, at once."""
    with served("m", DIMS, reply=lambda _: Response(status_code=status)) as closed, served("m", DIMS) as good:
        async with fleet(closed, good) as embedder:
            same(await embedder.embed(TEXTS), TEXTS)
            assert embedder.endpoints()[0].state == "refused"
        async with fleet(closed) as embedder:
            with pytest.raises(EndpointForbiddenError, match=str(status)):
                await embedder.embed(TEXTS)


async def test_an_endpoint_that_changes_its_dims_is_left_out() -> None:
    """Another model behind the URL: nothing of it is stored, and it is not asked again."""
    other = HashingModel("other", 4)
    turned = threading.Event()

    def reply(texts: list[str]) -> Response | None:
        return Response(encode_rows(other.embed(texts))) if turned.is_set() else None

    with served("m", DIMS, reply=reply) as turning, served("m", DIMS) as good:
        async with fleet(turning, good) as embedder:
            same(await embedder.embed(TEXTS), TEXTS)
            turned.set()
            same(await embedder.embed(TEXTS), TEXTS)
            assert embedder.endpoints()[0].state == "refused"
        turned.set()
        async with fleet(turning) as embedder:
            with pytest.raises(EndpointAnswerError, match="expected 8 dims, got 4"):
                await embedder.embed(TEXTS)


LIES: dict[str, Callable[[int], Any]] = {
    "one row too few": lambda n: [[0.5] * DIMS] * (n - 1),
    "zeros": lambda n: [[0.0] * DIMS] * n,
    "nulls": lambda n: [[None] * DIMS] * n,
    "no rows": lambda n: {"data": []},
}


@pytest.mark.parametrize("lie", LIES)
async def test_an_endpoint_that_lies_about_a_harmless_text_as_well_is_left_out(lie: str) -> None:
    """No text is blamed, and the call ends instead of waiting."""
    with served("m", DIMS, reply=lambda texts: JSONResponse(LIES[lie](len(texts)))) as liar:
        async with fleet(liar) as embedder:
            with pytest.raises(EndpointAnswerError, match="not with vectors of this space"):
                await embedder.embed_each(TEXTS[:20])
            assert [endpoint.state for endpoint in embedder.endpoints()] == ["refused"]


async def test_a_hang_is_covered_by_the_others() -> None:
    """A request that is never answered ends with its timeout, and its texts go elsewhere."""

    async def reply(texts: list[str]) -> None:
        await asyncio.sleep(60)

    with served("m", DIMS, reply=reply) as hanging, served("m", DIMS) as good:
        async with fleet(hanging, good, timeout_s=0.3) as embedder:
            async with asyncio.timeout(60):
                same(await embedder.embed(TEXTS), TEXTS)


# ---- texts that are refused for themselves


@pytest.mark.parametrize(
    "fault",
    [
        answer(422, "Input validation error: `inputs` must have less than 512 tokens", "Validation"),
        answer(400, "bad input", "Validation"),
        lambda: JSONResponse({"error": {"message": "too long", "type": "BadRequestError", "code": 400}}, 400),
        answer(424, "CUDA error", "Backend"),
        lambda: PlainTextResponse("Internal Server Error", 500),
        lambda: Response(b"[" + b",".join([b"[0,0,0,0,0,0,0,0]"] * 32) + b"]"),
        lambda: Response(b"[[null]]"),
    ],
    ids=["422", "400", "vllm", "424", "500", "zeros", "null"],
)
@pytest.mark.parametrize("tei", [True, False])
async def test_a_poison_text_fails_alone(fault: Callable[[], Response], tei: bool) -> None:
    """Whatever a server does at it, halving finds it; it is reported with a reason, all others have their rows."""
    poison = {17, 130, 131}
    texts = [f"{text} POISON" if i in poison else text for i, text in enumerate(TEXTS)]
    reply = refusing(fault, lambda batch: any("POISON" in text for text in batch))
    with served("m", DIMS, tei=tei, max_client_batch_size=256, reply=reply) as server:
        async with fleet(server, batch_size=32) as embedder:
            async with asyncio.timeout(120):
                done = await embedder.embed_each(texts)
        assert server.stats()["inputs"] < 5 * len(texts)
    assert set(done.refused) == poison
    assert all(reason for reason in done.refused.values())
    assert done.rows == [i for i in range(len(texts)) if i not in poison]
    same(done.vectors, [texts[i] for i in done.rows])


async def test_poison_at_one_endpoint_does_not_blame_the_text_twice() -> None:
    """`embed` has no place for a refused text: it is the call's error, with the text's place and the reason."""
    reply = refusing(answer(422, "too long", "Validation"), lambda batch: "bad" in batch)
    with served("m", DIMS, reply=reply) as server:
        async with fleet(server) as embedder:
            with pytest.raises(EndpointRefusedError, match="too long") as error:
                await embedder.embed(["a", "bad", "c"])
    assert error.value.fields["row"] == 1


async def test_empty_texts_are_never_sent() -> None:
    """They are refused here, and the list may be nothing but them."""
    with served("m", DIMS) as server:
        async with fleet(server) as embedder:
            done = await embedder.embed_each(["", "a", " \n"])
            assert (done.rows, sorted(done.refused)) == ([1], [0, 2])
            assert (await embedder.embed_each([""])).rows == []
            assert (await embedder.embed_each([])).vectors.shape == (0, DIMS)
        assert server.stats()["inputs"] == 1


async def test_an_endpoint_that_refuses_everything_blames_no_text() -> None:
    """A harmless text is refused as well: the endpoint is misconfigured, and no text is to blame."""
    with served("m", DIMS, reply=lambda _: answer(422, "no", "Validation")()) as server:
        async with fleet(server) as embedder:
            with pytest.raises(EndpointForbiddenError, match="a harmless one too"):
                await embedder.embed_each(["a", "b"])


async def test_one_text_that_is_too_large_is_refused_for_itself() -> None:
    """413 by bytes halves the request; a single text that is too large is that text's failure."""
    with served("m", DIMS, payload_limit=400) as server:
        async with fleet(server) as embedder:
            done = await embedder.embed_each(["small", "x" * 1_000, *TEXTS[:20]])
    assert list(done.refused) == [1]
    assert "413" in done.refused[1]
