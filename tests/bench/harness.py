"""What the benchmarks share: servers as processes, data, the load generator, the JSON that they write.

The load generator is wrk (`apt-get install wrk`): written in C, it needs a tenth of the CPU of the servers
that it measures, and its own CPU time stands in the results so that this can be checked.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from compass.demo.local import free_port, stop
from compass.domain.chunk import FloatMatrix

HERE = Path(__file__).parent
LATENT = 24  # dims that the made-up vectors really have; text embeddings are of low intrinsic dimension too


def vectors(count: int, dims: int, seed: int) -> FloatMatrix:
    """Unit rows that a graph finds as it finds text embeddings: low-dimensional, with a little noise.

    The space they lie in is the same for every seed, so queries drawn with another seed are held-out data.
    """
    basis = np.random.default_rng(0).standard_normal((LATENT, dims))
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((count, LATENT)) @ basis + 0.3 * rng.standard_normal((count, dims))
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float32)


def nearest(data: FloatMatrix, queries: FloatMatrix, k: int) -> list[set[int]]:
    """The k rows nearest to each query, exactly."""
    return [set(np.argpartition(-row, k)[:k].tolist()) for row in queries @ data.T]


@contextmanager
def server(*command: str, ready: str, env: Mapping[str, str] | None = None, timeout_s: float = 90) -> Iterator[None]:
    """A Python process that serves; entered when `ready` answers 200, stopped on leaving."""
    with tempfile.NamedTemporaryFile(prefix="bench-", suffix=".log") as log:
        process = subprocess.Popen(
            [sys.executable, *command], stdout=log, stderr=subprocess.STDOUT, env={**os.environ, **(env or {})}
        )
        try:
            deadline = time.monotonic() + timeout_s
            while not _answers(ready):
                if process.poll() is not None or time.monotonic() > deadline:
                    words = Path(log.name).read_text(errors="replace")[-4000:]
                    raise SystemExit(f"{' '.join(command)} does not serve:\n{words}")
                time.sleep(0.2)
            yield
        finally:
            stop(process, timeout_s=40)


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=2, trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


@contextmanager
def compass_service(**settings: str) -> Iterator[str]:
    """`compass serve` on a temporary folder, with these settings; its base URL."""
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="bench-compass-") as folder:
        env = {"COMPASS_DATA": folder, "COMPASS_PORT": str(port), "COMPASS_SERVE_PORT": str(free_port())}
        env |= {f"COMPASS_{name.upper()}": value for name, value in settings.items()}
        url = f"http://127.0.0.1:{port}"
        with server("-m", "compass.cli.main", "serve", ready=f"{url}/ready", env=env):
            yield url


def load(url: str, bodies: Path, *, clients: int, seconds: float) -> dict[str, Any]:
    """Send the JSON bodies of a file (one a line, in turn) with wrk; what it measured.

    Returns:
        q_per_s, p50_ms, p99_ms, errors, generator_cpu (cores that wrk itself used).
    """
    wrk = shutil.which("wrk")
    if wrk is None:
        raise SystemExit("wrk is not installed: apt-get install wrk")
    script = ["-s", str(HERE / "post.lua"), url, "--", str(bodies)]
    command = [wrk, "-t1", f"-c{clients}", f"-d{seconds:g}s", "--timeout", "10s", *script]
    before = os.times()
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    after = os.times()
    measured: dict[str, Any] = json.loads(output.rpartition("RESULT ")[2])
    cpu_s = after.children_user + after.children_system - before.children_user - before.children_system
    return {**measured, "generator_cpu": round(cpu_s / seconds, 3)}


def machine() -> dict[str, Any]:
    """What the figures depend on besides the code."""
    packages = ("ray", "hnswlib", "uvicorn", "numpy", "msgspec", "aiohttp")
    return {
        "cpus": os.cpu_count(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in packages},
    }


def write(out: Path | None, result: Mapping[str, Any]) -> None:
    """Write the result as JSON to a file, or to standard output."""
    text = json.dumps({"machine": machine(), **result}, indent=2)
    if out is None:
        print(text)
    else:
        out.write_text(text + "\n")


def batches(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    """Consecutive slices."""
    return (items[start : start + size] for start in range(0, len(items), size))
