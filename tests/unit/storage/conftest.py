"""Collections on a disk, two nodes that share it, and objects that fail when told to."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compass.domain.chunk import Chunk, ChunkInput, FloatVector
from compass.domain.space import Space, SpaceConfig
from compass.storage.log.writer import CollectionStore
from compass.storage.objects import LocalObjects, Objects
from compass.storage.root import Root
from compass.storage.view.view import View

Keys = list[str]


class FaultInjectingObjects:
    """Objects that call `before(operation, key)` and `after(operation, key)`, which may raise or do other work."""

    def __init__(self, objects: Objects) -> None:
        self.objects = objects
        self.before: Callable[[str, str], None] = lambda operation, key: None
        self.after: Callable[[str, str], None] = lambda operation, key: None

    def _call(self, operation: str, key: str, *more: Any) -> Any:
        self.before(operation, key)
        answer = getattr(self.objects, operation)(key, *more)
        self.after(operation, key)
        return answer

    def create(self, key: str, data: Any) -> bool:
        return bool(self._call("create", key, data))

    def write(self, key: str, data: Any) -> None:
        self._call("write", key, data)

    def ensure_durable(self, key: str) -> bool:
        return bool(self._call("ensure_durable", key))

    def read(self, key: str) -> Any:
        return self._call("read", key)

    def list(self, prefix: str) -> Keys:
        return list_of(self._call("list", prefix))

    def folders(self, prefix: str) -> Keys:
        return list_of(self._call("folders", prefix))

    def delete(self, keys: Iterable[str]) -> None:
        for key in keys:
            self.before("delete", key)
            self.objects.delete([key])
            self.after("delete", key)

    def delete_prefix(self, prefix: str) -> None:
        self._call("delete_prefix", prefix)

    def bytes_under(self, prefix: str) -> int:
        return int(self._call("bytes_under", prefix))

    def scratch(self) -> Path:
        return self.objects.scratch()

    def local_path(self, key: str) -> Path | None:
        return self.objects.local_path(key)


def list_of(keys: Iterable[str]) -> Keys:
    return list(keys)


class Disk:
    """One root with one collection of two spaces, seen from as many nodes as a test wants."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.objects = FaultInjectingObjects(LocalObjects(folder / "root"))
        self.root = Root(self.objects, folder / "node-a")
        self.spaces = [self.space("one-id", "one"), self.space("two-id", "two")]
        self.uuid = self.root.create("docs", self.spaces, "one-id").uuid
        self._open: list[CollectionStore] = []

    @staticmethod
    def space(space_id: str, name: str, status: Any = "active") -> Space:
        return Space(space_id, name, SpaceConfig(dims=4, model="m"), status, 0.0)

    def store(self, node: str = "node-a", objects: Objects | None = None, **options: Any) -> CollectionStore:
        options = {"grace_s": 0.0, "lock_wait_s": 0.0, **options}
        store = CollectionStore(objects or self.objects, self.uuid, self.folder / node, **options)
        self._open.append(store)
        return store

    def other_objects(self) -> FaultInjectingObjects:
        return FaultInjectingObjects(LocalObjects(self.folder / "root"))

    def view(self, node: str) -> View:
        return View(self.objects, self.uuid, self.folder / node)

    def cold(self, node: str = "cold") -> list[Chunk]:
        """All chunks, as a node sees them that knows nothing but the root."""
        view = self.view(node)
        view.refresh()
        chunks = view.page(0, 1_000_000)
        view.close()
        return chunks

    def files(self, folder: str = "") -> dict[str, bytes]:
        """Every object of the collection, by key."""
        keys = self.objects.objects.list(f"{self.uuid}/{folder}".rstrip("/"))
        return {key: (self.folder / "root" / key).read_bytes() for key in keys}

    def close(self) -> None:
        for store in self._open:
            store.close()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    """A root with the collection `docs`."""
    disk = Disk(tmp_path)
    yield disk
    disk.close()


@pytest.fixture
def chunk() -> Callable[..., ChunkInput]:
    """Builds the chunk at an index of file `f`."""

    def build(index: int = 0, text: str | None = None, **fields: Any) -> ChunkInput:
        return ChunkInput(fields.pop("file_id", "f"), index, f"text {index}" if text is None else text, **fields)

    return build


@pytest.fixture
def vector() -> Callable[..., FloatVector]:
    """Builds a vector of four numbers from a seed."""

    def build(seed: int = 1) -> FloatVector:
        return np.random.default_rng(seed).normal(size=4).astype(np.float32)

    return build
