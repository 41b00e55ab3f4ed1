"""The application on a cluster that somebody else started: `serve deploy`, `serve run`, and their ends."""

from __future__ import annotations

import signal
import subprocess
from typing import Any

import httpx
import pytest

pytestmark = pytest.mark.ray


def test_serve_deploy_and_serve_run_on_a_running_cluster(head: Any, deployed: Any, wait_until: Any) -> None:
    """The committed serve_config.yaml deploys and redeploys; the data outlive it, the actors do not."""
    app = deployed(idle_exit_s=3, lease_s=2)
    base = app.url
    httpx.post(f"{base}/collections", json={"name": "kept"}, trust_env=False, timeout=60)
    chunk = {"file_id": "f", "chunk_index": 0, "text": "an otter swims"}
    httpx.post(f"{base}/collections/kept/ingest", json={"chunks": [chunk]}, trust_env=False, timeout=60)

    def found(door: str) -> str:
        answer = httpx.post(f"{door}/collections/kept/search", json={"query": "otter"}, trust_env=False, timeout=60)
        return str(answer.json()["results"][0]["chunk"]["text"])

    assert found(base) == found(app.serve_url) == "an otter swims"
    app.change(max_in_flight=100)
    app.deploy()
    wait_until(app.ready, 60, "the redeployed gateway")
    assert found(base) == "an otter swims"
    head.serve("shutdown", "-y")

    def ours() -> list[str]:
        kinds = ("RouterProcess", "CollectionProcess", "IndexProcess")
        return [title for title in head.titles() if any(kind in title for kind in kinds)]

    wait_until(lambda: not ours(), 40, "the end of the actors")

    run = [str(head.bin / "serve"), "run", str(app.file)]
    with subprocess.Popen(run, env=head.env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as foreground:
        try:
            wait_until(app.ready, 60, "the gateway of serve run")
            assert found(base) == "an otter swims"
        finally:
            foreground.send_signal(signal.SIGINT)
            foreground.wait(30)
    wait_until(lambda: not app.ready(), 30, "the end of serve run")
