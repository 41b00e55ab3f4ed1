"""The graph: what hnswlib needs to be safe, and never raises for."""

from __future__ import annotations

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compass.domain.chunk import FloatMatrix, IntVector
from compass.domain.memory import FIRST_CAPACITY
from compass.domain.search.scoring import distances
from compass.domain.space import Metric, SpaceConfig, prepare_vectors
from compass.errors import StorageError
from compass.index.vector.hnsw import NICENESS, Graph, nice_this_thread

DIMS = 16


def config(metric: Metric = "cosine", dims: int = DIMS) -> SpaceConfig:
    return SpaceConfig(dims=dims, model="m", metric=metric)


def rows(count: int, seed: int = 0, metric: Metric = "cosine") -> FloatMatrix:
    return prepare_vectors(np.random.default_rng(seed).standard_normal((count, DIMS)).astype(np.float32), metric)


def graph_of(vids: IntVector, vectors: FloatMatrix, metric: Metric = "cosine") -> Graph:
    graph = Graph(config(metric))
    graph.add(vids, vectors)
    return graph


def found(graph: Graph, query: FloatMatrix, k: int) -> list[int]:
    answer = graph.search(query[None, :], k)
    assert answer is not None
    vids: list[int] = answer[0][0].tolist()
    return vids


@pytest.mark.parametrize("live", [0, 1, 7])
def test_k_beyond_the_live_rows(live: int) -> None:
    """Asking for more rows than are live answers those that are, and an empty graph answers none."""
    graph = Graph(config())
    vectors = rows(10)
    graph.add(np.arange(10), vectors)
    graph.remove(np.arange(live, 10))
    assert sorted(found(graph, vectors[0], 50)) == list(range(live))
    assert len(graph) == live


@pytest.mark.parametrize("metric", ["cosine", "dot", "l2"])
def test_distances_are_the_domains(metric: Metric) -> None:
    """Distances mean what `domain.search.distances` defines, for each metric."""
    vectors, query = rows(50, metric=metric), rows(1, seed=1, metric=metric)
    answer = graph_of(np.arange(50), vectors, metric).search(query, 50)
    assert answer is not None
    vids, far = answer
    np.testing.assert_allclose(far[0], distances(query[0], vectors[vids[0]], metric), atol=1e-5)
    assert (np.diff(far[0]) >= 0).all()


def test_growth() -> None:
    """A graph grows beyond the capacity it began with, and loses nothing."""
    vectors = rows(FIRST_CAPACITY * 3)
    graph = Graph(config())
    for start in range(0, len(vectors), 500):
        graph.add(np.arange(len(vectors))[start : start + 500], vectors[start : start + 500])
    assert len(graph) == len(vectors)
    assert all(found(graph, vectors[vid], 20)[0] == vid for vid in range(0, len(vectors), 97))


def test_removed_rows_are_never_answered() -> None:
    """A removed vid is not answered again; unknown vids and a second removal are ignored."""
    vectors = rows(100)
    graph = graph_of(np.arange(100), vectors)
    graph.remove(np.array([3, 3, 500]))
    graph.remove(np.array([3]))
    assert 3 not in found(graph, vectors[3], 100)
    assert (len(graph), graph.dead_count) == (99, 1)


def test_removed_row_added_again() -> None:
    """A vid that was removed and is added again is live, with its new vector."""
    vectors = rows(100)
    graph = graph_of(np.arange(100), vectors)
    graph.remove(np.array([3]))
    graph.add(np.array([3]), rows(1, seed=9))
    assert found(graph, rows(1, seed=9)[0], 10)[0] == 3
    assert (len(graph), graph.dead_count) == (100, 0)


def test_saved_graph_comes_back(tmp_path: Path) -> None:
    """Loading gives the same answers, the live rows with their exact vectors, and keeps the dead ones dead."""
    vectors, path = rows(300), tmp_path / "graph"
    graph = graph_of(np.arange(1_000, 1_300), vectors)
    graph.remove(np.array([1_004, 1_299]))
    graph.save(path)
    loaded, vids, mapped = Graph.load(path, config())
    assert sorted(vids.tolist()) == sorted({*range(1_000, 1_300)} - {1_004, 1_299})
    np.testing.assert_array_equal(mapped, vectors[vids - 1_000])
    assert (len(loaded), loaded.dead_count) == (298, 2)
    for query in rows(20, seed=3):
        assert found(loaded, query, 30) == found(graph, query, 30)
    loaded.add(np.arange(5_000, 8_000), rows(3_000, seed=4))
    assert len(loaded) == 3_298


