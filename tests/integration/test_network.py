"""Nothing leaves the network: every connection and every look-up of every process of a service is seen."""

from __future__ import annotations

import ipaddress
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from processes import command_of

from compass.testing.embed_server import served

pytestmark = pytest.mark.ray

SOURCE = Path(__file__).with_name("network_calls.c")
PROXIES = ("http_proxy", "https_proxy", "all_proxy", "grpc_proxy")
MANY, LOCAL = 2_500, 1_000  # the rest is embedded by Ray Data's processes, so that they are seen too
DIMS = 16


@dataclass(frozen=True, slots=True)
class Call:
    """A call of the C library that asks or reaches somebody.

    Attributes:
        call: `connect`, `send` (of a datagram), `name` (to an address) or `reverse` (to a name).
    """

    pid: int
    call: str
    kind: str
    whom: str
    port: int


class Watch:
    """Sees what processes ask of the network that are started with its environment."""

    def __init__(self, folder: Path) -> None:
        compiler = shutil.which("cc") or shutil.which("c++")
        assert compiler is not None, "a compiler is needed, as for the installation"
        self.library, self._seen = folder / "network_calls.so", folder / "seen"
        command = [compiler, "-shared", "-fPIC", "-o", str(self.library), str(SOURCE), "-ldl"]
        subprocess.run(command, check=True)
        self._seen.touch()
        # Ray takes what is preloaded away from its workers, unless it is told not to.
        preload = {"LD_PRELOAD": str(self.library), "RAY_LD_PRELOAD_ON_WORKERS": "1"}
        self.environment = {**preload, "SEEN_CALLS": str(self._seen)}

    def calls(self) -> list[Call]:
        """What was seen so far."""
        lines = (line.split(" ") for line in self._seen.read_text().splitlines())
        return [Call(int(pid), call, kind, whom, int(port)) for pid, call, kind, whom, port in lines]

    def foreign(self) -> set[Call]:
        """Those that reach or ask anybody but this machine.

        A datagram socket that is connected says nothing by that: the kernel chooses a route, and this is how Ray
        finds its own address. What such a socket sends is another call. To spell an address asks nobody either.
        """
        names = {"*", "localhost", socket.gethostname()}
        return {
            one
            for one in self.calls()
            if (one.call, one.kind) != ("connect", "udp")
            and not (one.whom in names or _is_address(one.whom) if one.call == "name" else _is_own(one.whom))
        }

    def blind(self, root: psutil.Process) -> list[psutil.Process]:
        """The processes under `root` that the library is not in."""
        suspects = [p for p in [root, *root.children(recursive=True)] if self._misses(p)]
        if suspects:
            time.sleep(0.2)  # one that has just been started has nothing in it yet
        return [p for p in suspects if self._misses(p)]

    def _misses(self, process: psutil.Process) -> bool:
        try:
            mapped = Path(f"/proc/{process.pid}/maps").read_text()
        except OSError:  # it has ended
            return False
        return bool(mapped) and str(self.library) not in mapped


def _is_address(whom: str) -> bool:
    try:
        ipaddress.ip_address(whom)
    except ValueError:
        return False
    return True


def _is_own(whom: str) -> bool:
    """Whether this is an address of this machine; of the loopback network the usual two are."""
    if not _is_address(whom):
        return False
    address = ipaddress.ip_address(whom)
    address = getattr(address, "ipv4_mapped", None) or address
    entries = [entry for entries in psutil.net_if_addrs().values() for entry in entries]
    own = {e.address.partition("%")[0] for e in entries if e.family in (socket.AF_INET, socket.AF_INET6)}
    return str(address) in own | {"127.0.0.1", "::1"}


class Door(ThreadingHTTPServer):
    """Counts who comes, and sends everybody on to `to` if that is set."""

    daemon_threads = True

    def __init__(self, to: str | None = None) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.to, self.visitors = to, 0
        self.asked: list[str] = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def verify_request(self, *_: Any) -> bool:
        self.visitors += 1
        return True


class _Answer(BaseHTTPRequestHandler):
    """307 or 404, to whatever is asked."""

    def _answer(self) -> None:
        assert isinstance(self.server, Door)
        self.server.asked.append(self.requestline)
        self.rfile.read(int(self.headers.get("content-length", 0)))
        self.send_response(307 if self.server.to else 404)
        if self.server.to:
            self.send_header("location", self.server.to)
        self.send_header("content-length", "0")
        self.end_headers()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def do_CONNECT(self) -> None:
        self._answer()

    def log_message(self, *_: Any) -> None:
        """Keep the test's output quiet."""


@contextmanager
def door(to: str | None = None) -> Iterator[Door]:
    """A door that is open while the block runs."""
    with Door(to) as opened:
        threading.Thread(target=opened.serve_forever, daemon=True).start()
        yield opened
        opened.shutdown()


@pytest.fixture
def watch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Watch:
    """A watch over every process that this test starts."""
    watching = Watch(tmp_path)
    for name, value in watching.environment.items():
        monkeypatch.setenv(name, value)
    return watching


