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
import psutil

from compass.errors import CompassError, TakenOverError, UnavailableError
from compass.settings import Settings
from compass.storage.locks import FileLock
from compass.storage.objects import open_objects
from compass.storage.root import Root

log = logging.getLogger(__name__)

Say = Callable[[str], None]

LOCK_FILE = "serve.lock"  # held while the service lives, by the kernel's word; names its process
TELL_S = 10.0  # how often a long start says that it goes on
STOP_S = 30.0
NOWHERE = "http://127.0.0.1:9"  # the port of `discard`, where nobody listens
KILL_S = 15.0


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
    held = _hold(settings)
    strangers = set(psutil.Process().children(recursive=True))
    # Read by the processes that Ray starts: queries must not run at Ray's usual niceness of 15, and a search must
    # not wait for threads that the builder keeps busy.
    os.environ.update(RAY_worker_niceness="0", OPENBLAS_NUM_THREADS="1")
    keep_to_ourselves(os.environ)
    import ray
    from ray import serve

    from compass.app import APP, build

    logging.getLogger("ray").setLevel(logging.ERROR)
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    say("starting Ray …")
    context = ray.init(
        address="local",
        namespace="compass",
        include_dashboard=dashboard,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    try:
        say("starting the service …")
        serve.start(http_options={"host": settings.host, "port": settings.serve_port})
        serve.run(build(_given(settings)), name=APP, route_prefix="/", blocking=False)
        url = f"http://{_host(settings.host)}:{settings.port}"
        _await_ready(url, say)
        shown = getattr(context, "dashboard_url", None)
        yield Service(
            url, f"http://{_host(settings.host)}:{settings.serve_port}", f"http://{shown}" if shown else None
        )
    finally:
        say("stopping: finishing requests, saving …")
        family = set(psutil.Process().children(recursive=True)) - strangers
        _stop(ray, serve, APP, say)
        _drain_connections(family)
        held.release()
        say("stopped")


def keep_to_ourselves(environment: MutableMapping[str, str]) -> None:
    """Let nothing that Ray does by itself leave the network: what it starts with this environment obeys.

    Its metrics would go through a proxy of the environment, though they go to this machine. Its dashboard asks the
    metadata services of three clouds where it runs, whether usage statistics are on or off; nothing keeps it from
    that but a proxy that leads nowhere, which only the library that it asks with looks for in capital letters.
    """
    for name in [name for name in environment if name.lower().endswith("_proxy")]:
        del environment[name]
    environment.update(RAY_USAGE_STATS_ENABLED="0", HTTP_PROXY=NOWHERE, NO_PROXY="localhost,127.0.0.1,::1")


def wait_for_signal() -> None:
    """Sleep until Ctrl-C or SIGTERM."""
    asked = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: asked.set())
    while not asked.wait(0.5):
        pass


def stop(data: Path, say: Say) -> None:
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
    if not lock.acquire(STOP_S + 2 * KILL_S):
        raise UnavailableError(f"process {pid} has not ended in time")
    lock.release()
    say("stopped")


def _stop(ray: Any, serve: Any, app: str, say: Say) -> None:
    """Save and end everything, politely while the cluster answers.

    A signal to the whole process group ends Ray's own processes with it. Then nobody is left to ask, nothing
    that was acknowledged is lost, and only what remains is cleared away.
    """

    def politely() -> None:
        serve.delete(app)
        try:
            router = ray.get_actor("router", namespace="compass")
        except ValueError:
            return  # it never came up, so there is nothing to save
        ray.get(router.close.remote(), timeout=STOP_S)

    if not _within(STOP_S, politely):
        say("Ray does not answer any more; what was acknowledged is on disk")
    _within(KILL_S, ray.shutdown)


def _within(seconds: float, work: Callable[[], None]) -> bool:
    """Whether the work ended in time and without an error; it is left behind otherwise."""
    errors: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - told below, and the stop goes on
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if errors:
        log.warning("stopping: %s", errors[0])
    return not thread.is_alive() and not errors


def _drain_connections(family: set[psutil.Process]) -> None:
    """Return when these processes are gone; what Ray has left behind is killed."""
    for process in psutil.wait_procs(family, timeout=KILL_S)[1]:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(family, timeout=1)


def _hold(settings: Settings) -> FileLock:
    """Claim the data folder and see that the ports are free, before anything is started."""
    held = FileLock(settings.data / LOCK_FILE)
    if not held.acquire():
        holder = held.holder()
        raise TakenOverError(f"{settings.data} is in use by process {holder.get('pid')}", holder)
    held.sign()
    try:
        Root(open_objects(settings.data), settings.cache_dir).lock().close()
        _check_ports(settings)
    except CompassError:
        held.release()
        raise
    return held


def _check_ports(settings: Settings) -> None:
    for port in (settings.port, settings.serve_port):
        with socket.socket(socket.AF_INET6 if ":" in settings.host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((settings.host, port))
            except OSError as error:
                raise UnavailableError(f"cannot listen on {settings.host}:{port}: {error.strerror}") from error


def _await_ready(url: str, say: Say) -> None:
    """Return when the service answers. A cold start reads every log, and may take its time: it is told."""
    began = told = time.monotonic()
    while (why := _why_not_ready(url)) is not None:
        if time.monotonic() - told > TELL_S:
            told = time.monotonic()
            say(f"opening the collections, {told - began:.0f} s so far: {why}")
        time.sleep(0.1)


def _why_not_ready(url: str) -> str | None:
    try:
        answer = httpx.get(f"{url}/ready", timeout=5, trust_env=False)
    except httpx.TransportError as error:
        return str(error)
    return None if answer.status_code == 200 else str(answer.json().get("detail"))


def _given(settings: Settings) -> dict[str, Any]:
    return settings.model_dump(mode="json", exclude={"api_key"}, exclude_none=True)


def _host(host: str) -> str:
    if host in ("0.0.0.0", "::"):
        return "127.0.0.1"
    return f"[{host}]" if ":" in host else host
