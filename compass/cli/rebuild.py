"""`compass rebuild`: start or join a rebuild over HTTP, with a progress bar where somebody looks."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import click
import httpx
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from compass.cli import rebuild_job
from compass.errors import CompassError, NotFoundError, RebuildRunningError, UnavailableError

TIMEOUT_S = 30.0
ESTIMATE_S = 180.0  # a dry run asks the endpoints for some seconds, in a process that has to start


class HttpClient:
    """The two operations of a rebuild over HTTP.

    Raises (from each call):
        RebuildRunningError, NotFoundError, UnavailableError: as the service says.
        CompassError: anything else that it refuses.
    """

    def __init__(self, url: str, key: str | None) -> None:
        """Call the service at `url`, with the API key if it wants one."""
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._http = httpx.Client(base_url=url, headers=headers, timeout=TIMEOUT_S, trust_env=False)

    def rebuild(self, collection: str, space: str, **fields: Any) -> Any:
        """Start or resume a rebuild, or estimate it."""
        timeout_s = ESTIMATE_S if fields.get("dry_run") else TIMEOUT_S
        return self._call("POST", f"/collections/{collection}/vector-spaces/{space}/rebuild", fields, timeout_s)

    def rebuild_status(self, collection: str, space: str) -> Any:
        """The status of a space's rebuild."""
        return self._call("GET", f"/collections/{collection}/vector-spaces/{space}/status", None)

    def _call(self, method: str, path: str, body: Any, timeout_s: float = TIMEOUT_S) -> Any:
        try:
            answer = self._http.request(method, path, json=body, timeout=timeout_s)
        except httpx.TransportError as error:
            why = str(error) or type(error).__name__
            raise UnavailableError(f"no Compass answers at {self._http.base_url}: {why}") from error
        if answer.is_success:
            return answer.json()
        said = _problem(answer)
        kinds = {"rebuild-running": RebuildRunningError, "not-found": NotFoundError}
        kind = UnavailableError if answer.status_code in (429, 503) else kinds.get(said.get("type", ""), CompassError)
        raise kind(said.get("detail", f"the service answered {answer.status_code}"))


def _problem(answer: httpx.Response) -> dict[str, Any]:
    try:
        said = answer.json()
    except ValueError:
        return {}
    return said if isinstance(said, dict) else {}


@contextmanager
def bar() -> Iterator[Any]:
    """A function that shows a status as a progress bar, and what an endpoint has to complain of above it."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[speed]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns) as progress:
        task = progress.add_task("rebuild", total=None, speed="")
        said: list[str | None] = [None]

        def show(status: Mapping[str, Any]) -> None:
            error = status.get("error")
            if error and error != said[0]:
                progress.console.print(error, style="yellow")
            said[0] = error
            done = status["embedded"] + status["failed"]
            speed = f"{status['docs_per_s']:,.0f}/s"
            progress.update(task, total=status["total"] or None, completed=done, speed=speed)

        yield show


def _run(url: str, collection: str, space: str, endpoints: Sequence[str], restart: bool, **options: Any) -> None:
    client = HttpClient(url, os.environ.get("COMPASS_API_KEY"))
    fields = rebuild_job.fields_of(endpoints, restart, options)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    rebuild_job.run(client, collection, space, fields, bar if sys.stdout.isatty() else None)


command = click.Command(
    "rebuild",
    params=[
        click.Option(["--url"], default="http://127.0.0.1:8000", show_default=True, help="Where Compass answers."),
        *rebuild_job.main.params,
    ],
    callback=_run,
    help="Rebuild a vector space of a running Compass, and watch it; ends with the rebuild. Key: COMPASS_API_KEY.",
)
