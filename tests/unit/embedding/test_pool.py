"""Embedding endpoints over real HTTP: each row of the contract's table, and each lie."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import numpy as np
import pytest
import stamina
from held_replies import HeldReplies
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response

from compass.domain.embedding.endpoint_url import EndpointUrl
from compass.domain.space import SpaceConfig
from compass.embedding.builtin import HashingModel
from compass.embedding.endpoint.wire import decode_rows
from compass.embedding.pool import PoolEmbedder
from compass.errors import (
    EmbeddingError,
    EndpointAnswerError,
    EndpointForbiddenError,
    EndpointRefusedError,
    EndpointUnavailableError,
    InvalidRequestError,
)
from compass.testing.embed_server import Served, served

DIMS = 8
CONFIG = SpaceConfig(DIMS, "m")
MODEL = HashingModel("m", DIMS)
KEY = "sk-hunter2-hunter2"
TEXTS = ["one", "two", "three"]


@pytest.fixture(autouse=True)
def _no_backoff() -> Iterator[None]:
    """Retries come at once, four attempts at most; the tests of time switch it off."""
    stamina.set_testing(True, attempts=4, cap=True)
    yield
    stamina.set_testing(False)


@asynccontextmanager
async def opened(
    *servers: Served | Scripted | str, config: SpaceConfig = CONFIG, **options: Any
) -> AsyncIterator[PoolEmbedder]:
    """An embedder of these servers, closed at the end."""
    urls = [EndpointUrl.parse(server if isinstance(server, str) else server.url) for server in servers]
    embedder = PoolEmbedder(urls, config, **{"timeout_s": 30.0, "retry_s": 60.0, "kind": "document", **options})
    try:
        yield embedder
    finally:
        await embedder.close()


@asynccontextmanager
async def raw(respond: Callable[[bytes], bytes | None]) -> AsyncIterator[str]:
    """A server that writes these very bytes for a request, and closes; None: it says nothing for long."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        answer = respond(head)
        if answer is None:
            await reader.read()  # until the client has had enough
        else:
            writer.write(answer)
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/embed"
    finally:
        server.close()


def times(count: int, response: Callable[[], Response]) -> Callable[[list[str]], Response | None]:
    """A reply that gives this response so many times, and the vectors from then on."""
    left = [count]

    def reply(_: list[str]) -> Response | None:
        left[0] -= 1
        return response() if left[0] >= 0 else None

    return reply


def refusing(response: Callable[[], Response], when: Callable[[list[str]], bool]) -> Callable[..., Response | None]:
    return lambda texts: response() if when(texts) else None


class Scripted:
    """A server that many tests share: each sets its reply, and counts the requests from then on."""

    def __init__(self, server: Served) -> None:
        self.server, self.url, self.before = server, server.url, 0
        self.reply: Callable[[list[str]], Response | None] = lambda _: None

    def set(self, reply: Callable[[list[str]], Response | None]) -> None:
        self.reply, self.before = reply, self.server.stats()["requests"]

    def requests(self) -> int:
        return self.server.stats()["requests"] - self.before


@pytest.fixture(scope="module")
def scripted() -> Iterator[Scripted]:
    """Starting a server for each parameter would take most of the time."""
    script: list[Scripted] = []

    def reply(texts: list[str]) -> Response | None:
        return script[0].reply(texts)

    with served("m", DIMS, reply=reply) as server:
        script.append(Scripted(server))
        yield script[0]


def tei_error(status: int, error: str, error_type: str, **headers: str) -> Callable[[], Response]:
    return lambda: JSONResponse({"error": error, "error_type": error_type}, status, headers=headers)


async def test_rows_are_the_servers_in_order() -> None:
    """float32, one row per text, across as many requests as the server's limit makes necessary."""
    texts = [f"text {i}" for i in range(100)]
    with served("m", DIMS, max_client_batch_size=7) as server:
        async with opened(server) as embedder:
            rows = await embedder.embed(texts)
        assert server.stats() == {"requests": 15, "inputs": 100}
    assert rows.dtype == np.float32
    np.testing.assert_allclose(rows, MODEL.embed(texts), atol=1e-6)


