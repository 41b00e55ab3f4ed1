"""The main job over HTTP: ingest, add a space, rebuild, search it by name, swap, roll back, swap, drop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from compass.demo.corpus import DEFAULT_CHUNKS, module_summaries, read_corpus
from compass.demo.report import DemoReport, Example
from compass.demo.service import DemoCollection
from compass.demo.watch import Querier, Tally

BATCH = 500  # chunks per ingest request
HELD_BACK = 0.05  # the share of the chunks that is written while the rebuild runs
WAIT_S = 30.0  # an ingest may take as long as the embed server needs
REBUILD_TIMEOUT_S = 300.0
EXAMPLES = ("parse command line options", "run coroutines concurrently", "compress a file with gzip")


@dataclass(frozen=True, slots=True)
class Model:
    """A model of the demo; its space has its name."""

    name: str
    dims: int

    def config(self, endpoint: str) -> dict[str, Any]:
        """SpaceConfig of its space."""
        return {"model": self.name, "dims": self.dims, "embed_endpoint": endpoint}


MODELS = (Model("words-256", 256), Model("words-512", 512))


async def run_demo(
    base_url: str,
    endpoints: tuple[str, str],
    *,
    models: tuple[Model, Model] = MODELS,
    console: Console | None = None,
    chunks: int = DEFAULT_CHUNKS,
    collection: str = "docstrings",
    data: Path | None = None,
    transport: httpx.AsyncBaseTransport | None = None,
    pause_s: float = 0.5,
    poll_s: float = 0.2,
) -> DemoReport:
    """Swap the model of a collection of docstrings while queries run; what was measured.

    Args:
        base_url: A running service; a collection of this name is deleted first.
        endpoints: The embed servers of the two models.
        models: The one to begin with and the one to swap to.
        console: Where progress is printed.
        chunks: How many docstrings, at most.
        collection: Its name.
        data: The service's data folder if it is on this machine, to measure what dropping frees.
        transport: Another way to the service than the network, for tests.
        pause_s: Between swaps, so that each default answers some queries.
        poll_s: Between two looks at the rebuild.

    Raises:
        CompassError: a call was refused or the rebuild failed.
    """
    corpus = read_corpus(chunks)
    # The service is near: a proxy of the environment must not come between.
    async with httpx.AsyncClient(base_url=base_url, timeout=60.0, trust_env=False, transport=transport) as client:
        target = DemoCollection(client, collection, poll_s)
        querier = Querier(client, collection, module_summaries(corpus) or EXAMPLES, models[0].name)
        running = _Demo(target, querier, endpoints, models, console or Console(), data, pause_s)
        return await running.run(corpus)


@dataclass(frozen=True, slots=True)
class _Demo:
    collection: DemoCollection
    querier: Querier
    endpoints: tuple[str, str]
    models: tuple[Model, Model]
    console: Console
    data: Path | None
    pause_s: float

    async def run(self, corpus: Sequence[dict[str, Any]]) -> DemoReport:
        old, new = self.models
        later = corpus[len(corpus) - int(len(corpus) * HELD_BACK) :]
        ingest_s = await self._ingest(corpus[: len(corpus) - len(later)])
        async with self.querier.running() as tally:
            rebuild_s = await self._rebuild(later)
            examples = [await self._compare(query) for query in EXAMPLES]
            before = await self._answers()
            swaps_s = [await self._swap(model) for model in (new, old, new)]
            after = await self._answers()
            freed = await self._drop()
        info = await self.collection.info()
        return DemoReport(
            chunks=info["chunk_count"],
            written_meanwhile=len(later),
            ingest_s=ingest_s,
            rebuild_s=rebuild_s,
            old=old.name,
            new=new.name,
            before=before,
            after=after,
            swaps_ms=tuple(s * 1000 for s in swaps_s),
            missing=info["chunk_count"] - info["vector_spaces"][new.name]["vectors"],
            bytes_freed=freed,
            examples=tuple(examples),
            **_tallied(tally),
        )

    async def _ingest(self, chunks: Sequence[dict[str, Any]]) -> float:
        old = self.models[0]
        await self.collection.delete_if_there()
        await self.collection.create(old.name, old.config(self.endpoints[0]))
        started = time.perf_counter()
        with _progress(self.console) as progress:
            bar = progress.add_task(f"Ingest into {old.name}", total=len(chunks))
            for batch in _batches(chunks):
                await self.collection.ingest(batch, WAIT_S)
                progress.advance(bar, len(batch))
        return time.perf_counter() - started

    async def _rebuild(self, later: Sequence[dict[str, Any]]) -> float:
        new = self.models[1]
        await self.collection.add_space(new.name, new.config(self.endpoints[1]))
        started = time.perf_counter()
        await self.collection.rebuild(new.name, self.endpoints[1])
        writing = asyncio.create_task(self._write(later))
        try:
            with _progress(self.console) as progress:
                bar = progress.add_task(f"Rebuild into {new.name}", total=None)
                async for status in self.collection.rebuilding(new.name, REBUILD_TIMEOUT_S):
                    done = round(status["progress"] * status["total"])
                    progress.update(bar, completed=done, total=status["total"])
            rebuild_s = time.perf_counter() - started
            await writing
        finally:
            writing.cancel()
        return rebuild_s

    async def _write(self, chunks: Sequence[dict[str, Any]]) -> None:
        for batch in _batches(chunks, 50):
            await self.collection.ingest(batch, WAIT_S)

    async def _compare(self, query: str) -> Example:
        old, new = [_names(await self.collection.search(query, model.name)) for model in self.models]
        return Example(query, old, new)

    async def _answers(self) -> str:
        return str((await self.collection.search(EXAMPLES[0]))["vector_space"])

    async def _swap(self, model: Model) -> float:
        with self.querier.swapping(model.name):
            took_s = await self.collection.swap(model.name)
        self.console.print(f"Default is {model.name} after {took_s * 1000:.0f} ms")
        await asyncio.sleep(self.pause_s)
        return took_s

    async def _drop(self) -> int:
        old = self.models[0].name
        counted = int((await self.collection.space(old))["bytes_on_disk"])
        if self.data is None:
            await self.collection.drop(old)
            return counted
        before = await asyncio.to_thread(bytes_under, self.data)
        await self.collection.drop(old)
        return before - await asyncio.to_thread(bytes_under, self.data)


def bytes_under(folder: Path) -> int:
    """The sizes of all files below a folder, bytes; files that go meanwhile count nothing."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except FileNotFoundError:
            continue
    return total


def _batches(chunks: Sequence[dict[str, Any]], size: int = BATCH) -> Iterator[Sequence[dict[str, Any]]]:
    return (chunks[start : start + size] for start in range(0, len(chunks), size))


def _names(answer: dict[str, Any]) -> tuple[str, ...]:
    return tuple(hit["chunk"]["metadata"]["name"] for hit in answer["results"])


def _tallied(tally: Tally) -> dict[str, Any]:
    return {
        "queries": tally.asked,
        "failed": tally.failed,
        "failures": tuple(tally.failures),
        "p50_ms": tally.percentile_ms(50),
        "p99_ms": tally.percentile_ms(99),
    }


def _progress(console: Console) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=console)
