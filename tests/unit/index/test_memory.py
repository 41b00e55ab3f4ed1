"""What an index takes in memory is what the formula says."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from compass.domain.memory import FIRST_CAPACITY, Footprint, grown

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