async def test_no_texts_are_no_rows_and_no_request() -> None:
    """An empty list is never sent."""
    with served("m", DIMS) as server:
        async with opened(server) as embedder:
            assert (await embedder.embed([])).shape == (0, DIMS)
        assert server.stats()["requests"] == 0


async def test_an_empty_text_is_never_sent() -> None:
    """It has no vector: an error names it, before anything goes out."""
    with served("m", DIMS) as server:
        async with opened(server) as embedder:
            with pytest.raises(EndpointRefusedError, match="text 1 is empty"):
                await embedder.embed(["a", " "])
        assert server.stats()["requests"] == 0


async def test_rows_are_normalised_for_cosine_only() -> None:
    """Whatever length a server gives its rows: cosine wants 1, dot and l2 keep it."""

    def long_rows(texts: list[str]) -> Response:
        return JSONResponse([[3.0, 4.0] for _ in texts])

    with served("m", 2, reply=long_rows) as server:
        async with opened(server, config=SpaceConfig(2, "m")) as embedder:
            np.testing.assert_allclose(await embedder.embed(["a"]), [[0.6, 0.8]])
        async with opened(server, config=SpaceConfig(2, "m", metric="dot")) as embedder:
            np.testing.assert_allclose(await embedder.embed(["a"]), [[3.0, 4.0]])


async def test_the_batch_size_is_read_from_info() -> None:
    """A server that says what it takes never has to refuse."""
    with served("m", DIMS, max_client_batch_size=64) as server:
        async with opened(server) as embedder:
            await embedder.embed(["a"])
            assert embedder.batch_size == 64
            await embedder.embed(["a"] * 64)
        assert server.stats()["requests"] == 2


async def test_the_smaller_of_two_batch_sizes_counts() -> None:
    """The caller's, or the server's."""
    with served("m", DIMS, max_client_batch_size=8) as server:
        async with opened(server, batch_size=5) as embedder:
            await embedder.embed(["a"] * 20)
            assert embedder.batch_size == 5
        async with opened(server, batch_size=100) as embedder:
            await embedder.embed(["a"] * 20)
            assert embedder.batch_size == 8


async def test_the_smallest_server_of_a_fleet_sets_the_batch_size() -> None:
    """Any batch may go to any endpoint, in whatever order they were met."""
    for limits in ((4, 8), (8, 4)):
        first, second = (served("m", DIMS, max_client_batch_size=limit) for limit in limits)
        with first as a, second as b:
            async with opened(a, b) as embedder:
                await embedder.embed(["a"] * 40)
                assert embedder.batch_size == 4


@pytest.mark.parametrize("status", [413, 422])
async def test_a_refused_batch_is_halved_and_the_size_remembered(status: int) -> None:
    """Without /info: begin with 32, halve on "batch size", and do not ask for more again."""
    too_many = tei_error(status, "batch size too big", "Validation")
    with served("m", DIMS, tei=False, reply=refusing(too_many, lambda texts: len(texts) > 10)) as server:
        async with opened(server) as embedder:
            np.testing.assert_allclose(await embedder.embed(["a"] * 32), MODEL.embed(["a"] * 32), atol=1e-6)
            assert embedder.batch_size == 8
            before = server.stats()["requests"]
            await embedder.embed(["a"] * 16)
            assert server.stats()["requests"] == before + 2


async def test_the_limit_that_a_refusal_names_is_believed() -> None:
    """A named "maximum allowed batch size 20" is worth more than half of 32."""
    with served("m", DIMS, tei=False, max_client_batch_size=20) as server:
        async with opened(server) as embedder:
            await embedder.embed(["a"] * 32)
            assert embedder.batch_size == 20


