"""The classes of the actors that a router starts."""

from __future__ import annotations

import shlex
import sys
from typing import Any

import ray
from ray.actor import ActorClass

from compass.cluster.collection_process import CollectionProcess
from compass.cluster.estimator_process import EstimatorProcess
from compass.cluster.index_process import IndexProcess
from compass.cluster.rebuild_process import RebuildProcess

# A rebuild starts a handful of processes, Ray Data's among them, which inherit this: importing everything, each would
# take a core from the queries for a second or two, before it could make itself nice.
NICED = f"nice -n 5 {shlex.quote(sys.executable)}"

ACTORS: dict[str, ActorClass[Any]] = {
    "collection": ray.remote(CollectionProcess),
    "index": ray.remote(IndexProcess),
    "rebuild": ray.remote(runtime_env={"py_executable": NICED})(RebuildProcess),
    "estimator": ray.remote(runtime_env={"py_executable": NICED})(EstimatorProcess),
}
