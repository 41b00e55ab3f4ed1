"""A Ray cluster of two nodes on this machine with the application on it; a process of its own for a test.

Its argument is the settings as JSON, with "stop": whether the second raylet is waited for, as an init process does.
Ray's workers end when their raylet is gone, but not while it is a zombie, so without it they outlive their node.
Says one line of JSON when it is ready: {"raylets": [pid of the head node's, pid of the second's]}. Ends with its
standard input.
"""

from __future__ import annotations

import json
import sys
import threading
from typing import Any

import ray
from ray import serve
from ray.cluster_utils import Cluster

from compass.app import APP, build

NODE: dict[str, Any] = {"num_cpus": 1, "object_store_memory": 80_000_000}


def main() -> None:
    """Start it, wait for the end of the input, stop it."""
    settings: dict[str, Any] = json.loads(sys.argv[1])
    stop = settings.pop("stop")
    # each node has its own cache
    caches = [{"COMPASS_CACHE": f"{settings['data']}-cache-{node}"} for node in range(2)]
    cluster = Cluster(
        initialize_head=True, head_node_args={**NODE, "include_dashboard": False, "env_vars": caches[0]}
    )
    second = cluster.add_node(**NODE, env_vars=caches[1])
    try:
        ray.init(address=cluster.address, namespace="compass", log_to_driver=False)
        serve.start(http_options={"port": settings["serve_port"]})
        serve.run(build(settings), name=APP, route_prefix="/")
        nodes = [cluster.head_node, second]
        raylets = [node.all_processes["raylet"][0].process for node in nodes]
        if stop:
            threading.Thread(target=raylets[1].wait, daemon=True).start()
        print(json.dumps({"raylets": [process.pid for process in raylets]}), flush=True)
        sys.stdin.read()
    finally:
        ray.shutdown()
        cluster.shutdown()  # type: ignore[no-untyped-call]


if __name__ == "__main__":
    main()