async def test_too_many_bytes_halve_one_request_only() -> None:
    """413 by the payload limit says nothing about the count: the next request is a full one again."""
    with served("m", DIMS, payload_limit=2_000, max_client_batch_size=16) as server:
        async with opened(server) as embedder:
            long = ["x" * 300] * 16
            np.testing.assert_allclose(await embedder.embed(long), MODEL.embed(long), atol=1e-6)
            assert embedder.batch_size == 16


async def test_one_text_that_is_too_large_is_refused_for_itself() -> None:
    """413 for a single text is that text's failure, not the endpoint's."""
    with served("m", DIMS, payload_limit=500) as server:
        async with opened(server) as embedder:
            with pytest.raises(EndpointRefusedError, match="413"):
                await embedder.embed(["x" * 600])


async def test_an_input_that_is_refused_is_not_retried(scripted: Scripted) -> None:
    """422 Validation: sending it again does not help."""
    scripted.set(times(99, tei_error(422, "bad token", "Tokenizer")))
    async with opened(scripted) as embedder:
        with pytest.raises(EndpointRefusedError, match="bad token"):
            await embedder.embed(["a"])
    assert scripted.requests() == 1


async def test_a_request_that_does_not_fit_fails_at_once(scripted: Scripted) -> None:
    """422 in plain text is a bug or another kind of server, whatever the text: no bisection, no retry."""
    scripted.set(times(99, lambda: PlainTextResponse("Failed to deserialize", 422)))
    async with opened(scripted) as embedder:
        with pytest.raises(EndpointForbiddenError, match="Failed to deserialize"):
            await embedder.embed(["a"])
    assert scripted.requests() == 1


@pytest.mark.parametrize("status", [401, 404, 405, 410])
async def test_a_request_that_is_turned_down_fails_at_once(status: int, scripted: Scripted) -> None:
    """A key, another route: no retry can help, and the error says what to look at."""
    scripted.set(times(99, lambda: Response(status_code=status)))
    async with opened(scripted) as embedder:
        with pytest.raises(EndpointForbiddenError, match=f"answered {status}"):
            await embedder.embed(["a"])
    assert scripted.requests() == 1


@pytest.mark.parametrize("status", [403, 406, 451])
async def test_what_a_filter_may_have_turned_down_costs_a_control(status: int, scripted: Scripted) -> None:
    """A harmless text is turned down too: the endpoint's error, at once, with what to do about it."""
    scripted.set(times(99, lambda: Response(status_code=status)))
    async with opened(scripted) as embedder:
        with pytest.raises(EndpointForbiddenError, match=f"answered {status} .*a harmless one too; ") as caught:
            await embedder.embed(["a"])
    assert ("wants another key" in caught.value.detail) is (status == 403)
    assert scripted.requests() == 2


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_redirects_are_not_followed(status: int, scripted: Scripted) -> None:
    """A redirect could lead to any address, with the key: it is an error."""
    with served("m", DIMS) as elsewhere:
        scripted.set(times(99, lambda: RedirectResponse(elsewhere.url, status)))
        async with opened(scripted, api_key=KEY) as embedder:
            with pytest.raises(EndpointForbiddenError, match="redirects are not followed"):
                await embedder.embed(["a"])
        assert elsewhere.stats()["requests"] == 0


