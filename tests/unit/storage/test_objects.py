"""Objects on a local disk."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from compass.errors import NotImplementedYetError, StorageError, UnavailableError
from compass.storage.objects import LocalObjects, SystemCalls, create_mine, open_objects


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


def test_what_is_there_can_be_made_durable(objects: LocalObjects) -> None:
    """`ensure_durable` says whether there is anything under the key."""
    objects.create("a/b", b"x")
    assert objects.ensure_durable("a/b")
    assert not objects.ensure_durable("a/c")
    assert not objects.ensure_durable("a/b/c")
    objects.delete_prefix("a")
    assert not objects.ensure_durable("a/b")


class FailingSyncs(SystemCalls):
    """Calls whose fsync fails where `fails` says so."""

    def __init__(self, fails: Callable[[Path], bool] = lambda path: False) -> None:
        self.fails = fails
        self.synced: list[Path] = []

    def fsync(self, descriptor: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        if self.fails(path):
            raise OSError(errno.EIO, "the disk is broken", str(path))
        super().fsync(descriptor)
        self.synced.append(path)


@pytest.mark.parametrize("operation", ["create", "write"])
def test_a_file_that_is_not_synced_gets_no_name(tmp_path: Path, operation: str) -> None:
    """What a failed fsync of a file has dropped is never seen, and the next try writes it anew."""
    system = FailingSyncs()
    objects = LocalObjects(tmp_path, system)
    system.fails = lambda path: path.parent.name == ".unfinished"
    with pytest.raises(OSError, match="broken"):
        getattr(objects, operation)("a/b", b"x")
    assert objects.read("a/b") is None
    assert list((tmp_path / ".unfinished").iterdir()) == []
    system.fails = lambda path: False
    getattr(objects, operation)("a/b", b"y")
    assert content(objects, "a/b") == b"y"


@pytest.mark.parametrize("again", ["create", "write", "ensure_durable", "another process"])
@pytest.mark.parametrize("broken", ["b", "a", "root"])
def test_a_name_that_was_not_synced_is_synced_by_whoever_comes_next(tmp_path: Path, broken: str, again: str) -> None:
    """The folders that a failed call has made, and the name that it gave, are synced before any later success."""
    root = tmp_path / "root"
    system = FailingSyncs()
    objects = LocalObjects(root, system)
    system.fails = lambda path: path.name == broken
    with pytest.raises(OSError, match="broken"):
        objects.create("a/b/c", b"x")
    assert content(objects, "a/b/c") == b"x", "it is seen, and may be gone after a power cut"
    with pytest.raises(OSError, match="broken"):
        objects.create("a/b/c", b"x")
    with pytest.raises(OSError, match="broken"):
        objects.ensure_durable("a/b/c")
    system.fails, system.synced = lambda path: False, []
    if again == "another process":
        objects = LocalObjects(root, system)
        assert objects.create("a/b/d", b"x")
    elif again == "ensure_durable":
        assert objects.ensure_durable("a/b/c")
    elif again == "write":
        objects.write("a/b/c", b"x")
    else:
        assert not objects.create("a/b/c", b"x"), "what is there is durable, whoever wrote it"
    assert {root / "a" / "b", root / "a", root} <= set(system.synced)


def test_the_root_itself_is_synced(tmp_path: Path) -> None:
    """The folders above a root, also those that an earlier process made and could not sync."""
    root = tmp_path / "above" / "root"
    system = FailingSyncs(lambda path: path == tmp_path)
    with pytest.raises(OSError, match="broken"):
        LocalObjects(root, system)
    assert root.is_dir()
    system.fails, system.synced = lambda path: False, []
    LocalObjects(root, system)
    assert {root.parent, tmp_path} <= set(system.synced)


def test_folders_are_synced_once(objects: LocalObjects) -> None:
    """Once the names of folders are known to be durable, a write syncs its file and its folder."""
    system = FailingSyncs()
    objects = LocalObjects(objects.root, system)
    objects.create("a/b/c", b"x")
    system.synced = []
    objects.create("a/b/d", b"x")
    assert [path.name for path in system.synced if path.parent.name != ".unfinished"] == ["b"]
    objects.delete_prefix("a/b")
    system.synced = []
    objects.create("a/b/c", b"x")
    assert {objects.root / "a" / "b", objects.root / "a"} <= set(system.synced), "it was made anew"


@pytest.mark.parametrize("mine", [True, False])
def test_a_lost_answer_is_settled(tmp_path: Path, mine: bool) -> None:
    """Ours and durable, another's, or an error: never ours because it can be read."""
    system = FailingSyncs()
    objects = LocalObjects(tmp_path, system)
    if not mine:
        objects.create("a/k", b"another's")
    failures = iter([True, False, False])
    system.fails = lambda path: path.name == "a" and next(failures, False)
    assert create_mine(objects, "a/k", b"ours", lambda found: found.to_pybytes() == b"ours") == mine
    system.fails = lambda path: path.name == "a"
    if mine:
        with pytest.raises(UnavailableError):
            create_mine(objects, "a/k", b"ours", lambda found: found.to_pybytes() == b"ours")


def test_urls_are_refused() -> None:
    """A root at a URL is not there yet, and says so."""
    with pytest.raises(NotImplementedYetError):
        open_objects("s3://bucket/x")
