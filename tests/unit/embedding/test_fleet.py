"""A fleet of endpoints over real HTTP: shares, faults, and texts that are refused for themselves."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any

import numpy as np
import pytest
import uvicorn
from held_replies import HeldReplies
from starlette.responses import JSONResponse, PlainTextResponse, Response
from waiting import until

from compass.domain.embedding.aimd import FIRST_WINDOW
from compass.domain.embedding.endpoint_url import EndpointUrl
from compass.domain.space import SpaceConfig
from compass.embedding.builtin import HashingModel
from compass.embedding.fleet.fleet import FleetEmbedder
from compass.errors import (
    EndpointAnswerError,
    EndpointForbiddenError,
    EndpointRefusedError,
    EndpointUnavailableError,
    InvalidRequestError,
)
from compass.testing.clock import ManualClock
from compass.testing.embed_server import EmbedServer, Served, encode_rows, served

DIMS = 8
CONFIG = SpaceConfig(DIMS, "m")
MODEL = HashingModel("m", DIMS)
TEXTS = [f"text number {i}" for i in range(200)]
UNTIL_S = 60.0  # the deadline of a state that is waited for
Reply = Callable[[list[str]], Response | None]


@asynccontextmanager
async def fleet(*servers: Served | str, config: SpaceConfig = CONFIG, **options: Any) -> AsyncIterator[FleetEmbedder]:
    urls = [EndpointUrl.parse(server if isinstance(server, str) else server.url) for server in servers]
    embedder = FleetEmbedder(urls, config, **{"timeout_s": 60.0, "endpoint_timeout_s": 60.0, **options})
    try:
        yield embedder
    finally:
        await embedder.close()


def answer(status: int, error: str, error_type: str, **headers: str) -> Callable[[], Response]:
    return lambda: JSONResponse({"error": error, "error_type": error_type}, status, headers=headers)


def refusing(response: Callable[[], Response], when: Callable[[list[str]], bool]) -> Reply:
    return lambda texts: response() if when(texts) else None


def same(rows: Any, texts: Sequence[str]) -> None:
    np.testing.assert_allclose(rows, MODEL.embed(texts), atol=1e-6)


class TickingClock(ManualClock):
    """Moves on a little with each look at it, so that what comes later is later."""

    def __call__(self) -> float:
        self.advance(1e-6)
        return super().__call__()


class Restarted:
    """A server that can die, connections and all, and come back on its port."""

    def __init__(self, **options: Any) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/embed"
        self.server = EmbedServer("m", DIMS, **options)
        self._http: uvicorn.Server | None = None

    def start(self) -> None:
        config = uvicorn.Config(self.server.app, port=self.port, lifespan="off", log_level="critical")
        http = self._http = uvicorn.Server(config)
        threading.Thread(target=http.run, daemon=True).start()
        self._wait(lambda: http.started)

    def die(self) -> None:
        http = self._http
        if http is not None:
            http.should_exit = http.force_exit = True
            for connection in list(http.server_state.connections):
                with suppress(RuntimeError):  # its loop has ended, and the connection with it
                    connection.loop.call_soon_threadsafe(connection.transport.abort)  # uvloop's are of one thread
            self._wait(lambda: not self._listens())

    def _wait(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def _listens(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0


@contextmanager
def restarted(**options: Any) -> Iterator[Restarted]:
    server = Restarted(**options)
    server.start()
    try:
        yield server
    finally:
        server.die()


# ---- sharing work


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
                return bool(held.count == endpoint["in_flight"] >= endpoint["window"])

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
    assert 6 <= endpoint["window"] <= 9
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
    assert (sizes[0], endpoint["batch_size"]) == (32, 64)
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
                assert sum(endpoint["in_flight"] for endpoint in embedder.endpoints()) == 2
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


# ---- faults


async def test_a_poison_text_in_the_first_batch_does_not_shrink_what_info_allows() -> None:
    """A server that tells how many texts it takes means the text when it refuses one."""
    with served("m", DIMS, max_input_length=50) as server:
        async with fleet(server, config=SpaceConfig(DIMS, "m", truncate=False)) as embedder:
            done = await embedder.embed_each(["word " * 60, *TEXTS])
            assert list(done.refused) == [0]
            assert embedder.endpoints()[0]["batch_size"] == 32


async def test_a_dead_endpoint_is_put_aside_and_taken_back() -> None:
    """Its work goes to the other without loss; back on its port it gets work again."""
    held = HeldReplies()
    with restarted() as dying, served("m", DIMS, reply=held) as steady:
        async with fleet(dying.url, steady) as embedder:
            work = asyncio.create_task(embedder.embed_each(TEXTS * 40))
            await until(lambda: dying.server.stats()["inputs"] > 0, UNTIL_S)
            await asyncio.to_thread(dying.die)
            await until(lambda: [e["state"] for e in embedder.endpoints()] == ["down", "up"], UNTIL_S)
            assert not work.done()
            held.open()
            done = await work
            assert (len(done.rows), done.refused) == (8_000, {})
            same(done.vectors, TEXTS * 40)
            before = dying.server.stats()["inputs"]
            await asyncio.to_thread(dying.start)
            await until(lambda: embedder.endpoints()[0]["state"] == "up", UNTIL_S)
            await embedder.embed(TEXTS * 2)
            assert dying.server.stats()["inputs"] - before > 30


async def test_while_all_are_down_work_waits() -> None:
    """It goes on when one is back, and nothing is lost; the states say so meanwhile."""
    with restarted() as server:
        async with fleet(server.url) as embedder:
            await embedder.embed(TEXTS)
            await asyncio.to_thread(server.die)
            work = asyncio.create_task(embedder.embed(TEXTS))
            await until(lambda: embedder.endpoints()[0]["state"] == "down", UNTIL_S)
            assert not work.done()
            assert "/embed" in embedder.endpoints()[0]["last_error"]
            await asyncio.to_thread(server.start)
            same(await work, TEXTS)


async def test_waiting_has_an_end() -> None:
    """After `endpoint_timeout_s` without a good answer the error names every endpoint and its reason."""
    down, clock = answer(503, "loading the model", "Unhealthy"), ManualClock()
    with served("m", DIMS, reply=lambda _: down()) as one, served("m", DIMS, reply=lambda _: down()) as two:
        async with fleet(one, two, endpoint_timeout_s=100.0, clock=clock) as embedder:
            work = asyncio.create_task(embedder.embed(TEXTS))
            await until(lambda: all(e["state"] == "down" for e in embedder.endpoints()), UNTIL_S)
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
        while embedders[0].endpoints()[0]["in_flight"] > 1:  # noqa: ASYNC110 - nobody tells of it
            await asyncio.sleep(0.001)

    with served("m", DIMS, max_concurrent_requests=32, reply=reply) as server:
        async with fleet(server) as embedder:
            embedders.append(embedder)
            same(await embedder.embed(TEXTS * 5), TEXTS * 5)
            assert embedder.endpoints()[0]["window"] <= 2
            assert embedder.endpoints()[0]["state"] in ("up", "paused")


async def test_retry_after_is_honoured_by_endpoint() -> None:
    """The one that asked for a pause gets it; the other goes on."""
    overloaded, held = answer(429, "full", "Overloaded", **{"Retry-After": "3600"}), HeldReplies()
    with served("m", DIMS, reply=lambda _: overloaded()) as pausing, served("m", DIMS, reply=held) as steady:
        async with fleet(pausing, steady, batch_size=8) as embedder:
            work = asyncio.create_task(embedder.embed(TEXTS))

            def is_paused() -> bool:
                """Whether nothing is on its way to it either."""
                first, _ = embedder.endpoints()
                return bool((first["state"], first["in_flight"]) == ("paused", 0))

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
            assert embedder.endpoints()[0]["state"] == "refused"
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
            assert embedder.endpoints()[0]["state"] == "refused"
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
            assert [endpoint["state"] for endpoint in embedder.endpoints()] == ["refused"]


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


# ---- the whole


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
            assert embedder.endpoints()[0]["in_flight"] == 0
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
            assert embedder.endpoints()[0]["state"] == "new"
            await embedder.embed(["one two", "three"])
            (endpoint,) = embedder.endpoints()
            info = (await embedder.describe())[0]
    assert tuple(endpoint[name] for name in ("state", "docs", "tokens", "batch_size", "errors")) == (
        "up",
        2,
        3,
        32,
        0,
    )
    assert (info.model_id, info.max_batch, info.pooling) == ("m", 32, "hashing")


def test_no_endpoint_is_no_fleet() -> None:
    """A list without a URL is refused when opening."""
    with pytest.raises(InvalidRequestError):
        FleetEmbedder([], CONFIG, timeout_s=1, endpoint_timeout_s=1)
