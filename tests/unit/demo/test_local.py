"""The demo starts what it needs on this machine and leaves nothing behind."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from compass.demo import DemoReport, demo
from compass.demo.local import embed_servers
from compass.demo.run import Model
from compass.errors import UnavailableError

FAILED = DemoReport(
    chunks=10,
    written_meanwhile=0,
    ingest_s=1.0,
    rebuild_s=1.0,
    old="a",
    new="b",
    before="a",
    after="b",
    swaps_ms=(1.0, 1.0, 1.0),
    missing=0,
    bytes_freed=1,
    queries=5,
    failed=5,
    p50_ms=1.0,
    p99_ms=1.0,
)


Events = list[str | Path]
Demo = Callable[..., DemoReport]


@pytest.fixture
def events() -> Events:
    """What was started and stopped, in order."""
    return []


@pytest.fixture
def demo_of_fakes(events: Events) -> Demo:
    """The demo between servers and a service that only tell when they start and stop."""

    @contextmanager
    def servers(models: Sequence[Model]) -> Iterator[list[str]]:
        events.append("embed servers start")
        yield ["http://a", "http://b"]
        events.append("embed servers stop")

    async def run(base_url: str, endpoints: tuple[str, str], *, data: Path, **options: Any) -> DemoReport:
        events.append(f"run on {base_url} with {endpoints}")
        assert data in events, "the service has its folder before the job runs"
        return FAILED

    @contextmanager
    def serve(folder: Path) -> Iterator[str]:
        events.append("service starts")
        events.append(folder)
        yield "http://service"
        events.append("service stops")

    return lambda data, console: demo(data, serve, console=console, servers=servers, run=run)


def test_the_service_lives_within_the_embed_servers(events: Events, demo_of_fakes: Demo, tmp_path: Path) -> None:
    """A service that stops must still reach its embedders, so it starts last and stops first."""
    out = io.StringIO()
    report = demo_of_fakes(tmp_path, Console(file=out, width=100))
    assert report is FAILED
    assert "5 of 5 queries failed" in out.getvalue()
    assert events == [
        "embed servers start",
        "service starts",
        tmp_path,
        "run on http://service with ('http://a', 'http://b')",
        "service stops",
        "embed servers stop",
    ]
    assert tmp_path.is_dir()


def test_a_temporary_folder_is_removed(events: Events, demo_of_fakes: Demo) -> None:
    """Without a data folder of the user's nothing stays on the disk."""
    demo_of_fakes(None, Console(file=io.StringIO()))
    [folder] = [e for e in events if isinstance(e, Path)]
    assert not folder.exists()


def test_an_embed_server_that_does_not_start_says_why() -> None:
    """The last words of the process are in the error, at once and not after the timeout."""
    with pytest.raises(UnavailableError, match="Invalid value for '--dims'"), embed_servers([Model("words", 0)]):
        pass