@pytest.mark.parametrize(
    "fault",
    [
        tei_error(424, "inference failed", "Backend"),
        tei_error(429, "Model is overloaded", "Overloaded"),
        tei_error(503, "unhealthy", "Unhealthy"),
        lambda: PlainTextResponse("Bad Gateway", 502),
        lambda: PlainTextResponse("", 504),
        lambda: PlainTextResponse("boom", 500),
        lambda: JSONResponse([]),
        lambda: JSONResponse([[1.0] * DIMS] * 2),
        lambda: JSONResponse([[1.0] * DIMS] * 4),
        lambda: JSONResponse([[1.0] * (DIMS - 1)] * 3),
        lambda: JSONResponse([[1.0] * DIMS, [1.0] * DIMS, [1.0] * (DIMS + 1)]),
        lambda: JSONResponse([[1.0] * DIMS, [0.0] * DIMS, [1.0] * DIMS]),
        lambda: JSONResponse([[None] * DIMS] * 3),
        lambda: JSONResponse([[1.0] * DIMS, None, [1.0] * DIMS]),
        lambda: JSONResponse([["1"] * DIMS] * 3),
        lambda: JSONResponse([[True] * DIMS] * 3),
        lambda: JSONResponse([[[1.0]] * DIMS] * 3),
        lambda: JSONResponse([[1e39] * DIMS] * 3),
        lambda: JSONResponse({"embeddings": [[1.0] * DIMS] * 3}),
        lambda: JSONResponse(None),
        lambda: JSONResponse(7),
        lambda: Response(json.dumps([[float("nan")] * DIMS] * 3), media_type="application/json"),
        lambda: Response(json.dumps([[float("inf")] * DIMS] * 3), media_type="application/json"),
        lambda: Response(b"[[1.0, 2.0", media_type="application/json"),
        lambda: Response(b"", media_type="application/json"),
        lambda: PlainTextResponse("<html>Welcome</html>"),
    ],
)
async def test_a_passing_fault_or_lie_is_retried(fault: Callable[[], Response], scripted: Scripted) -> None:
    """Down, overloaded, failed, or a 200 that is wrong: the same request again, and the right rows in the end."""
    scripted.set(times(2, fault))
    async with opened(scripted) as embedder:
        np.testing.assert_allclose(await embedder.embed(TEXTS), MODEL.embed(TEXTS), atol=1e-6)
    assert scripted.requests() == 3


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("[[1,0],[1,0]]", "expected 1 rows, got 2"),
        ("[]", "expected 1 rows, got 0"),
        ("[[1,0,0]]", "expected 2 dims, got 3 dims"),
        ("[3]", "expected 2 dims, got a scalar"),
        ("[[1,null]]", "not a number"),
        ("[[1,NaN]]", "not JSON of finite numbers"),
        ("[[1,1e999]]", "not JSON of finite numbers"),
        ("[[1,1e39]]", "NaN or infinity"),
        ("[[0,0]]", "zero vector"),
        ("[[[1],[2]]]", "deeper lists"),
        ("[[[],[1,2]]]", "deeper lists"),
        ('{"data": []}', "got an object"),
        ("", "not JSON"),
    ],
)
async def test_a_lie_that_stays_is_an_error_with_its_reason(body: str, reason: str, scripted: Scripted) -> None:
    """What is wrong with a 200 is said, with the endpoint; and no row comes out."""
    scripted.set(times(99, lambda: Response(body, media_type="application/json")))
    async with opened(scripted, config=SpaceConfig(2, "m")) as embedder:
        with pytest.raises(EndpointAnswerError, match=reason) as caught:
            await embedder.embed(["a"])
    assert caught.value.fields["endpoint"] == scripted.url
    assert scripted.requests() == 4


async def test_a_backend_failure_that_stays_is_the_inputs(scripted: Scripted) -> None:
    """424 again and again is a refusal, so that bisection finds the input that breaks the model."""
    scripted.set(times(99, tei_error(424, "CUDA assert", "Backend")))
    async with opened(scripted) as embedder:
        with pytest.raises(EndpointRefusedError, match="CUDA assert") as caught:
            await embedder.embed(["a"])
    assert caught.value.fields["status"] == 424
    assert scripted.requests() == 3


async def test_a_fault_that_stays_is_unavailability() -> None:
    """After the retries the error names the endpoint, the status and the server's words, and invites a retry."""
    with served("m", DIMS, reply=times(99, tei_error(503, "no healthy backend", "Unhealthy"))) as server:
        async with opened(server) as embedder:
            with pytest.raises(EndpointUnavailableError, match="answered 503: no healthy backend") as caught:
                await embedder.embed(["a"])
    assert caught.value.retryable
    assert caught.value.fields == {"endpoint": server.url, "status": 503}


