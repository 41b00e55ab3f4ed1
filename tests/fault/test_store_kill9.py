"""A writer that is killed at any moment loses nothing that it acknowledged."""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compass.domain.chunk import FloatVector
from compass.domain.space import Space, SpaceConfig
from compass.storage.objects import LocalObjects
from compass.storage.root import Root
from compass.storage.spaces.vectors import SpaceVectors

DIMS = 8

# Acknowledges on stdout: `{"started": n}` before a write, `{"done": n}` after it. A write sets some keys to a
# text that names it, or deletes them; each text determines its vector.
WRITER = """
import json, sys, random
from pathlib import Path
import numpy as np
from compass.domain.chunk import ChunkInput
from compass.storage.objects import LocalObjects
from compass.storage.root import Root

folder, uuid, first, seed = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
rng = random.Random(seed)
root = Root(LocalObjects(folder / "root"), folder / "cache")
store = root.open(uuid, grace_s=0.0)

def say(**what):
    sys.stdout.write(json.dumps(what) + "\\n")
    sys.stdout.flush()

def vector(n):
    return np.random.default_rng(n).normal(size=8).astype(np.float32)

n = first
while True:
    n += 1
    keys = sorted({rng.randrange(60) for _ in range(rng.choice([1, 1, 3, 20]))})
    kind = rng.choice(["put", "put", "put", "metadata", "delete"])
    say(started=n, kind=kind, keys=keys)
    if kind == "put":
        store.ingest([ChunkInput("f", k, f"text {n}", {"n": n}, vectors={"given": vector(n)}) for k in keys])
    elif kind == "metadata":
        there = {c.chunk_index: c.text for c in store.view.page(0, 1000)}
        store.ingest([ChunkInput("f", k, there.get(k, f"text {n}"), {"n": n}) for k in keys])
    else:
        ids = {c.chunk_index: c.id for c in store.view.page(0, 1000)}
        store.delete([ids[k] for k in keys if k in ids], None)
    say(done=n)
    if n % 7 == 0:
        store.checkpoint()
    if n % 11 == 0:
        store.compact()
"""


def vector(n: int) -> FloatVector:
    return np.random.default_rng(n).normal(size=DIMS).astype(np.float32)


def replay(model: dict[int, tuple[str, int, bool]], write: dict[str, Any]) -> dict[int, tuple[str, int, bool]]:
    """The chunks, as (text, metadata n, whether the text came with its vector), after a write."""
    after, n = dict(model), write["started"]
    for key in write["keys"]:
        if write["kind"] == "put":
            after[key] = f"text {n}", n, True
        elif write["kind"] == "metadata":
            text, _, given = model.get(key, (f"text {n}", n, False))
            after[key] = text, n, given
        else:
            after.pop(key, None)
    return after


def write_until_killed(
    folder: Path, uuid: str, first: int, seed: int, least: int, after_s: float
) -> list[dict[str, Any]]:
    """What a writer said until it was killed: at a random moment after `least` acknowledgements."""
    log = folder / f"said-{seed}"
    with log.open("wb") as out:
        command = [sys.executable, "-c", WRITER, str(folder), uuid, str(first), str(seed)]
        process = subprocess.Popen(command, stdout=out)
        deadline = time.monotonic() + 240
        while not log.read_bytes() or log.read_bytes().count(b"done") < least:
            assert process.poll() is None, "the writer could not open the store"
            assert time.monotonic() < deadline
            time.sleep(0.005)
        time.sleep(after_s)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    lines = log.read_text().split("\n")
    return [json.loads(line) for line in lines[:-1]]  # the last may be cut


def kill_again_and_again(folder: Path, kills: int, seed: int) -> int:
    """Kill writers at random moments, and compare after each; how many writes were acknowledged."""
    rng = random.Random(seed)
    root = Root(LocalObjects(folder / "root"), folder / "cache")
    space = Space("given", "given", SpaceConfig(DIMS, "m"), "active", 0.0)
    uuid = root.create("c", [space], "given").uuid
    model: dict[int, tuple[str, int, bool]] = {}
    n = acknowledged = 0
    for kill in range(kills):
        least = rng.choice([0, 0, 3, 7])  # also where the machine is so busy that little gets done in that time
        said = write_until_killed(folder, uuid, n, seed * 1000 + kill, least, rng.uniform(0.0, 0.7))
        started = [line for line in said if "started" in line]
        done = {line["done"] for line in said if "done" in line}
        acknowledged += len(done)
        possible = model
        for write in started:
            model, possible = possible, replay(possible, write)
            if write["started"] in done:
                model = possible
        n = started[-1]["started"] + 1
        model = check(root, uuid, folder, [model, possible])
    return acknowledged


def check(root: Root, uuid: str, folder: Path, allowed: list[dict[int, tuple[str, int, bool]]]) -> Any:
    """The store opens, warm equals cold, and what is there is one of `allowed`, which is returned."""
    store = root.open(uuid, grace_s=0.0)
    chunks = store.view.page(0, 1000)
    shutil.rmtree(folder / "cold", ignore_errors=True)
    cold = Root(root.objects, folder / "cold").view(uuid)
    cold.refresh(store.seq)
    assert cold.page(0, 1000) == chunks
    assert cold.live_vids().tolist() == store.view.live_vids().tolist()
    assert cold.count() == store.view.count() == len(chunks)
    there = {c.chunk_index: (c.text, c.metadata["n"]) for c in chunks}
    matches = [model for model in allowed if there == {k: v[:2] for k, v in model.items()}]
    assert matches, "an acknowledged write is lost, or one that was never made is there"
    vectors = SpaceVectors(root.objects, uuid, "given", DIMS)
    with_vector = {c.vid: int(c.text.split()[1]) for c in chunks if matches[0][c.chunk_index][2]}
    found, rows = vectors.get(list(with_vector))
    assert found.tolist() == sorted(with_vector), "an acknowledged vector is lost"
    assert all(np.array_equal(row, vector(with_vector[vid])) for vid, row in zip(found.tolist(), rows, strict=True))
    store.close()
    return matches[0]


def test_nothing_acknowledged_is_lost(tmp_path: Path) -> None:
    """Twenty-two kill -9 at random moments of writes, checkpoints and compactions lose nothing acknowledged."""
    assert kill_again_and_again(tmp_path, kills=22, seed=1) > 22


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", range(2, 6))
def test_nothing_acknowledged_is_lost_in_many_kills(tmp_path: Path, seed: int) -> None:
    """The same, a hundred kills for each of several seeds."""
    assert kill_again_and_again(tmp_path, kills=100, seed=seed) > 100
