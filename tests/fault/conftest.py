"""Clients that query, write, swap and drop while processes die, and the judge of what they were told."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import httpx
import pytest

COLLECTION = "docs"
DIMS = {"old": 32, "new": 48, "third": 24}


@dataclass(frozen=True, slots=True)
class Seen:
    """An answer, to a query or to a swap: which epoch and space it told, and when it was asked for and had."""

    client: str
    began: float
    ended: float
    epoch: int
    space: str


def violations(history: Iterable[Seen]) -> list[str]:
    """What of a history no single register could have told; empty: it is linearizable.

    The epoch only grows and each epoch has one space, so it is enough that no answer which began after another one
    had ended tells an older epoch. This holds for swaps and queries alike, whoever asked.
    """
    seen = list(history)
    found = [f"epoch {e} was {a} and {b}" for e, a, b in _two_spaces(seen)]
    by_end = sorted(seen, key=lambda one: one.ended)
    newest: Seen | None = None
    at = 0
    for one in sorted(seen, key=lambda one: one.began):
        while at < len(by_end) and by_end[at].ended < one.began:
            if newest is None or by_end[at].epoch > newest.epoch:
                newest = by_end[at]
            at += 1
        if newest is not None and one.epoch < newest.epoch:
            late_ms = 1e3 * (one.began - newest.ended)
            found.append(
                f"{one.client} was told epoch {one.epoch}, {late_ms:.1f} ms after {newest.client} had {newest.epoch}"
            )
    return found


def _two_spaces(seen: Sequence[Seen]) -> list[tuple[int, str, str]]:
    spaces: dict[int, str] = {}
    return [(s.epoch, spaces[s.epoch], s.space) for s in seen if spaces.setdefault(s.epoch, s.space) != s.space]


@pytest.fixture(scope="session")
def seen() -> type[Seen]:
    """The type of an entry of a history."""
    return Seen


@pytest.fixture(scope="session")
def judge() -> Callable[[Iterable[Seen]], list[str]]:
    """What is wrong with a history."""
    return violations


class Client(threading.Thread):
    """Asks again and again, over a new connection each time, so that the kernel picks the gateway."""

    def __init__(self, name: str, url: str) -> None:
        super().__init__(name=name, daemon=True)
        self.url = f"{url}/collections/{COLLECTION}"
        self.stopped = threading.Event()
        self.history: list[Seen] = []
        self.wrong: list[str] = []
        self.failed = 0
        # one client, for its certificates take longer to read than a request takes
        self.http = httpx.Client(trust_env=False, limits=httpx.Limits(max_keepalive_connections=0))

    def run(self) -> None:
        with self.http:
            while not self.stopped.is_set():
                try:
                    self.ask(time.monotonic())
                except httpx.TransportError:
                    self.failed += 1
                    time.sleep(0.02)

    def ask(self, began: float) -> None:
        body = {"query": "swap the model", "top_k": 1, "include_vectors": True}
        answer = self.send("POST", "/search", (200,), body, wait_s=3)
        if answer is None:
            time.sleep(0.02)
            return
        told = answer.json()
        self.history.append(Seen(self.name, began, time.monotonic(), told["epoch"], told["vector_space"]))
        ((space, vector),) = told["results"][0]["chunk"]["embeddings"].items()
        if (space, len(vector)) != (told["vector_space"], DIMS[told["vector_space"]]):
            self.wrong.append(f"an answer of {told['vector_space']} holds a vector of {space}")

    def send(
        self, method: str, path: str, good: tuple[int, ...], body: Any = None, *, wait_s: float = 20
    ) -> httpx.Response | None:
        """The answer if it is a good one; None for 503, which is allowed under faults; others are wrong."""
        answer = self.http.request(method, f"{self.url}{path}", json=body, timeout=wait_s)
        if answer.status_code in good:
            return answer
        self.failed += 1
        if answer.status_code != 503:
            self.wrong.append(f"{self.name}: {method} {path}: {answer.status_code} {answer.text}")
        return None


class Swapper(Client):
    """Swaps to and fro; what it is not told, it does not count."""

    def ask(self, began: float) -> None:
        space = random.choice(["old", "new"])
        answer = self.send("PUT", "/default-vector-space", (200, 409), {"name": space})
        if answer is not None and answer.status_code == 200:
            told = answer.json()
            self.history.append(Seen("swap", began, time.monotonic(), told["epoch"], told["current"]))
        time.sleep(random.random() * 0.2)


class Writer(Client):
    """Writes one chunk after another, each until it is acknowledged; remembers those."""

    def __init__(self, name: str, url: str) -> None:
        super().__init__(name, url)
        self.acknowledged: list[str] = []

    def ask(self, began: float) -> None:
        index = len(self.acknowledged)
        text = f"written while processes die, number {index}"
        chunk = {"file_id": "written", "chunk_index": index, "text": text}
        if self.send("POST", "/ingest", (200,), {"chunks": [chunk], "wait_s": 0}) is not None:
            self.acknowledged.append(text)
        time.sleep(0.02)


class Dropper(Client):
    """Adds a third space, rebuilds it, searches it by its name, drops it, and finds it gone."""

    def __init__(self, name: str, url: str) -> None:
        super().__init__(name, url)
        self.dropped = 0

    def ask(self, began: float) -> None:
        space = {"name": "third", "dims": DIMS["third"], "model": "third", "embed_endpoint": "builtin"}
        if self.send("POST", "/vector-spaces", (201, 409), space) is None:  # 409: there, by an answer that was lost
            return
        # 404: dropped only now, by a call whose answer was lost
        self.send("POST", "/vector-spaces/third/rebuild", (202, 404, 409), {"embed_endpoint": "builtin"})
        self._search((200, 404, 409))  # 409: building
        answer = self.send("DELETE", "/vector-spaces/third", (204, 404))
        while answer is None and not self.stopped.is_set():
            answer = self.send("DELETE", "/vector-spaces/third", (204, 404))
        if answer is not None:
            self._search((404,))
            self.dropped += 1

    def _search(self, good: tuple[int, ...]) -> None:
        body = {"query": "swap the model", "top_k": 1, "vector_space": "third", "include_vectors": True}
        answer = self.send("POST", "/search", good, body, wait_s=3)
        if answer is not None and answer.status_code == 200:
            for hit in answer.json()["results"]:
                if {k: len(v) for k, v in hit["chunk"]["embeddings"].items()} != {"third": DIMS["third"]}:
                    self.wrong.append(f"an answer of third holds {list(hit['chunk']['embeddings'])}")


class Traffic:
    """Four clients, a swapper, a writer and a dropper on the collection `docs`, which `fill` makes."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.clients = [Client(f"client {i}", url) for i in range(4)]
        self.swapper, self.writer, self.dropper = (
            Swapper("swapper", url),
            Writer("writer", url),
            Dropper("dropper", url),
        )
        self.began = self.ended = 0.0

    @property
    def all(self) -> list[Client]:
        """Everybody."""
        return [*self.clients, self.swapper, self.writer, self.dropper]

    @property
    def history(self) -> list[Seen]:
        """What clients and swapper were told."""
        return [one for client in self.all for one in client.history]

    def fill(self) -> None:
        """Make the collection, with two spaces and fifty chunks."""
        spaces = {n: {"dims": DIMS[n], "model": n, "embed_endpoint": "builtin"} for n in ("old", "new")}
        with httpx.Client(base_url=self.url, timeout=60, trust_env=False) as http:
            created = http.post("/collections", json={"name": COLLECTION, "vector_spaces": spaces})
            assert created.status_code == 201, created.text
            chunks = [{"file_id": "f", "chunk_index": i, "text": f"how to swap model {i}"} for i in range(50)]
            answer = http.post(f"/collections/{COLLECTION}/ingest", json={"chunks": chunks, "wait_s": 30})
            assert answer.status_code == 200, answer.text

    def start(self) -> None:
        """Begin to ask."""
        self.began = time.monotonic()
        for thread in self.all:
            thread.start()

    def stop(self) -> None:
        """Ask no more; returns when the last answers are there."""
        for thread in self.all:
            thread.stopped.set()
        for thread in self.all:
            thread.join(30)
        self.ended = self.ended or time.monotonic()

    def longest_wait(self) -> float:
        """The longest time in which no query at all was answered well."""
        times = sorted([self.began, self.ended, *(one.ended for client in self.clients for one in client.history)])
        return max(b - a for a, b in pairwise(times))

    def wrong(self) -> list[str]:
        """What nobody should have been told, or is not told now: of the history, of single answers, of writes."""
        told = violations(self.history) + [what for thread in self.all for what in thread.wrong]
        return told + [f"lost: {text}" for text in sorted(set(self.writer.acknowledged) - self._stored())]

    def _stored(self) -> set[str]:
        texts: set[str] = set()
        after: int | None = 0
        with httpx.Client(base_url=self.url, timeout=60, trust_env=False) as http:
            while after is not None:
                page = http.get(f"/collections/{COLLECTION}/chunks", params={"after": after, "limit": 1000}).json()
                texts |= {chunk["text"] for chunk in page["chunks"]}
                after = page["next"]
        return texts


@pytest.fixture
def traffic() -> Iterator[Callable[[str], Traffic]]:
    """Traffic on a service, which ends with the test at the latest."""
    made: list[Traffic] = []

    def on(url: str) -> Traffic:
        made.append(Traffic(url))
        return made[-1]

    yield on
    for one in made:
        if one.began:
            one.stop()
