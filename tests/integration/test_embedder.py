"""Embedders inside the cluster: a real service, two real models on its own Ray, asked by handle and over HTTP."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import yaml

pytestmark = [
    pytest.mark.ray,
    pytest.mark.skipif(find_spec("sentence_transformers") is None, reason="wants the extra `embedder`"),
]

MANY = 5_000  # more than the service's rebuilds embed without Ray Data
DOCS = [
    "The car accelerates from zero to a hundred in six seconds.",
    "Knead the dough for ten minutes and let it rise.",
    "The parliament passed the budget with a narrow majority.",
    "Otters float on their backs and crack shells with stones.",
    "Rotate a log file when it grows too large.",
]


def _static_model(minilm: str, folder: Path) -> str:
    """A model that is a table of vectors, one a token: as fast as a model gets. Its folder."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    from tokenizers import Tokenizer

    torch.manual_seed(7)
    table = StaticEmbedding(Tokenizer.from_file(f"{minilm}/tokenizer.json"), embedding_dim=64)
    SentenceTransformer(modules=[table], device="cpu").save(str(folder))
    return str(folder)


@pytest.fixture(scope="module")
def deployed(
    service: Any, minilm: str, tmp_path_factory: pytest.TempPathFactory, wait_until: Callable[..., Any]
) -> Iterator[None]:
    """Two embedders on the service's own Ray, by Serve's command line: `minilm`, and `table`, which is quick."""
    folder = tmp_path_factory.mktemp("embedder")
    models = {"minilm": minilm, "table": _static_model(minilm, folder / "table")}
    applications = [
        {
            "name": name,
            "route_prefix": f"/{name}",
            "import_path": "compass.embedder.app:build",
            "args": {"model": model, "num_cpus": 0.5},
        }
        for name, model in models.items()
    ]
    line = next(part for part in service.log.read_text().splitlines() if part.strip().startswith("Ray  "))
    address = next(word for word in line.split() if word.startswith("http://"))
    env = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_DASHBOARD_ADDRESS": address}

    def deploy(wanted: list[Any]) -> None:
        config = folder / "embedders.yaml"
        config.write_text(yaml.safe_dump({"applications": wanted}))
        command = [str(Path(sys.executable).parent / "serve"), "deploy", str(config)]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=90, check=False)
        assert done.returncode == 0, done.stdout + done.stderr

    def up(name: str) -> bool:
        with contextlib.suppress(httpx.HTTPError):
            return httpx.get(f"{service.serve_url}/{name}/health", trust_env=False, timeout=60).status_code == 200
        return False

    deploy(applications)
    for name in models:
        wait_until(lambda name=name: up(name), 90, f"the embedder {name}")
    yield
    deploy([])


def _filled(http: httpx.Client, name: str, texts: list[str]) -> str:
    """A collection of these texts, whose default space is the built-in model's; its path."""
    assert http.post("/collections", json={"name": name, "embedding_dims": 32}).status_code == 201
    for at in range(0, len(texts), 1_000):
        rows = [{"file_id": "f", "chunk_index": i, "text": texts[i]} for i in range(at, min(at + 1_000, len(texts)))]
        assert http.post(f"/collections/{name}/ingest", json={"chunks": rows, "wait_s": 0}).status_code == 200
    return f"/collections/{name}"


def _status(http: httpx.Client, base: str, space: str) -> dict[str, Any]:
    return dict(http.get(f"{base}/vector-spaces/{space}/status").json())


def _start(http: httpx.Client, base: str, space: str, dims: int, endpoint: str, **order: Any) -> None:
    """Add a space, and start its rebuild by this endpoint."""
    added = http.post(f"{base}/vector-spaces", json={"name": space, "dims": dims, "model": space})
    assert added.status_code == 201, added.text
    started = http.post(f"{base}/vector-spaces/{space}/rebuild", json={"embed_endpoint": endpoint, **order})
    assert started.status_code == 202, started.text


def _ended(http: httpx.Client, base: str, space: str) -> dict[str, Any]:
    """The status once the run has ended."""
    deadline = time.monotonic() + 90
    while (status := _status(http, base, space))["run"]["state"] == "running":
        assert time.monotonic() < deadline, status
        time.sleep(0.1)
    return status


