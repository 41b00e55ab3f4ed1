"""The README cannot rot: its commands are run as they stand there, one after another."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.ray

README = Path(__file__).parents[2] / "README.md"
CI = Path(__file__).parents[2] / ".ci" / "run"


def _blocks(marker: str) -> list[str]:
    """The fenced blocks that follow `<!-- command: marker -->` comments."""
    pattern = rf"<!-- command: {marker} -->\n```\w*\n(.*?)```"
    return re.findall(pattern, README.read_text(), re.DOTALL)


def _lines(marker: str) -> list[str]:
    """The lines of the only block of a marker."""
    [block] = _blocks(marker)
    return block.splitlines()


def test_the_two_commands_are_there() -> None:
    """One block installs and runs the main job, one runs the tests; CI runs each of their lines, and no other."""
    [install, demo] = _lines("install")
    assert "pip install" in install
    assert demo.endswith("compass demo")
    [quick, rest] = _lines("test")
    assert quick.endswith("tests/unit tests/property")
    assert rest.endswith("tests/fault tests/integration tests/notebooks")
    [embedder] = _lines("embedder")
    assert "embedder" in embedder
    run = CI.read_text()
    lines = [f"readme_line {name} {number}" for name in ("install", "test") for number in (1, 2)]
    assert [line for line in [*lines, "readme_line embedder 1"] if run.count(f"$({line})") != 1] == []


def test_the_five_steps_do_what_the_readme_shows(service: Any, embed_servers: tuple[Any, Any]) -> None:
    """The curl commands of the README, typed in their order, answer as it says."""
    steps = _blocks("step")
    assert len(steps) >= 5
    script = "set -euo pipefail\n" + "\n".join(steps)
    script = script.replace("http://127.0.0.1:8000", service.url)
    for port, server in zip(("8081", "8082"), embed_servers, strict=True):
        script = script.replace(f"http://127.0.0.1:{port}", server.url)
    script = script.replace('"dims": 256', '"dims": 96').replace('"dims": 512', '"dims": 128')
    env = {**os.environ, "no_proxy": "*"}
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=180, env=env, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert '"status":"building"' in done.stdout
    assert '"progress":1.0' in done.stdout
    assert '"previous":"old","current":"new","epoch":2' in done.stdout
    assert '"previous":"new","current":"old","epoch":3' in done.stdout


def test_the_python_of_the_readme_runs(service: Any, tmp_path: Path) -> None:
    """The README's Python works as a Ray job on the running service."""
    blocks = _blocks("python")
    assert len(blocks) == 1
    script = tmp_path / "readme.py"
    script.write_text(blocks[0])
    line = next(part for part in service.log.read_text().splitlines() if part.strip().startswith("Ray  "))
    address = next(word for word in line.split() if word.startswith("http://"))
    ray = str(Path(sys.executable).parent / "ray")
    command = [ray, "job", "submit", "--address", address, "--", sys.executable, str(script)]
    env = {**os.environ, "RAY_AUTH_MODE": "token"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, env=env, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
