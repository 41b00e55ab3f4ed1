"""What a space takes in memory is known before it is there."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from compass.domain.memory import FIRST_CAPACITY, SMALL_BYTES, UNLIMITED, Footprint, Room, grown
from compass.errors import InsufficientMemoryError

# In a process of its own: there, nothing that earlier tests gave back hides what this takes.
BUILD = """
import json, sys, threading
import numpy as np
from compass.domain.space import HnswConfig, SpaceConfig, prepare_vectors
from compass.index.vector.vector_index import VectorIndex

def resident(field):
    lines = open("/proc/self/status").read().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field))

dims, count = map(int, sys.argv[1:])
rows = np.empty((count, dims), np.float32)
rng = np.random.default_rng(0)
for start in range(0, count, 500):
    rows[start : start + 500] = prepare_vectors(rng.standard_normal((500, dims), np.float32), "cosine")
index = VectorIndex(SpaceConfig(dims, "m", hnsw=HnswConfig(16, 20)))
index.add(np.array([count]), rows[:1])
index.settle(1)
before = resident("VmRSS")
for start in range(0, count, 1_000):
    index.add(np.arange(start, start + 1_000), rows[start : start + 1_000])
    while index.settle(1_000, 2, 1_000):
        pass
after, said = resident("VmRSS"), index.memory_bytes()
print(json.dumps({"grown": after - before, "peak": resident("VmHWM") - before, "said": said}))
"""


@pytest.mark.parametrize(("dims", "count"), [(64, 20_000), (384, 14_000), (2_048, 6_000)])
def test_what_a_space_really_takes(dims: int, count: int) -> None:
    """A built index has grown the process by what the formula says of its rows, within a quarter; its peak, the
    graph's growth included, stays within a tenth above what is asked for before a build.
    """
    built = subprocess.run([sys.executable, "-c", BUILD, str(dims), str(count)], capture_output=True, check=True)
    measured = json.loads(built.stdout)
    footprint = Footprint(dims, 16)
    asked = footprint.space_bytes(count)
    spare = footprint.graph_bytes(grown(FIRST_CAPACITY, count)) - footprint.graph_bytes(count)
    assert measured["grown"] == pytest.approx(asked - spare, rel=0.25)
    assert measured["peak"] <= 1.1 * asked
    assert measured["said"] == pytest.approx(asked, rel=0.25)


def test_a_graph_grows_by_half_until_the_rows_fit() -> None:
    """The capacity that is paid for is the one that the graph will have."""
    assert grown(1_024, 1_024) == 1_024
    assert grown(1_024, 1_025) == 1_536
    assert grown(1_024, 3_000) == 3_456


def test_what_does_not_fit_says_what_it_needs_and_what_is_free() -> None:
    """The error has both numbers and the node; what will be given back before counts as free."""
    room = Room(lambda: 500 << 20, "node-7")
    room.require("it", 500 << 20, 0)
    with pytest.raises(InsufficientMemoryError, match="node-7") as refused:
        room.require("it", 501 << 20, 0)
    assert refused.value.fields == {"needed_bytes": 501 << 20, "free_bytes": 500 << 20, "node": "node-7"}
    room.require("it", 501 << 20, 0, freed_bytes=1 << 20)
    with pytest.raises(InsufficientMemoryError) as refused:
        room.require("it", 503 << 20, 0, freed_bytes=1 << 20)
    assert refused.value.fields["free_bytes"] == 501 << 20


def test_a_small_space_is_never_turned_away() -> None:
    """Up to a total of 64 MiB nothing is asked, however full the node is; beyond, every byte counts."""
    full = Room(lambda: 0, "n")
    full.require("it", SMALL_BYTES, 0)
    full.require("it", 1, SMALL_BYTES - 1)
    full.require("it", 0, 10 * SMALL_BYTES)
    for more, held in [(SMALL_BYTES + 1, 0), (1, SMALL_BYTES)]:
        with pytest.raises(InsufficientMemoryError):
            full.require("it", more, held)
    UNLIMITED.require("it", 1 << 60, 1 << 60)