def _rebuilt(http: httpx.Client, base: str, space: str, dims: int, endpoint: str) -> dict[str, Any]:
    """A new space, rebuilt by this endpoint: its status at the end."""
    _start(http, base, space, dims, endpoint)
    return _ended(http, base, space)


def _best(http: httpx.Client, base: str, query: str, **more: Any) -> dict[str, Any]:
    answer = http.post(f"{base}/search", json={"query": query, "top_k": 1, **more})
    assert answer.status_code == 200, answer.text
    return dict(answer.json()["results"][0]["chunk"])


def test_a_space_moves_to_a_model_inside_the_cluster(
    service: Any, deployed: None, http: httpx.Client, name: str, wait_until: Callable[..., Any]
) -> None:
    """Rebuilt, followed, searched by meaning and swapped by handle; over HTTP the same model is the same space."""
    base = _filled(http, name, DOCS)
    status = _rebuilt(http, base, "new", 384, "serve://minilm")
    assert (status["status"], status["run"]["state"], status["embedded"]) == ("active", "done", len(DOCS)), status
    (endpoint,) = status["endpoints"]
    assert (endpoint["url"], endpoint["errors"]) == ("serve://minilm", 0)
    assert endpoint["docs"] >= len(DOCS)
    assert endpoint["tokens"] > 5 * len(DOCS)

    assert _best(http, base, "How fast is this automobile?", vector_space="new")["text"] == DOCS[0]
    late = {"file_id": "late", "chunk_index": 0, "text": "Volcanoes erupt when magma reaches the surface."}
    http.post(f"{base}/ingest", json={"chunks": [late]}).raise_for_status()

    def followed() -> bool:
        return bool(_best(http, base, "lava and mountains", vector_space="new")["file_id"] == "late")

    wait_until(followed, 20, "the follower")
    swapped = http.put(f"{base}/default-vector-space", json={"name": "new"})
    assert swapped.json()["current"] == "new", swapped.text
    assert _best(http, base, "making bread")["text"] == DOCS[1]

    status = _rebuilt(http, base, "http", 384, f"{service.serve_url}/minilm")
    assert status["status"] == "active", status
    spaces = {space["name"]: space for space in http.get(f"{base}/vector-spaces").json()}
    assert spaces["new"]["fingerprint"] == spaces["http"]["fingerprint"]
    assert spaces["new"]["embed_endpoint"] == "serve://minilm"
    rows = [
        _best(http, base, DOCS[3], vector_space=space, include_vectors=True)["embeddings"][space]
        for space in ("new", "http")
    ]
    np.testing.assert_allclose(rows[0], rows[1], atol=1e-5)


def test_stages_of_ray_data_call_it_by_handle_and_outlive_a_replica(
    service: Any, deployed: None, http: httpx.Client, name: str, wait_until: Callable[..., Any]
) -> None:
    """More chunks than one process embeds; the only replica dies by kill -9, and the run goes on with the next."""
    base = _filled(http, name, [f"{DOCS[i % 5]} Number {i}." for i in range(MANY)])
    _start(http, base, "new", 64, "serve://table")
    wait_until(lambda: service.actor_processes("MapWorker"), 60, "a process of Ray Data")
    assert service.kill("ServeReplica:table") == 1
    assert _status(http, base, "new")["run"]["state"] == "running"
    status = _ended(http, base, "new")
    assert (status["status"], status["embedded"], status["failed"]) == ("active", MANY, 0), status
    assert _best(http, base, f"{DOCS[3]} Number 4873.", vector_space="new")["chunk_index"] == 4_873


def test_an_application_that_is_no_embedder_is_told_apart(deployed: None, http: httpx.Client, name: str) -> None:
    """Compass's own gateway is a Serve application, too; it has no such method, and no retry would help."""
    base = _filled(http, name, DOCS)
    status = _rebuilt(http, base, "new", 64, "serve://compass")
    assert status["run"]["state"] == "failed"
    assert "serve://compass: the application is no embedder of Compass" in status["error"]