def test_a_whole_migration_reaches_nobody_but_its_endpoints(
    watch: Watch, new_service: Any, monkeypatch: pytest.MonkeyPatch, wait_until: Any
) -> None:
    """No proxy of the environment, no redirect, no usage statistics, no name looked up: this machine alone is asked.

    Seen is what all processes of the service, Ray's own among them, connect to, send datagrams to and look up.
    """
    with (
        door() as proxy,
        door() as target,
        door(f"{target.url}/embed") as redirecting,
        served("words-b", DIMS) as endpoint,
    ):
        for name in PROXIES:
            monkeypatch.setenv(name, proxy.url)
            monkeypatch.setenv(name.upper(), proxy.url)
        for name in ("no_proxy", "NO_PROXY"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "1")  # whoever installed Ray may have said so
        with new_service(rebuild_local_rows=str(LOCAL)) as service, service.client() as http:
            assert service.process is not None
            root = psutil.Process(service.process.pid)
            names: set[str] = set()

            def ended() -> Any:
                family = root.children(recursive=True)
                names.update(p.info["name"] for p in psutil.process_iter(["name"]) if p in family)
                assert watch.blind(root) == []
                status = http.get("/collections/c/vector-spaces/new/status").json()
                return status if status["run"]["state"] in ("done", "failed") else None

            _migrate(http, redirecting.url, endpoint.url, lambda: wait_until(ended, 90, "the end of the rebuild"))
            assert {"raylet", "gcs_server"} <= names
            assert any(name.startswith("ray::MapWorker") for name in names), names
            family = root.children(recursive=True)
            reporters = [p for p in family if any(part.endswith("dashboard.py") for part in command_of(p))]
            assert [p.environ()["RAY_USAGE_STATS_ENABLED"] for p in reporters] == ["0"]
        assert endpoint.stats()["inputs"] >= MANY
        assert redirecting.visitors > 0
        assert (target.asked, proxy.asked) == ([], [])
        assert (target.visitors, proxy.visitors) == (0, 0)
        port = int(endpoint.url.split(":")[2].split("/")[0])
        asked = {one.port for one in watch.calls() if one.call == "connect"}
        assert {port, redirecting.server_address[1]} <= asked, "the watch sees what there is to be seen"
    assert watch.foreign() == set()


def _migrate(http: httpx.Client, redirecting: str, endpoint: str, ended: Callable[[], dict[str, Any]]) -> None:
    """Create, ingest, rebuild in vain and then well, search, swap, drop."""
    space = {"dims": DIMS, "model": "m", "embed_endpoint": "builtin"}
    assert http.post("/collections", json={"name": "c", "vector_spaces": {"old": space}}).status_code == 201
    for at in range(0, MANY, 500):
        rows = [{"file_id": "f", "chunk_index": i, "text": f"walrus {i}"} for i in range(at, at + 500)]
        assert http.post("/collections/c/ingest", json={"chunks": rows, "wait_s": 0}).status_code == 200
    new = {"name": "new", "dims": DIMS, "model": "words-b"}
    assert http.post("/collections/c/vector-spaces", json=new).status_code == 201
    for url, state in ((redirecting, "failed"), (endpoint, "done")):
        order = http.post("/collections/c/vector-spaces/new/rebuild", json={"embed_endpoint": url})
        assert order.status_code == 202, order.text
        status = ended()
        assert status["run"]["state"] == state, status
        if state == "failed":
            assert "redirects are not followed" in status["error"]
            patched = http.patch("/collections/c/vector-spaces/new", json={"embed_endpoint": endpoint})
            assert patched.status_code == 200, patched.text
    assert http.put("/collections/c/default-vector-space", json={"name": "new"}).status_code == 200
    found = http.post("/collections/c/search", json={"query": "walrus 77", "top_k": 1}).json()
    assert (found["vector_space"], found["results"][0]["chunk"]["text"]) == ("new", "walrus 77")
    assert http.delete("/collections/c/vector-spaces/old").status_code == 204


CHILD = """
import socket, sys
name, address = sys.argv[1:]
for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
    for whom in ("127.0.0.1", address):
        with socket.socket(socket.AF_INET, kind) as one:
            try:
                one.connect((whom, 9))
                one.send(b"hello")
            except OSError:
                pass
for one in ("localhost", name):
    try:
        socket.getaddrinfo(one, 80)
    except OSError:
        pass
"""


def test_the_watch_sees_who_is_reached_and_asked(watch: Watch) -> None:
    """A connection, a datagram and a look-up that lead elsewhere are found; what stays on the machine is not.

    127.0.0.2 stands for a foreign machine, and a name that cannot exist for a foreign name.
    """
    name = "nobody.invalid"
    quick = {**os.environ, "RES_OPTIONS": "timeout:1 attempts:1"}  # there may be no network to ask
    subprocess.run([sys.executable, "-c", CHILD, name, "127.0.0.2"], env=quick, check=True)
    found = {(one.call, one.kind, one.whom) for one in watch.foreign()}
    assert found == {("connect", "tcp", "127.0.0.2"), ("send", "udp", "127.0.0.2"), ("name", "-", name)}
    assert ("connect", "tcp", "127.0.0.1") in {(one.call, one.kind, one.whom) for one in watch.calls()}
