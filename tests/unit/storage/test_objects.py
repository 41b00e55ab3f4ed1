"""Objects on a local disk."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from compass.errors import NotImplementedYetError, StorageError
from compass.storage.objects import LocalObjects, open_objects


@pytest.fixture
def objects(tmp_path: Path) -> LocalObjects:
    return LocalObjects(tmp_path)


def content(objects: LocalObjects, key: str) -> bytes:
    """All bytes of an object that is there."""
    data = objects.read(key)
    assert data is not None
    return bytes(data.to_pybytes())


def test_create_never_replaces(objects: LocalObjects) -> None:
    """The second create of a key answers False and leaves the first one's bytes."""
    assert objects.create("a/b", b"first")
    assert not objects.create("a/b", b"second")
    assert content(objects, "a/b") == b"first"


def test_write_replaces(objects: LocalObjects) -> None:
    """A write replaces what was there as a whole."""
    objects.write("a/b", b"a longer first text")
    objects.write("a/b", b"second")
    assert content(objects, "a/b") == b"second"


@pytest.mark.parametrize("size", [0, 1, (64 << 10) + 1])
def test_bytes_come_back(objects: LocalObjects, size: int) -> None:
    """What was written is read, whether it is empty, small or memory-mapped."""
    data = os.urandom(size)
    objects.create("k", data)
    assert content(objects, "k") == data


def test_absent_objects(objects: LocalObjects) -> None:
    """An object that is not there reads as None, lists as nothing and is deleted without complaint."""
    assert objects.read("a/b") is None
    assert objects.list("a") == objects.folders("a") == []
    assert objects.bytes_under("a") == 0
    objects.delete(["a/b"])
    objects.delete_prefix("a")


def test_listings(objects: LocalObjects) -> None:
    """A listing names the objects at any depth under a folder, and no half-written one."""
    for key in ("a/2", "a/b/1", "c"):
        objects.create(key, b"xy")
    (objects.root / ".unfinished" / "half").write_bytes(b"x")
    assert objects.list("a") == ["a/2", "a/b/1"]
    assert objects.folders("") == ["a"]
    assert objects.bytes_under("a") == 4


def test_keys_stay_under_the_root(objects: LocalObjects) -> None:
    """No key leads out of the root."""
    for key in ("../x", "a/../../x", "/etc/x"):
        with pytest.raises(StorageError):
            objects.write(key, b"x")


@pytest.mark.parametrize("operation", ["create", "write"])
def test_file_and_folder_are_synced_before_the_answer(
    objects: LocalObjects, monkeypatch: pytest.MonkeyPatch, operation: str
) -> None:
    """The bytes are synced before they get their name, and every folder that has a new entry after it."""
    did: list[str] = []

    def spy(name: str, real: Callable[..., object], path_of: Callable[..., str]) -> Callable[..., object]:
        def call(*args: object) -> object:
            answer = real(*args)
            did.append(f"{name} {path_of(*args)}")
            return answer

        return call

    def opened(descriptor: int) -> str:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        return "bytes" if path.parent.name == ".unfinished" else path.name

    monkeypatch.setattr(os, "fsync", spy("sync", os.fsync, opened))
    monkeypatch.setattr(os, "link", spy("name", os.link, lambda _, to: to.name))
    monkeypatch.setattr(os, "replace", spy("name", os.replace, lambda _, to: to.name))
    getattr(objects, operation)("new/sub/key", b"x")
    assert did == ["sync bytes", "name key", "sync sub", "sync new", f"sync {objects.root.name}"]


def test_half_written_files_of_the_dead_go(tmp_path: Path) -> None:
    """A half-written file is forgotten when it is so old that nobody can be at it, and not before."""
    LocalObjects(tmp_path)
    old, fresh = tmp_path / ".unfinished" / "old", tmp_path / ".unfinished" / "fresh"
    old.write_bytes(b"x")
    fresh.write_bytes(b"x")
    os.utime(old, (time.time() - 7200,) * 2)
    LocalObjects(tmp_path)
    assert fresh.exists()
    assert not old.exists()


def test_writers_beside_a_delete_of_their_folder(objects: LocalObjects) -> None:
    """A write into a folder that is being deleted succeeds, whoever wins."""
    stop, errors = threading.Event(), []

    def write() -> None:
        try:
            for i in range(150):
                objects.create(f"a/b/c/{i}", b"x")
                objects.write(f"a/b/d/{i}", b"x")
        except Exception as error:  # noqa: BLE001  # the main thread reports it
            errors.append(error)
        stop.set()

    thread = threading.Thread(target=write)
    thread.start()
    while not stop.is_set():
        objects.delete_prefix("a")
    thread.join()
    assert errors == []
    objects.delete_prefix("a")
    assert objects.list("a") == []


def test_urls_are_refused() -> None:
    """A root at a URL is not there yet, and says so."""
    with pytest.raises(NotImplementedYetError):
        open_objects("s3://bucket/x")
