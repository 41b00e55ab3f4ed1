"""The calls of the operating system that `LocalObjects` makes: one place to fail them from."""

from __future__ import annotations

import os
from pathlib import Path


class SystemCalls:
    """The real ones. Each raises OSError, which says nothing of whether the call took effect."""

    def open(self, path: Path | str, flags: int) -> int:
        """See `os.open`."""
        return os.open(path, flags, 0o666)

    def write(self, descriptor: int, data: memoryview) -> int:
        """See `os.write`."""
        return os.write(descriptor, data)

    def fsync(self, descriptor: int) -> None:
        """See `os.fsync`."""
        os.fsync(descriptor)

    def link(self, source: Path, target: Path) -> None:
        """See `os.link`."""
        os.link(source, target)

    def replace(self, source: Path, target: Path) -> None:
        """See `os.replace`."""
        os.replace(source, target)

    def unlink(self, path: Path | str) -> None:
        """See `os.unlink`."""
        os.unlink(path)

    def mkdir(self, folder: Path) -> None:
        """See `os.mkdir`."""
        os.mkdir(folder)

    def rmdir(self, folder: Path | str) -> None:
        """See `os.rmdir`."""
        os.rmdir(folder)

    def stat(self, path: Path | str) -> os.stat_result:
        """See `os.stat`."""
        return os.stat(path)

    def scandir(self, folder: Path | str) -> list[os.DirEntry[str]]:
        """The entries of a folder, as `os.scandir` gives them."""
        with os.scandir(folder) as entries:
            return list(entries)
