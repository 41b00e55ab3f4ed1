"""A new version of the application is rolled out while clients query: none of them notices."""

from __future__ import annotations

import threading
from typing import Any

import httpx
import pytest

pytestmark = pytest.mark.ray

QUERY = {"query": "an otter swims", "top_k": 1}


class Client(threading.Thread):
    """Asks again and again; `keep` says whether over one connection, or over a new one each time."""

    def __init__(self, door: str, url: str, *, keep: bool) -> None:
        super().__init__(name=f"{door}, {'kept' if keep else 'new'} connections", daemon=True)
        self.url, self.keep = f"{url}/collections/kept/search", keep
        self.stopped, self.answered = threading.Event(), 0
        self.failed: list[str] = []

    def run(self) -> None:
        # one client, for its certificates take longer to read than a request takes
        limits = httpx.Limits(max_keepalive_connections=None if self.keep else 0)
        with httpx.Client(trust_env=False, timeout=10, limits=limits) as http:
            while not self.stopped.is_set():
                try:
                    self._ask(http)
                except httpx.TransportError as error:
                    self.failed.append(f"{self.name}, query {self.answered}: {error!r}")

    def _ask(self, http: httpx.Client) -> None:
        answer = http.post(self.url, json=QUERY)
        if answer.status_code == 200 and answer.json()["results"][0]["chunk"]["text"] == "an otter swims":
            self.answered += 1
        else:
            self.failed.append(f"{self.name}, query {self.answered}: {answer.status_code} {answer.text[:200]}")


def _post(url: str, **options: Any) -> httpx.Response:
    return httpx.post(url, trust_env=False, timeout=10, **options)


def _rolled_out_under_load(deployed: Any, wait_until: Any, rollouts: list[dict[str, int]]) -> None:
    app = deployed(lease_s=60)
    spaces = {name: {"dims": 32, "model": name, "embed_endpoint": "builtin"} for name in ("old", "new")}
    _post(f"{app.url}/collections", json={"name": "kept", "vector_spaces": spaces}).raise_for_status()
    chunk = {"file_id": "f", "chunk_index": 0, "text": "an otter swims"}
    _post(f"{app.url}/collections/kept/ingest", json={"chunks": [chunk]}).raise_for_status()
    doors = {"own door": app.url, "Serve's door": app.serve_url}
    clients = [
        Client(name, url, keep=keep) for name, url in doors.items() for keep in (True, False) for _ in range(2)
    ]
    for client in clients:
        client.start()
    try:
        for changed in rollouts:
            before = app.gateways()
            app.change(**changed)
            app.deploy()

            def rolled_out(before: set[int] = before, count: int = changed["gateways"]) -> bool:
                now = app.gateways()
                return len(now) == count and not now & before

            wait_until(rolled_out, 60, f"the rollout of {changed}")
    finally:
        for client in clients:
            client.stopped.set()
        for client in clients:
            client.join(30)
    assert [failure for client in clients for failure in client.failed] == []
    assert all(client.answered > 20 for client in clients), {c.name: c.answered for c in clients}
    swap = f"{app.url}/collections/kept/default-vector-space"
    swapped = httpx.put(swap, json={"name": "new"}, trust_env=False, timeout=20)  # no lease of theirs is waited for
    assert swapped.status_code == 200, swapped.text


@pytest.mark.timeout(240)
def test_no_query_fails_while_a_new_version_is_rolled_out(deployed: Any, wait_until: Any) -> None:
    """One gateway is replaced by one, and that one by two, under load through both doors: 0 failed queries.

    The gateways that have ended hold up no swap.
    """
    rollouts = [{"gateways": 1, "max_in_flight": 100}, {"gateways": 2, "max_in_flight": 100}]
    _rolled_out_under_load(deployed, wait_until, rollouts)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_no_query_fails_in_many_rollouts(deployed: Any, wait_until: Any) -> None:
    """The same a dozen times, to and fro between one gateway and three."""
    _rolled_out_under_load(
        deployed, wait_until, [{"gateways": 1 + turn % 3, "max_in_flight": 100 + turn} for turn in range(12)]
    )
