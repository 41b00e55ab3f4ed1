"""Objects as files of a local disk or NFS."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePosixPath

import pyarrow as pa

from compass.errors import StorageError
from compass.storage.objects.port import Bytes, Keys

_UNFINISHED = ".unfinished"  # a folder of its own: a half-written file is never seen beside finished ones
_ABANDONED_S = 3600.0
_SMALL_BYTES = 64 << 10
_TRIES = 1000


class LocalObjects:
    """Objects as files of a local disk or NFS; file and folder are fsync'd before a write returns."""

    def __init__(self, root: Path) -> None:
        self.root = Path(root).absolute()
        (self.root / _UNFINISHED).mkdir(parents=True, exist_ok=True)
        self._forget_abandoned()

    def create(self, key: str, data: Bytes) -> bool:
        """See `Objects.create`. link() is atomic and fails when the name is taken."""
        try:
            self._publish(key, data, os.link)
        except FileExistsError:
            return False
        return True

    def write(self, key: str, data: Bytes) -> None:
        """See `Objects.write`."""
        self._publish(key, data, os.replace)

    def read(self, key: str) -> pa.Buffer | None:
        """See `Objects.read`. A file that is unlinked meanwhile stays readable through the buffer."""
        path = self._path(key)
        try:
            with open(path, "rb", buffering=0) as file:
                if os.fstat(file.fileno()).st_size <= _SMALL_BYTES:
                    return pa.py_buffer(file.readall())
            with pa.memory_map(str(path)) as mapped:
                return mapped.read_buffer()
        except (FileNotFoundError, NotADirectoryError):
            return None

    def list(self, prefix: str) -> Keys:
        """See `Objects.list`."""
        start = len(str(self.root)) + 1
        return sorted(entry.path[start:] for entry in _files(str(self._path(prefix))))

    def folders(self, prefix: str) -> Keys:
        """See `Objects.folders`."""
        try:
            with os.scandir(self._path(prefix)) as entries:
                return sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))
        except FileNotFoundError:
            return []

    def delete(self, keys: Iterable[str]) -> None:
        """See `Objects.delete`."""
        for key in keys:
            self._path(key).unlink(missing_ok=True)

    def delete_prefix(self, prefix: str) -> None:
        """See `Objects.delete_prefix`. Repeated while a writer beside it puts files in."""
        folder = self._path(prefix)
        for _ in range(_TRIES):
            shutil.rmtree(folder, ignore_errors=True)
            if not folder.exists():
                break
        else:
            raise OSError(f"{folder} could not be deleted: something keeps writing to it, or it is read-only")
        with contextlib.suppress(FileNotFoundError):
            _fsync_folder(folder.parent)

    def bytes_under(self, prefix: str) -> int:
        """See `Objects.bytes_under`."""
        total = 0
        for entry in _files(str(self._path(prefix))):
            with contextlib.suppress(FileNotFoundError):
                total += entry.stat().st_size
        return total

    def scratch(self) -> Path:
        """A folder for files in the making, on the disk of the root; what a crash leaves there is swept."""
        return self.root / _UNFINISHED

    def local_path(self, key: str) -> Path | None:
        """See `Objects.local_path`."""
        return self._path(key)

    def _path(self, key: str) -> Path:
        parts = PurePosixPath(key).parts
        if key.startswith("/") or ".." in parts:
            raise StorageError(f"{key!r} is not a key")
        return self.root / key

    def _publish(self, key: str, data: Bytes, publish: Callable[[Path, Path], None]) -> None:
        path, unfinished = self._path(key), self.root / _UNFINISHED / uuid.uuid4().hex
        try:
            with open(unfinished, "xb", buffering=0) as file:
                _write_all(file.fileno(), memoryview(data))
                os.fsync(file.fileno())
            self._put_in_place(unfinished, path, publish)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(unfinished)

    def _put_in_place(self, unfinished: Path, path: Path, publish: Callable[[Path, Path], None]) -> None:
        """A folder that a delete beside us takes away is made again; the last word is the deleter's sweep."""
        changed = {path.parent}
        for attempt in range(_TRIES):
            try:
                publish(unfinished, path)
                break
            except FileNotFoundError:
                if attempt == _TRIES - 1:
                    raise
                changed |= self._make_folder(path.parent)
        for folder in sorted(changed, key=lambda folder: -len(folder.parts)):
            with contextlib.suppress(FileNotFoundError):  # written, and deleted since
                _fsync_folder(folder)

    def _make_folder(self, folder: Path) -> set[Path]:
        """Make a folder and those above it; the folders that have a new entry, not synced yet."""
        if folder == self.root or folder.is_dir():
            return set()
        changed = self._make_folder(folder.parent)
        with contextlib.suppress(FileExistsError, FileNotFoundError):
            folder.mkdir()
        return changed | {folder.parent}

    def _forget_abandoned(self) -> None:
        """Half-written files of killed processes; an hour old, so that nobody is at them any more."""
        for entry in _files(str(self.root / _UNFINISHED)):
            with contextlib.suppress(FileNotFoundError):
                if time.time() - entry.stat().st_mtime > _ABANDONED_S:
                    os.unlink(entry.path)


def _files(folder: str) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            found = list(entries)
    except (FileNotFoundError, NotADirectoryError):
        return
    for entry in found:
        if entry.is_dir(follow_symlinks=False):
            yield from _files(entry.path)
        else:
            yield entry


def _write_all(descriptor: int, data: memoryview) -> None:
    rest = data.cast("B") if data.nbytes else data
    while rest.nbytes:
        rest = rest[os.write(descriptor, rest) :]


def _fsync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
