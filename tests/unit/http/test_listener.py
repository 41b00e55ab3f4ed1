"""The gateway's own door: a socket that several share, and that ends without cutting anybody off."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from compass.http.listener import Door


class App:
    """An ASGI application that answers its name, when the gate is open."""

    def __init__(self, name: str = "a") -> None:
        self.name, self.requests = name, 0
        self.gate, self.entered = asyncio.Event(), asyncio.Event()
        self.gate.set()

    async def __call__(self, scope: Any, receive: Callable[[], Any], send: Callable[[Any], Any]) -> None:
        self.requests += 1
        self.entered.set()
        await self.gate.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": self.name.encode()})


def opened(app: App, port: int = 0) -> Door:
    door = Door(app, "127.0.0.1", port)
    door.open()
    return door


def client() -> httpx.AsyncClient:
    return httpx.AsyncClient(trust_env=False, timeout=5)


async def get(door: Door) -> str:
    """What a new connection is answered; the server may still be about to listen."""
    async with client() as http:
        for _ in range(100):
            try:
                return (await http.get(f"http://127.0.0.1:{door.port}/")).text
            except httpx.ConnectError:
                await asyncio.sleep(0.02)
    raise AssertionError("nobody listens")


async def test_serves_on_its_port() -> None:
    """A door opened on port 0 says which port it got, and answers there."""
    door = opened(App("hello"))
    assert door.port > 0
    assert await get(door) == "hello"
    await door.close()


async def test_two_doors_share_a_port() -> None:
    """Two replicas bind the same port, the kernel spreads connections, and one that closes leaves the other."""
    first, second = App("first"), App("second")
    one = opened(first)
    two = opened(second, one.port)
    answers = [await get(one) for _ in range(40)]
    assert set(answers) == {"first", "second"}
    await one.close()
    assert {await get(two) for _ in range(10)} == {"second"}
    await two.close()


async def test_close_finishes_what_is_in_flight() -> None:
    """A request that is being answered when the door closes gets its answer; a new one is refused."""
    app = App("late")
    door = opened(app)
    assert await get(door) == "late"
    app.gate.clear()
    app.entered.clear()
    in_flight = asyncio.create_task(get(door))
    await app.entered.wait()
    closing = asyncio.create_task(door.close())
    await asyncio.sleep(0.2)
    assert not closing.done()
    async with client() as http:
        with pytest.raises(httpx.TransportError):
            await http.get(f"http://127.0.0.1:{door.port}/")
    app.gate.set()
    assert await in_flight == "late"
    await asyncio.wait_for(closing, 5)


async def test_a_door_that_was_never_opened_closes() -> None:
    """Its port is free again."""
    door = Door(App(), "127.0.0.1", 0)
    await door.close()
    again = Door(App(), "127.0.0.1", door.port)
    await again.close()


async def test_a_door_closed_at_once_ends() -> None:
    """Closing does not wait for a start that has not happened yet."""
    door = opened(App())
    await asyncio.wait_for(door.close(), 5)


async def test_an_address_that_is_not_ours_is_an_error_of_the_start() -> None:
    """What cannot be bound is said when the door is made, not in the background."""
    with pytest.raises(OSError, match="assign"):
        Door(App(), "192.0.2.1", 0)


async def test_a_closing_door_answers_kept_connections_and_says_goodbye() -> None:
    """Whoever asks on a connection that is kept is answered, and told to connect anew, where another door answers."""
    one = opened(App("old"))
    async with client() as http:
        url = f"http://127.0.0.1:{one.port}/"
        first = await http.get(url)
        assert "connection" not in first.headers
        two = opened(App("new"), one.port)
        closing = asyncio.create_task(one.close())
        await asyncio.sleep(0)
        second = await http.get(url)
        assert (second.text, second.headers["connection"]) == ("old", "close")
        await asyncio.wait_for(closing, 5)
        assert (await http.get(url)).text == "new"
    await two.close()


async def test_no_connection_is_lost_when_a_door_closes() -> None:
    """Clients that connect anew for each request, while one of two doors closes, are all answered."""
    one = opened(App("old"))
    two = opened(App("new"), one.port)
    answers: list[str] = []
    closed = asyncio.Event()

    async def ask() -> None:
        while not closed.is_set():
            reader, writer = await asyncio.open_connection("127.0.0.1", two.port)
            writer.write(b"GET / HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
            answer = (await reader.read()).decode()
            answers.append(next((name for name in ("old", "new") if f"\r\n{name}\r\n" in answer), answer))
            writer.close()

    async with asyncio.timeout(20), asyncio.TaskGroup() as clients:
        for _ in range(8):
            clients.create_task(ask())
        await asyncio.sleep(0.1)
        await one.close()
        closed.set()
    assert set(answers) == {"old", "new"}
    assert len(answers) > 50
    await two.close()
