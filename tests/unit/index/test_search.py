"""Searching one space: what is found, what is not, and what may happen meanwhile."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compass.domain.chunk import Chunk, FloatMatrix, FloatVector, IntVector
from compass.domain.filters import Equals, Filter
from compass.domain.search.query import Query
from compass.domain.search.scoring import distances, scores
from compass.domain.space import HnswConfig, Metric, SpaceConfig, prepare_vectors
from compass.embedding.builtin import HashingModel
from compass.errors import InvalidRequestError, StorageError
from compass.index.vector.hnsw import Graph
from compass.index.vector.search import SpaceSearch
from compass.index.vector.vector_index import VectorIndex

DIMS = 32
MANY = 5_000
CENTRES = np.random.default_rng(7).standard_normal((50, DIMS)).astype(np.float32)


def clustered(count: int, seed: int, metric: Metric = "cosine") -> FloatMatrix:
    """Vectors around 50 centres, as embeddings lie; equal seeds give equal vectors."""
    rng = np.random.default_rng(seed)
    near = CENTRES[rng.integers(0, len(CENTRES), count)]
    return prepare_vectors(near + 0.7 * rng.standard_normal((count, DIMS)).astype(np.float32), metric)


def config(metric: Metric = "cosine", **hnsw: int) -> SpaceConfig:
    return SpaceConfig(dims=DIMS, model="m", metric=metric, hnsw=HnswConfig(**hnsw))


class FakeView:
    """A view in memory. A chunk's id is its vid reversed in order, so that the two are never mixed up."""

    def __init__(self, count: int = 0) -> None:
        self.chunks: dict[int, Chunk] = {}
        self.commits = 0
        self.filters: list[Filter] = []
        for vid in range(count):
            self.put(vid)

    def put(self, vid: int, **metadata: Any) -> None:
        chunk_id = 1_000_000 - vid
        self.commits += 1
        self.chunks[vid] = Chunk(
            chunk_id, vid, self.commits, "f", vid, "text", metadata, "chunk", None, None, None, None
        )

    def delete(self, *vids: int) -> None:
        self.commits += 1
        for vid in vids:
            del self.chunks[vid]

    def seq(self) -> int:
        return self.commits

    def by_vids(self, vids: IntVector) -> dict[int, Chunk]:
        return {vid: self.chunks[vid] for vid in vids.tolist() if vid in self.chunks}

    def matching(self, where: Filter) -> IntVector:
        self.filters.append(where)
        return np.array(sorted(vid for vid, chunk in self.chunks.items() if where.matches(chunk)), np.int64)


def built(vectors: FloatMatrix, view: FakeView, metric: Metric = "cosine") -> SpaceSearch:
    search = SpaceSearch(config(metric), view)
    search.build(np.arange(len(vectors)), vectors, threads=2)
    return search


def answered(search: SpaceSearch, vector: FloatVector, **query: Any) -> list[int]:
    """The vids of the hits of one query."""
    return [hit.chunk.vid for hit in search.search([Query(vector, **query)])[0]]


def nearest(query: FloatVector, vectors: FloatMatrix, vids: IntVector, count: int = 10) -> set[int]:
    return set(vids[np.argsort(distances(query, vectors[vids], "cosine"))[:count]].tolist())


def recall(search: SpaceSearch, vectors: FloatMatrix, vids: IntVector, queries: FloatMatrix, **query: Any) -> float:
    """recall@10 against brute force over the vectors of `vids`."""
    wanted = [nearest(q, vectors, vids) for q in queries]
    return float(
        np.mean([len(w & set(answered(search, q, **query))) / len(w) for q, w in zip(queries, wanted, strict=True)])
    )


@pytest.fixture(scope="module")
def vectors() -> FloatMatrix:
    return clustered(MANY, seed=0)


@pytest.fixture(scope="module")
def shared(vectors: FloatMatrix) -> SpaceSearch:
    """A space of 5,000 settled vectors that no test changes."""
    return built(vectors, FakeView(MANY))


# ---- what is found


