"""A Ray cluster that somebody else started, for tests of `serve deploy`."""

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
from processes import workers_below

BIN = Path(sys.executable).parent
CONFIG = Path(__file__).parents[2] / "serve_config.yaml"


class Head:
    """A Ray head node of our own, beside whatever else runs on the machine."""

    bin = BIN

    def __init__(self, ports: Iterator[int]) -> None:
        self.dashboard = next(ports)
        self.env = {k: v for k, v in os.environ.items() if not k.startswith(("COMPASS_", "RAY_"))}
        self.env |= {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}
        self.env |= {"RAY_USAGE_STATS_REPORT_URL": "http://127.0.0.1:9"}  # where Ray says that statistics are off
        self.env |= {"PYTHONPATH": str(CONFIG.parent)}
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

    def workers(self) -> dict[int, str]:
        """The workers of this cluster: their titles, by pid."""
        found = workers_below(psutil.Process(self.process.pid))
        return {worker.pid: title for worker, title in found.items()}

    def titles(self) -> list[str]:
        """What the workers of this cluster are."""
        return list(self.workers().values())

    def stop(self) -> None:
        """End it and whatever it started; politely, which with a service on it takes long, for a few seconds only."""
        family = psutil.Process(self.process.pid).children(recursive=True)
        self.process.send_signal(signal.SIGTERM)
        for process in psutil.wait_procs(family, timeout=5)[1]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.kill()
        self.process.wait()
        psutil.wait_procs(family, timeout=5)


class Deployed:
    """The committed serve_config.yaml, with some arguments of its own, deployed on a head node."""

    def __init__(self, head: Head, file: Path, own: int, proxy: int, **arguments: Any) -> None:
        self.head, self.file = head, file
        self.url, self.serve_url = f"http://127.0.0.1:{own}", f"http://127.0.0.1:{proxy}"
        self.config = yaml.safe_load(CONFIG.read_text())
        self.config["http_options"]["port"] = proxy
        self.change(data=str(file.parent / "data"), port=own, **arguments)

    def change(self, **arguments: Any) -> None:
        """Write other arguments into the file."""
        self.config["applications"][0]["args"] |= arguments
        self.file.write_text(yaml.safe_dump(self.config))

    def deploy(self) -> None:
        """Run `serve deploy` on the file."""
        self.head.serve("deploy", str(self.file))

    def ready(self) -> bool:
        """Whether the gateway says so."""
        with contextlib.suppress(httpx.HTTPError):
            return httpx.get(f"{self.url}/ready", trust_env=False).status_code == 200
        return False

    def deployed_first(self) -> bool:
        """Deploy on a head node that may still be starting; whether it took it."""
        with contextlib.suppress(AssertionError):
            self.deploy()
            return True
        return False

    def gateways(self) -> set[int]:
        """The processes of the gateways."""
        return {pid for pid, title in self.head.workers().items() if "ServeReplica:compass" in title}


@pytest.fixture
def head(free_port: Callable[[], int]) -> Iterator[Head]:
    """A Ray head node."""
    running = Head(iter(free_port, None))
    yield running
    running.stop()


@pytest.fixture
def deployed(head: Head, free_port: Callable[[], int], tmp_path: Path, wait_until: Any) -> Callable[..., Deployed]:
    """Deploy the application with these arguments, and wait until it is ready."""

    def deploy(**arguments: Any) -> Deployed:
        made = Deployed(head, tmp_path / "serve_config.yaml", free_port(), free_port(), **arguments)
        wait_until(made.deployed_first, 60, "the head node")
        wait_until(made.ready, 60, "the deployed gateway")
        return made

    return deploy
