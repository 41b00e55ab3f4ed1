"""Protection: what a rebuild does to the latency of queries that go on meanwhile.

python tests/bench/protection.py --out protection.json

Queries are due at a steady rate, whether the ones before have been answered or not, and a latency counts from when
its query was due: a stall hits all queries that fall into it, as it hits users. First without a rebuild, then while
20,000 chunks are rebuilt at default settings through an endpoint that answers at once, which is the hardest case: an
endpoint with a model in it leaves the machine more time. Nothing here asserts on time.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import harness
import httpx
import numpy as np

from compass.demo.corpus import read_corpus
from compass.demo.local import free_port
from compass.demo.service import DemoCollection

KINDS = ("text", "vector")
TOP_K = 10
QUERIES = 2_000
TIMEOUT_S = 900.0
QUIET_S = 2.0  # of one look whether the machine has come to rest
LOOKS = 30


@dataclass(slots=True)
class Latencies:
    """Seconds from when a query was due until its answer was read."""

    seconds: list[float] = field(default_factory=list)
    errors: int = 0

    def stats(self) -> dict[str, Any]:
        """{queries, errors, p50_ms, p99_ms, max_ms}."""
        ms = 1e3 * np.array(self.seconds or [float("nan")])
        p50, p99 = np.percentile(ms, (50, 99))
        shown = {"p50_ms": p50, "p99_ms": p99, "max_ms": ms.max()}
        rounded = {name: round(float(value), 2) for name, value in shown.items()}
        return {"queries": len(self.seconds), "errors": self.errors, **rounded}


def main() -> None:
    """Run the benchmark and write its JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="where the JSON goes; standard output if not given")
    parser.add_argument("--docs", type=int, default=20_000, help="docstrings; fewer if this machine has fewer")
    parser.add_argument("--dims", type=int, default=384, help="of both spaces")
    parser.add_argument("--rate", type=float, default=20, help="queries a second")
    parser.add_argument("--seconds", type=float, default=15, help="of queries before each rebuild")
    parser.add_argument("--rounds", type=int, default=3, help="rebuilds for each kind of query")
    parser.add_argument("--queries", choices=KINDS, nargs="+", default=list(KINDS))
    args = parser.parse_args()
    port = free_port()
    endpoint = f"http://127.0.0.1:{port}"
    command = (str(harness.HERE / "endpoint.py"), "--dims", str(args.dims), "--port", str(port))
    with harness.server(*command, ready=f"{endpoint}/health"), harness.compass_service() as (base, _):
        results, docs = asyncio.run(_measure(base, endpoint, args))
    shape = {"docs": docs, "dims": args.dims, "queries_per_s": args.rate, "top_k": TOP_K, "rounds": args.rounds}
    harness.write(args.out, {"benchmark": "protection", **shape, "results": results})


async def _measure(base: str, endpoint: str, args: argparse.Namespace) -> tuple[list[dict[str, Any]], int]:
    corpus = read_corpus(args.docs)
    async with httpx.AsyncClient(base_url=base, timeout=120, trust_env=False) as client:
        collection = DemoCollection(client, "bench")
        await collection.create("live", {"dims": args.dims, "model": "words", "embed_endpoint": "builtin"})
        for batch in harness.batches(corpus, 500):
            await collection.ingest(batch, wait_s=0)
        deadline = time.monotonic() + TIMEOUT_S
        while (await collection.space("live"))["lag"]:
            if time.monotonic() > deadline:
                raise SystemExit(f"the space that is to answer still lags after {TIMEOUT_S:.0f} s")
            await asyncio.sleep(1)
        await collection.add_space("next", {"dims": args.dims, "model": "endpoint", "embed_endpoint": endpoint})
        url = f"{base}/collections/bench/search"
        rebuilds = itertools.count()
        return [await _of_kind(kind, url, collection, endpoint, rebuilds, args) for kind in args.queries], len(corpus)


async def _of_kind(
    kind: str, url: str, collection: DemoCollection, endpoint: str, rebuilds: Iterator[int], args: argparse.Namespace
) -> dict[str, Any]:
    """Rounds of quiet and rebuild, pooled."""
    bodies = _bodies(kind, args.dims)
    before, during, took_s = Latencies(), Latencies(), []
    async with aiohttp.ClientSession() as session:

        async def queries(into: Latencies, until: Callable[[], bool]) -> None:
            await _open_loop(session, url, bodies, args.rate, into, until)

        await _rest(queries)
        for _ in range(args.rounds):
            end = time.perf_counter() + args.seconds
            await queries(before, lambda end=end: time.perf_counter() > end)  # type: ignore[misc]
            started = time.perf_counter()
            rebuild = asyncio.create_task(_rebuilt(collection, endpoint, restart=next(rebuilds) > 0))
            await queries(during, rebuild.done)
            await rebuild
            took_s.append(time.perf_counter() - started)
            await _rest(queries)
    quiet, busy = before.stats(), during.stats()
    ratios = {f"{p}_ratio": round(busy[f"{p}_ms"] / quiet[f"{p}_ms"], 2) for p in ("p50", "p99")}
    return {"queries": kind, "before": quiet, "during": busy, **ratios, "rebuild_s": [round(s, 1) for s in took_s]}


def _bodies(kind: str, dims: int) -> Iterator[dict[str, Any]]:
    """Queries without end; no text comes twice, for a gateway remembers the vectors of texts."""
    if kind == "text":
        words = [chunk["text"][:80] for chunk in read_corpus(QUERIES)]
        for number, text in enumerate(itertools.cycle(words)):
            yield {"query": f"{text} {number}", "top_k": TOP_K}
    rows = harness.vectors(QUERIES, dims, seed=2).tolist()
    for row in itertools.cycle(rows):
        yield {"query_vector": [round(x, 6) for x in row], "top_k": TOP_K}


async def _open_loop(
    session: aiohttp.ClientSession,
    url: str,
    bodies: Iterator[dict[str, Any]],
    rate: float,
    into: Latencies,
    until: Callable[[], bool],
) -> None:
    """Send queries when they are due, and return when `until` says so and all are answered."""
    began, asked = time.perf_counter(), []

    async def ask(due: float, body: dict[str, Any]) -> None:
        async with session.post(url, json=body) as response:
            await response.read()
            into.seconds.append(time.perf_counter() - due)
            into.errors += response.status != 200

    for number in itertools.count():
        if until():
            break
        due = began + number / rate
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        asked.append(asyncio.create_task(ask(due, next(bodies))))
    await asyncio.gather(*asked)


async def _rest(queries: Callable[..., Any]) -> None:
    """Return when queries no longer get quicker: new vectors move into the graph in the background."""
    best = float("inf")
    for _ in range(LOOKS):
        look, end = Latencies(), time.perf_counter() + QUIET_S
        await queries(look, lambda end=end: time.perf_counter() > end)
        now = look.stats()["p50_ms"]
        if now > best * 0.9:
            return
        best = min(best, now)


async def _rebuilt(collection: DemoCollection, endpoint: str, *, restart: bool) -> None:
    await collection.rebuild("next", endpoint, restart=restart)
    async for _ in collection.rebuilding("next", TIMEOUT_S):
        pass


if __name__ == "__main__":
    main()
