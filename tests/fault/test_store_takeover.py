"""Two processes and one collection: the older one stops, even when it slept through everything."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from compass.domain.chunk import ChunkInput
from compass.domain.space import Space, SpaceConfig
from compass.errors import TakenOverError
from compass.storage.objects import LocalObjects
from compass.storage.root import Root

# Writes one chunk after the other, and says the index of each that was acknowledged, then the error it ended with.
WRITER = """
import sys
from pathlib import Path
from compass.domain.chunk import ChunkInput
from compass.errors import CompassError
from compass.storage.objects import LocalObjects
from compass.storage.root import Root

folder, uuid = Path(sys.argv[1]), sys.argv[2]
store = Root(LocalObjects(folder / "root"), folder / "older").open(uuid, grace_s=0.0)
index = 0
try:
    while True:
        store.ingest([ChunkInput("older", index, "x")])
        print(index, flush=True)
        index += 1
        if index % 10 == 0:
            store.compact()
except CompassError as error:
    print(type(error).__name__, flush=True)
    try:
        store.ingest([ChunkInput("older", index, "x")])
    except CompassError as again:
        print(type(again).__name__, flush=True)
"""


@pytest.fixture
def made(tmp_path: Path) -> tuple[Root, str]:
    """A root, seen from the newer writer's node, and a collection."""
    root = Root(LocalObjects(tmp_path / "root"), tmp_path / "newer")
    space = Space("s", "s", SpaceConfig(dims=4, model="m"), "active", 0.0)
    return root, root.create("c", [space], "s").uuid


@pytest.fixture
def older(made: tuple[Root, str], tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that writes."""
    with (tmp_path / "said").open("wb") as out:
        process = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path), made[1]], stdout=out)
        wait_for(lambda: said(tmp_path).count("\n") >= 25)
        yield process
        process.send_signal(signal.SIGCONT)
        process.kill()
        process.wait()


def said(folder: Path) -> str:
    return (folder / "said").read_text()


def wait_for(condition: object, wait_s: float = 30.0) -> None:
    deadline = time.monotonic() + wait_s
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("pruned", [False, True])
def test_an_older_writer_that_is_woken_stops(
    made: tuple[Root, str], older: subprocess.Popen[bytes], tmp_path: Path, pruned: bool
) -> None:
    """A writer stopped in mid-air and woken after a takeover ends with `TakenOverError`, and both lose nothing.

    Also when the new writer has pruned the log meanwhile, so that the older one's place looked free.
    """
    root, uuid = made
    older.send_signal(signal.SIGSTOP)
    wait_for(lambda: Path(f"/proc/{older.pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "T")
    newer = root.open(uuid, grace_s=0.0)
    for index in range(20):
        newer.ingest([ChunkInput("newer", index, "y")])
        if pruned:
            newer.compact()
    older.send_signal(signal.SIGCONT)
    assert older.wait(30) == 0
    *acknowledged, first, again = said(tmp_path).split()
    assert (first, again) == ("TakenOverError", "TakenOverError")
    newer.ingest([ChunkInput("newer", 20, "y")])
    newer.compact()
    cold = Root(root.objects, tmp_path / "cold").view(uuid)
    cold.refresh(newer.seq)
    chunks = {(c.file_id, c.chunk_index) for c in cold.page(0, 10_000)}
    assert {("older", int(index)) for index in acknowledged} <= chunks
    assert {("newer", index) for index in range(21)} <= chunks
    assert len(chunks) - len(acknowledged) - 21 in (0, 1)  # one may have been committed and not yet said
    newer.close()


def test_a_second_service_on_the_same_root_is_told_who_is_first(made: tuple[Root, str], tmp_path: Path) -> None:
    """The root's lock names the process that holds it, and is free once that process is killed."""
    root, _ = made
    code = (
        "import sys, time; from pathlib import Path; from compass.storage.objects import LocalObjects;"
        "from compass.storage.root import Root; folder = Path(sys.argv[1]);"
        "lock = Root(LocalObjects(folder / 'root'), folder / 'other').lock(); print('held', flush=True);"
        "time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"held\n"
    with pytest.raises(TakenOverError, match=f"{process.pid} on {os.uname().nodename}"):
        root.lock()
    process.kill()
    process.wait()
    process.stdout.close()
    root.lock().close()
