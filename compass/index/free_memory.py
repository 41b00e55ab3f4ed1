"""The memory that this node can still give: of the machine, of the container, and before Ray would kill for it."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from compass.domain.memory import UNLIMITED, Room

CGROUPS, OWN_CGROUP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
RAY_KILLS_AT = 0.95  # Ray's default: from this share of the memory on, its monitor kills workers


@dataclass(frozen=True, slots=True)
class _Files:
    """What a version of the kernel's control groups calls the same three numbers."""

    limit: str
    usage: str
    reclaimable: str


_V2 = _Files("memory.max", "memory.current", "inactive_file")
_V1 = _Files("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


def open_room(reserve_bytes: int) -> Room:
    """The room on this node, less a reserve; without any bound where the reserve is negative."""
    if reserve_bytes < 0:
        return UNLIMITED
    return Room(lambda: free_bytes(reserve_bytes), platform.node())


def free_bytes(
    reserve_bytes: int,
    cgroups: Path = CGROUPS,
    own_cgroup: Path = OWN_CGROUP,
    environment: Mapping[str, str] = os.environ,
) -> int:
    """How much this process may still take, at least 0.

    It is the least of what the machine and each control group around the process have left below the level at
    which Ray's memory monitor begins to kill. Pages of files that nobody has read for a while count as free:
    the kernel gives them back.

    Args:
        reserve_bytes: To be left to others.
        cgroups: Where the control groups are mounted.
        own_cgroup: The file that names this process's groups.
        environment: Has Ray's settings of its monitor, where they were changed.
    """
    memory = psutil.virtual_memory()
    bounds = [(memory.total, memory.total - memory.available), *_limits(cgroups, own_cgroup)]
    left = min(_kill_level(total, environment) - used for total, used in bounds)
    return max(0, int(left) - reserve_bytes)


def _kill_level(total: int, environment: Mapping[str, str]) -> float:
    """The use of memory from which on Ray kills; all of it where its monitor is switched off."""
    if environment.get("RAY_memory_monitor_refresh_ms") == "0":
        return total
    level = total * float(environment.get("RAY_memory_usage_threshold", RAY_KILLS_AT))
    least_free = int(environment.get("RAY_min_memory_free_bytes", -1))
    return level if least_free < 0 else max(level, total - least_free)


def _limits(cgroups: Path, own_cgroup: Path) -> Iterator[tuple[int, int]]:
    """(limit, used) of every group around this process that has a limit."""
    for folder, files in _folders(cgroups, own_cgroup):
        try:
            limit = (folder / files.limit).read_text().strip()
            used = int((folder / files.usage).read_text())
            stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        except OSError:  # no such group here: a container does not see those of its host
            continue
        if limit != "max":
            yield int(limit), used - int(stat.get(files.reclaimable, 0))


def _folders(cgroups: Path, own_cgroup: Path) -> Iterator[tuple[Path, _Files]]:
    """The folders of this process's group and of those around it, up to the mount's root."""
    try:
        lines = own_cgroup.read_text().splitlines()
    except OSError:  # not Linux
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            mount, files = cgroups, _V2
        elif "memory" in controllers.split(","):
            mount, files = cgroups / "memory", _V1
        else:
            continue
        own = mount if ".." in path else mount / path.lstrip("/")  # a group outside of what is mounted here
        for folder in (own, *own.parents):
            yield folder, files
            if folder == mount:
                break
