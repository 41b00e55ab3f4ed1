"""A fleet of endpoints over real HTTP: shares of the work, and calls."""

from __future__ import annotations

import asyncio

import pytest
from fleets import CONFIG, DIMS, TEXTS, UNTIL_S, TickingClock, fleet, same
from held_replies import HeldReplies
from starlette.responses import PlainTextResponse, Response
from waiting import until

from compass.domain.embedding.aimd import FIRST_WINDOW
from compass.embedding.fleet.fleet import FleetEmbedder
from compass.errors import (
    InvalidRequestError,
)
from compass.testing.clock import ManualClock
from compass.testing.embed_server import served


async def test_rows_are_in_order_whoever_made_them() -> None:
    """Batches of different sizes at different endpoints: each text's row is its own, and it is sent once."""
    with served("m", DIMS, max_client_batch_size=7) as a, served("m", DIMS, max_client_batch_size=32) as b:
        async with fleet(a, b) as embedder:
            done = await embedder.embed_each(TEXTS)
        assert a.stats()["inputs"] + b.stats()["inputs"] == len(TEXTS)
        assert min(a.stats()["inputs"], b.stats()["inputs"]) > 0
    assert (done.rows, done.refused) == (list(range(len(TEXTS))), {})
    same(done.vectors, TEXTS)


async def test_work_flows_to_whoever_has_room() -> None:
    """Of two endpoints one answers four times as often: each is kept busy, and both together do the whole."""
    often, seldom = HeldReplies(), HeldReplies()
    with served("m", DIMS, reply=often) as fast, served("m", DIMS, reply=seldom) as slow:
        async with fleet(slow, fast) as embedder:
            work = asyncio.create_task(embedder.embed(TEXTS * 20))
            for _ in range(6):
                await until(lambda: min(often.count, seldom.count) >= FIRST_WINDOW, UNTIL_S)
                often.release(4)
                seldom.release(1)
            await until(lambda: min(often.count, seldom.count) >= FIRST_WINDOW, UNTIL_S)
            often.open()
            seldom.open()
            same(await work, TEXTS * 20)
        assert slow.stats()["inputs"] + fast.stats()["inputs"] == 20 * len(TEXTS)


async def test_a_server_with_permits_is_filled_without_a_flood() -> None:
    """8 batches at once: the window finds the 8, and refusals are rare."""
    held, clock = HeldReplies(), TickingClock()
    with served("m", DIMS, max_concurrent_requests=256, reply=held) as server:
        async with fleet(server, clock=clock) as embedder:
            work = asyncio.create_task(embedder.embed(TEXTS * 100))

            def is_full() -> bool:
                """Whether as many requests stand still as the window allows; none is on its way."""
                (endpoint,) = embedder.endpoints()
                return bool(held.count == endpoint.in_flight >= endpoint.window)

            answers = 0
            for _ in range(30):
                await until(is_full, UNTIL_S)
                answers += held.count
                clock.advance(0.04)
                held.release(held.count)
            await until(is_full, UNTIL_S)
            (endpoint,) = embedder.endpoints()
            refused = server.stats()["requests"] - answers - held.count
            work.cancel()
            held.open()
    assert 6 <= endpoint.window <= 9
    assert 1 <= refused <= 20


async def test_the_batch_grows_where_nobody_says_how_large_it_may_be() -> None:
    """A server without /info is given 32 texts first, then more; what it refuses is not asked again."""
    sizes: list[int] = []

    def reply(texts: list[str]) -> Response | None:
        sizes.append(len(texts))
        return PlainTextResponse("out of memory", 500) if len(texts) > 100 else None

    with served("m", DIMS, tei=False, max_client_batch_size=1_000, reply=reply) as server:
        async with fleet(server, clock=ManualClock()) as embedder:  # all take as long, so that more at once pay
            done = await embedder.embed_each(TEXTS * 20)
            (endpoint,) = embedder.endpoints()
            learnt = len(sizes)
            await embedder.embed(TEXTS * 3)
    assert (len(done.rows), done.refused) == (4_000, {})
    assert (sizes[0], endpoint.batch_size) == (32, 64)
    assert max(sizes[:learnt]) == 128
    assert set(sizes[learnt:]) == {64, 600 % 64}


async def test_no_more_requests_are_made_at_once_than_allowed() -> None:
    """`concurrency` bounds them over all endpoints."""
    held = HeldReplies()
    with served("m", DIMS, reply=held) as a, served("m", DIMS, reply=held) as b:
        async with fleet(a, b, concurrency=2) as embedder:
            work = asyncio.create_task(embedder.embed(TEXTS * 3))
            for _ in range(8):
                await until(lambda: held.count == 2, UNTIL_S)
                assert sum(endpoint.in_flight for endpoint in embedder.endpoints()) == 2
                held.release(2)
            held.open()
            same(await work, TEXTS * 3)


async def test_no_more_texts_are_sent_in_a_second_than_allowed() -> None:
    """`max_docs_per_s` bounds them over all endpoints: each batch waits for its share of the clock."""
    clock = ManualClock()
    with served("m", DIMS) as a, served("m", DIMS) as b:

        def sent() -> int:
            return a.stats()["inputs"] + b.stats()["inputs"]

        async with fleet(a, b, max_docs_per_s=400, batch_size=20, clock=clock) as embedder:
            work = asyncio.create_task(embedder.embed(TEXTS))
            for batches in range(1, 11):
                await until(lambda batches=batches: sent() == 20 * batches, UNTIL_S)  # type: ignore[misc]
                assert sent() <= 20 + 400 * clock() + 0.1
                clock.advance(20 / 400)
            same(await work, TEXTS)


async def test_a_cancelled_call_leaves_nothing_behind() -> None:
    """Its requests end, its texts leave the queue, and the next call is served."""
    held = HeldReplies()
    with served("m", DIMS, reply=held) as server:
        async with fleet(server) as embedder:
            work = asyncio.create_task(embedder.embed(TEXTS * 10))
            await until(lambda: held.count == FIRST_WINDOW, UNTIL_S)
            work.cancel()
            with pytest.raises(asyncio.CancelledError):
                await work
            held.open()
            same(await embedder.embed(["one"]), ["one"])
            assert embedder.endpoints()[0].in_flight == 0
        assert server.stats()["inputs"] == FIRST_WINDOW * 32 + 1


async def test_several_calls_share_the_fleet() -> None:
    """Each gets its own rows, and none waits for another's end."""
    with served("m", DIMS, delay_ms=2) as server:
        async with fleet(server) as embedder:
            calls = [embedder.embed([f"{n} {text}" for text in TEXTS]) for n in range(4)]
            for n, rows in enumerate(await asyncio.gather(*calls)):
                same(rows, [f"{n} {text}" for text in TEXTS])


async def test_endpoints_tell_how_they_do() -> None:
    """State, window, batch, and what was done: texts and tokens as the server counts them."""
    with served("m", DIMS) as server:
        async with fleet(server) as embedder:
            assert embedder.endpoints()[0].state == "new"
            await embedder.embed(["one two", "three"])
            (endpoint,) = embedder.endpoints()
            info = (await embedder.describe())[0]
    counts = endpoint.state, endpoint.docs, endpoint.tokens, endpoint.batch_size, endpoint.errors
    assert counts == ("up", 2, 3, 32, 0)
    assert (info.model_id, info.max_batch, info.pooling) == ("m", 32, "hashing")


def test_no_endpoint_is_no_fleet() -> None:
    """A list without a URL is refused when opening."""
    with pytest.raises(InvalidRequestError):
        FleetEmbedder([], CONFIG, timeout_s=1, endpoint_timeout_s=1)
