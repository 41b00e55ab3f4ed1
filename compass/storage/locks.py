"""Locks between the processes of one machine (or of an NFS share that supports them)."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import time
from pathlib import Path
from types import TracebackType
from typing import Any


def this_process() -> dict[str, Any]:
    """{host, pid} of this process, for messages."""
    return {"host": socket.gethostname(), "pid": os.getpid()}


class FileLock:
    """An exclusive flock on a file that names its holder; the kernel lets go of it when the process ends."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor: int | None = None

    def acquire(self, wait_s: float = 0.0) -> bool:
        """Take the lock within `wait_s`; False if someone else, or another lock of this process, holds it."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        deadline = time.monotonic() + wait_s
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                if time.monotonic() >= deadline:
                    os.close(descriptor)
                    return False
                time.sleep(0.01)
        self._descriptor = descriptor
        return True

    @property
    def held(self) -> bool:
        """Whether this lock has been acquired, and not been released."""
        return self._descriptor is not None

    def sign(self, **more: Any) -> None:
        """Write this process's name, and more, into the file that it holds, for whoever finds the lock taken."""
        assert self._descriptor is not None, "only the holder signs"
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, json.dumps({**this_process(), **more}).encode(), 0)

    def holder(self) -> dict[str, Any]:
        """{host, pid}, and more, of who signed last; empty if nobody has."""
        with contextlib.suppress(OSError, ValueError):
            return dict(json.loads(self.path.read_text()))
        return {}

    def release(self) -> None:
        """Let go; harmless when not held."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    close = release

    def __enter__(self) -> FileLock:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()
