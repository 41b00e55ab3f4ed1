"""System calls that fail when told to, and a model of what of their work a power cut leaves.

A file's bytes last if its fsync succeeded after its last write, and a name if its folder's fsync succeeded after
the name was given or taken. A failed fsync of a file loses what was written before it for good, as on Linux:
the next one succeeds and says nothing of it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from compass.storage.objects import SystemCalls

T = TypeVar("T")

LOST = b"lost by a failed fsync"


@dataclass(eq=False)
class Node:
    """A file or a folder, and what of it is on the disk."""

    folder: bool
    content: bytes = b""
    names: dict[str, Node] = field(default_factory=dict)
    durable_content: bytes = LOST
    durable_names: dict[str, Node] = field(default_factory=dict)
    lost: bool = False

    def sync(self) -> None:
        self.durable_names = dict(self.names)
        self.durable_content = LOST if self.lost else self.content

    def lose(self) -> None:
        self.lost = self.content != self.durable_content


@dataclass(frozen=True)
class Fault:
    """The `nth` call (from 1) of these names fails with `errno`: once, or it and all later ones.

    With `late` it fails after it took effect, as an answer that is lost; an fsync then has had none.
    """

    nth: int
    errno: int
    calls: frozenset[str]
    for_ever: bool = False
    late: bool = False


Keeps = Callable[[bool], bool]  # whether a change that was not synced is left; of a name that was taken: True


def adversely(gone: bool) -> bool:
    """The worst that can be: what was deleted is gone, and what was written instead is not there."""
    return gone


class Unsynced(SystemCalls):
    """A disk whose power is never cut: it syncs nothing, which is quick."""

    def fsync(self, descriptor: int) -> None:
        pass


class CrashingDisk(SystemCalls):
    """The system calls under a folder, which is there already."""

    def __init__(self, top: Path) -> None:
        self.top = top
        self._real = SystemCalls()
        self.tree = Node(folder=True)
        self.fault: Fault | None = None
        self.calls: list[str] = []
        self.failed = 0
        self._opened: dict[int, Node] = {}

    # -- the calls

    def open(self, path: Path | str, flags: int) -> int:
        def do() -> int:
            descriptor = self._real.open(path, flags)
            if flags & os.O_CREAT:
                self._add(path, Node(folder=False))
            if (node := self._find(path)) is not None:
                self._opened[descriptor] = node
            else:
                self._opened.pop(descriptor, None)
            return descriptor

        # An open that fails late would leave its descriptor open: nobody has it.
        return self._call("open" if flags & os.O_CREAT else "open to read", do, may_be_late=False)

    def write(self, descriptor: int, data: memoryview) -> int:
        def do() -> int:
            count = self._real.write(descriptor, data)
            self._opened[descriptor].content += bytes(data[:count])
            return count

        return self._call("write", do)

    def fsync(self, descriptor: int) -> None:
        node = self._opened.get(descriptor)
        try:
            self._call("fsync", lambda: None, may_be_late=False)  # the real one adds nothing to the model
        except OSError:
            if node is not None:
                node.lose()
            raise
        if node is not None:
            node.sync()

    def link(self, source: Path, target: Path) -> None:
        def do() -> None:
            self._real.link(source, target)
            self._add(target, self._there(source))

        self._call("link", do)

    def replace(self, source: Path, target: Path) -> None:
        def do() -> None:
            self._real.replace(source, target)
            self._add(target, self._there(source))
            self._drop(source)

        self._call("replace", do)

    def unlink(self, path: Path | str) -> None:
        def do() -> None:
            self._real.unlink(path)
            self._drop(path)

        self._call("unlink", do)

    def mkdir(self, folder: Path) -> None:
        def do() -> None:
            self._real.mkdir(folder)
            self._add(folder, Node(folder=True))

        self._call("mkdir", do)

    def rmdir(self, folder: Path | str) -> None:
        def do() -> None:
            self._real.rmdir(folder)
            self._drop(folder)

        self._call("rmdir", do)

    def stat(self, path: Path | str) -> os.stat_result:
        return self._call("stat", lambda: self._real.stat(path))

    def scandir(self, folder: Path | str) -> list[os.DirEntry[str]]:
        return self._call("scandir", lambda: self._real.scandir(folder))

    # -- the crash

    def after_power_cut(self, target: Path, keeps: Keeps = adversely) -> None:
        """Write what is left into `target`; `keeps` says of each change that was not synced whether it is left."""
        self._restore(self.tree, target, keeps)

    def _restore(self, folder: Node, target: Path, keeps: Keeps) -> None:
        target.mkdir()
        for name in folder.durable_names.keys() | folder.names.keys():
            durable, now = folder.durable_names.get(name), folder.names.get(name)
            node = now if durable is not now and keeps(now is None) else durable
            if node is None:
                continue
            if node.folder:
                self._restore(node, target / name, keeps)
            else:
                (target / name).write_bytes(node.durable_content)

    def _call(self, name: str, do: Callable[[], T], may_be_late: bool = True) -> T:
        self.calls.append(name)
        fault = self.fault
        if fault is None or name not in fault.calls:
            return do()
        count = sum(call in fault.calls for call in self.calls)
        if count < fault.nth or (count > fault.nth and not fault.for_ever):
            return do()
        self.failed += 1
        if fault.late and may_be_late:
            do()
        raise OSError(fault.errno, os.strerror(fault.errno))

    def _find(self, path: Path | str) -> Node | None:
        try:
            parts = Path(path).relative_to(self.top).parts
        except ValueError:
            return None
        node = self.tree
        for part in parts:
            if part not in node.names:
                return None
            node = node.names[part]
        return node

    def _there(self, path: Path | str) -> Node:
        node = self._find(path)
        assert node is not None, path
        return node

    def _add(self, path: Path | str, node: Node) -> None:
        self._there(Path(path).parent).names[Path(path).name] = node

    def _drop(self, path: Path | str) -> None:
        del self._there(Path(path).parent).names[Path(path).name]
