"""A disk that is really full: every write says so, and what was acknowledged before and after is there."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from compass.domain.chunk import ChunkInput
from compass.domain.space import Space, SpaceConfig
from compass.errors import TakenOverError, UnavailableError
from compass.storage.log.writer import CollectionStore
from compass.storage.objects import LocalObjects
from compass.storage.root import Root

SIZE_BYTES = 8 << 20


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of a few MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={SIZE_BYTES}", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode != 0:
        pytest.skip("mounting a file system is not permitted here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def space(name: str) -> Space:
    return Space(name, name, SpaceConfig(4, "m"), "active", 0.0)


def fill(disk: Path) -> Path:
    """Take all the room that is left, to the last page."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file:
        for size in (1 << 16, 1 << 12):
            while True:
                try:
                    if not file.write(b"x" * size):
                        break
                except OSError:
                    break
    return filler


def refused(write: Callable[[], object]) -> bool:
    """Whether a write was refused as it must be: 503, and nothing worse."""
    try:
        write()
    except TakenOverError:
        raise
    except UnavailableError:
        return True
    return False


@pytest.mark.parametrize("cache", ["root", "elsewhere"])
def test_a_full_disk_loses_nothing(small_disk: Path, tmp_path: Path, cache: str) -> None:
    """What finds the disk full is refused, and goes on when there is room again."""
    root = Root(LocalObjects(small_disk / "root"), (small_disk if cache == "root" else tmp_path) / "cache")
    store = root.open(root.create("docs", [space("one")], "one").uuid, grace_s=0.0)
    acknowledged = {0}
    store.ingest([ChunkInput("f", 0, "before")])
    for turn in range(1, 4):
        filler = fill(small_disk)
        maybe: set[int] = set()
        for index in range(turn * 100, turn * 100 + 10):
            write = [ChunkInput("f", index, f"text {index}" * 500)]
            (maybe if refused(partial(store.ingest, write)) else acknowledged).add(index)
        assert maybe, "the disk was not full"
        refused(store.compact)  # or not: it also makes room
        refused(partial(root.create, f"other-{turn}", [space("one")], "one"))
        filler.unlink()
        store.ingest([ChunkInput("f", turn, f"after {turn}")])
        store.compact()
        acknowledged.add(turn)
        check(store, root, tmp_path / f"cold-{turn}", acknowledged, maybe)
    for name, uuid in root.collections().items():
        root.open(uuid).close() if name != "docs" else store.close()


def check(store: CollectionStore, root: Root, cold: Path, acknowledged: set[int], maybe: set[int]) -> None:
    """The writer's view and one built anew show all that was acknowledged, and nothing that was never written."""
    chunks = store.view.page(0, 10_000)
    assert acknowledged <= {chunk.chunk_index for chunk in chunks} <= acknowledged | maybe
    acknowledged |= {chunk.chunk_index for chunk in chunks}
    view = Root(root.objects, cold).view(store.uuid)
    view.refresh(store.seq)
    assert view.page(0, 10_000) == chunks
    view.close()
    shutil.rmtree(cold)
