"""The gateway's own listener: a socket that several share, and that ends without cutting anybody off."""

from __future__ import annotations

import asyncio

import httpx
import pytest
from starlette.types import Receive, Scope, Send
from waiting import until

from compass.http.listener import Listener

DEADLINE_S = 60.0  # for what takes milliseconds
ARRIVING_S = 0.02
LONG_S = 3_600.0


class App:
    """An ASGI application that answers its name, when the gate is open."""

    def __init__(self, name: str = "a") -> None:
        self.name, self.requests = name, 0
        self.gate, self.entered = asyncio.Event(), asyncio.Event()
        self.gate.set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.requests += 1
        self.entered.set()
        await self.gate.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": self.name.encode()})


def opened(app: App, port: int = 0, *, idle_s: float = LONG_S) -> Listener:
    listener = Listener(app, "127.0.0.1", port, arriving_s=ARRIVING_S, idle_s=idle_s)
    listener.open()
    return listener


async def get(port: int) -> str:
    """What a new connection is answered: the name of the application."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET / HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
    head, _, body = (await reader.read()).decode().partition("\r\n\r\n")
    writer.close()
    assert head.startswith("HTTP/1.1 200"), head
    return body.split("\r\n")[1] if "chunked" in head else body


async def closed(listener: Listener) -> None:
    async with asyncio.timeout(DEADLINE_S):
        await listener.close()


async def test_serves_on_its_port() -> None:
    """A listener opened on port 0 says which port it got, and answers there."""
    listener = opened(App("hello"))
    assert listener.port > 0
    assert await get(listener.port) == "hello"
    await closed(listener)


async def test_two_listeners_share_a_port() -> None:
    """Two replicas bind the same port, the kernel spreads connections, and one that closes leaves the other."""
    one = opened(App("first"))
    two = opened(App("second"), one.port)
    answers: set[str] = set()
    async with asyncio.timeout(DEADLINE_S):
        while answers != {"first", "second"}:
            answers.add(await get(one.port))
    await closed(one)
    assert {await get(two.port) for _ in range(10)} == {"second"}
    await closed(two)


async def test_close_finishes_what_is_in_flight() -> None:
    """A request that is being answered when the listener closes gets its answer; a new one is refused."""
    app = App("late")
    listener = opened(app)
    assert await get(listener.port) == "late"
    app.gate.clear()
    app.entered.clear()
    in_flight = asyncio.create_task(get(listener.port))
    await app.entered.wait()
    closing = asyncio.create_task(listener.close())
    await asyncio.sleep(0)  # it begins; from now on a first packet is dropped, and refused when it comes again
    async with asyncio.timeout(DEADLINE_S):
        with pytest.raises(ConnectionRefusedError):
            await get(listener.port)
    assert not closing.done()
    assert not in_flight.done()
    app.gate.set()
    assert await in_flight == "late"
    async with asyncio.timeout(DEADLINE_S):
        await closing


async def test_a_listener_that_was_never_opened_closes() -> None:
    """Its port is free again."""
    listener = Listener(App(), "127.0.0.1", 0)
    await listener.close()
    again = Listener(App(), "127.0.0.1", listener.port)
    await again.close()


async def test_a_listener_closed_at_once_ends() -> None:
    """Closing does not wait for a start that has not happened yet."""
    await closed(opened(App()))


async def test_an_address_that_is_not_ours_is_an_error_of_the_start() -> None:
    """What cannot be bound is said when the listener is made, not in the background."""
    with pytest.raises(OSError, match="assign"):
        Listener(App(), "192.0.2.1", 0)


async def test_a_closing_listener_answers_kept_connections_and_says_goodbye() -> None:
    """Whoever asks on a connection that is kept is answered, and told to connect anew, where another one answers."""
    one = opened(App("old"))
    async with httpx.AsyncClient(trust_env=False, timeout=DEADLINE_S) as http:
        url = f"http://127.0.0.1:{one.port}/"
        first = await http.get(url)
        assert "connection" not in first.headers
        two = opened(App("new"), one.port)
        closing = asyncio.create_task(one.close())
        await asyncio.sleep(0)
        second = await http.get(url)
        assert (second.text, second.headers["connection"]) == ("old", "close")
        async with asyncio.timeout(DEADLINE_S):
            await closing
        assert (await http.get(url)).text == "new"
    await closed(two)


async def test_a_connection_that_is_kept_in_silence_is_closed() -> None:
    """It is waited for as long as the listener was given, and not for ever."""
    listener = opened(App(), idle_s=0.05)
    reader, writer = await asyncio.open_connection("127.0.0.1", listener.port)
    writer.write(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n")
    await reader.readuntil(b"\r\n\r\n")
    await closed(listener)
    async with asyncio.timeout(DEADLINE_S):
        await reader.read()
    writer.close()


async def test_no_connection_is_lost_when_a_listener_closes() -> None:
    """Clients that connect anew for each request, while one of two listeners closes, are all answered."""
    one = opened(App("old"))
    two = opened(App("new"), one.port)
    answers: list[str] = []
    done = asyncio.Event()

    async def ask() -> None:
        while not done.is_set():
            answers.append(await get(two.port))

    async with asyncio.timeout(DEADLINE_S), asyncio.TaskGroup() as clients:
        for _ in range(8):
            clients.create_task(ask())
        await until(lambda: set(answers) == {"old", "new"}, DEADLINE_S)
        await one.close()
        at_close = len(answers)
        await until(lambda: len(answers) >= at_close + 16, DEADLINE_S)  # each client has asked again
        done.set()
    assert set(answers) == {"old", "new"}
    assert {await get(two.port) for _ in range(10)} == {"new"}
    await closed(two)