async def test_without_time_to_retry_there_is_one_attempt_per_endpoint() -> None:
    """retry_s=0: a query waits for nobody, yet another endpoint may answer it."""
    down = times(99, tei_error(503, "down", "Unhealthy"))
    with served("m", DIMS, reply=down) as bad, served("m", DIMS) as good:
        async with opened(bad, retry_s=0) as embedder:
            with pytest.raises(EndpointUnavailableError):
                await embedder.embed(["a"])
        assert bad.stats()["requests"] == 1
        async with opened(bad, good, retry_s=0) as embedder:
            assert (await embedder.embed(["a"])).shape == (1, DIMS)
        assert bad.stats()["requests"] == 2


async def test_endpoints_take_turns() -> None:
    """Round robin: three endpoints share the requests evenly."""
    with served("m", DIMS) as a, served("m", DIMS) as b, served("m", DIMS) as c:
        async with opened(a, b, c, batch_size=4) as embedder:
            texts = [f"t{i}" for i in range(48)]
            np.testing.assert_allclose(await embedder.embed(texts), MODEL.embed(texts), atol=1e-6)
        assert [s.stats()["requests"] for s in (a, b, c)] == [4, 4, 4]


async def test_a_dead_endpoint_is_covered_by_the_others() -> None:
    """Nobody listens at one of them: its requests go to the next."""
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    with served("m", DIMS) as alive:
        async with opened(f"http://127.0.0.1:{port}", alive, batch_size=4) as embedder:
            assert (await embedder.embed(["a"] * 20)).shape == (20, DIMS)
        assert alive.stats()["inputs"] == 20


async def test_a_refused_connection_is_said_plainly() -> None:
    """The error names the endpoint and the system's reason."""
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    async with opened(f"http://127.0.0.1:{port}", retry_s=0) as embedder:
        with pytest.raises(EndpointUnavailableError, match=f"http://127.0.0.1:{port}/embed.*[Cc]onnect"):
            await embedder.embed(["a"])


OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n"
NO_INFO = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (OK + b"Content-Length: 100\r\n\r\n[[1.0, ", "before its answer was whole"),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\n[[1.0", "before its answer was whole"),
        (b"", "before its answer was whole"),
        (b"SSH-2.0-OpenSSH_9.6\r\n\r\n", "failed"),
        (None, "did not answer within 0.3 s"),
    ],
)
async def test_half_an_answer_and_none_are_unavailability(answer: bytes | None, reason: str) -> None:
    """A body cut short, a connection closed, another protocol, silence: each is retried, then said."""
    requests = []

    def respond(head: bytes) -> bytes | None:
        if head.startswith(b"GET"):
            return NO_INFO
        requests.append(head)
        return answer

    timeout_s = 0.3 if answer is None else 30.0
    async with raw(respond) as url, opened(url, timeout_s=timeout_s) as embedder:
        with pytest.raises(EndpointUnavailableError, match=reason):
            await embedder.embed(["a"])
    assert len(requests) == 4


async def test_an_answer_without_end_is_cut_off() -> None:
    """An endpoint cannot fill the memory: more than an answer can be is a lie."""

    def respond(head: bytes) -> bytes:
        return NO_INFO if head.startswith(b"GET") else OK + b"\r\n[[" + b" " * 3_000_000

    async with raw(respond) as url, opened(url, retry_s=0) as embedder:
        with pytest.raises(EndpointAnswerError, match="more than"):
            await embedder.embed(["a"])


async def test_only_inputs_are_sent_to_a_server_that_is_not_tei() -> None:
    """A strict server refuses what it does not know, so it gets nothing else."""
    with served("m", DIMS, tei=False) as server:
        async with opened(server) as embedder:
            assert (await embedder.embed(["a"])).shape == (1, DIMS)


