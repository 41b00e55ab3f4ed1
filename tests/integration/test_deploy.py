"""The application on a cluster that somebody else started: `serve deploy`, `serve run`, and their ends."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import yaml

pytestmark = pytest.mark.ray

BIN = Path(sys.executable).parent
CONFIG = Path(__file__).parents[2] / "serve_config.yaml"


class Head:
    """A Ray head node of our own, beside whatever else runs on the machine."""

    def __init__(self, ports: Iterator[int]) -> None:
        self.dashboard = next(ports)
        self.env = {k: v for k, v in os.environ.items() if not k.startswith(("COMPASS_", "RAY_"))}
        self.env |= {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}
        self.env |= {"RAY_USAGE_STATS_REPORT_URL": "http://127.0.0.1:9", "PYTHONPATH": str(CONFIG.parent)}
        port = next(ports)
        command = [str(BIN / "ray"), "start", "--head", "--block", f"--port={port}", "--num-cpus=2"]
        command += [f"--dashboard-port={self.dashboard}", f"--dashboard-agent-listen-port={next(ports)}"]
        command += [f"--ray-client-server-port={next(ports)}"]
        self.env["RAY_ADDRESS"] = f"127.0.0.1:{port}"
        self.process = subprocess.Popen(
            command, env={**self.env, "RAY_ADDRESS": ""}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

    def serve(self, *arguments: str) -> None:
        """Run Serve's own command line."""
        env = {**self.env, "RAY_DASHBOARD_ADDRESS": f"http://127.0.0.1:{self.dashboard}"}
        done = subprocess.run(
            [str(BIN / "serve"), *arguments], env=env, capture_output=True, text=True, timeout=90, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def titles(self) -> list[str]:
        """What the workers of this cluster are."""
        found = []
        for child in psutil.Process(self.process.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                found.append(" ".join(child.cmdline()))
        return [title for title in found if title.startswith("ray::")]

    def stop(self) -> None:
        """End it and whatever it started."""
        family = psutil.Process(self.process.pid).children(recursive=True)
        self.process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(20)
        for process in psutil.wait_procs(family, timeout=10)[1]:
            process.kill()


@pytest.fixture
def head(free_port: Callable[[], int]) -> Iterator[Head]:
    """A Ray head node."""
    running = Head(iter(free_port, None))
    yield running
    running.stop()


def test_serve_deploy_and_serve_run_on_a_running_cluster(
    head: Head, free_port: Callable[[], int], tmp_path: Path, wait_until: Any
) -> None:
    """The committed serve_config.yaml deploys and redeploys; the data outlive it, the actors do not."""
    config = yaml.safe_load(CONFIG.read_text())
    own, proxy = free_port(), free_port()
    config["http_options"]["port"] = proxy
    arguments = config["applications"][0]["args"]
    arguments |= {"data": str(tmp_path / "data"), "port": own, "idle_exit_s": 3, "lease_s": 2}
    file = tmp_path / "serve_config.yaml"
    file.write_text(yaml.safe_dump(config))
    base = f"http://127.0.0.1:{own}"

    def ready() -> bool:
        with contextlib.suppress(httpx.HTTPError):
            return httpx.get(f"{base}/ready", trust_env=False).status_code == 200
        return False

    def deployed() -> bool:
        with contextlib.suppress(AssertionError):
            head.serve("deploy", str(file))
            return True
        return False

    wait_until(deployed, 60, "the head node")
    wait_until(ready, 60, "the deployed gateway")
    httpx.post(f"{base}/collections", json={"name": "kept"}, trust_env=False)
    chunk = {"file_id": "f", "chunk_index": 0, "text": "an otter swims"}
    httpx.post(f"{base}/collections/kept/ingest", json={"chunks": [chunk]}, trust_env=False)

    def found(door: str) -> str:
        answer = httpx.post(f"{door}/collections/kept/search", json={"query": "otter"}, trust_env=False)
        return str(answer.json()["results"][0]["chunk"]["text"])

    assert found(base) == found(f"http://127.0.0.1:{proxy}") == "an otter swims"
    arguments["max_in_flight"] = 100
    file.write_text(yaml.safe_dump(config))
    head.serve("deploy", str(file))
    wait_until(ready, 60, "the redeployed gateway")
    assert found(base) == "an otter swims"
    head.serve("shutdown", "-y")

    def ours() -> list[str]:
        kinds = ("RouterProcess", "CollectionProcess", "IndexProcess")
        return [title for title in head.titles() if any(kind in title for kind in kinds)]

    wait_until(lambda: not ours(), 40, "the end of the actors")

    run = [str(BIN / "serve"), "run", str(file)]
    with subprocess.Popen(run, env=head.env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as foreground:
        try:
            wait_until(ready, 60, "the gateway of serve run")
            assert found(base) == "an otter swims"
        finally:
            foreground.send_signal(signal.SIGINT)
            foreground.wait(30)
    wait_until(lambda: not ready(), 30, "the end of serve run")
