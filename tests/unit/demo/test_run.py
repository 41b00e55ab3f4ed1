"""The main job against a service kept in dicts."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from rich.console import Console

from compass.demo import DemoReport, run_demo
from compass.demo.run import MODELS, bytes_under
from compass.errors import CompassError

Body = dict[str, Any]
Route = Callable[[Body, str], httpx.Response]
Run = Callable[[], Awaitable[DemoReport]]

OLD, NEW = (m.name for m in MODELS)


@dataclass
class FakeService:
    """The routes that the demo calls, kept in dicts; no vectors, every chunk is a hit."""

    calls: list[str] = field(default_factory=list)
    chunks: dict[tuple[str, int], Body] = field(default_factory=dict)
    spaces: dict[str, Body] = field(default_factory=dict)
    default: str = ""
    epoch: int = 1
    polls: int = 0
    stale: bool = False  # whether it goes on answering from the space it was created with
    rebuild_fails: bool = False
    refuses: Body = field(default_factory=dict)  # what a refused POST of the collection answers
    loses: int = 0  # chunks that never reach the new space

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        path = request.url.path.removeprefix("/collections/docstrings")
        body = json.loads(request.content) if request.content else {}
        self.calls.append(f"{request.method} {path}")
        for pattern, answer in self.routes():
            if re.fullmatch(pattern, f"{request.method} {path}"):
                return answer(body, path)
        return httpx.Response(404, json={"detail": f"no route {request.method} {path}"})

    def routes(self) -> list[tuple[str, Route]]:
        return [
            ("DELETE ", lambda body, path: httpx.Response(404)),
            ("POST /collections", self.create),
            ("GET ", lambda body, path: httpx.Response(200, json=self.info())),
            ("POST /ingest", self.ingest),
            ("POST /search", self.search),
            ("POST /vector-spaces", self.add),
            ("POST /vector-spaces/.*/rebuild", lambda body, path: httpx.Response(202, json={"status": "building"})),
            ("GET /vector-spaces/.*/status", self.status),
            ("PUT /default-vector-space", self.swap),
            ("DELETE /vector-spaces/.*", self.drop),
        ]

    def create(self, body: Body, path: str) -> httpx.Response:
        if self.refuses:
            return httpx.Response(422, json=self.refuses)
        self.spaces = {name: {"status": "active", **config} for name, config in body["vector_spaces"].items()}
        self.default = next(iter(self.spaces))
        return httpx.Response(201, json=self.info())

    def info(self) -> Body:
        spaces = {
            name: {"vectors": len(self.chunks) - (self.loses if name == NEW else 0), "bytes_on_disk": 1000}
            for name in self.spaces
        }
        return {"chunk_count": len(self.chunks), "vector_spaces": spaces}

    def ingest(self, body: Body, path: str) -> httpx.Response:
        self.chunks |= {(c["file_id"], c["chunk_index"]): c for c in body["chunks"]}
        return httpx.Response(200, json={"indexed": len(body["chunks"]), "pending": {}})

    def search(self, body: Body, path: str) -> httpx.Response:
        space = body.get("vector_space") or (OLD if self.stale else self.default)
        hits = [{"chunk": c} for c in list(self.chunks.values())[: body["top_k"]]]
        return httpx.Response(200, json={"results": hits, "vector_space": space, "epoch": self.epoch})

    def add(self, body: Body, path: str) -> httpx.Response:
        self.spaces[body["name"]] = {"status": "building"}
        return httpx.Response(201, json={})

    def status(self, body: Body, path: str) -> httpx.Response:
        self.polls += 1
        total, done = len(self.chunks), self.polls > 2
        state = "failed" if done and self.rebuild_fails else "done" if done else "running"
        status = "active" if state == "done" else "building"
        answer = {"status": status, "progress": float(done), "total": total, "run": {"state": state}}
        return httpx.Response(200, json={**answer, "error": "no luck" if state == "failed" else None})

    def swap(self, body: Body, path: str) -> httpx.Response:
        self.default, self.epoch = body["name"], self.epoch + 1
        return httpx.Response(200, json={"current": self.default, "epoch": self.epoch})

    def drop(self, body: Body, path: str) -> httpx.Response:
        del self.spaces[path.rpartition("/")[2]]
        return httpx.Response(204)


@pytest.fixture
def service() -> FakeService:
    return FakeService()


@pytest.fixture
def run(service: FakeService) -> Run:
    async def run_against_the_fake() -> DemoReport:
        transport = httpx.MockTransport(service)
        console = Console(file=io.StringIO())
        endpoints = ("http://a", "http://b")
        return await run_demo(
            "http://service",
            endpoints,
            console=console,
            chunks=1200,
            transport=transport,
            pause_s=0.1,
            poll_s=0.02,
        )

    return run_against_the_fake


async def test_the_steps_come_in_the_order_of_the_main_job(run: Run, service: FakeService) -> None:
    """Create, ingest, add, rebuild, swap, roll back, swap, drop: once each, in this order."""
    report = await run()
    steps = [c for c in service.calls if "search" not in c and "status" not in c and "GET" not in c]
    first = list(dict.fromkeys(steps))
    assert first == [
        "DELETE ",
        "POST /collections",
        "POST /ingest",
        "POST /vector-spaces",
        f"POST /vector-spaces/{NEW}/rebuild",
        "PUT /default-vector-space",
        f"DELETE /vector-spaces/{OLD}",
    ]
    assert steps.count("PUT /default-vector-space") == 3
    assert report.problems == []
    assert (report.chunks, report.written_meanwhile) == (1200, 60)
    assert (report.before, report.after, service.default) == (OLD, NEW, NEW)
    assert report.queries > 0
    assert [len(e.old) == len(e.new) == 3 for e in report.examples] == [True] * 3


async def test_a_service_that_answers_from_the_old_space_fails_the_demo(run: Run, service: FakeService) -> None:
    """Stale answers after the swap are failed queries, and the report says so."""
    service.stale = True
    report = await run()
    assert not report.ok
    assert report.failed > 0
    assert report.after == OLD


async def test_a_chunk_that_the_new_space_lacks_fails_the_demo(run: Run, service: FakeService) -> None:
    """Every chunk, those written meanwhile included, must be in the new space."""
    service.loses = 1
    assert (await run()).problems == [f"1 chunks are not in the space '{NEW}'"]


async def test_a_failed_rebuild_ends_the_demo_with_its_reason(run: Run, service: FakeService) -> None:
    """The run's own error is in the message."""
    service.rebuild_fails = True
    with pytest.raises(CompassError, match="has failed: no luck"):
        await run()


async def test_a_refused_call_is_told_with_its_status_and_body(run: Run, service: FakeService) -> None:
    """The demo says which call was refused and what the service answered."""
    service.refuses = {"detail": "bad name"}
    with pytest.raises(CompassError, match=r"POST /collections answered 422: .*bad name"):
        await run()


def test_bytes_under_counts_every_file_below(tmp_path: Path) -> None:
    """The size of a folder is the sum of its files, at any depth."""
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b").write_bytes(b"12345")
    (tmp_path / "c").write_bytes(b"123")
    assert bytes_under(tmp_path) == 8
