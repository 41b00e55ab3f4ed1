"""Search: Compass's own door beside a lean server, same data, same bodies, same load generator, same run.

python tests/bench/search.py --out search.json

Both hold the same vectors in a graph of the same parameters; figures count only if both reach the recall.
The rounds of the two alternate, and the median round is reported. Nothing here asserts on time.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import harness
import httpx
import numpy as np

from compass.demo.local import free_port
from compass.domain.chunk import FloatMatrix

CLIENTS = (1, 8, 32)
TOP_K = 10
RECALL = 0.95
QUERIES = 1_000
HNSW = {"m": 16, "ef_construction": 200, "ef_search": 64}


def main() -> None:
    """Run the benchmark and write its JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="where the JSON goes; standard output if not given")
    parser.add_argument("--vectors", type=int, default=20_000)
    parser.add_argument("--dims", type=int, default=384)
    parser.add_argument("--seconds", type=float, default=5, help="of one round")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    data = harness.vectors(args.vectors, args.dims, seed=1)
    queries = harness.vectors(QUERIES, args.dims, seed=2)
    with tempfile.TemporaryDirectory(prefix="bench-search-") as folder:
        bodies = _write_bodies(Path(folder, "bodies.jsonl"), queries)
        rows = Path(folder, "vectors.npy")
        np.save(rows, data)
        port = free_port()
        lean = f"http://127.0.0.1:{port}/search"
        command = (str(harness.HERE / "lean_server.py"), "--vectors", str(rows), "--port", str(port))
        with harness.server(*command, ready=lean), harness.compass_service() as service:
            compass = _fill(service.url, data)
            urls = {"compass": compass, "lean": lean}
            recall = {name: _recall(url, data, queries[:200]) for name, url in urls.items()}
            if min(recall.values()) < RECALL:
                raise SystemExit(f"recall below {RECALL}, the figures would mean nothing: {recall}")
            _warm(compass, bodies)
            results = [_at(clients, urls, bodies, args.rounds, args.seconds) for clients in CLIENTS]
    shape = {"vectors": args.vectors, "dims": args.dims, "top_k": TOP_K, "hnsw": HNSW, "recall": recall}
    harness.write(args.out, {"benchmark": "search", **shape, "rounds": args.rounds, "results": results})


def _write_bodies(path: Path, queries: FloatMatrix) -> Path:
    path.write_text("".join(json.dumps(_body(query)) + "\n" for query in queries))
    return path


def _body(query: FloatMatrix) -> dict[str, Any]:
    return {"mode": "semantic", "top_k": TOP_K, "query_vector": [round(float(x), 6) for x in query]}


def _fill(base: str, data: FloatMatrix) -> str:
    """Make a collection that is fed with these vectors; the URL of its search."""
    space = {"dims": data.shape[1], "model": "given", "hnsw": HNSW}
    with httpx.Client(base_url=base, timeout=120, trust_env=False) as client:
        client.post("/collections", json={"name": "bench", "vector_spaces": {"given": space}}).raise_for_status()
        for batch in harness.batches(range(len(data)), 500):
            chunks = [
                {"file_id": "bench", "chunk_index": i, "text": f"row {i}", "embedding": data[i].tolist()}
                for i in batch
            ]
            response = client.post("/collections/bench/ingest", json={"chunks": chunks, "wait_s": 60})
            response.raise_for_status()
        pending = response.json()["pending"]
        if any(pending.values()):
            raise SystemExit(f"the last chunks are not searchable after 60 s: {pending}")
    return f"{base}/collections/bench/search"


def _recall(url: str, data: FloatMatrix, queries: FloatMatrix) -> float:
    with httpx.Client(trust_env=False) as client:
        found = [{h["chunk"]["chunk_index"] for h in _hits(client, url, query)} for query in queries]
    exact = harness.nearest(data, queries, TOP_K)
    return float(np.mean([len(f & e) / TOP_K for f, e in zip(found, exact, strict=True)]))


def _hits(client: httpx.Client, url: str, query: FloatMatrix) -> list[dict[str, Any]]:
    hits: list[dict[str, Any]] = client.post(url, json=_body(query)).raise_for_status().json()["results"]
    return hits


def _warm(url: str, bodies: Path) -> None:
    """Until it no longer gets faster: new vectors move from the exact part into the graph in the background."""
    best = 0.0
    for _ in range(30):
        now = harness.load(url, bodies, clients=8, seconds=2)["q_per_s"]
        if now < best * 1.05:
            return
        best = max(best, now)


def _at(clients: int, urls: dict[str, str], bodies: Path, rounds: int, seconds: float) -> dict[str, Any]:
    measured: dict[str, list[dict[str, Any]]] = {name: [] for name in urls}
    for _ in range(rounds):
        for name, url in urls.items():
            measured[name].append(harness.load(url, bodies, clients=clients, seconds=seconds))
    row = {name: _median(of) for name, of in measured.items()}
    ratios: dict[str, Callable[[str], float]] = {
        "q_per_s_ratio": lambda name: row[name]["q_per_s"],
        "p99_ratio": lambda name: row[name]["p99_ms"],
    }
    return {"clients": clients, **row, **{k: round(of("compass") / of("lean"), 3) for k, of in ratios.items()}}


def _median(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    row = {key: median(r[key] for r in rounds) for key in rounds[0] if key != "errors"}
    return {**row, "errors": sum(r["errors"] for r in rounds)}


if __name__ == "__main__":
    main()
