"""What processes use while something is measured: CPU time, and the most memory of each kind of process."""

from __future__ import annotations

import threading
from collections import defaultdict
from contextlib import suppress

import psutil

LOOK_S = 0.25
MB = 1e6


class Usage:
    """Watches a process and all of its descendants while it is entered.

    A process that ends takes its counts with it, so they are read again and again; the last quarter of a second of
    such a process is missing. Memory is what a process has for itself (USS), without mapped files and libraries.
    """

    def __init__(self, root: int | None = None, apart: int = 0, *, memory: bool = False) -> None:
        """Watch the tree of `root` (None: this process); `apart` is a pid that is counted by itself."""
        self._root, self._apart, self._memory = root, apart, memory
        self._first: dict[int, float] = {}
        self._last: dict[int, float] = {}
        self._peak: dict[str, float] = defaultdict(float)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Usage:
        self._first = self._read()
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stopped.set()
        self._thread.join()
        self._last |= self._read()

    def spent_s(self) -> dict[int, float]:
        """Seconds of CPU by pid."""
        return {pid: last - self._first.get(pid, 0.0) for pid, last in self._last.items()}

    def cpu_us_per(self, count: int) -> dict[str, float]:
        """Microseconds of CPU for each of `count`: {cpu_us_per_doc, endpoint_cpu_us_per_doc (of the one apart)}."""
        spent = self.spent_s()
        apart_s = spent.pop(self._apart, 0.0)
        found = {"cpu_us_per_doc": sum(spent.values())}
        if self._apart:
            found["endpoint_cpu_us_per_doc"] = apart_s
        return {name: round(1e6 * seconds / count, 1) for name, seconds in found.items()}

    def peak_mb(self) -> dict[str, float]:
        """The most memory that one process of each kind had, MB; Ray's workers by the actor that they are."""
        return {kind: round(most, 1) for kind, most in sorted(self._peak.items())}

    def _watch(self) -> None:
        while not self._stopped.wait(LOOK_S):
            self._last |= self._read()

    def _read(self) -> dict[int, float]:
        found = {}
        root = psutil.Process(self._root)
        for process in (root, *root.children(recursive=True)):
            with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                times = process.cpu_times()
                found[process.pid] = times.user + times.system
                if self._memory and process.pid != self._apart:
                    kind = _kind(process)
                    self._peak[kind] = max(self._peak[kind], process.memory_full_info().uss / MB)
        return found


def _kind(process: psutil.Process) -> str:
    title = " ".join(process.cmdline())
    return (
        title.removeprefix("ray::").split(".")[0].split(":")[0].strip()
        if title.startswith("ray::")
        else process.name()
    )
