"""A Compass service in the foreground: its own local Ray, or an application on a running cluster."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from compass.errors import CompassError, TakenOverError, UnavailableError
from compass.settings import Settings
from compass.storage.locks import FileLock
from compass.storage.objects import open_objects
from compass.storage.root import Root

log = logging.getLogger(__name__)

Say = Callable[[str], None]

LOCK_FILE = "serve.lock"  # held while the service lives, by the kernel's word; names its process
NOWHERE = "http://127.0.0.1:9"  # the port of `discard`, where nobody listens
SAY_S = 10.0  # how often a long start says that it goes on
POLL_S = 0.1  # how often it is looked whether the service is ready
STOP_S = 60.0  # what `local_ray` takes to end, at the most


@dataclass(frozen=True, slots=True)
class Service:
    """A running service."""

    url: str
    serve_url: str
    dashboard_url: str | None


@contextlib.contextmanager
def running(settings: Settings, say: Say, *, dashboard: bool = True) -> Iterator[Service]:
    """Start a service with a Ray of its own; at the end everything is saved and no process is left.

    Raises:
        TakenOverError: another service has this data folder.
        UnavailableError: a port is taken.
        KeyboardInterrupt: SIGINT or SIGTERM before the service was ready.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a stop during the start saves and cleans up too
    settings.data.mkdir(parents=True, exist_ok=True)
    lock = _hold(settings)
    try:
        with _started(settings, say, dashboard) as service:
            yield service
    finally:
        lock.release()
        say("stopped")


@contextlib.contextmanager
def _started(settings: Settings, say: Say, dashboard: bool) -> Iterator[Service]:
    # Read by the processes that Ray starts: queries must not run at Ray's usual niceness of 15, and a search must
    # not wait for threads that the builder keeps busy.
    os.environ.update(RAY_worker_niceness="0", OPENBLAS_NUM_THREADS="1")
    keep_to_ourselves(os.environ)
    from compass.app import APP, build  # here: parts of Ray read the environment at their import
    from compass.cluster.local import deploy, local_ray

    say("starting Ray …")
    with local_ray(APP, say, dashboard=dashboard) as dashboard_address:
        say("starting the service …")
        deploy(build(_plain(settings)), APP, settings.host, settings.serve_port)
        host = _host(settings.host)
        url = f"http://{host}:{settings.port}"
        await_ready(lambda: _why_not_ready(url), say)
        dashboard_url = f"http://{dashboard_address}" if dashboard_address else None
        yield Service(url, f"http://{host}:{settings.serve_port}", dashboard_url)


def keep_to_ourselves(environment: MutableMapping[str, str]) -> None:
    """Let nothing that Ray does by itself leave the network: what it starts with this environment obeys.

    Its metrics would go through a proxy of the environment, though they go to this machine. Its dashboard asks the
    metadata services of three clouds where it runs, whether usage statistics are on or off; nothing keeps it from
    that but a proxy that leads nowhere, which only the library that it asks with looks for in capital letters.
    """
    for name in [name for name in environment if name.lower().endswith("_proxy")]:
        del environment[name]
    environment.update(RAY_USAGE_STATS_ENABLED="0", HTTP_PROXY=NOWHERE, NO_PROXY="localhost,127.0.0.1,::1")


def wait_for_signal(poll_s: float = 0.5) -> None:
    """Sleep until Ctrl-C or SIGTERM."""
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    while not ended.wait(poll_s):
        pass


def await_ready(
    obstacle: Callable[[], str | None],
    say: Say,
    *,
    poll_s: float = POLL_S,
    say_s: float = SAY_S,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Return when `obstacle` knows of none. A cold start reads every log and may take long: `say` takes how long."""
    began_s = said_s = clock()
    while (why := obstacle()) is not None:
        if clock() - said_s > say_s:
            said_s = clock()
            say(f"opening the collections, {said_s - began_s:.0f} s so far: {why}")
        sleep(poll_s)


def stop(data: Path, say: Say, stop_s: float = STOP_S) -> None:
    """Stop the service that has this data folder; returns when it is gone.

    Raises:
        UnavailableError: none runs here, or it did not end in time.
    """
    lock = FileLock(data / LOCK_FILE)
    if not lock.path.exists() or lock.acquire():
        raise UnavailableError(f"no `compass serve` runs on {data}")
    holder = lock.holder()
    if holder.get("host") != socket.gethostname():
        raise UnavailableError(f"the `compass serve` of {data} runs on {holder.get('host')}: stop it there")
    pid = int(holder["pid"])
    os.kill(pid, signal.SIGTERM)
    say(f"stopping process {pid} …")
    if not lock.acquire(stop_s):
        raise UnavailableError(f"process {pid} has not ended in time")
    lock.release()
    say("stopped")


def _hold(settings: Settings) -> FileLock:
    """Claim the data folder and see that the ports are free, before anything is started."""
    lock = FileLock(settings.data / LOCK_FILE)
    if not lock.acquire():
        holder = lock.holder()
        raise TakenOverError(f"{settings.data} is in use by process {holder.get('pid')}", holder)
    lock.sign()
    try:
        Root(open_objects(settings.data), settings.cache_dir).lock().close()
        _check_ports(settings)
    except CompassError:
        lock.release()
        raise
    return lock


def _check_ports(settings: Settings) -> None:
    for port in (settings.port, settings.serve_port):
        with socket.socket(socket.AF_INET6 if ":" in settings.host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((settings.host, port))
            except OSError as error:
                raise UnavailableError(f"cannot listen on {settings.host}:{port}: {error.strerror}") from error


def _why_not_ready(url: str) -> str | None:
    try:
        answer = httpx.get(f"{url}/ready", timeout=5, trust_env=False)
    except httpx.TransportError as error:
        return str(error)
    return None if answer.status_code == 200 else str(answer.json().get("detail"))


def _plain(settings: Settings) -> dict[str, Any]:
    return settings.model_dump(mode="json", exclude={"api_key"}, exclude_none=True)


def _host(host: str) -> str:
    if host in ("0.0.0.0", "::"):
        return "127.0.0.1"
    return f"[{host}]" if ":" in host else host
