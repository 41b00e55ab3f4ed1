"""A rebuild without its index: texts from parts, through endpoints, to durable vector files; under a real Ray.

python tests/bench/pipeline.py overhead --out overhead.json
python tests/bench/pipeline.py saturation --out saturation.json

overhead: endpoints that answer at once from memory, so that what is left is Compass. The baseline is a bare asyncio
loop that posts the same batches to the same endpoint and throws the answers away: with aiohttp, whose parser is
native, and with httpx, which is what such a loop is mostly written with.
saturation: endpoints that take their time, as GPUs do. The baseline is what they can give by their own settings.
Beside it stands what a bare loop gets that keeps each endpoint as full as it allows.

Both count the CPU time of the processes that embed, so that the cores for a fleet can be planned. Nothing asserts
on time.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import harness
import httpx
import numpy as np
import ray
from usage import Usage

from compass.demo.corpus import read_corpus
from compass.demo.local import free_port
from compass.domain.chunk import ChunkInput
from compass.domain.rebuild.order import RebuildOrder
from compass.domain.rebuild.run_record import RunRecord
from compass.domain.space import Space, SpaceConfig
from compass.rebuild.pipeline import LOCAL_ROWS, stream
from compass.rebuild.plan import read_plan
from compass.rebuild.stage import StageOpener
from compass.storage.objects import open_objects
from compass.storage.root import Root
from compass.storage.snapshot.parts import Snapshot, read_part
from compass.storage.spaces.vectors import SpaceVectors

TEXT_CHARS = 300
BARE_S = 8.0  # about how long the bare loop of saturation runs
NONE = np.empty(0, np.int64)
FLEETS: dict[str, dict[str, Any]] = {
    "one endpoint of 1,500 docs/s": {"endpoints": 1, "docs_per_s": 1_500, "dims": 384},
    "one that takes 40 ms a batch, 8 at once": {"endpoints": 1, "batch_ms": 40, "at_once": 8, "dims": 384},
    "four of those": {"endpoints": 4, "batch_ms": 40, "at_once": 8, "dims": 384},
    "ten of 1,500 docs/s, 1,024 dims": {"endpoints": 10, "docs_per_s": 1_500, "dims": 1_024},
}


def main() -> None:
    """Run one of the two benchmarks and write its JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("overhead", "saturation"))
    parser.add_argument("--out", type=Path, help="where the JSON goes; standard output if not given")
    parser.add_argument("--docs", type=int, default=200_000, help="chunks of the collection")
    parser.add_argument("--dims", type=int, nargs="+", default=[384, 1_024], help="of overhead")
    parser.add_argument("--batch", type=int, default=32, help="texts in a request; 32 is TEI's own limit")
    parser.add_argument("--in-flight", type=int, default=8, help="requests at once of the bare loop")
    parser.add_argument(
        "--seconds", type=float, default=40.0, help="about how long each fleet of saturation is asked"
    )
    parser.add_argument("--rounds", type=int, default=3, help="of overhead; the median counts")
    parser.add_argument("--actors", type=int, default=2)
    parser.add_argument("--local-rows", type=int, default=LOCAL_ROWS)
    args = parser.parse_args()
    os.environ |= {"RAY_worker_niceness": "0", "RAY_USAGE_STATS_ENABLED": "0"}
    ray.init(address="local", logging_level=logging.ERROR, log_to_driver=False, include_dashboard=False)
    with tempfile.TemporaryDirectory(prefix="bench-pipeline-") as folder:
        made = Made(Path(folder), args.docs)
        _warm_up(made, args)
        results = _overhead(made, args) if args.what == "overhead" else _saturation(made, args)
    options = {name: getattr(args, name) for name in ("batch", "actors", "local_rows")}
    harness.write(args.out, {"benchmark": f"pipeline: {args.what}", "docs": args.docs, **options, "results": results})


