"""Sockets that share a port, and give it up without losing a connection."""

from __future__ import annotations

import contextlib
import select
import socket
import threading
from collections.abc import Iterator

import pytest

from compass.http.reuse_port import bound, refuse_new

DEADLINE_S = 60.0


@contextlib.contextmanager
def listening(host: str, port: int = 0) -> Iterator[socket.socket]:
    with contextlib.closing(bound(host, port)) as sock:
        sock.listen(64)
        yield sock


def accepted(sock: socket.socket) -> int:
    """How many connections wait in the queue of a socket; they are closed."""
    count = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            sock.accept()[0].close()
            count += 1
    return count


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_socket_that_turns_away_keeps_what_has_arrived_and_gets_no_more(host: str) -> None:
    """Connections made before are in its queue; of those begun after, all come to the other socket of the port."""
    with listening(host) as leaving:
        port = leaving.getsockname()[1]
        before = [socket.create_connection((host, port)) for _ in range(5)]
        with listening(host, port) as staying:
            refuse_new(leaving)
            assert accepted(leaving) == len(before)
            errors: list[OSError] = []

            def connect() -> None:
                try:
                    socket.create_connection((host, port), timeout=DEADLINE_S).close()
                except OSError as error:
                    errors.append(error)

            threads = [threading.Thread(target=connect) for _ in range(20)]
            for thread in threads:
                thread.start()
            assert select.select([staying], [], [], DEADLINE_S)[0], "nobody arrives at the socket that stays"
            assert accepted(leaving) == 0
            leaving.close()  # whoever found it sends his first packet again, to the other
            for thread in threads:
                thread.join()
            assert errors == []
            assert accepted(staying) == len(threads)
        for sock in before:
            sock.close()


def test_alone_it_refuses_once_it_is_closed() -> None:
    """A port that nobody else listens on is refused, not silent, as soon as the socket is closed."""
    with listening("127.0.0.1") as leaving:
        port = leaving.getsockname()[1]
        refuse_new(leaving)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=DEADLINE_S)


def test_an_address_that_is_not_ours_is_refused() -> None:
    """What cannot be bound is an error, and leaves no socket open."""
    with pytest.raises(OSError, match="assign"):
        bound("192.0.2.1", 0)
