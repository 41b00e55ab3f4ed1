"""The memory that a node can still give is the least that anybody around the process allows."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import psutil
import pytest

from compass.domain.memory import UNLIMITED
from compass.index.free_memory import free_bytes, open_room

GB = 1_000_000_000
RAY_OFF = {"RAY_memory_monitor_refresh_ms": "0"}


class Memory:
    """A machine of 100 GB with 80 GB available, and control groups as files."""

    def __init__(self, folder: Path) -> None:
        self.cgroups, self.own = folder / "cgroup", folder / "own"
        self.own.write_text("0::/\n")
        self.cgroups.mkdir()

    def v2(self, path: str, limit: str, used: int, reclaimable: int = 0) -> None:
        self._group(path, {"memory.max": limit, "memory.current": used}, f"anon 5\ninactive_file {reclaimable}")

    def v1(self, path: str, limit: int, used: int, reclaimable: int = 0) -> None:
        files = {"memory.limit_in_bytes": limit, "memory.usage_in_bytes": used}
        self._group(f"memory/{path}", files, f"inactive_file 1\ntotal_inactive_file {reclaimable}")

    def free(self, reserve_bytes: int = 0, environment: dict[str, str] | None = None) -> int:
        return free_bytes(reserve_bytes, self.cgroups, self.own, RAY_OFF if environment is None else environment)

    def _group(self, path: str, files: Mapping[str, object], stat: str) -> None:
        folder = self.cgroups / path
        folder.mkdir(parents=True, exist_ok=True)
        for name, value in files.items():
            (folder / name).write_text(f"{value}\n")
        (folder / "memory.stat").write_text(f"{stat}\n")


@pytest.fixture
def memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Memory:
    now = psutil.virtual_memory()._replace(total=100 * GB, available=80 * GB)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: now)
    return Memory(tmp_path)


def test_the_machine_bounds_it(memory: Memory) -> None:
    """Without a control group it is what the kernel calls available, less the reserve, and never negative."""
    assert memory.free() == 80 * GB
    assert memory.free(reserve_bytes=3 * GB) == 77 * GB
    assert memory.free(reserve_bytes=81 * GB) == 0


def test_a_containers_limit_bounds_it(memory: Memory) -> None:
    """Of a version 2 group it is limit less use, where pages of files nobody reads are not in use."""
    memory.v2("", str(16 * GB), 10 * GB, reclaimable=4 * GB)
    assert memory.free() == 10 * GB
    memory.v2("", "max", 10 * GB)
    assert memory.free() == 80 * GB


def test_an_old_kernels_limit_bounds_it(memory: Memory) -> None:
    """Version 1 says the same in other words; its number for no limit bounds nothing."""
    memory.own.write_text("5:cpu,cpuacct:/pod\n4:memory:/pod\n0::/\n")
    memory.v1("pod", 16 * GB, 10 * GB, reclaimable=1 * GB)
    assert memory.free() == 7 * GB
    memory.v1("pod", 9_223_372_036_854_771_712, 10 * GB)
    assert memory.free() == 80 * GB


def test_every_group_around_the_process_counts(memory: Memory) -> None:
    """The tightest of the group and those that it lies in; a container does not see its host's, but has its own."""
    memory.own.write_text("0::/slice/service\n")
    memory.v2("slice/service", str(50 * GB), 0)
    memory.v2("slice", str(20 * GB), 5 * GB)
    assert memory.free() == 15 * GB
    memory.own.write_text("4:memory:/docker/of-the-host\n0::/../outside\n")
    memory.v1("", 8 * GB, 2 * GB)
    assert memory.free() == 6 * GB


def test_rays_monitor_kills_before_the_memory_ends(memory: Memory) -> None:
    """Free is what is left below the level at which Ray kills: 95 %, or what its settings say."""
    assert memory.free(environment={}) == 75 * GB
    assert memory.free(environment={"RAY_memory_usage_threshold": "0.5"}) == 30 * GB
    assert memory.free(environment={"RAY_min_memory_free_bytes": str(2 * GB)}) == 78 * GB
    memory.v2("", str(20 * GB), 10 * GB)
    assert memory.free(environment={}) == 9 * GB


def test_a_process_knows_its_room() -> None:
    """The real files of this machine are read; a negative reserve asks nobody."""
    room = open_room(0)
    assert 0 < room.free_bytes() < psutil.virtual_memory().total
    assert room.node
    assert open_room(-1) is UNLIMITED
