"""A rebuild from the call until the space is active, the graph built included, against a running service.

python tests/bench/rebuild.py index --out index.json
python tests/bench/rebuild.py growth --out growth.json
python tests/bench/rebuild.py small --out small.json

index: beside hnswlib alone, `add_items` of the same vectors with the same parameters and threads, in the same run:
the ratio of wall time, and of CPU time for each chunk.
growth: time for each chunk, and the most memory of each process, as a collection grows.
small: seconds for 1,000 chunks on a warm cluster.

The endpoint answers at once. Nothing asserts on time.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import time
from pathlib import Path
from typing import Any

import harness
import hnswlib
import httpx
from usage import Usage

from compass.demo.corpus import read_corpus
from compass.demo.local import free_port
from compass.demo.service import DemoCollection
from compass.domain.space import HnswConfig

TIMEOUT_S = 900.0


def main() -> None:
    """Run one of the benchmarks and write its JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("index", "growth", "small"))
    parser.add_argument("--out", type=Path, help="where the JSON goes; standard output if not given")
    parser.add_argument(
        "--docs", type=int, nargs="+", help="chunks; default: 50,000, or 10,000 50,000 200,000, or 1,000"
    )
    parser.add_argument("--dims", type=int, default=384)
    parser.add_argument("--batch", type=int, default=32, help="texts in a request")
    parser.add_argument("--rounds", type=int, default=2, help="of index and small; the best counts")
    args = parser.parse_args()
    sizes = args.docs or {"index": [50_000], "growth": [10_000, 50_000, 200_000], "small": [1_000]}[args.what]
    port = free_port()
    endpoint = f"http://127.0.0.1:{port}"
    command = [str(harness.HERE / "endpoint.py"), "--dims", str(args.dims), "--port", str(port)]
    command += ["--max-batch", str(args.batch)]
    with (
        harness.compass_service() as service,
        harness.server(*command, ready=f"{endpoint}/health"),
    ):
        results = asyncio.run(_measure(service, endpoint, sizes, args))
    harness.write(args.out, {"benchmark": f"rebuild: {args.what}", "dims": args.dims, "results": results})


async def _measure(
    service: harness.Service, endpoint: str, sizes: list[int], args: argparse.Namespace
) -> list[dict[str, Any]]:
    found = []
    async with httpx.AsyncClient(base_url=service.url, timeout=120, trust_env=False) as client:
        await _rebuilt(await _filled(client, "warm-up", 200), "first", endpoint, service, 200)
        for docs in sizes:
            collection = await _filled(client, f"bench-{docs}", docs)
            rounds = []
            for number in range(1 if args.what == "growth" else args.rounds):
                ours = await _rebuilt(collection, f"space-{number}", endpoint, service, docs, args.dims)
                rounds.append(ours | _beside_raw(ours, docs, args.dims) if args.what == "index" else ours)
                await collection.drop(f"space-{number}")
            await collection.delete_if_there()
            best = min(rounds, key=lambda one: one["took_s"])
            if args.what != "growth":
                best = {k: v for k, v in best.items() if k != "peak_mb"} | {
                    "took_s_of_all": [r["took_s"] for r in rounds]
                }
            found.append({"docs": docs, **best})
    return found


async def _filled(client: httpx.AsyncClient, name: str, docs: int) -> DemoCollection:
    """A collection of so many chunks, whose default space is fed by callers and so costs nothing here."""
    collection = DemoCollection(client, name)
    await collection.create("none", {"dims": 2, "model": "none"})
    corpus = [chunk["text"] for chunk in read_corpus(6_000)]
    for some in harness.batches(range(docs), 1_000):
        texts = ((i, f"{i}: {corpus[i % len(corpus)]}"[:300]) for i in some)
        await collection.ingest([{"file_id": "f", "chunk_index": i, "text": t} for i, t in texts], wait_s=0)
    return collection


async def _rebuilt(
    collection: DemoCollection,
    space: str,
    endpoint: str,
    service: harness.Service,
    docs: int,
    dims: int | None = None,
) -> dict[str, Any]:
    """From the call until the space is active."""
    dims = dims or int((await _info(endpoint))["model_id"].rpartition("-")[2])
    await collection.add_space(space, {"dims": dims, "model": "endpoint"})
    with Usage(service.pid, memory=True) as usage:
        began = time.perf_counter()
        await collection.rebuild(space, endpoint)
        async for _ in collection.rebuilding(space, TIMEOUT_S):
            pass
        took_s = time.perf_counter() - began
    measured = {"took_s": round(took_s, 2), "docs_per_s": round(docs / took_s, 1), **usage.cpu_us_per(docs)}
    return {**measured, "us_per_doc": round(1e6 * took_s / docs, 1), "peak_mb": usage.peak_mb()}


async def _info(endpoint: str) -> dict[str, Any]:
    async with httpx.AsyncClient(trust_env=False) as client:
        return dict((await client.get(f"{endpoint}/info")).json())


def _beside_raw(ours: dict[str, Any], docs: int, dims: int) -> dict[str, Any]:
    """The same graph by hnswlib alone, and the ratios to it."""
    rows, config = harness.vectors(docs, dims, seed=3), HnswConfig()
    index = hnswlib.Index("ip", dims)
    index.init_index(docs, M=config.m, ef_construction=config.ef_construction)
    began, cpu = time.perf_counter(), time.process_time()
    index.add_items(rows, num_threads=os.cpu_count() or 1)
    raw = {"took_s": time.perf_counter() - began, "cpu_us_per_doc": 1e6 * (time.process_time() - cpu) / docs}
    ratios = {name: round(ours[name] / raw[name], 3) for name in raw}
    return {"raw_hnswlib": {name: round(value, 2) for name, value in raw.items()}, "ratios": ratios}


if __name__ == "__main__":
    main()