def test_recall_of_the_default_config(shared: SpaceSearch, vectors: FloatMatrix) -> None:
    """Recall@10 of the default parameters is at least 0.95, for queries that are not in the space."""
    assert recall(shared, vectors, np.arange(MANY), clustered(200, seed=1)) >= 0.95


def test_added_vector_is_found_at_once(vectors: FloatMatrix) -> None:
    """What was added is the first hit of its own vector before anything has settled, and after."""
    search = SpaceSearch(config(), FakeView(500))
    search.add(np.arange(500), vectors[:500])
    assert all(answered(search, vectors[vid], top_k=1) == [vid] for vid in range(0, 500, 25))
    assert search.settle(100) == 400
    assert search.settle(10_000) == 0
    assert all(answered(search, vectors[vid], top_k=1) == [vid] for vid in range(0, 500, 25))


def test_graph_and_tail_are_one(vectors: FloatMatrix) -> None:
    """Recall counts the graph and the tail as one space, and no chunk is answered twice."""
    search = built(vectors[:4_000], FakeView(MANY))
    search.add(np.arange(4_000, MANY), vectors[4_000:])
    search.settle(300)
    queries = clustered(100, seed=1)
    assert recall(search, vectors, np.arange(MANY), queries) >= 0.95
    for query in queries:
        vids = answered(search, query, top_k=50)
        assert len(set(vids)) == len(vids) == 50


def test_a_small_space_misses_nothing() -> None:
    """Where reading all rows costs no more than the graph: it loses some of the texts that differ in a word."""
    texts = [f"document {i} about subject{i % 97}" for i in range(1_500)]
    texts += [f"the same words, number {i}" for i in range(500)]
    rows = HashingModel("words-b", 96).embed(texts)
    search, vids = SpaceSearch(SpaceConfig(dims=96, model="m"), FakeView(2_000)), np.arange(2_000)
    search.build(vids, rows, threads=1)
    assert [answered(search, rows[vid], top_k=1) for vid in vids[::10]] == [[vid] for vid in vids[::10].tolist()]


@pytest.mark.parametrize("metric", ["cosine", "dot", "l2"])
def test_exact_search_is_brute_force(metric: Metric) -> None:
    """An exact search answers precisely the nearest, with the scores of the metric."""
    rows, queries = clustered(1_500, 0, metric), clustered(20, 1, metric)
    search = built(rows[:1_000], FakeView(1_500), metric)
    search.add(np.arange(1_000, 1_500), rows[1_000:])
    for query in queries:
        far = distances(query, rows, metric)
        hits = search.search([Query(query, exact=True)])[0]
        assert {hit.chunk.vid for hit in hits} == set(np.argsort(far)[:10].tolist())
        expected = scores(far, metric)
        assert all(hit.score == pytest.approx(float(expected[hit.chunk.vid]), rel=1e-4, abs=1e-5) for hit in hits)