def test_empty_graph_comes_back(tmp_path: Path) -> None:
    """An empty graph can be saved, loaded and added to."""
    Graph(config()).save(tmp_path / "graph")
    loaded, vids, _ = Graph.load(tmp_path / "graph", config())
    loaded.add(np.arange(5), rows(5))
    assert (len(vids), len(loaded)) == (0, 5)


@pytest.mark.parametrize("kept", [0, 50, 1_000, 0.5, -1])
def test_truncated_file(tmp_path: Path, kept: float) -> None:
    """A file that is cut short is a StorageError, wherever it is cut."""
    path = tmp_path / "graph"
    graph_of(np.arange(300), rows(300)).save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * kept) if isinstance(kept, float) else kept])
    with pytest.raises(StorageError):
        Graph.load(path, config())


def test_graph_of_other_dims(tmp_path: Path) -> None:
    """A graph of other dims than the space's is refused, not read as something else."""
    graph_of(np.arange(30), rows(30)).save(tmp_path / "graph")
    with pytest.raises(StorageError):
        Graph.load(tmp_path / "graph", config(dims=8))


def test_unreachable_rows() -> None:
    """When the walk meets fewer rows than asked for, the answer is None and not an exception."""

    class Walk:
        element_count = 30

        def knn_query(self, *_: Any, **__: Any) -> Any:
            raise RuntimeError("Cannot return the results in a contiguous 2D array.")

    graph = Graph(config())
    graph._index = Walk()
    assert graph.search(rows(1), 10) is None


def test_no_change_beside_a_query(tmp_path: Path) -> None:
    """Adding, removing and saving never run beside a query or beside each other; queries run side by side."""
    inside: set[str] = set()
    met: set[frozenset[str]] = set()

    class Busy:
        element_count = max_elements = 100

        def _work(self, what: str) -> None:
            me = f"{what} {threading.get_ident()}"
            inside.add(me)
            time.sleep(0.0005)
            met.add(frozenset(name.split()[0] for name in inside.copy() if name != me) | {what + "!"})
            inside.discard(me)

        def knn_query(self, *_: Any, **__: Any) -> Any:
            self._work("query")
            return np.zeros((1, 10), np.uint64), np.zeros((1, 10), np.float32)

        def add_items(self, *_: Any, **__: Any) -> None:
            self._work("add")

        def resize_index(self, *_: Any) -> None:
            self._work("grow")

        def mark_deleted(self, *_: Any) -> None:
            self._work("remove")

        def save_index(self, *_: Any) -> None:
            self._work("save")

    graph = Graph(config())
    graph._index = Busy()
    one = np.arange(1)
    work = [lambda: graph.search(rows(1), 10)] * 2
    work += [lambda: graph.add(one, rows(1)), lambda: graph.remove(one), lambda: graph.save(tmp_path / "graph")]
    threads = [threading.Thread(target=lambda step=step: [step() for _ in range(40)]) for step in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    alone = {frozenset({what + "!"}) for what in ("query", "add", "grow", "remove", "save")}
    assert met - {frozenset({"query!", "query"})} == alone


def test_queries_run_side_by_side() -> None:
    """A query does not wait for another one to end."""
    both = threading.Barrier(2)

    class Busy:
        element_count = max_elements = 100

        def knn_query(self, *_: Any, **__: Any) -> Any:
            both.wait(60)
            return np.zeros((1, 10), np.uint64), np.zeros((1, 10), np.float32)

    graph = Graph(config())
    graph._index = Busy()
    with ThreadPoolExecutor(2) as threads:
        answers = list(threads.map(lambda _: graph.search(rows(1), 10), range(2)))
    assert None not in answers


def test_widths_do_not_disturb_each_other() -> None:
    """Queries of different widths that run at once are answered as they are alone."""
    vectors, queries = rows(2_000), rows(20, seed=1)
    graph = graph_of(np.arange(2_000), vectors)
    alone = {k: [found(graph, q, k) for q in queries] for k in (1, 10, 200)}
    wrong: list[int] = []

    def ask(k: int) -> None:
        for _ in range(20):
            wrong.extend(k for q, vids in zip(queries, alone[k], strict=True) if found(graph, q, k) != vids)

    threads = [threading.Thread(target=ask, args=(k,)) for k in alone]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_nice_this_thread() -> None:
    """Only the thread that asks becomes nicer, not those that answer queries."""
    seen: list[int] = []

    def build() -> None:
        nice_this_thread()
        seen.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))

    before = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    thread = threading.Thread(target=build)
    thread.start()
    thread.join()
    assert seen == [NICENESS]
    assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == before
