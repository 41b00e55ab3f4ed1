"""Whatever call of the disk fails, and then the power: what was acknowledged is there, and no half collection."""

from __future__ import annotations

import errno
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from crashing_disk import CrashingDisk, Fault, Keeps, Unsynced, adversely

from compass.domain.chunk import ChunkInput, FloatVector
from compass.domain.collection import AddSpace, DropSpace, SwapDefault
from compass.domain.filters import Equals, Filter
from compass.domain.space import Space, SpaceConfig
from compass.errors import ConflictError, NotFoundError, TakenOverError, UnavailableError
from compass.storage.log.writer import CollectionStore
from compass.storage.objects import LocalObjects
from compass.storage.root import Root
from compass.storage.spaces.vectors import SpaceVectors

DIMS = 3
WRITING = frozenset({"fsync", "link", "replace", "write", "open", "mkdir", "unlink", "rmdir"})
ALL = WRITING | {"open to read", "scandir", "stat"}


@dataclass(frozen=True)
class Content:
    """What a collection holds: texts by chunk_index, as pairs, its spaces and its default."""

    texts: frozenset[tuple[int, str]] = frozenset()
    spaces: frozenset[str] = frozenset({"one", "two"})
    default: str = "one"

    def with_texts(self, texts: dict[int, str]) -> Content:
        return replace(self, texts=frozenset({**dict(self.texts), **texts}.items()))

    def without(self, index: int) -> Content:
        return replace(self, texts=frozenset(pair for pair in self.texts if pair[0] != index))


Effect = Callable[[Content], Content]


@dataclass(frozen=True)
class Step:
    """Something that is done, and what it makes of a content; of none only what creates one makes anything."""

    do: Callable[[], object]
    effect: Effect = lambda content: content
    creates: bool = False
    deletes: bool = False

    def after(self, possible: set[Content | None]) -> set[Content | None]:
        """What there may be once this is acknowledged."""
        if self.deletes:
            return {None}
        there = {self.effect(content) for content in possible if content is not None}
        return {*there, Content()} if self.creates and None in possible else {*there}


def vector(index: int, text: str) -> FloatVector:
    return np.random.default_rng([index, *text.encode()]).normal(size=DIMS).astype(np.float32)


def chunks(texts: dict[int, str]) -> list[ChunkInput]:
    """Each with the vector in space `two` that its text determines."""
    return [ChunkInput("f", i, text, vectors={"two": vector(i, text)}) for i, text in texts.items()]


def space(name: str) -> Space:
    return Space(name, name, SpaceConfig(DIMS, "m"), "active", 0.0)


