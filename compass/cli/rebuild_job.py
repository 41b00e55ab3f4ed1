"""`python -m compass.rebuild`: start or join a rebuild and watch it, for example as a Ray job.

A thin client: the rebuild lives in the service, so ending this process leaves it running.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import click

from compass.cli import estimate
from compass.errors import CompassError, RebuildRunningError, UnavailableError

INTERRUPTED = 130  # what a shell calls the end by Ctrl-C


POSITIVE = click.FloatRange(min=0, min_open=True)

Show = Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True, slots=True)
class Timing:
    """How a rebuild is watched.

    Attributes:
        poll_s: From one look at its status to the next.
        say_s: From one line of progress to the next.
        away_s: How long the service may not answer, as during a rollout of its gateways.
    """

    poll_s: float = 0.5
    say_s: float = 2.0
    away_s: float = 60.0


TIMING = Timing()


class Client(Protocol):
    """What is asked of `compass.client.handle.Client`."""

    def rebuild(self, collection: str, space: str, **fields: Any) -> Any:
        """Start or resume a rebuild."""

    def rebuild_status(self, collection: str, space: str) -> Any:
        """The status of a space's rebuild."""


@click.command("rebuild", context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--collection", required=True, help="The collection's name.")
@click.option("--space", required=True, help="The vector space to build.")
@click.option(
    "--embed-endpoint",
    "endpoints",
    multiple=True,
    help="What embeds; several share the work. Default: the space's own.",
)
@click.option("--batch-size", type=click.IntRange(min=1), help="Texts of one request.")
@click.option("--api-key-env", help="The service's variable that holds the endpoints' key: COMPASS_EMBED_KEY_*.")
@click.option("--concurrency", type=click.IntRange(min=1), help="Requests at once.")
@click.option("--max-docs-per-s", type=POSITIVE, help="The most to embed in a second.")
@click.option("--max-failed", type=click.IntRange(min=0), help="Chunks that may be refused. Default: none.")
@click.option(
    "--endpoint-timeout-s",
    type=POSITIVE,
    help="How long to wait while no endpoint answers. Default: 900.",
)
@click.option("--reason", help="Why, for the collection's history.")
@click.option(
    "--accept-new-fingerprint",
    is_flag=True,
    help="Take a renamed model, if its vectors agree with the stored.",
)
@click.option("--cost-per-million-tokens", type=POSITIVE, help="What the endpoints cost by the token.")
@click.option("--cost-per-hour", type=POSITIVE, help="What each endpoint costs by the hour.")
@click.option("--budget", type=POSITIVE, help="The most to spend; the run ends before it is passed.")
@click.option("--dry-run", is_flag=True, help="Estimate time, size and cost, and what would fail; change nothing.")
@click.option("--restart", is_flag=True, help="Empty the space first; never of the default.")
@click.pass_obj
def main(
    timing: Timing | None, /, collection: str, space: str, endpoints: Sequence[str], restart: bool, **options: Any
) -> None:
    """Rebuild a vector space on the running service, and watch it; ends with the rebuild."""
    from compass.client.handle import connect

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # `ray job stop`, told apart from a failure
    try:
        client = connect()
    except CompassError as error:
        raise click.ClickException(error.detail) from None
    run(client, collection, space, fields_of(endpoints, restart, options), timing=timing or TIMING)


def fields_of(endpoints: Sequence[str], restart: bool, options: Mapping[str, Any]) -> dict[str, Any]:
    """The body of the order that the command line stands for."""
    fields: dict[str, Any] = {name: value for name, value in options.items() if value not in (None, False)}
    if endpoints:
        fields["embed_endpoint"] = list(endpoints)
    if restart:
        fields["restart"] = True
    return fields


def run(
    client: Client,
    collection: str,
    space: str,
    fields: Mapping[str, Any],
    display: Callable[[], AbstractContextManager[Show]] | None = None,
    timing: Timing = TIMING,
) -> None:
    """Start or join a rebuild and watch it on `display`; None: as lines. Ends the process if it is not done.

    A dry run is shown instead, and ends the process if the rebuild would fail.
    """
    try:
        if fields.get("dry_run"):
            estimate.show(client.rebuild(collection, space, **fields), space)
            return
        begin(client, collection, space, fields)
        with display() if display is not None else nullcontext(None) as show:
            problem = watch(client, collection, space, show, timing=timing)
    except CompassError as error:
        raise click.ClickException(error.detail) from None
    except KeyboardInterrupt:
        click.echo(f"not watching any more; the rebuild of {space!r} goes on in the service", err=True)
        raise SystemExit(INTERRUPTED) from None
    if problem is not None:
        raise click.ClickException(problem)


def begin(client: Client, collection: str, space: str, fields: Mapping[str, Any]) -> None:
    """Start the rebuild, or join the one that runs; a `restart` joins nothing, as it asks for another one."""
    try:
        started = client.rebuild(collection, space, **fields)
        click.echo(f"rebuild {started['job_id']} of {space!r} in {collection!r}")
    except RebuildRunningError:
        if fields.get("restart"):
            raise
        click.echo(f"a rebuild of {space!r} in {collection!r} runs already; joining it")


def watch(
    client: Client,
    collection: str,
    space: str,
    show: Show | None = None,
    *,
    timing: Timing = TIMING,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> str | None:
    """Print the progress every two seconds, and sooner when the state changes, until the run has ended.

    `show` takes every status instead.

    Returns:
        None when it is done, else why it is not.

    Raises:
        CompassError: the service does not answer for a minute, or the space is gone.
    """
    said_at, said_state, answered_at = float("-inf"), "", clock()
    while True:
        try:
            status = client.rebuild_status(collection, space)
            answered_at = clock()
        except UnavailableError:
            if clock() - answered_at > timing.away_s:
                raise
            sleep(timing.poll_s)
            continue
        state = status["run"]["state"]
        if show is not None:
            show(status)
        elif state != said_state or clock() - said_at >= timing.say_s:
            click.echo(line(status))
            said_at, said_state = clock(), state
        if state != "running":
            return outcome(status, space)
        sleep(timing.poll_s)


def line(status: Mapping[str, Any]) -> str:
    """One line of progress."""
    text = f"{status['percent']:6.2f} %  {status['embedded']:,} of {status['total']:,} chunks"
    if status["failed"]:
        text += f", {status['failed']:,} refused"
    if cost := status.get("cost"):
        text += f", {cost['spent']:.4g}" + (f" of {cost['budget']:g}" if cost["budget"] else "") + " spent"
    if status["run"]["state"] != "running":
        return f"{text}  {status['run']['state']}"
    text += f"  {status['docs_per_s']:,.0f}/s"
    if status["eta_s"] is not None:
        text += f"  {status['eta_s']:,.0f} s to go"
    if status.get("error"):
        return f"{text}  {status['error']}"
    away = [e for e in status.get("endpoints", ()) if e["state"] in ("down", "refused")]
    return text + "".join(f"  {e['url']} is {e['state']}: {e['last_error']}" for e in away)


def outcome(status: Mapping[str, Any], space: str) -> str | None:
    """Why a run that has ended is not done, or None."""
    state = status["run"]["state"]
    if state == "done":
        return None
    reason = f": {status['error']}" if status.get("error") else ""
    advice = "" if "is kept" in reason else ". What was embedded is kept: start it again to go on"
    return f"the rebuild of {space!r} is {state}{reason}{advice}"
