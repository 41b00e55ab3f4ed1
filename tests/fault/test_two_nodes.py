"""A node dies with everything on it: what lived there comes back on the other node, from the store."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from processes import workers_below

pytestmark = pytest.mark.ray

ROOT = Path(__file__).parents[2]
LEASE_S = 4.0
RECOVERY_S = 10.0
HEAD, SECOND = 0, 1
# How soon a dead node is noticed; see "A node dies" in docs/operations.md.
NOTICE = {"period_ms": "1000", "timeout_ms": "1000", "failure_threshold": "3", "initial_delay_ms": "1000"}


class TwoNodes:
    """A cluster of two nodes, see two_nodes.py; both share this machine's port of the gateways' own door."""

    def __init__(self, folder: Path, port: int, serve_port: int, **settings: Any) -> None:
        self.url, self.serve_url = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{serve_port}"
        settings |= {"data": str(folder / "data"), "port": port, "serve_port": serve_port}
        settings |= {"gateways": 2, "lease_s": LEASE_S}
        env = {k: v for k, v in os.environ.items() if not k.startswith(("COMPASS_", "RAY_"))}
        env |= {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}
        env |= {"PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1"}
        env |= {f"RAY_health_check_{name}": value for name, value in NOTICE.items()}
        self._log = folder / "cluster.log"
        with self._log.open("wb") as log:
            command = [sys.executable, str(Path(__file__).with_name("two_nodes.py")), json.dumps(settings)]
            self.process = subprocess.Popen(
                command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
            )
        assert self.process.stdout is not None
        said = next((line for line in self.process.stdout if line.startswith('{"raylets"')), None)
        assert said, self._log.read_text()
        self.raylets = [psutil.Process(pid) for pid in json.loads(said)["raylets"]]

    def workers(self, node: int, title: str = "") -> list[psutil.Process]:
        """The workers of a node whose title begins with `ray::<title>`."""
        return list(workers_below(self.raylets[node], title))

    def stop(self) -> None:
        """End both nodes; whatever is left is killed."""
        family = psutil.Process(self.process.pid).children(recursive=True)
        assert self.process.stdin is not None
        self.process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(30)
        self.process.kill()
        self.process.wait()
        for process in psutil.wait_procs(family, timeout=5)[1]:
            process.kill()


@pytest.fixture
def two_nodes(tmp_path: Path, free_port: Callable[[], int]) -> Iterator[Callable[..., TwoNodes]]:
    """Make two nodes, with a gateway each."""
    made: list[TwoNodes] = []

    def make(**options: Any) -> TwoNodes:
        made.append(TwoNodes(tmp_path, free_port(), free_port(), **options))
        return made[-1]

    yield make
    for one in made:
        one.stop()


def _move_to_second(cluster: TwoNodes, title: str, wait_until: Any) -> None:
    """Kill an actor's process until Ray, which picks a node at random, starts it on the second one."""
    deadline = time.monotonic() + 60
    while at_home := cluster.workers(HEAD, title):
        assert time.monotonic() < deadline, f"{title} is never started on the second node"
        expected = len(at_home) + len(cluster.workers(SECOND, title))
        for process in at_home:
            process.kill()
        psutil.wait_procs(at_home, timeout=10)
        wait_until(lambda n=expected: len(cluster.workers(HEAD, title) + cluster.workers(SECOND, title)) == n, 30)


def _node_dies(cluster: TwoNodes, load: Any, wait_until: Any, watched_s: float) -> None:
    """Move everything to the second node, kill it under load, and see all of it well again on the other."""
    wait_until(
        lambda: httpx.get(f"{cluster.url}/ready", trust_env=False, timeout=60).status_code == 200, 60, "the service"
    )
    load.fill()
    for title in ("CollectionProcess", "IndexProcess", "RouterProcess"):
        _move_to_second(cluster, title, wait_until)
    assert len(cluster.workers(HEAD, "ServeReplica:compass")) == 1
    load.start()
    wait_until(lambda: len(load.swapper.history) >= 3, 30, "a few swaps")
    cluster.raylets[SECOND].kill()
    time.sleep(watched_s)
    swaps = len(load.swapper.history)
    wait_until(lambda: len(load.swapper.history) > swaps, 3 * LEASE_S, "a swap after the node's death")
    load.stop()
    assert load.wrong() == []
    assert load.longest_wait() < RECOVERY_S
    for title in ("CollectionProcess", "RouterProcess", "ServeReplica:compass"):
        assert cluster.workers(HEAD, title), title
    events = httpx.get(f"{cluster.url}/collections/docs/history", trust_env=False, timeout=60).json()["events"]
    epochs = [event["epoch"] for event in events]
    assert epochs == sorted(epochs)


@pytest.mark.timeout(200)
def test_what_lived_on_a_dead_node_comes_back_on_the_other(two_nodes: Any, traffic: Any, wait_until: Any) -> None:
    """The node with the router, the writer, the indexes and a gateway dies under load: all is well in 10 s."""
    cluster = two_nodes(stop=True)
    _node_dies(cluster, traffic(cluster.url), wait_until, RECOVERY_S)


@pytest.mark.long
@pytest.mark.timeout(200)
def test_processes_that_outlive_their_node_do_no_harm(two_nodes: Any, traffic: Any, wait_until: Any) -> None:
    """The same, with a router, a writer, indexes and a gateway that go on beside their successors.

    It is watched until the old router, which no gateway asks any more, would end the service.
    """
    idle_exit_s = 10
    cluster = two_nodes(stop=False, idle_exit_s=idle_exit_s)
    _node_dies(cluster, traffic(cluster.url), wait_until, RECOVERY_S + 2 * idle_exit_s)