@pytest.mark.parametrize("metric", ["cosine", "dot", "l2"])
def test_approximate_scores_are_the_exact_ones(metric: Metric) -> None:
    """A hit has the same score whether the graph, the tail or brute force has found it."""
    rows = clustered(1_200, 0, metric)
    search = built(rows[:1_100], FakeView(1_200), metric)
    search.add(np.arange(1_100, 1_200), rows[1_100:])
    for query in clustered(20, 1, metric):
        exact = {hit.chunk.vid: hit.score for hit in search.search([Query(query, exact=True, top_k=100)])[0]}
        for hit in search.search([Query(query)])[0]:
            assert hit.score == pytest.approx(exact[hit.chunk.vid], rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("exact", [False, True])
def test_order_of_hits(exact: bool) -> None:
    """Hits come by score descending; equal scores by id ascending, whichever of them fit."""
    rows = prepare_vectors(np.repeat(np.eye(DIMS, dtype=np.float32)[:2], 20, axis=0), "cosine")
    search = SpaceSearch(config(), FakeView(40))
    search.add(np.arange(40), rows)
    hits = search.search([Query(rows[0], top_k=25, exact=exact)])[0]
    ids = [hit.chunk.id for hit in hits]
    assert ids == sorted(1_000_000 - vid for vid in range(20)) + sorted(1_000_000 - vid for vid in range(20, 40))[:5]


def test_include_vectors(shared: SpaceSearch, vectors: FloatMatrix) -> None:
    """Hits carry their stored vectors when asked to, and only then."""
    hits = shared.search([Query(vectors[3], include_vectors=True)])[0]
    for hit in hits:
        assert hit.vector is not None
        np.testing.assert_array_equal(hit.vector, vectors[hit.chunk.vid])
    assert all(hit.vector is None for hit in shared.search([Query(vectors[3])])[0])


def test_wider_beam_finds_more(vectors: FloatMatrix) -> None:
    """`ef_search` of a query overrides the space's own, and a wider beam has a better recall."""
    search = SpaceSearch(config(m=3, ef_construction=6, ef_search=10), FakeView(MANY))
    search.build(np.arange(MANY), vectors, threads=2)
    queries = clustered(60, seed=1)
    narrow, wide = (recall(search, vectors, np.arange(MANY), queries, ef_search=ef) for ef in (None, 400))
    assert wide > narrow + 0.1
    search.configure(config(ef_search=400))
    assert recall(search, vectors, np.arange(MANY), queries) == wide


def test_queries_in_one_call(shared: SpaceSearch, vectors: FloatMatrix) -> None:
    """Each query of a call is answered as if it had come alone, and like ones share one walk."""
    queries = [Query(q) for q in clustered(12, seed=1)]
    queries += [Query(vectors[0], top_k=3), Query(vectors[1], exact=True), Query(vectors[2], ef_search=300)]
    queries += [Query(vectors[3], top_k=200), Query(vectors[4], include_vectors=True)]
    together = shared.search(queries)
    for query, hits in zip(queries, together, strict=True):
        alone = shared.search([query])[0]
        assert [h.chunk for h in hits] == [h.chunk for h in alone]
        assert len(hits) == query.top_k
    assert shared.search([]) == []


def test_like_queries_share_one_walk(monkeypatch: pytest.MonkeyPatch, shared: SpaceSearch) -> None:
    """Queries that waited together and are alike cost one call of the graph."""
    walks: list[int] = []
    near = VectorIndex.near

    def counted(self: VectorIndex, queries: FloatMatrix, *args: Any) -> Any:
        walks.append(len(queries))
        return near(self, queries, *args)

    monkeypatch.setattr(VectorIndex, "near", counted)
    shared.search([Query(q) for q in clustered(32, seed=1)])
    assert walks == [32]


# ---- small and empty spaces


def test_empty_space() -> None:
    """An empty space answers nothing and does not raise, filtered, exact or neither."""
    search = SpaceSearch(config(), FakeView())
    vector = clustered(1, 0)[0]
    where = Filter((Equals("a", 1),))
    for query in (Query(vector), Query(vector, exact=True), Query(vector, where=where), Query(vector, top_k=1_000)):
        assert search.search([query]) == [[]]
    assert search.settle(100) == 0


@pytest.mark.parametrize("settled", [0, 5, 9])
def test_fewer_live_chunks_than_asked_for(settled: int) -> None:
    """A search for more than there is answers all there is, wherever it lies."""
    rows = clustered(9, 0)
    search = SpaceSearch(config(), FakeView(9))
    search.add(np.arange(9), rows)
    search.settle(settled)
    search.remove(np.array([1, 8]))
    assert sorted(answered(search, rows[0], top_k=500)) == [0, 2, 3, 4, 5, 6, 7]
    search.remove(np.arange(9))
    assert answered(search, rows[0]) == []


# ---- deletes


@pytest.mark.parametrize("exact", [False, True])
def test_removed_vector_is_gone_at_once(vectors: FloatMatrix, exact: bool) -> None:
    """A removed vector is in no answer from then on, whether it was in the graph or in the tail."""
    search = built(vectors[:2_000], FakeView(2_500))
    search.add(np.arange(2_000, 2_500), vectors[2_000:2_500])
    gone = np.array([10, 1_500, 2_100, 2_499])
    search.remove(gone)
    for vid in gone.tolist():
        assert vid not in answered(search, vectors[vid], top_k=50, exact=exact)
    search.settle(1_000)
    for vid in gone.tolist():
        assert vid not in answered(search, vectors[vid], top_k=50, exact=exact)
    assert not search.held(gone).any()
    assert len(search) == 2_496


def test_the_view_decides_what_lives(vectors: FloatMatrix) -> None:
    """A vid that the view does not know is never a hit, and however many there are, the answer is not short."""
    view = FakeView(MANY)
    search = built(vectors, view)
    order = np.random.default_rng(3).permutation(MANY)
    for alive in (4_000, 500, 30, 10, 3, 0):
        living = np.sort(order[:alive])
        view.delete(*np.setdiff1d(np.fromiter(view.chunks, np.int64), living).tolist())
        for query in clustered(10, seed=1):
            vids = answered(search, query)
            assert len(vids) == min(10, alive)
            assert set(vids) <= set(living.tolist())
        if alive:
            assert recall(search, vectors, living, clustered(30, seed=1)) >= 0.95


def test_deleted_neighbourhood(vectors: FloatMatrix) -> None:
    """When all that is near a query was deleted, the answer is what is nearest of the rest."""
    view = FakeView(MANY)
    search = built(vectors, view)
    order = np.argsort(distances(vectors[0], vectors, "cosine"))
    view.delete(*order[:900].tolist())
    assert len(set(answered(search, vectors[0])) & set(order[900:910].tolist())) >= 9


# ---- filters


@pytest.fixture(scope="module", params=[0, 1_000], ids=["settled", "tail"])
def labelled(request: pytest.FixtureRequest, vectors: FloatMatrix) -> tuple[SpaceSearch, FakeView]:
    """5,000 vectors, all settled or 1,000 of them in the tail, with a view whose metadata tests may change."""
    view, border = FakeView(MANY), MANY - request.param
    search = built(vectors[:border], view)
    search.add(np.arange(border, MANY), vectors[border:])
    return search, view


@pytest.mark.parametrize("share", [0.9, 0.5, 0.1, 0.01, 0.001])
@pytest.mark.parametrize("lies", ["anywhere", "far", "near"])
def test_recall_under_a_filter(
    labelled: tuple[SpaceSearch, FakeView], vectors: FloatMatrix, share: float, lies: str
) -> None:
    """Recall@10 is at least 0.95 at every selectivity, also when what passes lies far from the query."""
    search, view = labelled
    where = Filter((Equals("kind", "wanted"),))
    for seed in range(3):
        queries = clustered(30, seed=10 + seed)
        order = np.random.default_rng(seed).permutation(MANY)
        if lies != "anywhere":
            queries = queries[:1]
            order = np.argsort(distances(queries[0], vectors, "cosine"))[:: -1 if lies == "far" else 1]
        chosen = np.sort(order[: int(MANY * share)])
        for vid in range(MANY):
            view.chunks[vid].metadata.clear()
        for vid in chosen.tolist():
            view.chunks[vid].metadata["kind"] = "wanted"
        view.commits += 1
        assert recall(search, vectors, chosen, queries, where=where) >= 0.95
        assert set(answered(search, queries[0], where=where, exact=True)) == nearest(queries[0], vectors, chosen)


def test_who_answers(
    labelled: tuple[SpaceSearch, FakeView], vectors: FloatMatrix, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The graph answers where many rows may match; brute force where few do, or when it is asked for."""
    search, view = labelled
    ways: list[str] = []

    def noted(way: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            ways.append(way)
            return work(*args)

        return call

    for way in ("near", "exact"):
        monkeypatch.setattr(VectorIndex, way, noted(way, getattr(VectorIndex, way)))
    for vid in range(MANY):
        view.chunks[vid].metadata.update(half=vid % 2, hundredth=vid % 100)
    view.commits += 1
    query = clustered(1, seed=1)[0]
    expected: dict[str, list[dict[str, Any]]] = {
        "near": [{}, {"where": Filter((Equals("half", 1),))}],
        "exact": [{"exact": True}, {"where": Filter((Equals("hundredth", 1),))}, {"top_k": 2_000}],
    }
    for way, questions in expected.items():
        for options in questions:
            ways.clear()
            answered(search, query, **options)
            assert set(ways) == {way}, options


def test_hits_pass_the_filter_they_were_found_by(vectors: FloatMatrix) -> None:
    """A chunk that changed after the filter was evaluated is judged by what it is in the answer."""
    view = FakeView(MANY)
    for vid in range(MANY):
        view.put(vid, kind="a")
    search = built(vectors, view)
    stale = view.matching(Filter((Equals("kind", "a"),)))
    view.matching = lambda where: stale  # type: ignore[method-assign]
    for vid in range(0, MANY, 2):
        view.put(vid, kind="b")
    vids = answered(search, vectors[0], where=Filter((Equals("kind", "a"),)))
    assert len(vids) == 10
    assert all(vid % 2 for vid in vids)


def test_filter_is_evaluated_once_a_commit(vectors: FloatMatrix) -> None:
    """The same filter asks the view once while the view stands still, and again when it has moved."""
    view = FakeView(200)
    search = SpaceSearch(config(), view)
    search.add(np.arange(200), vectors[:200])
    where = Filter((Equals("kind", "a"),))
    assert answered(search, vectors[0], where=where) == []
    assert answered(search, vectors[0], where=where) == []
    assert len(view.filters) == 1
    view.put(5, kind="a")
    assert answered(search, vectors[0], where=where) == [5]


def test_true_is_not_one(vectors: FloatMatrix) -> None:
    """A filter for true does not take the cached answer of a filter for 1, though Python says they are equal."""
    view = FakeView()
    view.put(0, flag=True)
    view.put(1, flag=1)
    search = SpaceSearch(config(), view)
    search.add(np.arange(2), vectors[:2])
    assert answered(search, vectors[0], where=Filter((Equals("flag", 1),))) == [1]
    assert answered(search, vectors[0], where=Filter((Equals("flag", True),))) == [0]


# ---- what is held


@pytest.mark.parametrize(
    "bad", [np.full((1, DIMS), np.nan), np.full((1, DIMS), np.inf), np.zeros((1, DIMS)), np.ones((1, DIMS + 1))]
)
def test_unfit_vectors_are_refused(vectors: FloatMatrix, bad: FloatMatrix) -> None:
    """NaN, infinity, zeros and wrong dims never come in, and nothing of their call does."""
    search = SpaceSearch(config(), FakeView(10))
    rows = np.concatenate([vectors[:3, : bad.shape[1]], bad]) if bad.shape[1] == DIMS else bad
    for put in (search.add, lambda vids, given: search.build(vids, given, 1)):
        with pytest.raises(InvalidRequestError):
            put(np.arange(len(rows)), rows.astype(np.float32))
    assert len(search) == 0


def test_vids_held(vectors: FloatMatrix) -> None:
    """`vids` and `held` tell what is in graph and tail; a vid that is held keeps its first vector."""
    search = built(vectors[:100], FakeView(200))
    search.add(np.array([150, 120, 50]), vectors[[150, 120, 99]])
    assert search.vids().tolist() == [*range(100), 120, 150]
    assert search.held(np.array([99, 100, 120, 150, 151])).tolist() == [True, False, True, True, False]
    assert len(search) == 102
    assert answered(search, vectors[50], top_k=1) == [50]
    assert search.memory_bytes() > 102 * DIMS * 4


# ---- what happens meanwhile


@contextmanager
def running(*work: Callable[[], object]) -> Iterator[list[Exception]]:
    """Repeat each piece of work in a thread of its own until the block ends; their errors are raised."""
    stop, errors = threading.Event(), list[Exception]()

    def loop(step: Callable[[], object]) -> None:
        try:
            while not stop.is_set():
                step()
        except Exception as error:  # noqa: BLE001 - it is raised below
            errors.append(error)

    threads = [threading.Thread(target=loop, args=(step,)) for step in work]
    for thread in threads:
        thread.start()
    try:
        yield errors
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    if errors:
        raise errors[0]


def wait_for(condition: Callable[[], object]) -> None:
    """Wait for what other threads do, with a deadline."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true"
        time.sleep(0.001)


def test_row_that_settles_during_a_query(monkeypatch: pytest.MonkeyPatch, vectors: FloatMatrix) -> None:
    """A row that leaves the tail after the graph was walked is still found."""
    search = built(vectors[:2_000], FakeView(2_100))
    search.add(np.arange(2_000, 2_100), vectors[2_000:2_100])
    walk = Graph.search

    def overtaken(graph: Graph, *args: Any) -> Any:
        nearest = walk(graph, *args)
        search.settle(1_000)
        return nearest

    monkeypatch.setattr(Graph, "search", overtaken)
    assert answered(search, vectors[2_050], top_k=1) == [2_050]
    assert search.settle(0) == 0


def test_query_while_a_row_settles(monkeypatch: pytest.MonkeyPatch, vectors: FloatMatrix) -> None:
    """A row that is on its way into the graph is found, and one removed on the way stays removed."""
    search = built(vectors[:2_000], FakeView(2_100))
    search.add(np.arange(2_000, 2_003), vectors[2_000:2_003])
    put = Graph.add

    def overtaken(graph: Graph, vids: IntVector, *args: Any) -> None:
        assert answered(search, vectors[2_001], top_k=1) == [2_001]
        search.remove(np.array([2_002]))
        put(graph, vids, *args)
        assert answered(search, vectors[2_001], top_k=1) == [2_001]

    monkeypatch.setattr(Graph, "add", overtaken)
    assert search.settle(10) == 0
    assert answered(search, vectors[2_001], top_k=1) == [2_001]
    assert 2_002 not in answered(search, vectors[2_002])


def test_queries_beside_changes(vectors: FloatMatrix) -> None:
    """Beside adds, removals, settling and compaction a held vector is found at every moment, and once."""
    view = FakeView(MANY)
    search = SpaceSearch(config(), view)
    acknowledged = 0
    rng = np.random.default_rng(0)
    queried: list[int] = []
    due, compactions = threading.Event(), list[int]()

    def ask() -> None:
        if acknowledged:
            vid = int(rng.integers(acknowledged)) // 10 * 10 + 1  # those ending in 5 are removed meanwhile
            vids = answered(search, vectors[vid])
            assert vids[0] == vid
            assert len(set(vids)) == len(vids)
            queried.append(vid)

    def compact() -> None:
        if due.wait(0.01):
            due.clear()
            search.compact()
            compactions.append(len(search))

    with running(ask, ask, lambda: search.settle(50), compact) as errors:
        for start in range(0, 2_000, 20):
            search.add(np.arange(start, start + 20), vectors[start : start + 20])
            search.remove(np.array([start + 5, start + 15]))
            acknowledged = start + 20
            enough = len(queried) + 3
            wait_for(lambda enough=enough: len(queried) >= enough or errors)  # type: ignore[misc]
            if start % 200 == 0:
                due.set()
        wait_for(lambda: compactions or errors)
    while search.settle(1_000):
        pass
    alive = np.array([vid for vid in range(2_000) if vid % 10 != 5])
    assert len(queried) > 200
    assert search.vids().tolist() == alive.tolist()
    assert all(answered(search, vectors[vid], top_k=1) == [vid] for vid in alive[::13].tolist())


def test_build_lets_queries_in(monkeypatch: pytest.MonkeyPatch, vectors: FloatMatrix) -> None:
    """A bulk build is searchable while it goes on: between its slices queries get in."""
    search = SpaceSearch(config(), FakeView(MANY))
    sizes: list[int] = []
    settle = VectorIndex.settle

    def ask() -> None:
        size = len(search)
        answered(search, vectors[0])
        sizes.append(size)

    with running(ask) as errors:

        def awaited(index: VectorIndex, *args: Any) -> int:
            left = settle(index, *args)
            enough = len(sizes) + 2  # the first of them may have begun before
            wait_for(lambda: len(sizes) >= enough or errors)
            return left

        monkeypatch.setattr(VectorIndex, "settle", awaited)
        search.build(np.arange(MANY), vectors, threads=1)
    assert len(set(sizes)) > 3
    assert len(search) == MANY


def test_compaction_is_due(vectors: FloatMatrix) -> None:
    """Compaction is due when more than 1,000 rows and at least 30 % of the graph are dead, and mends that."""
    view = FakeView(4_000)
    search = built(vectors[:4_000], view)
    search.remove(np.arange(1_199))
    assert not search.compact_due()
    search.remove(np.array([1_199]))
    assert search.compact_due()
    before = search.memory_bytes()
    search.compact()
    assert not search.compact_due()
    assert search.memory_bytes() < before
    assert search.vids().tolist() == list(range(1_200, 4_000))
    assert recall(search, vectors, np.arange(1_200, 4_000), clustered(50, seed=1)) >= 0.95


def test_few_dead_rows_are_left() -> None:
    """A small graph is not compacted, however much of it is dead."""
    search = built(clustered(1_000, 0), FakeView())
    search.remove(np.arange(1_000))
    assert not search.compact_due()


def test_changes_during_a_compaction(monkeypatch: pytest.MonkeyPatch, vectors: FloatMatrix) -> None:
    """What is added, settled or removed while the graph is built anew is so afterwards, too."""
    search = built(vectors[:3_000], FakeView(MANY))
    settle = VectorIndex.settle
    pending = [1_200, 0]  # the second round of catching up sees the first 1,200, the switch sees the others

    def interrupted(index: VectorIndex, *args: Any) -> int:
        left = settle(index, *args)
        if index is not search._index and pending:
            start = MANY - 1_300 if pending.pop(0) else MANY - 100
            stop = start + 1_200 if pending else MANY
            search.add(np.arange(start, stop), vectors[start:stop])
            search.remove(np.array([0, start + 1]))
            settle(search._index, 50)
        return left

    monkeypatch.setattr(VectorIndex, "settle", interrupted)
    old = search._index
    search.compact()
    gone = {0, MANY - 1_299, MANY - 99}
    expected = [v for v in [*range(3_000), *range(MANY - 1_300, MANY)] if v not in gone]
    assert search._index is not old
    assert not pending
    assert search.vids().tolist() == expected
    assert answered(search, vectors[MANY - 1], top_k=1) == [MANY - 1]


# ---- saving


def test_saved_space_comes_back(tmp_path: Path, vectors: FloatMatrix) -> None:
    """Loading gives back what had settled, less what was removed, and the same answers."""
    view = FakeView(MANY)
    search = built(vectors[:2_000], view)
    search.add(np.arange(2_000, 2_100), vectors[2_000:2_100])
    search.remove(np.array([3, 2_050]))
    search.save(tmp_path / "graph")
    loaded = SpaceSearch.load(tmp_path / "graph", config(), view)
    assert loaded.vids().tolist() == [vid for vid in range(2_000) if vid != 3]
    lacking = np.setdiff1d(search.vids(), loaded.vids())
    loaded.add(lacking, vectors[lacking])
    for query in clustered(30, seed=1):
        assert answered(loaded, query) == answered(search, query)
        assert answered(loaded, query, exact=True) == answered(search, query, exact=True)


def test_damaged_file(tmp_path: Path, vectors: FloatMatrix) -> None:
    """A file that is cut short is a StorageError, so that the caller can build anew."""
    path = tmp_path / "graph"
    built(vectors[:500], FakeView()).save(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(StorageError):
        SpaceSearch.load(path, config(), FakeView())
