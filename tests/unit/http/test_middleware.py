"""What a request must pass: the key or the host, the size, and room for one more."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

JSON = {"content-type": "application/json"}


async def test_a_key_is_wanted_on_every_route_but_health_and_ready(new_service: Callable[..., Any]) -> None:
    """401 with WWW-Authenticate for a missing or wrong key; /docs and unknown routes too."""
    service = new_service(api_key="s3cret")
    async with service.http() as http:
        for path in ("/health", "/ready"):
            assert (await http.get(path)).status_code == 200
        for headers in (
            {},
            {"authorization": "Bearer wrong"},
            {"authorization": "s3cret"},
            {"authorization": "Basic x"},
        ):
            for path in ("/collections", "/docs", "/openapi.json", "/nowhere", "/health/"):
                answer = await http.get(path, headers=headers)
                assert answer.status_code == 401, path
                assert answer.headers["www-authenticate"] == "Bearer"
                assert answer.headers["content-type"] == "application/problem+json"
        assert (await http.get("/collections", headers={"authorization": "Bearer s3cret"})).status_code == 200
        assert (await http.get("/collections", headers={"authorization": b"Bearer \xff"})).status_code == 401


async def test_without_a_key_nothing_is_written(new_service: Callable[..., Any]) -> None:
    """The guard comes before everything else."""
    service = new_service(api_key="s3cret")
    async with service.http() as http:
        assert (await http.post("/collections", json={"name": "docs"})).status_code == 401
    assert service.router.states == {}


async def test_an_open_server_says_so_in_its_log(
    new_service: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    """A warning at the start without a key, none with one; the key itself is never logged."""
    new_service()
    assert "COMPASS_API_KEY is not set" in caplog.text
    caplog.clear()
    new_service(api_key="s3cret")
    assert caplog.text == ""


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "localhost:8000",
        "127.0.0.1",
        "127.0.0.1:8000",
        "[::1]:8000",
        "LOCALHOST:1",
        "search.example",
        "10.0.0.5",
    ],
)
async def test_hosts_that_are_this_server(new_service: Callable[..., Any], host: str) -> None:
    """The bound address, localhost, and what COMPASS_ALLOWED_HOSTS lists."""
    service = new_service(host="10.0.0.5", allowed_hosts="other.example, Search.Example")
    async with service.http() as http:
        assert (await http.get("/collections", headers={"host": host})).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.evil", "", "10.0.0.6"]
)
async def test_a_wrong_host_on_an_open_server(new_service: Callable[..., Any], host: str) -> None:
    """421 on every route, /health too: a web page must not reach it by DNS rebinding."""
    service = new_service()
    async with service.http() as http:
        for path in ("/health", "/collections", "/docs"):
            answer = await http.get(path, headers={"host": host})
            assert answer.status_code == 421
        answer = await http.post("/collections", json={"name": "docs"}, headers={"host": host})
        assert answer.status_code == 421
    assert service.router.states == {}


@pytest.mark.parametrize(
    ("origin", "status"), [("https://evil.example", 421), ("null", 421), ("http://localhost:3000", 200)]
)
async def test_a_page_of_another_site(new_service: Callable[..., Any], origin: str, status: int) -> None:
    """A cross-site request to an open server is turned away by its Origin, whatever its Host says."""
    service = new_service()
    async with service.http("http://localhost:8000") as http:
        answer = await http.get("/collections", headers={"origin": origin, "host": "localhost:8000"})
    assert answer.status_code == status


async def test_a_server_bound_to_all_addresses_is_each_of_them(new_service: Callable[..., Any]) -> None:
    """The address that the connection came in on is a right Host; a name never is by itself."""
    service = new_service(host="0.0.0.0")
    async with service.http("http://10.1.2.3:8000") as http:
        assert (await http.get("/health")).status_code == 200
        assert (await http.get("/health", headers={"host": "10.9.9.9"})).status_code == 421
    async with service.http("http://evil.example:8000") as http:
        assert (await http.get("/health")).status_code == 421


async def test_with_a_key_any_host_will_do(new_service: Callable[..., Any]) -> None:
    """A page that rebinds a name has no key."""
    service = new_service(api_key="s3cret")
    async with service.http() as http:
        headers = {"host": "search.example", "authorization": "Bearer s3cret"}
        assert (await http.get("/collections", headers=headers)).status_code == 200


async def test_a_body_over_the_limit(new_service: Callable[..., Any]) -> None:
    """413 by Content-Length, and without one while it is read; at the limit it is let through."""
    service = new_service(max_body_bytes=1_000)
    body = json.dumps({"name": "docs"}).encode()
    read = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal read
        while True:
            read += 1
            yield b" " * 300

    async with service.http() as http:
        too_large = await http.post("/collections", content=body + b" " * 1_000, headers=JSON)
        assert too_large.status_code == 413
        assert too_large.json()["limit_bytes"] == 1_000
        assert (await http.post("/collections", content=endless(), headers=JSON)).status_code == 413
        assert read <= 5, "it stops reading at the limit"
        assert service.router.states == {}
        just = await http.post("/collections", content=body.ljust(1_000), headers=JSON)
        assert just.status_code == 201


async def test_a_body_that_says_it_is_too_large_is_not_read(new_service: Callable[..., Any]) -> None:
    """Its Content-Length is enough for the 413."""
    service = new_service(max_body_bytes=1_000)
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        raise AssertionError("the body was read")

    async def send(message: Any) -> None:
        sent.append(message)

    await service.app(_creation((b"content-length", b"1001")), receive, send)
    assert sent[0]["status"] == 413


async def test_more_requests_than_there_is_room_for(new_service: Callable[..., Any]) -> None:
    """The one too many is 429 with Retry-After; /health still answers; room comes back."""
    service = new_service(max_in_flight=2)
    inside, release = asyncio.Semaphore(0), asyncio.Event()

    async def hold() -> None:
        inside.release()
        await release.wait()

    async with service.http() as http:
        await http.post("/collections", json={"name": "docs"})
        service.index("docs", "default").on_follow = hold
        chunks = [{"file_id": "f", "chunk_index": 0, "text": "t"}]
        waiting = [
            asyncio.create_task(http.post("/collections/docs/ingest", json={"chunks": chunks})) for _ in range(2)
        ]
        await inside.acquire()
        await inside.acquire()
        refused = await http.get("/collections")
        assert refused.status_code == 429
        assert refused.headers["retry-after"] == "1"
        assert (await http.get("/health")).status_code == 200
        release.set()
        assert [(await w).status_code for w in waiting] == [200, 200]
        assert (await http.get("/collections")).status_code == 200


async def test_a_client_that_hangs_up_gets_no_answer(service: Any) -> None:
    """Nothing is sent and nothing is written when the body never becomes whole."""
    messages: Iterator[dict[str, Any]] = iter(
        [{"type": "http.request", "body": b'{"name":', "more_body": True}, {"type": "http.disconnect"}]
    )
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return next(messages)

    async def send(message: Any) -> None:
        sent.append(message)

    await service.app(_creation(), receive, send)
    assert sent == []
    assert service.router.states == {}


def _creation(*headers: tuple[bytes, bytes]) -> dict[str, Any]:
    """The ASGI scope of a POST /collections."""
    own = [(b"host", b"localhost"), (b"content-type", b"application/json")]
    return {"type": "http", "method": "POST", "path": "/collections", "headers": [*own, *headers]}