class Made:
    """A collection of so many chunks on disk, as a snapshot."""

    def __init__(self, folder: Path, docs: int) -> None:
        self.data, cache = folder / "data", folder / "cache"
        self.objects = open_objects(self.data)
        self.root = Root(self.objects, cache)
        corpus = [chunk["text"] for chunk in read_corpus(6_000)]
        space = Space("small-1", "small", SpaceConfig(4, "small"), "active", time.time())
        state = self.root.create("docs", [space], space.id, {})
        store = self.root.open(state.uuid, grace_s=0.0)
        for some in harness.batches(range(docs), 5_000):
            texts = ((i, f"{i}: {corpus[i % len(corpus)]}"[:TEXT_CHARS]) for i in some)
            store.ingest([ChunkInput("f", i, text) for i, text in texts])
        self.uuid, self.snapshot = state.uuid, store.checkpoint()
        store.close()
        self._spaces = 0

    def space(self, dims: int) -> SpaceVectors:
        """An empty space, which a run may fill."""
        self._spaces += 1
        vectors = self.root.space_vectors(self.uuid, f"new-{self._spaces}", dims)
        vectors.write_run(RunRecord(RebuildOrder(("builtin",), "bench"), "bench", "running", time.time()))
        return vectors

    def texts(self) -> list[str]:
        """All texts."""
        return [text for part in self.snapshot.parts for text in _texts(self, part)]


def _texts(made: Made, part: Any) -> list[str]:
    return list(read_part(made.objects, part, ["text"])["text"].to_pylist())


def _warm_up(made: Made, args: argparse.Namespace) -> None:
    """The first job of a cluster pays for its worker processes, and for what the disk has not cached yet."""
    with _endpoints({"endpoints": 1, "dims": 8}, args.batch) as (urls, _):
        asyncio.run(_embed(made, urls, 8, args, docs=None))


