"""Rebuild: docs/s beside a bare loop that posts the same batches to the same endpoint and keeps nothing.

python tests/bench/rebuild.py --out rebuild.json

Against an endpoint that answers at once, everything but the model is measured: reading, posting, decoding,
durable files, the graph. Against one at a GPU's pace, whether it is kept busy. The rebuild and the bare loop
take turns in the same run. Nothing here asserts on time.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import aiohttp
import harness
import httpx

from compass.demo.corpus import read_corpus
from compass.demo.local import free_port
from compass.demo.service import DemoCollection

TIMEOUT_S = 900.0


def main() -> None:
    """Run the benchmark and write its JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="where the JSON goes; standard output if not given")
    parser.add_argument("--docs", type=int, default=20_000, help="docstrings; fewer if this machine has fewer")
    parser.add_argument("--dims", type=int, default=384)
    parser.add_argument("--batch", type=int, default=64, help="texts in a request")
    parser.add_argument("--in-flight", type=int, default=8, help="requests at once of the bare loop")
    parser.add_argument("--gpu", type=float, default=1_500, help="docs/s of the slower endpoint")
    parser.add_argument("--rounds", type=int, default=2)
    args = parser.parse_args()
    with harness.compass_service() as base:
        paces = (0.0, args.gpu)
        results = [_against(base, pace, args) for pace in paces]
    harness.write(args.out, {"benchmark": "rebuild", "dims": args.dims, "batch": args.batch, "endpoints": results})


def _against(base: str, pace: float, args: argparse.Namespace) -> dict[str, Any]:
    port = free_port()
    endpoint = f"http://127.0.0.1:{port}"
    command = [str(harness.HERE / "endpoint.py"), "--dims", str(args.dims), "--max-batch", str(args.batch)]
    command += ["--docs-per-s", str(pace), "--port", str(port)]
    with harness.server(*command, ready=f"{endpoint}/health"):
        return {"endpoint_docs_per_s": pace or None, **asyncio.run(_measure(base, endpoint, args))}


async def _measure(base: str, endpoint: str, args: argparse.Namespace) -> dict[str, Any]:
    corpus = read_corpus(args.docs)
    texts = [chunk["text"] for chunk in corpus]
    async with httpx.AsyncClient(base_url=base, timeout=120, trust_env=False) as client:
        collection = DemoCollection(client, "bench")
        await _fill(collection, corpus)
        await collection.add_space("big", {"dims": args.dims, "model": "endpoint", "embed_endpoint": endpoint})
        rounds = []
        for number in range(args.rounds):
            bare_s = await _post_all(endpoint, texts, args.batch, args.in_flight)
            compass_s = await _rebuild(collection, "big", endpoint, args.batch, restart=number > 0)
            rounds.append(_round(len(texts), bare_s, compass_s))
    best = max(rounds, key=lambda r: r["compass_docs_per_s"])
    return {"docs": len(texts), "in_flight": args.in_flight, "rounds": rounds, "best": best}


async def _fill(collection: DemoCollection, corpus: Sequence[dict[str, Any]]) -> None:
    """The corpus with a small default space that lags no more, so that it does not compete."""
    await collection.delete_if_there()
    await collection.create("small", {"dims": 8, "model": "small", "embed_endpoint": "builtin"})
    for batch in harness.batches(corpus, 500):
        await collection.ingest(batch, wait_s=0)
    deadline = time.monotonic() + TIMEOUT_S
    while (await collection.space("small"))["lag"]:
        if time.monotonic() > deadline:
            raise SystemExit(f"the small space still lags after {TIMEOUT_S:.0f} s")
        await asyncio.sleep(1)


def _round(docs: int, bare_s: float, compass_s: float) -> dict[str, float]:
    return {
        "bare_docs_per_s": round(docs / bare_s, 1),
        "compass_docs_per_s": round(docs / compass_s, 1),
        "ratio": round(bare_s / compass_s, 3),
    }


async def _rebuild(collection: DemoCollection, space: str, endpoint: str, batch: int, *, restart: bool) -> float:
    started = time.perf_counter()
    await collection.rebuild(space, endpoint, batch_size=batch, restart=restart)
    async for _ in collection.rebuilding(space, TIMEOUT_S):
        pass
    return time.perf_counter() - started


async def _post_all(endpoint: str, texts: Sequence[str], batch: int, in_flight: int) -> float:
    waiting = harness.batches(texts, batch)  # one iterator that all workers draw from

    async def work(session: aiohttp.ClientSession) -> None:
        for some in waiting:
            async with session.post(f"{endpoint}/embed", json={"inputs": list(some)}) as response:
                response.raise_for_status()
                await response.read()

    started = time.perf_counter()
    async with aiohttp.ClientSession(read_bufsize=2**21) as session:
        await asyncio.gather(*(work(session) for _ in range(in_flight)))
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
