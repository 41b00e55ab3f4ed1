"""A pilot tells what a rebuild would take, over real HTTP, and changes nothing."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from starlette.responses import JSONResponse, Response

from compass.api import responses as shown
from compass.domain.chunk import ChunkInput
from compass.domain.rebuild.estimate import Span
from compass.domain.rebuild.order import RebuildOrder
from compass.domain.rebuild.report import ChunkCounts, EstimateReport, TimeEstimate
from compass.domain.space import HnswConfig, Space, SpaceConfig
from compass.embedding.builtin import HashingModel
from compass.embedding.open import open_embedder
from compass.index.vector.search import SpaceSearch
from compass.rebuild.estimator import (
    DEFAULT_LIMITS,
    EstimateLimits,
    Estimator,
    footprint_of,
    measure_build,
)
from compass.storage.objects import LocalObjects
from compass.storage.root import Root
from compass.testing.embed_server import served

DIMS = 32
CONFIG = SpaceConfig(DIMS, "m", truncate=False)


class World:
    """One collection `docs` with a space `new-1` that is to be estimated."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.limits = folder, DEFAULT_LIMITS
        self.root = Root(LocalObjects(folder / "data"), folder / "cache")
        spaces = [
            Space("old-1", "old", SpaceConfig(4, "m"), "active", 0.0),
            Space("new-1", "new", CONFIG, "building", 0.0),
        ]
        self.uuid = self.root.create("docs", spaces, "old-1", {}).uuid
        self.store = self.root.open(self.uuid, grace_s=0.0)
        self.vectors = self.root.space_vectors(self.uuid, "new-1", DIMS)

    def ingest(self, texts: list[str]) -> None:
        self.store.ingest([ChunkInput("f", i, text) for i, text in enumerate(texts)])

    def embed(self, count: int) -> None:
        """Store the vectors of the first chunks."""
        vids = self.store.view.embeddable_vids()[:count]
        self.vectors.append(vids, np.ones((len(vids), DIMS), np.float32))

    def estimator(self, config: SpaceConfig = CONFIG) -> Estimator:
        view = self.root.view(self.uuid)
        view.refresh()
        space = Space("new-1", "new", config, "building", 0.0)
        embedder = partial(open_embedder, kind="document", timeout_s=5.0, retry_s=0.0)
        return Estimator(space, view, self.root.space_vectors(self.uuid, "new-1", DIMS), embedder, limits=self.limits)

    async def estimate(self, *endpoints: str, **order: Any) -> EstimateReport:
        report = await self.estimator().estimate(RebuildOrder(endpoints, **order))
        shown.estimate(report)  # what the interface promises
        return report

    def fingerprint(self) -> dict[str, str]:
        """Every durable byte of the service."""
        files = (p for p in sorted((self.folder / "data").rglob("*")) if p.is_file())
        return {str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.store.close()


def texts(count: int) -> list[str]:
    """Texts of 3 to 12 words."""
    return [" ".join(f"w{i * 7 + j}" for j in range(3 + i % 10)) for i in range(count)]


def sure(span: Span | None) -> Span:
    """A figure that the report must have."""
    assert span is not None
    assert span.low <= span.estimate <= span.high
    return span


def about(span: Span | None, expected: float, factor: float) -> bool:
    return expected / factor <= sure(span).estimate <= expected * factor


class Served:
    """A reply of an embed server that notes when it has answered how many texts; it answers nothing itself."""

    def __init__(self) -> None:
        self.answers: list[tuple[float, int]] = []

    def __call__(self, batch: list[str]) -> Response | None:
        self.answers.append((time.monotonic(), len(batch)))
        return None

    @property
    def docs_per_s(self) -> float:
        """The speed that it really had, whatever else the machine had to do."""
        (began_s, _), *later = self.answers
        return sum(count for _, count in later) / (later[-1][0] - began_s)


async def test_speed_tokens_and_time_are_those_of_the_endpoints(world: World) -> None:
    """Of each by itself and of all together; what is embedded already costs nothing, and nothing is changed."""
    world.ingest(texts(3_000))
    world.embed(1_000)
    words = sum(len(text.split()) for text in texts(3_000)[1_000:])
    before = world.fingerprint()
    rates = Served(), Served()
    with (
        served("m", DIMS, docs_per_s=100, reply=rates[0]) as slow,
        served("m", DIMS, docs_per_s=300, reply=rates[1]) as fast,
    ):
        report = await world.estimate(slow.url, fast.url, cost_per_million_tokens=50.0)
    assert world.fingerprint() == before
    sampled = report.chunks.sampled
    assert report.chunks == ChunkCounts(total=3_000, without_text=0, embedded=1_000, missing=2_000, sampled=sampled)
    one, other = report.endpoints
    assert about(one.docs_per_s, rates[0].docs_per_s, 1.5)
    assert about(other.docs_per_s, rates[1].docs_per_s, 1.5)
    together = sure(one.docs_per_s).estimate + sure(other.docs_per_s).estimate
    assert about(report.docs_per_s, together, 1.01)
    assert about(report.time_s.embedding, 2_000 / together, 1.01)
    assert sure(report.time_s.total).estimate >= sure(report.time_s.embedding).estimate
    assert report.tokens_from == one.tokens_from == "server"
    assert about(report.tokens, words, 1.05)
    assert about(report.cost, words / 1e6 * 50, 1.05)
    assert about(one.tokens_per_s, sure(one.docs_per_s).estimate * words / 2_000, 1.1)
    assert report.failures == ()


async def test_tokens_are_guessed_where_a_server_counts_none(world: World) -> None:
    """Four characters each, and the report says so, with a wide span."""
    world.ingest(texts(300))
    with served("m", DIMS, reply=lambda batch: JSONResponse(rows(batch))) as endpoint:
        report = await world.estimate(endpoint.url, cost_per_million_tokens=1e6)
    chars = sum(map(len, texts(300)))
    assert report.tokens_from == "characters"
    assert about(report.cost, chars / 4, 1.05)
    assert sure(report.cost).high >= 1.9 * sure(report.cost).estimate
    assert "guessed" in report.rests_on


async def test_chunks_that_are_too_long_are_named_and_counted(world: World) -> None:
    """The longest chunk is always among the sample; by their lengths all that are as long are counted."""
    long = ["word " * (200 + i) for i in range(30)]
    world.ingest(texts(2_000) + long)
    with served("m", DIMS, max_input_length=100) as endpoint:
        report = await world.estimate(endpoint.url, max_failed=3)
    (failure,) = report.failures
    assert (failure.type, failure.ends_run) == ("chunks-refused", True)
    assert sure(failure.count).low <= 30 <= sure(failure.count).high
    assert 15 <= sure(failure.count).estimate <= 60
    assert "max_failed 3" in failure.detail
    assert failure.chunks is not None
    chunk = failure.chunks[0]
    assert chunk.file_id == "f"
    assert chunk.chunk_index >= 2_000
    assert "must have less than 100 tokens" in chunk.reason
    assert world.vectors.quarantined() == {}
    assert (report.endpoints[0].batch_size or 0) >= 8, "a refused text does not make the measure one of single texts"


async def test_a_single_chunk_that_is_too_long_is_met(world: World) -> None:
    """The longest is asked for, whatever the sample; few chunks are all asked for."""
    world.ingest(texts(300) + ["word " * 200])
    with served("m", DIMS, max_input_length=100) as endpoint:
        report = await world.estimate(endpoint.url)
        assert report.failures[0].count == Span.exactly(1.0)
        assert report.endpoints[0].batch_size == 32
        world.embed(298)
        report = await world.estimate(endpoint.url)
        assert (report.chunks.missing, report.chunks.sampled) == (3, 3)
    assert sure(report.failures[0].count).estimate == 1
    assert sure(report.docs_per_s).low < sure(report.docs_per_s).estimate


async def test_endpoints_that_will_not_serve_are_told_one_by_one(world: World) -> None:
    """Down, wanting a key, or of other dims: each with its reason; the others are estimated all the same."""
    world.ingest(texts(200))
    with (
        served("m", DIMS) as sound,
        served("m", DIMS, api_key="a-key-that-nobody-has") as locked,
        served("m", DIMS + 1) as other,
    ):
        report = await world.estimate(sound.url, locked.url, other.url, "http://127.0.0.1:9/embed")
    by_type = {f.type: f for f in report.failures}
    assert set(by_type) == {"endpoint-forbidden", "endpoint-answer", "endpoint-unavailable"}
    assert "401" in by_type["endpoint-forbidden"].detail
    assert f"got {DIMS + 1} dims" in by_type["endpoint-answer"].detail
    assert by_type["endpoint-unavailable"].endpoint == "http://127.0.0.1:9/embed"
    assert not any(f.ends_run for f in report.failures)
    assert [e.docs_per_s is not None for e in report.endpoints] == [True, False, False, False]


async def test_without_any_endpoint_sizes_are_told_and_times_are_not(world: World) -> None:
    """What does not depend on the endpoints is still true."""
    world.ingest(texts(200))
    report = await world.estimate("http://127.0.0.1:9/embed", cost_per_hour=1.0)
    assert [report.docs_per_s, report.tokens, report.cost] == [None, None, None]
    assert report.time_s == TimeEstimate(None, None, None)
    assert report.failures[0].ends_run is True
    assert report.disk_bytes.vectors == 200 * (4 * DIMS + 8)


async def test_a_slow_endpoint_is_told_by_what_it_answered(world: World) -> None:
    """The pilot ends in time, with small requests where large ones would not come back."""
    world.limits = EstimateLimits(probe_s=4.0)
    world.ingest(texts(500))
    rate = Served()
    with served("m", DIMS, docs_per_s=8, reply=rate) as endpoint:
        report = await world.estimate(endpoint.url)
    assert endpoint.stats()["inputs"] < 500, "it was not asked for all of them, which takes a minute"
    assert about(report.docs_per_s, rate.docs_per_s, 2)
    assert report.failures == ()


async def test_one_that_hangs_is_told(world: World) -> None:
    """Nobody waits longer than the pilot may take."""
    world.limits = EstimateLimits(probe_s=1.0)
    world.ingest(texts(50))
    with served("m", DIMS, delay_ms=60_000) as endpoint:
        report = await world.estimate(endpoint.url)
    (failure,) = report.failures
    assert failure.type == "endpoint-unavailable"
    assert "answered nothing within 1 s" in failure.detail


async def test_the_limits_of_the_order_hold_in_the_pilot_too(world: World) -> None:
    """Together the endpoints are asked for no more than max_docs_per_s, and that is the estimate."""
    world.ingest(texts(600))
    with served("m", DIMS) as one, served("m", DIMS) as other:
        began = time.monotonic()
        report = await world.estimate(one.url, other.url, max_docs_per_s=100.0, batch_size=8)
        took_s = time.monotonic() - began
        inputs = one.stats()["inputs"] + other.stats()["inputs"]
    assert inputs <= 100 * took_s + 40
    assert 0 < sure(report.docs_per_s).estimate <= sure(report.docs_per_s).high <= 100
    assert [e.batch_size for e in report.endpoints] == [8, 8]


async def test_a_restart_counts_everything(world: World) -> None:
    """It empties the space first."""
    world.ingest(texts(100))
    world.embed(60)
    with served("m", DIMS) as endpoint:
        assert (await world.estimate(endpoint.url)).chunks.missing == 40
        assert (await world.estimate(endpoint.url, restart=True)).chunks.missing == 100


async def test_nothing_missing_asks_nobody(world: World) -> None:
    """Zero texts, zero time to embed, zero cost."""
    world.ingest(texts(20))
    world.embed(20)
    with served("m", DIMS) as endpoint:
        report = await world.estimate(endpoint.url, cost_per_million_tokens=1.0)
        assert endpoint.stats()["requests"] == 0
    assert sure(report.time_s.embedding).estimate == sure(report.cost).estimate == 0
    assert report.rests_on == "nothing is missing"


async def test_the_built_in_model_is_measured_like_an_endpoint(world: World) -> None:
    """It counts no tokens, and has a speed."""
    world.ingest(texts(300))
    report = await world.estimate("builtin")
    assert report.endpoints[0].url == "builtin"
    assert sure(report.docs_per_s).estimate > 0
    assert report.failures == ()


async def test_an_order_whose_stages_would_not_open_is_told(world: World) -> None:
    """A key that is not in the environment, or two models in one list: nobody is asked."""
    world.ingest(texts(20))
    with served("m", DIMS) as endpoint:
        keyless = await world.estimate(endpoint.url, api_key_env="COMPASS_EMBED_KEY_NOT_SET")
        mixed = await world.estimate(endpoint.url, "builtin")
        assert endpoint.stats()["requests"] == 0
    for report, detail in ((keyless, "COMPASS_EMBED_KEY_NOT_SET is not set"), (mixed, "cannot be mixed")):
        assert all(failure.ends_run and detail in failure.detail for failure in report.failures)
        assert report.failures


async def test_a_budget_that_will_not_do_is_told(world: World) -> None:
    """By the cost and its span."""
    world.ingest(texts(300))
    with served("m", DIMS) as endpoint:
        report = await world.estimate(endpoint.url, cost_per_million_tokens=1e6, budget=100.0)
    (failure,) = report.failures
    assert (failure.type, failure.ends_run) == ("budget-spent", True)
    assert "the budget is 100" in failure.detail


class NoView:
    """A search that is built and not asked needs no view."""

    def seq(self) -> int:
        return 0


@pytest.mark.parametrize("dims", [48, 160])
@pytest.mark.parametrize("rows", [3_000, 9_000])
def test_the_footprint_is_that_of_a_space_really_built(dims: int, rows: int, tmp_path: Path) -> None:
    """Vector files and saved graph within 2 %, and the memory as the index itself tells it."""
    config = SpaceConfig(dims, "m", hnsw=HnswConfig(ef_construction=20))
    vectors = np.random.default_rng(1).normal(size=(rows, dims)).astype(np.float32)
    search = SpaceSearch(config, NoView())  # type: ignore[arg-type]
    search.build(np.arange(rows), vectors, 2)
    expected = footprint_of(config, rows)
    assert expected.graph_memory + expected.rows_memory == pytest.approx(search.memory_bytes(), rel=0.02)
    search.save(tmp_path / "graph")
    assert expected.graph_file == pytest.approx((tmp_path / "graph").stat().st_size, rel=0.02)
    stored = Root(LocalObjects(tmp_path / "data"), tmp_path / "cache").space_vectors("u" * 32, "s-1", dims)
    for at in range(0, rows, 1_000):
        stored.append(np.arange(at, at + 1_000), vectors[at : at + 1_000])
    assert expected.vector_files == pytest.approx(stored.bytes_on_disk(), rel=0.02)


def test_the_time_to_build_is_in_proportion(tmp_path: Path) -> None:
    """A graph of a few hundred sampled vectors foretells one of all of them within a factor of 2.5, in CPU time."""
    dims, count = 64, 12_000
    model = HashingModel("m", dims)
    vectors = model.embed([f"text {i} about subject{i % 97} and thing{i % 1_009}" for i in range(count)])
    built = measure_build(SpaceConfig(dims, "m"), vectors[:: count // 300], time.process_time)
    assert built is not None
    search = SpaceSearch(SpaceConfig(dims, "m"), NoView())  # type: ignore[arg-type]
    began = time.process_time()
    search.build(np.arange(count), vectors, DEFAULT_LIMITS.build_threads)
    took_s = time.process_time() - began
    assert took_s / 2.5 <= built.time_for(0, count).estimate <= took_s * 2.5


def rows(batch: list[str]) -> list[list[float]]:
    return [[float(x) for x in row] for row in HashingModel("m", DIMS).embed(batch)]
