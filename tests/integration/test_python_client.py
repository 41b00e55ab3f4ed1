"""Compass from Python inside Ray, and the rebuild as a Ray job."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

pytestmark = pytest.mark.ray

SCRIPT = """
import asyncio, sys
import ray, compass
from compass.errors import NotFoundError, SpaceNotActiveError

name = sys.argv[1]
ray.init(address="auto", log_to_driver=False)
client = compass.connect()
client.create_collection(name, vector_spaces={"old": {"dims": 64, "model": "m", "embed_endpoint": "builtin"}})
done = client.ingest(name, [{"file_id": "f", "chunk_index": 0, "text": "an otter swims"}])
assert done["indexed"] == 1 and done["pending"] == {}, done
assert client.search(name, "otter", top_k=1)["results"][0]["chunk"]["text"] == "an otter swims"
client.add_space(name, "new", dims=32, model="n", embed_endpoint="builtin")
try:
    client.swap(name, "new")
except SpaceNotActiveError as error:
    assert error.fields["space"] == "new"
else:
    raise AssertionError("a building space must not become the default")
client.rebuild(name, "new")
while client.rebuild_status(name, "new")["status"] != "active":
    pass

@ray.remote(num_cpus=0)
def in_a_task(name):
    return compass.connect().swap(name, "new")

@ray.remote(num_cpus=0)
class InAnActor:
    async def search(self, name):
        return await compass.connect_async().search(name, "otter")

assert ray.get(in_a_task.remote(name))["epoch"] == 2
assert ray.get(InAnActor.remote().search.remote(name))["vector_space"] == "new"
try:
    client.search("nowhere", "otter")
except NotFoundError:
    print("EVERYTHING WORKED")
"""


def _job(service: Any, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a command through a real `ray job submit` on the service's cluster."""
    line = next(part for part in service.log.read_text().splitlines() if part.strip().startswith("Ray  "))
    address = next(word for word in line.split() if word.startswith("http://"))
    submit = [str(Path(sys.executable).parent / "ray"), "job", "submit", "--address", address, "--", *command]
    env = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "token"}
    return subprocess.run(submit, capture_output=True, text=True, timeout=180, env=env, check=False)


def test_a_driver_a_task_and_an_actor_reach_the_service(service: Any, name: str, tmp_path: Path) -> None:
    """`compass.connect()` works wherever Ray does, blocking and awaited, with errors as exceptions."""
    script = tmp_path / "driver.py"
    script.write_text(SCRIPT)
    done = _job(service, sys.executable, str(script), name)
    assert "EVERYTHING WORKED" in done.stdout, done.stdout + done.stderr
    assert done.returncode == 0


def test_a_rebuild_runs_as_a_ray_job(
    service: Any, http: httpx.Client, embed_servers: tuple[Any, Any], name: str
) -> None:
    """`python -m compass.rebuild` shows its progress in the job's log and ends when the space is active."""
    http.post("/collections", json={"name": name})
    chunks = [{"file_id": "f", "chunk_index": i, "text": f"text {i} of many"} for i in range(300)]
    http.post(f"/collections/{name}/ingest", json={"chunks": chunks})
    http.post(f"/collections/{name}/vector-spaces", json={"name": "new", "dims": 128, "model": "words-b"})
    arguments = ["--collection", name, "--space", "new", "--embed-endpoint", embed_servers[1].url]
    done = _job(service, sys.executable, "-m", "compass.rebuild", *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "300" in done.stdout
    assert http.get(f"/collections/{name}/vector-spaces/new/status").json()["status"] == "active"


def test_a_rebuild_job_that_fails_says_why_and_exits_non_zero(service: Any, http: httpx.Client, name: str) -> None:
    """An endpoint with other dims than the space fails the job."""
    from compass.testing.embed_server import served

    http.post("/collections", json={"name": name})
    http.post(f"/collections/{name}/ingest", json={"chunks": [{"file_id": "f", "chunk_index": 0, "text": "x y z"}]})
    http.post(f"/collections/{name}/vector-spaces", json={"name": "new", "dims": 128, "model": "m"})
    with served("other", 64) as other:
        arguments = ["--collection", name, "--space", "new", "--embed-endpoint", other.url]
        done = _job(service, sys.executable, "-m", "compass.rebuild", *arguments)
    assert done.returncode != 0
    assert "128" in done.stdout + done.stderr
    assert "64" in done.stdout + done.stderr
