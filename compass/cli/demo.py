"""`compass demo`: the demo beside a service of its own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from compass.cli import service
from compass.demo import demo
from compass.demo.local import free_port
from compass.settings import Settings


def run(data: Path | None, chunks: int) -> int:
    """Run it; the exit code: 0 if no query failed and every step did what it promises.

    Its service is its own: settings meant for another one, a key above all, do not reach it.
    """
    for name in [n for n in os.environ if n.startswith("COMPASS_") and not n.startswith("COMPASS_EMBED_KEY_")]:
        del os.environ[name]
    return 0 if demo(data, _serving, chunks=chunks).ok else 1


@contextmanager
def _serving(data: Path) -> Iterator[str]:
    settings = Settings(data=data / "service", port=free_port(), serve_port=free_port())
    with service.running(settings, click.echo, dashboard=False) as running:
        yield running.url