class Story:
    """The life of a collection on a disk that fails; `possible` is what it may hold, by what was answered."""

    def __init__(self, folder: Path, fault: Fault | None, keeps: Keeps = adversely, outage: bool = False) -> None:
        self.folder, self.keeps, self.outage = folder, keeps, outage
        (folder / "disk").mkdir(parents=True)
        self.disk = CrashingDisk(folder / "disk")
        self.disk.fault = fault
        self.possible: set[Content | None] = {None}
        self.store: CollectionStore | None = None
        self.root: Root | None = None
        self.checks = 0

    def tell(self, checks: int) -> None:
        """Everything that a store does; the power is cut after each of the first `checks` steps from the fault on.

        An outage ends with the step that it struck, and with it the process: the next one finds a sound disk.
        """
        left = checks
        for step in self.steps():
            self.take(step)
            if self.disk.failed and self.outage and self.disk.fault is not None:
                self.disk.fault = None
                self.end_process()
            if self.disk.failed and left:
                left -= 1
                self.cut_the_power()
        if self.disk.failed and checks:
            self.cut_the_power()
        if self.store is not None:
            self.store.close()

    def steps(self) -> list[Step]:
        first, second, last = {i: f"text {i}" for i in range(3)}, {1: "newer", 7: "another"}, {9: "last"}
        return [
            Step(self.create, creates=True),
            Step(lambda: self.opened().ingest(chunks(first)), lambda c: c.with_texts(first)),
            Step(lambda: self.opened().checkpoint()),
            Step(lambda: self.opened().delete([], index_is(0)), lambda c: c.without(0)),
            Step(lambda: self.opened().change(AddSpace(space("three"))), adds("three")),
            Step(lambda: self.opened().ingest(chunks(second)), lambda c: c.with_texts(second)),
            Step(lambda: self.opened().compact()),
            Step(lambda: self.opened().change(SwapDefault("one", 1, "two")), lambda c: replace(c, default="two")),
            Step(lambda: self.opened().change(DropSpace("three")), drops("three")),
            Step(lambda: self.opened().compact()),
            Step(lambda: self.opened().compact()),
            Step(self.restart),
            Step(lambda: self.opened().sweep()),
            Step(lambda: self.opened().ingest(chunks(last)), lambda c: c.with_texts(last)),
            Step(self.drop, deletes=True),
            Step(self.sweep_root, deletes=True),
            Step(self.create, creates=True),
            Step(lambda: self.opened().ingest(chunks({5: "again"})), lambda c: c.with_texts({5: "again"})),
        ]

    def take(self, step: Step) -> None:
        """A step, once more if its fate is unknown. An error that says it has happened is an answer too."""
        after = step.after(self.possible)
        for attempt in range(2):
            try:
                step.do()
            except TakenOverError:  # there is no other writer
                raise
            except UnavailableError:
                self.possible |= after
            except (ConflictError, NotFoundError):
                assert attempt or len(self.possible) > 1, "nobody else does anything"
                self.possible = after
                return
            else:
                self.possible = after
                return

    # -- steps

    def opened_root(self) -> Root:
        if self.root is None:
            try:
                objects = LocalObjects(self.folder / "disk" / "above" / "root", self.disk)
            except OSError as error:
                raise UnavailableError(f"no root: {error}") from error
            self.root = Root(objects, self.folder / "cache")
        return self.root

    def opened(self) -> CollectionStore:
        root = self.opened_root()
        if self.store is None:
            names = root.collections()
            if "docs" not in names:
                raise UnavailableError("it was not created")
            self.store = root.open(names["docs"], grace_s=0.0)
        return self.store

    def create(self) -> None:
        self.opened_root().create("docs", [space("one"), space("two")], "one")

    def sweep_root(self) -> None:
        """What has a tombstone is gone; one that has none yet is deleted first."""
        self.opened_root().sweep()
        if "docs" in self.opened_root().collections():
            self.drop()

    def restart(self) -> None:
        self.end_process()
        self.opened()

    def end_process(self) -> None:
        if self.store is not None:
            self.store.close()
        self.store = self.root = None

    def drop(self) -> None:
        if self.store is not None:
            self.store.close()
        self.store = None
        self.opened_root().delete("docs")

    # -- the crash

    def cut_the_power(self) -> None:
        """Open what is left, with the cache as it was and without: both show one of the possible contents."""
        self.checks += 1
        after = self.folder / f"after-{self.checks}"
        self.disk.after_power_cut(after, self.keeps)
        if (self.folder / "cache").exists():
            shutil.copytree(self.folder / "cache", after / "cache")
        root = Root(LocalObjects(after / "above" / "root", Unsynced()), after / "cache")
        root.sweep()
        uuid = root.collections().get("docs")
        if uuid is None:
            assert None in self.possible, f"the collection is gone; possible: {self.possible}"
        else:
            content = self.content(root, uuid)
            assert content in self.possible, f"{content} is not among {self.possible}"
        shutil.rmtree(after)

    def content(self, root: Root, uuid: str) -> Content:
        with_cache = root.open(uuid, grace_s=0.0)
        stored = with_cache.view.page(0, 99)
        cold = Root(root.objects, root.cache.parent / "cold").view(uuid)
        cold.refresh(with_cache.seq)
        assert cold.page(0, 99) == stored
        vids, vectors = SpaceVectors(root.objects, uuid, "two", DIMS).get([chunk.vid for chunk in stored])
        assert vids.tolist() == sorted(chunk.vid for chunk in stored), "an acknowledged vector is lost"
        texts = {chunk.vid: (chunk.chunk_index, chunk.text) for chunk in stored}
        for vid, row in zip(vids.tolist(), vectors, strict=True):
            assert np.array_equal(row, vector(*texts[vid]))
        state = with_cache.state
        with_cache.close()
        cold.close()
        assert state.default is not None
        return Content(frozenset(texts.values()), frozenset(state.spaces), state.default)


