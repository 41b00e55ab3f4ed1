"""Objects as files of a local disk or NFS."""

from __future__ import annotations

import contextlib
import os
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePosixPath

import pyarrow as pa

from compass.errors import StorageError
from compass.storage.objects.port import Bytes, Keys
from compass.storage.objects.system_calls import SystemCalls

_UNFINISHED = ".unfinished"  # a folder of its own: a half-written file is never seen beside finished ones
_ABANDONED_S = 3600.0
_SMALL_BYTES = 64 << 10
_TRIES = 1000


class LocalObjects:
    """Objects as files of a local disk or NFS.

    What makes an object durable, and what a failed fsync leaves:

    - *Its bytes.* A file gets its name only after its own fsync has succeeded. Linux may drop what a failed fsync
      could not write, and the next fsync of the same file then succeeds: so a file whose fsync failed is thrown
      away without ever having had a name, and whoever tries again writes it anew.
    - *Its name*, and the names of the folders above it. A failed fsync of a folder leaves a name that every
      reader sees and that a power cut may take back. Here another fsync may be believed: what it covers is in the
      journal of the file system (ext4, XFS, Btrfs), which after a failed write of its journal refuses every later
      fsync, or with the server (NFS), which changes folders at once. On a file system without a journal (ext2, FAT)
      no answer of ours would be worth anything after a failed fsync.
    - *The names of folders* may be somebody else's work, who failed to sync them or has not come to it yet. So
      each process syncs them once itself, before it calls anything in them durable. Only folders of ids that are
      never used again are deleted, so a name that was durable stays so for as long as it matters.
    """

    def __init__(self, root: Path, system: SystemCalls | None = None) -> None:
        """Make the root where it is absent; `system` is what it calls, for tests that let calls fail."""
        self.root = Path(root).absolute()
        self._system = system or SystemCalls()
        self._durable_folders: set[Path] = set()  # whose names, and those of all folders above, were synced
        self._make_folder(self.root / _UNFINISHED)
        self._sync_above_root()
        self._forget_abandoned()

    def create(self, key: str, data: Bytes) -> bool:
        """See `Objects.create`. link() is atomic and fails when the name is taken."""
        try:
            self._publish(key, data, self._system.link)
        except FileExistsError:
            self.ensure_durable(key)
            return False
        return True

    def write(self, key: str, data: Bytes) -> None:
        """See `Objects.write`."""
        self._publish(key, data, self._system.replace)

    def ensure_durable(self, key: str) -> bool:
        """See `Objects.ensure_durable`."""
        path = self._path(key)
        try:
            self._sync(path)
        except (FileNotFoundError, NotADirectoryError):
            return False
        self._sync_names(path)
        return True

    def read(self, key: str) -> pa.Buffer | None:
        """See `Objects.read`. A file that is unlinked meanwhile stays readable through the buffer."""
        path = self._path(key)
        try:
            with open(path, "rb", buffering=0, opener=self._system.open) as file:
                if os.fstat(file.fileno()).st_size <= _SMALL_BYTES:
                    return pa.py_buffer(file.readall())
            with pa.memory_map(str(path)) as mapped:
                return mapped.read_buffer()
        except (FileNotFoundError, NotADirectoryError):
            return None

    def list(self, prefix: str) -> Keys:
        """See `Objects.list`."""
        start = len(str(self.root)) + 1
        return sorted(entry.path[start:] for entry in self._files(str(self._path(prefix))))

    def folders(self, prefix: str) -> Keys:
        """See `Objects.folders`."""
        try:
            entries = self._system.scandir(self._path(prefix))
        except FileNotFoundError:
            return []
        return sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))

    def delete(self, keys: Iterable[str]) -> None:
        """See `Objects.delete`."""
        for key in keys:
            with contextlib.suppress(FileNotFoundError):
                self._system.unlink(self._path(key))

    def delete_prefix(self, prefix: str) -> None:
        """See `Objects.delete_prefix`. Repeated while a writer beside it puts files in."""
        folder = self._path(prefix)
        for _ in range(_TRIES):
            error = self._remove_tree(str(folder))
            if not folder.exists():
                break
        else:
            raise OSError(
                f"{folder} could not be deleted: something keeps writing to it, or it is read-only"
            ) from error
        self._sync_if_there(folder.parent)

    def bytes_under(self, prefix: str) -> int:
        """See `Objects.bytes_under`."""
        total = 0
        for entry in self._files(str(self._path(prefix))):
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
            with open(unfinished, "xb", buffering=0, opener=self._system.open) as file:
                self._write_all(file.fileno(), memoryview(data))
                self._system.fsync(file.fileno())
            self._put_in_place(unfinished, path, publish)
            self._sync_names(path)
        finally:
            with contextlib.suppress(OSError):  # gone by `replace`, or swept later: the answer is about the object
                self._system.unlink(unfinished)

    def _put_in_place(self, unfinished: Path, path: Path, publish: Callable[[Path, Path], None]) -> None:
        """A folder that a delete beside us takes away is made again; the last word is the deleter's sweep."""
        for attempt in range(_TRIES):
            try:
                publish(unfinished, path)
                break
            except FileNotFoundError:
                if attempt == _TRIES - 1:
                    raise
                self._make_folder(path.parent)

    def _make_folder(self, folder: Path) -> None:
        """Make a folder and those above it; their names are not synced yet."""
        if folder.is_dir():
            return
        self._make_folder(folder.parent)
        self._durable_folders.discard(folder)
        with contextlib.suppress(FileExistsError, FileNotFoundError):
            self._system.mkdir(folder)

    def _sync_names(self, path: Path) -> None:
        """Sync the folder of a file, and those above whose own names are not known to be durable."""
        folder = path.parent
        self._sync_if_there(folder)
        synced = []
        while folder != self.root and folder not in self._durable_folders:
            self._sync_if_there(folder.parent)
            synced.append(folder)
            folder = folder.parent
        self._durable_folders.update(synced)

    def _sync_above_root(self) -> None:
        """Sync the names of the root and of all folders above it, up to the mount point.

        Not only of those that were absent: an earlier process may have made them, and failed to sync them.
        """
        for folder in (self.root, *self.root.parents):
            if self._system.stat(folder.parent).st_dev != self._system.stat(folder).st_dev:
                return
            with contextlib.suppress(PermissionError):  # not ours to open, so not ours to have made anything in
                self._sync(folder.parent)

    def _sync_if_there(self, folder: Path) -> None:
        """Sync a folder; where it is gone, what was written into it has been deleted since."""
        with contextlib.suppress(FileNotFoundError):
            self._sync(folder)

    def _sync(self, path: Path) -> None:
        descriptor = self._system.open(path, os.O_RDONLY)
        try:
            self._system.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _forget_abandoned(self) -> None:
        """Half-written files of killed processes; an hour old, so that nobody is at them any more."""
        for entry in self._files(str(self.root / _UNFINISHED)):
            with contextlib.suppress(FileNotFoundError):
                if time.time() - entry.stat().st_mtime > _ABANDONED_S:
                    self._system.unlink(entry.path)

    def _remove_tree(self, folder: str) -> OSError | None:
        """Delete what of a folder can be deleted; the last error."""
        error = None
        try:
            for entry in self._system.scandir(folder):
                if entry.is_dir(follow_symlinks=False):
                    error = self._remove_tree(entry.path) or error
                else:
                    error = self._remove(self._system.unlink, entry.path) or error
        except OSError as failed:
            error = failed
        return self._remove(self._system.rmdir, folder) or error

    def _remove(self, remove: Callable[[str], None], path: str) -> OSError | None:
        try:
            remove(path)
        except OSError as error:
            return error
        return None

    def _files(self, folder: str) -> Iterator[os.DirEntry[str]]:
        try:
            entries = self._system.scandir(folder)
        except (FileNotFoundError, NotADirectoryError):
            return
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield from self._files(entry.path)
            else:
                yield entry

    def _write_all(self, descriptor: int, data: memoryview) -> None:
        rest = data.cast("B") if data.nbytes else data
        while rest.nbytes:
            rest = rest[self._system.write(descriptor, rest) :]