def _overhead(made: Made, args: argparse.Namespace) -> list[dict[str, Any]]:
    texts, found = made.texts(), []
    for dims in args.dims:
        with _endpoints({"endpoints": 1, "dims": dims}, args.batch) as (urls, pid):
            rounds: list[dict[str, Any]] = []
            for _ in range(args.rounds):
                bare = asyncio.run(_post_all(urls, texts, args.batch, args.in_flight, pid))
                plain = asyncio.run(_post_all(urls, texts, args.batch, args.in_flight, pid, _httpx))
                ours = asyncio.run(_embed(made, urls, dims, args, docs=None, endpoint=pid))
                ratios = {"ratio": _ratio(ours, bare), "ratio_httpx": _ratio(ours, plain)}
                rounds.append({"bare": bare, "bare_httpx": plain, "compass": ours, **ratios})
        middle = sorted(rounds, key=lambda r: r["ratio"])[len(rounds) // 2]
        found.append({"dims": dims, "median": middle, "rounds": rounds})
    return found


def _saturation(made: Made, args: argparse.Namespace) -> list[dict[str, Any]]:
    texts, found = made.texts(), []
    for name, fleet in FLEETS.items():
        can_give = fleet["endpoints"] * (fleet.get("docs_per_s") or _slots_per_s(fleet, args.batch))
        docs = min(args.docs, int(can_give * args.seconds))
        with _endpoints(fleet, args.batch) as (urls, pid):
            some, at_once = texts[: int(can_give * BARE_S)], fleet.get("at_once", args.in_flight)
            bare = asyncio.run(_post_all(urls, some, args.batch, at_once, pid))["docs_per_s"]
            ours = asyncio.run(_embed(made, urls, fleet["dims"], args, docs=docs, endpoint=pid))
        share = round(ours["docs_per_s"] / can_give, 3)
        steady = round(ours["steady_docs_per_s"] / can_give, 3)
        beside = {"bare_docs_per_s": bare, "to_bare": round(ours["docs_per_s"] / bare, 3)}
        shares = {"can_give_docs_per_s": can_give, "share": share, "steady_share": steady, **beside}
        found.append({"fleet": name, **shares, **ours})
    return found


def _slots_per_s(fleet: dict[str, Any], batch: int) -> float:
    return float(fleet["at_once"] * batch / (fleet["batch_ms"] / 1_000))


def _ratio(ours: dict[str, Any], bare: dict[str, Any]) -> float:
    return round(float(ours["docs_per_s"] / bare["docs_per_s"]), 3)


@contextmanager
def _endpoints(fleet: dict[str, Any], batch: int) -> Iterator[tuple[list[str], int]]:
    """The fleet in one process: its URLs and its pid."""
    ports = [str(free_port()) for _ in range(fleet["endpoints"])]
    urls = [f"http://127.0.0.1:{port}" for port in ports]
    command = [str(harness.HERE / "endpoint.py"), "--max-batch", str(batch), "--port", *ports]
    for option in ("dims", "docs_per_s", "batch_ms", "at_once"):
        command += [f"--{option.replace('_', '-')}", str(fleet[option])] if option in fleet else []
    with harness.server(*command, ready=f"{urls[-1]}/health") as pid:
        yield urls, pid


async def _embed(
    made: Made, urls: Sequence[str], dims: int, args: argparse.Namespace, *, docs: int | None, endpoint: int = 0
) -> dict[str, Any]:
    """Embed `docs` chunks (None: all) until they are durable."""
    vectors = made.space(dims)
    opener = StageOpener(str(made.data), made.uuid, vectors.space_id, SpaceConfig(dims, "m"), 60.0)
    job = RebuildOrder(tuple(urls), "bench", batch_size=args.batch)
    with Usage(apart=endpoint) as usage:
        began, done, marks = time.perf_counter(), 0, []
        plan = await asyncio.to_thread(read_plan, made.objects, _first(made.snapshot, docs), NONE, NONE)
        landing = stream(plan.descriptors, opener, job, "bench", actors=args.actors, local_rows=args.local_rows)
        async for filled in landing:
            done += filled.count
            marks.append((time.perf_counter() - began, done))
        took_s = time.perf_counter() - began
    if len(vectors.have()) != done or done != plan.live:
        raise SystemExit(f"{done} of {plan.live} chunks were embedded, {len(vectors.have())} are durable")
    vectors.drop()
    return {
        "docs": done,
        "took_s": round(took_s, 2),
        "docs_per_s": round(done / took_s, 1),
        "steady_docs_per_s": _steady(marks),
        **usage.cpu_us_per(done),
    }


def _steady(marks: Sequence[tuple[float, int]]) -> float:
    """docs/s between a quarter and nine tenths of the work: without the start and the last stragglers."""
    total = marks[-1][1]
    inner = [mark for mark in marks if 0.25 * total <= mark[1] <= 0.9 * total]
    if len(inner) < 2:
        return 0.0
    (first_s, first), (last_s, last) = inner[0], inner[-1]
    return round((last - first) / (last_s - first_s), 1)


def _first(snapshot: Snapshot, docs: int | None) -> Snapshot:
    """The parts that hold about so many chunks."""
    if docs is None:
        return snapshot
    parts, rows = [], 0
    for part in snapshot.parts:
        if rows < docs:
            parts.append(part)
            rows += part.rows
    return Snapshot(snapshot.uuid, snapshot.seq, tuple(parts))


Post = Callable[[str, Sequence[str]], Awaitable[object]]


@asynccontextmanager
async def _aiohttp() -> AsyncIterator[Post]:
    async with aiohttp.ClientSession(read_bufsize=2**21) as session:

        async def post(url: str, some: Sequence[str]) -> object:
            async with session.post(url, json={"inputs": some}) as response:
                response.raise_for_status()
                return await response.read()

        yield post


@asynccontextmanager
async def _httpx() -> AsyncIterator[Post]:
    async with httpx.AsyncClient(trust_env=False) as client:

        async def post(url: str, some: Sequence[str]) -> object:
            return (await client.post(url, json={"inputs": some})).raise_for_status().content

        yield post


async def _post_all(
    urls: Sequence[str],
    texts: Sequence[str],
    batch: int,
    in_flight: int,
    endpoint: int,
    client: Callable[[], AbstractAsyncContextManager[Post]] = _aiohttp,
) -> dict[str, Any]:
    """The bare loop, with so many requests at once at each endpoint."""
    waiting = harness.batches(texts, batch)  # one iterator that all workers draw from

    async def work(post: Post, url: str) -> None:
        for some in waiting:
            await post(f"{url}/embed", list(some))

    with Usage(apart=endpoint) as usage:
        began = time.perf_counter()
        async with client() as post:
            await asyncio.gather(*(work(post, url) for url in urls for _ in range(in_flight)))
        took_s = time.perf_counter() - began
    return {"took_s": round(took_s, 2), "docs_per_s": round(len(texts) / took_s, 1), **usage.cpu_us_per(len(texts))}


if __name__ == "__main__":
    main()
