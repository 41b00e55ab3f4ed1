"""`compass demo`: the demo beside a service of its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from compass.cli import service
from compass.demo import demo
from compass.demo.local import free_port
from compass.settings import Settings


def run(data: Path | None, chunks: int) -> int:
    """Run it; the exit code: 0 if no query failed and every step did what it promises."""
    return 0 if demo(data, _serving, chunks=chunks).ok else 1


@contextmanager
def _serving(data: Path) -> Iterator[str]:
    settings = Settings(data=data / "service", port=free_port(), serve_port=free_port(), api_key=None)
    with service.running(settings, click.echo, dashboard=False) as running:
        yield running.url
