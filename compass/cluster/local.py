"""A Ray of our own on this machine, with one Serve application on it, which ends without leaving a process behind."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator, Set

import psutil
import ray
from ray import serve

from compass.cluster.deployment import Application
from compass.cluster.directory import ROUTER
from compass.cluster.stub import NAMESPACE

log = logging.getLogger(__name__)

Say = Callable[[str], None]

CLOSE_S = 30.0
KILL_S = 15.0


@contextlib.contextmanager
def local_ray(
    application_name: str, say: Say, *, dashboard: bool, close_s: float = CLOSE_S, kill_s: float = KILL_S
) -> Iterator[str | None]:
    """Start Ray; at the end close the application, save everything, and leave no process.

    Args:
        application_name: What `deploy` will run on it.
        say: Takes what a user should know meanwhile.
        dashboard: Whether Ray's dashboard is wanted.
        close_s: How long the application may take to end and to save.
        kill_s: How long Ray may take to end, and its processes after that, before they are killed.

    Yields:
        Where the dashboard is; None without one.
    """
    others = set(psutil.Process().children(recursive=True))
    for name in ("ray", "ray.serve"):
        logging.getLogger(name).setLevel(logging.ERROR)
    context = ray.init(
        address="local",
        namespace=NAMESPACE,
        include_dashboard=dashboard,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    try:
        yield getattr(context, "dashboard_url", None) or None
    finally:
        say("stopping: finishing requests, saving …")
        family = set(psutil.Process().children(recursive=True)) - others
        if not _within(close_s, lambda: _close(application_name, close_s)):
            say("Ray does not answer any more; what was acknowledged is on disk")
        _within(kill_s, ray.shutdown)
        _end_processes(family, kill_s)


def deploy(application: Application, name: str, host: str, proxy_port: int) -> None:
    """Run an application on the Ray that was started, behind Serve's proxy; returns when its replicas are there."""
    serve.start(http_options={"host": host, "port": proxy_port})
    serve.run(application, name=name, route_prefix="/", blocking=False)


def _close(application_name: str, close_s: float) -> None:
    """Save and end everything, politely while the cluster answers.

    A signal to the whole process group ends Ray's own processes with it. Then nobody is left to ask, nothing
    that was acknowledged is lost, and only what remains is cleared away.
    """
    serve.delete(application_name)
    try:
        router = ray.get_actor(ROUTER, namespace=NAMESPACE)
    except ValueError:
        return  # it never came up, so there is nothing to save
    ray.get(router.close.remote(), timeout=close_s)


def _within(seconds: float, work: Callable[[], None]) -> bool:
    """Whether the work ended in time and without an error; it is left behind otherwise."""
    errors: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - logged below, and the stop goes on
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if errors:
        log.warning("stopping: %s", errors[0])
    return not thread.is_alive() and not errors


def _end_processes(family: Set[psutil.Process], kill_s: float) -> None:
    """Return when these processes are gone; what Ray has left behind is killed."""
    for process in psutil.wait_procs(family, timeout=kill_s)[1]:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(family, timeout=1)