async def test_tei_is_told_to_truncate() -> None:
    """Where /info proves TEI a long text is cut and not refused."""
    with served("m", DIMS, max_input_length=5) as server:
        async with opened(server) as embedder:
            assert (await embedder.embed(["w " * 20])).shape == (1, DIMS)


async def test_a_spaces_options_are_sent_by_kind() -> None:
    """prompt_name of the query or of the document, and normalize, as the space says; for any server."""
    bodies = []

    def respond(head: bytes) -> bytes:
        return NO_INFO if head.startswith(b"GET") else OK + b"\r\n[[1, 2]]"

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        if head.startswith(b"POST"):
            length = int(head.lower().partition(b"content-length: ")[2].split()[0])
            bodies.append(msgspec.json.decode(await reader.readexactly(length)))
        writer.write(respond(head))
        await writer.drain()
        writer.close()

    config = SpaceConfig(2, "m", query_prompt_name="ask", document_prompt_name="tell", normalize=True)
    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    for kind in ("query", "document"):
        async with opened(url, config=config, kind=kind) as embedder:
            await embedder.embed(["é"])
    server.close()
    assert bodies == [{"inputs": ["é"], "prompt_name": name, "normalize": True} for name in ("ask", "tell")]


async def test_info_that_fails_leaves_the_question_open() -> None:
    """A TEI behind a proxy that is not up yet must not be taken for a plain server: its long texts would be lost."""
    answers = [b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"]
    info = json.dumps(
        {"model_id": "m", "model_type": {}, "max_concurrent_requests": 9, "max_client_batch_size": 3}
    ).encode()

    def respond(head: bytes) -> bytes:
        if head.startswith(b"GET"):
            return answers.pop() if answers else OK + b"\r\n" + info
        return OK + b"\r\n[[" + b",".join([b"1"] * DIMS) + b"]]"

    async with raw(respond) as url, opened(url) as embedder:
        await embedder.embed(["a"])
        assert embedder.batch_size == 3


async def test_the_key_is_sent_as_a_bearer() -> None:
    """To /info as well as to /embed."""
    with served("m", DIMS, api_key=KEY, max_client_batch_size=7) as server:
        async with opened(server, api_key=KEY) as embedder:
            assert (await embedder.embed(["a"])).shape == (1, DIMS)
            assert embedder.batch_size == 7


@pytest.mark.parametrize("status", [200, 401, 422, 424, 503])
async def test_no_key_is_in_errors_logs_and_reprs(status: int, caplog: pytest.LogCaptureFixture) -> None:
    """Not even when the server repeats it, plain or inside JSON; the query string is kept back as well."""
    key, query = KEY + '"q', "code=s3cr3t-s3cr3t"
    error = {"error": f"bad key {key} at ?{query}", "error_type": "Backend"}
    caplog.set_level(logging.DEBUG)
    for body in (json.dumps(error), error["error"]):
        reply = times(99, lambda body=body: Response(body, status))  # type: ignore[misc]
        with served("m", DIMS, reply=reply) as server:
            async with opened(f"{server.url}?{query}", api_key=key) as embedder:
                with pytest.raises(EmbeddingError) as caught:
                    await embedder.embed(["a"])
                shown = [
                    repr(embedder),
                    repr(caught.value),
                    str(caught.value.problem()),
                    repr(caught.value.__context__),
                ]
    shown += [repr(record.__dict__) for record in caplog.records if record.name != "asyncio"]
    for secret in ("hunter2", "s3cr3t"):
        assert not [text for text in shown if secret in text]


async def test_no_error_of_the_transport_comes_along() -> None:
    """The errors of aiohttp hold the URL and the headers: none is the cause or the context of ours."""
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    async with opened(f"http://127.0.0.1:{port}/?code=s3cr3t-s3cr3t", api_key=KEY) as embedder:
        with pytest.raises(EndpointUnavailableError) as caught:
            await embedder.embed(["a"])
    error: BaseException | None = caught.value
    while error is not None:
        assert isinstance(error, EmbeddingError)
        assert "s3cr3t" not in repr(error)
        error = error.__cause__ or error.__context__


@pytest.mark.parametrize("key", ["", "  ", "a\r\nX-Evil: 1", "schlüssel"])
def test_a_key_that_no_header_can_carry_is_refused(key: str) -> None:
    """The refusal does not repeat it."""
    url = EndpointUrl.parse("http://127.0.0.1:9")
    with pytest.raises(InvalidRequestError) as caught:
        PoolEmbedder([url], CONFIG, timeout_s=1, retry_s=0, api_key=key, kind="query")
    assert not key.strip() or key not in repr(caught.value)


async def test_proxies_of_the_environment_are_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts go to the endpoint and nowhere else."""
    with served("m", DIMS) as proxy, served("m", DIMS) as server:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.url.removesuffix("/embed"))
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.delenv("NO_PROXY", raising=False)
        async with opened(server) as embedder:
            await embedder.embed(["a"])
        assert (proxy.stats()["requests"], server.stats()["requests"]) == (0, 1)


async def test_cookies_are_not_kept() -> None:
    """One answer cannot mark the next request."""
    heads = []

    def respond(head: bytes) -> bytes:
        heads.append(head)
        if head.startswith(b"GET"):
            return NO_INFO
        return OK + b"Set-Cookie: id=1\r\n\r\n[[" + b",".join([b"1"] * DIMS) + b"]]"

    async with raw(respond) as url, opened(url) as embedder:
        await embedder.embed(["a"])
        await embedder.embed(["a"])
    assert len(heads) == 3
    assert not any(b"cookie" in head.lower() for head in heads)


async def test_a_name_that_turns_to_a_trap_is_not_called(monkeypatch: pytest.MonkeyPatch) -> None:
    """The address is checked when connecting; there is no retry, and the error says where it leads."""

    def resolve(*_: Any, **__: Any) -> list[Any]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("169.254.169.254", 80))]

    async with opened("http://rebinds.example/") as embedder:
        monkeypatch.setattr(socket, "getaddrinfo", resolve)
        with pytest.raises(EndpointForbiddenError, match=r"169\.254\.169\.254"):
            await embedder.embed(["a"])


def test_no_endpoint_is_no_pool() -> None:
    """A list without a URL is refused when opening."""
    with pytest.raises(InvalidRequestError):
        PoolEmbedder([], CONFIG, timeout_s=1, retry_s=0, kind="query")


async def test_half_a_surrogate_pair_is_refused_for_itself() -> None:
    """It is not Unicode and cannot be sent; the error does not hold the text."""
    with served("m", DIMS) as server:
        async with opened(server) as embedder:
            with pytest.raises(EndpointRefusedError, match="Unicode") as caught:
                await embedder.embed(["secret text \ud800"])
    assert "secret text" not in repr(caught.value)
    assert caught.value.__context__ is None


async def test_retries_end_when_the_time_is_up() -> None:
    """retry_s bounds a batch, backoff included; the last reason of the server is what is told."""
    stamina.set_testing(False)
    with served("m", DIMS, reply=times(999, tei_error(503, "starting", "Unhealthy"))) as server:
        async with opened(server, retry_s=2.0, timeout_s=2.0) as embedder:
            async with asyncio.timeout(60):
                with pytest.raises(EndpointUnavailableError, match="starting"):
                    await embedder.embed(["a"])
        assert server.stats()["requests"] >= 2


async def test_a_whole_fleet_that_is_down_is_asked_with_patience() -> None:
    """The next endpoint is tried at once; when all have failed there is a pause before each further attempt."""
    stamina.set_testing(False)
    down = tei_error(503, "down", "Unhealthy")
    with served("m", DIMS, reply=times(999, down)) as a, served("m", DIMS, reply=times(999, down)) as b:
        async with opened(a, b, retry_s=2.0, timeout_s=2.0) as embedder:
            with pytest.raises(EndpointUnavailableError):
                await embedder.embed(["a"])
        assert min(a.stats()["requests"], b.stats()["requests"]) >= 1
        assert a.stats()["requests"] + b.stats()["requests"] < 15


async def test_retry_after_is_honoured() -> None:
    """The server's word on when to come back counts; one that lies beyond the time left ends it at once."""
    stamina.set_testing(False)
    with served("m", DIMS, reply=times(1, tei_error(429, "full", "Overloaded", **{"Retry-After": "2"}))) as server:
        async with opened(server) as embedder:
            began = time.monotonic()
            await embedder.embed(["a"])
            assert time.monotonic() - began >= 2
    with served("m", DIMS, reply=times(9, tei_error(503, "full", "Unhealthy", **{"Retry-After": "3600"}))) as server:
        async with opened(server) as embedder:
            with pytest.raises(EndpointUnavailableError, match="full"):
                await embedder.embed(["a"])
        assert server.stats()["requests"] == 1


def test_each_event_loop_has_its_own_connections() -> None:
    """One embedder may serve several loops, one after the other or in threads."""
    with served("m", DIMS) as server:
        embedder = PoolEmbedder([EndpointUrl.parse(server.url)], CONFIG, timeout_s=5, retry_s=0, kind="query")

        async def once(close: bool) -> int:
            rows = await embedder.embed(["a"])
            if close:
                await embedder.close()
            return len(rows)

        assert asyncio.run(once(True)) == 1
        assert asyncio.run(once(True)) == 1
        assert server.stats()["requests"] == 2


async def test_one_failed_request_ends_the_others() -> None:
    """The first error is raised as itself; nothing goes on in the background."""
    held = HeldReplies()

    async def reply(texts: list[str]) -> Response | None:
        if "good" in texts:
            await held(texts)
        return tei_error(422, "poison", "Tokenizer")() if "bad" in texts else None

    with served("m", DIMS, reply=reply) as server:
        async with opened(server, batch_size=1) as embedder:
            await embedder.embed(["warm"])
            with pytest.raises(EndpointRefusedError, match="poison"):
                await embedder.embed(["bad"] + ["good"] * 50)
            assert asyncio.all_tasks() == {asyncio.current_task()}
            held.open()
        assert server.stats()["requests"] < 10, "no good text was answered, so that most have not been sent"


async def test_requests_in_flight_are_bounded() -> None:
    """Four per endpoint: a long list does not overrun a server's permits."""
    with served("m", DIMS, max_concurrent_requests=4, delay_ms=5) as server:
        async with opened(server, batch_size=1, retry_s=0, timeout_s=30) as embedder:
            assert (await embedder.embed(["a"] * 40)).shape == (40, DIMS)


def test_numbers_are_decoded_as_float32_exactly() -> None:
    """Integers, exponents and all: what JSON says, rounded once."""
    import simdjson

    rows, reason = decode_rows(simdjson.Parser(), b"[[1, 0.1], [-2e-3, 18446744073709551615]]", 2, 2)
    assert reason is None
    np.testing.assert_array_equal(rows, np.asarray([[1, 0.1], [-2e-3, 18446744073709551615]], np.float32))


async def test_endpoints_tell_how_they_do() -> None:
    """Each endpoint tells its rate and its errors, under its shown URL; a refused batch counts as one."""
    with served("m", 8) as good, served("m", 8, reply=lambda _: Response("no", 503)) as bad:
        urls = [EndpointUrl.parse(server.url) for server in (good, bad)]
        embedder = PoolEmbedder(urls, CONFIG, timeout_s=30, retry_s=30, kind="document", batch_size=1)
        await embedder.embed(["one text", "two texts", "three texts"])
        ours, theirs = embedder.endpoints()
        await embedder.close()
    assert (ours.url, theirs.url) == (good.url, bad.url)
    assert (ours.errors, ours.in_flight, ours.last_error) == (0, 0, None)
    assert ours.docs_per_s > 0
    assert theirs.errors >= 1
    assert theirs.docs_per_s == 0
    assert "503" in (theirs.last_error or "")
