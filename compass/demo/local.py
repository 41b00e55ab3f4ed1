"""The demo on this machine alone: two embed servers as processes of their own beside a local service."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol

import httpx
from rich.console import Console

from compass.demo.corpus import DEFAULT_CHUNKS
from compass.demo.report import DemoReport, show
from compass.demo.run import MODELS, Model, run_demo
from compass.errors import UnavailableError

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 5.0

Serve = Callable[[Path], AbstractContextManager[str]]
EmbedServers = Callable[[Sequence[Model]], AbstractContextManager[list[str]]]


class MainJob(Protocol):
    """What swaps the model on a running service: `run_demo`."""

    def __call__(
        self, base_url: str, endpoints: tuple[str, str], *, console: Console, chunks: int, data: Path
    ) -> Coroutine[Any, Any, DemoReport]:
        """What was measured; `data` is the folder that the service runs on."""


@contextmanager
def embed_servers(models: Sequence[Model]) -> Iterator[list[str]]:
    """One embed server per model, each its own process on a free port of 127.0.0.1; their URLs.

    Raises:
        UnavailableError: one has ended or does not answer in time; its last words are in the message.
    """
    with ExitStack() as stack:
        servers = [stack.enter_context(_process(model)) for model in models]
        for process, url, log in servers:
            _wait_healthy(process, url, log)
        yield [url for _, url, _ in servers]


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def _process(model: Model) -> Iterator[tuple[subprocess.Popen[bytes], str, Path]]:
    port = free_port()
    arguments = ["--model", model.name, "--dims", str(model.dims), "--port", str(port)]
    with tempfile.TemporaryDirectory(prefix="compass-embed-") as folder:
        log = Path(folder, "log")
        with log.open("wb") as output:
            command = [sys.executable, "-m", "compass.cli.main", "embed-server", *arguments]
            process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        try:
            yield process, f"http://127.0.0.1:{port}", log
        finally:
            stop(process)


def stop(process: subprocess.Popen[bytes], timeout_s: float = STOP_TIMEOUT_S) -> None:
    """End a process that we started: politely, and after `timeout_s` for good."""
    process.terminate()
    try:
        process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _wait_healthy(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while not _healthy(url):
        if process.poll() is not None or time.monotonic() > deadline:
            words = log.read_text(errors="replace")[-2000:]
            raise UnavailableError(f"the embed server at {url} does not answer: {words}", {"url": url})
        time.sleep(0.1)


def _healthy(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", timeout=2.0, trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


def demo(
    data: Path | None,
    serve: Serve,
    *,
    chunks: int = DEFAULT_CHUNKS,
    console: Console | None = None,
    servers: EmbedServers = embed_servers,
    run: MainJob = run_demo,
) -> DemoReport:
    """Run the whole demo on this machine, print it, and leave nothing running.

    Args:
        data: The service's data folder; None for a temporary one that is removed.
        serve: Starts a service on a data folder, yields its base URL, and stops it.
        chunks: How many docstrings, at most.
        console: Where it is printed.
        servers: Starts an embed server for each model, yields their URLs, and stops them.
        run: The main job itself.

    Returns:
        The report; the caller exits non-zero unless `report.ok`.
    """
    console = console or Console()
    with ExitStack() as stack:
        folder = data or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="compass-demo-")))
        console.print(f"Starting two embed servers and a service on {folder} …", markup=False, soft_wrap=True)
        endpoints = stack.enter_context(servers(MODELS))
        base_url = stack.enter_context(serve(folder))
        job = run(base_url, (endpoints[0], endpoints[1]), console=console, chunks=chunks, data=folder)
        report = asyncio.run(job)
        show(report, console)
    return report
