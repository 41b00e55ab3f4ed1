"""What the gateways of a node count is one set of metrics, whichever of them is asked."""

from __future__ import annotations

import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from compass.domain.embedding.endpoint_stats import EndpointStats
from compass.domain.info import SpaceRebuild, SpaceSample
from compass.domain.rebuild.status import RebuildStatus, RunStatus
from compass.domain.space import Space, SpaceConfig, Status
from compass.http.metrics import fresh_folder

COUNT = """
import pickle, sys
from pathlib import Path
from compass.http.metrics import PrometheusMetrics, fresh_folder
cache, name, samples = Path(sys.argv[1]), sys.argv[2], pickle.loads(bytes.fromhex(sys.argv[3]))
metrics = PrometheusMetrics(fresh_folder(cache, 8000), name)
metrics.answered("GET /x", 200, 0.003)
metrics.epochs({"docs": int(sys.argv[4])})
print("counted", flush=True)
sys.stdin.readline()
print(metrics.exposition(samples).decode())
"""


class Counting:
    """A process that counts one request, and shows everything on demand."""

    def __init__(self, cache: Path, name: str, epoch: int, *samples: SpaceSample) -> None:
        command = [sys.executable, "-c", COUNT, str(cache), name, pickle.dumps(samples).hex(), str(epoch)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "counted\n"

    def exposition(self) -> list[str]:
        return self.process.communicate("\n", timeout=60)[0].splitlines()


def test_any_gateway_answers_for_all_of_its_node(tmp_path: Path) -> None:
    """Requests are summed; each gateway's epoch stands beside its name, as long as it lives."""
    first, second = Counting(tmp_path, "g1", 3), Counting(tmp_path, "g2", 4)
    lines = second.exposition()
    assert 'compass_requests_total{route="GET /x",status="200"} 2.0' in lines
    epochs = {line.split("gateway=")[1][1:3]: line.rsplit(" ", 1)[1] for line in lines if "epoch{" in line}
    assert epochs == {"g1": "3.0", "g2": "4.0"}
    third = Counting(tmp_path, "g3", 4)
    lines = third.exposition()
    assert 'compass_requests_total{route="GET /x",status="200"} 3.0' in lines
    assert {line.split("gateway=")[1][1:3] for line in lines if "epoch{" in line} == {"g1", "g3"}
    first.exposition()


def test_counts_begin_anew_with_the_service(tmp_path: Path) -> None:
    """Nobody lives who counted before."""
    Counting(tmp_path, "g1", 1).exposition()
    assert list(fresh_folder(tmp_path, 8000).glob("*.db")) == []


def sample(name: str, status: Status, rebuild: RebuildStatus | None, *, is_default: bool = False) -> SpaceSample:
    space = Space(f"{name}-1", name, SpaceConfig(4, "m"), status, 0.0)
    return SpaceSample("docs", space, is_default, None if rebuild is None else SpaceRebuild(space, rebuild))


def test_spaces_and_their_rebuilds_are_shown(tmp_path: Path) -> None:
    """A silent index is shown as down; the endpoints of a run that has ended are not shown."""
    endpoint = EndpointStats("http://e/embed", docs=70, errors=2, docs_per_s=7.0, in_flight=1, tokens=900)
    running = RebuildStatus(
        embedded=70,
        total=100,
        lag=30,
        failed=1,
        progress=0.7,
        docs_per_s=7.0,
        run=RunStatus("running"),
        endpoints=(endpoint,),
    )
    samples = [
        sample("old", "active", replace(running, run=RunStatus("done")), is_default=True),
        sample("new", "building", running),
        sample("silent", "active", None),
    ]
    lines = Counting(tmp_path, "g1", 1, *samples).exposition()
    for line in (
        'compass_space_default{collection="docs",space="old"} 1.0',
        'compass_space_active{collection="docs",space="new"} 0.0',
        'compass_space_up{collection="docs",space="silent"} 0.0',
        'compass_rebuild_running{collection="docs",space="new"} 1.0',
        'compass_rebuild_progress_ratio{collection="docs",space="new"} 0.7',
        'compass_space_lag_chunks{collection="docs",space="new"} 30.0',
        'compass_rebuild_endpoint_docs{collection="docs",endpoint="http://e/embed",space="new"} 70.0',
    ):
        assert line in lines
    assert not any("endpoint_docs{" in line and 'space="old"' in line for line in lines)
    assert not any("lag" in line and 'space="silent"' in line for line in lines)