def index_is(index: int) -> Filter:
    return Filter((Equals("chunk_index", index),))


def adds(name: str) -> Effect:
    return lambda content: replace(content, spaces=content.spaces | {name})


def drops(name: str) -> Effect:
    return lambda content: replace(content, spaces=content.spaces - {name})


def calls_of(folder: Path, calls: frozenset[str]) -> int:
    """How many of these calls a story makes in which nothing fails."""
    story = Story(folder, None)
    story.tell(checks=0)
    assert story.possible == {Content().with_texts({5: "again"})}
    return sum(call in calls for call in story.disk.calls)


def test_nothing_is_lost_by_a_power_cut_alone(tmp_path: Path) -> None:
    """After each answer, what is synced is all that was acknowledged."""
    story = Story(tmp_path, None)
    for step in story.steps():
        story.take(step)
        assert len(story.possible) == 1
        story.cut_the_power()
    assert story.store is not None
    story.store.close()


def tell_all(folder: Path, faults: list[Fault], checks: int, keeps: Keeps = adversely, outage: bool = False) -> None:
    for fault in faults:
        story = Story(folder / "story", fault, keeps, outage)
        story.tell(checks)
        assert story.disk.failed, fault
        shutil.rmtree(folder / "story")


def test_any_fsync_that_fails(tmp_path: Path) -> None:
    """One fsync fails, every fourth one in turn: whoever goes on acknowledges only what lasts."""
    fsync = frozenset({"fsync"})
    count = calls_of(tmp_path / "sound", fsync)
    tell_all(tmp_path, [Fault(nth, errno.EIO, fsync) for nth in range(1, count + 1, 4)], checks=1)


def test_an_fsync_that_fails_for_ever(tmp_path: Path) -> None:
    """From some fsync on none succeeds: nothing more is acknowledged."""
    fsync = frozenset({"fsync"})
    count = calls_of(tmp_path / "sound", fsync)
    tell_all(tmp_path, [Fault(nth, errno.EIO, fsync, for_ever=True) for nth in range(1, count + 1, 5)], checks=1)


def test_an_outage_that_a_new_process_follows(tmp_path: Path) -> None:
    """What one process could not sync, its successor does not rest anything on before it has synced it."""
    fsync = frozenset({"fsync"})
    count = calls_of(tmp_path / "sound", fsync)
    faults = [Fault(nth, errno.EIO, fsync, for_ever=True) for nth in range(1, count + 1, 6)]
    tell_all(tmp_path, faults, checks=2, outage=True)


def test_some_other_call_that_fails(tmp_path: Path) -> None:
    """The same of some of all other calls, half of which took effect nevertheless."""
    others = ALL - {"fsync"}
    count = calls_of(tmp_path / "sound", others)
    tell_all(tmp_path, [Fault(n, errno.ENOSPC, others, late=n % 2 == 0) for n in range(1, count + 1, 17)], checks=1)


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("how", ["once", "for ever", "outage"])
@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
def test_any_call_that_fails(tmp_path: Path, how: str, late: bool, code: int) -> None:
    """Every call, and a power cut after every later step, which leaves some of what was not synced."""
    count = calls_of(tmp_path / "sound", ALL)
    coin = random.Random(code)
    leaves: list[Keeps] = [adversely, lambda gone: not gone, lambda gone: coin.random() < 0.5]
    for nth in range(1, count + 1):
        fault = Fault(nth, code, ALL, for_ever=how != "once", late=late)
        tell_all(tmp_path, [fault], checks=99, keeps=leaves[nth % 3], outage=how == "outage")
