"""Swaps: how long they take, what queries notice of them, and how long each kind of process is missed.

python tests/bench/swap.py --out swap.json

With 1, 2 and 4 gateways: swaps of an idle service, once its graphs are built; then swaps every `--every` seconds
under clients that query without a pause, whose answers in the second around each swap are compared with those of
the rest of the time. Then kill -9 of one process of each kind, and the time to the first good query, write and swap
that began after it. Everything is on one machine, over loopback; the load generator's own CPU time stands in the
results. Nothing here asserts on time.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import harness
import httpx
import numpy as np
import psutil
from usage import Usage

GATEWAYS = (1, 2, 4)
DIMS = {"old": 256, "new": 384}
AROUND_S = 0.5  # before the call of a swap and after its return
LEASE_S = "5"  # of the services whose processes are killed
GIVE_UP_S = 60.0
IDLE_CPU_S = 0.3  # that Ray's own processes use in a second
KINDS = {  # the process's title, and what is not done without it
    "gateway": ("ServeReplica:compass", "query"),
    "router": ("RouterProcess", "swap"),
    "index": ("IndexProcess", "query"),
    "collection": ("CollectionProcess", "write"),
}


def main() -> None:
    """Run the benchmark and write its JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="where the JSON goes; standard output if not given")
    parser.add_argument("--swaps", type=int, default=60, help="idle, and again under load")
    parser.add_argument("--every", type=float, default=2.0, help="seconds from swap to swap under load")
    parser.add_argument("--chunks", type=int, default=5_000)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--kills", type=int, default=3, help="of each kind of process")
    parser.add_argument("--gateways", type=int, nargs="+", default=GATEWAYS)
    args = parser.parse_args()
    results = [_with_gateways(count, args) for count in args.gateways]
    shape = {"chunks": args.chunks, "dims": DIMS, "clients": args.clients, "every_s": args.every}
    harness.write(args.out, {"benchmark": "swap", **shape, "swaps": results, "recovery": _recovery(args)})


# ---- swaps


def _with_gateways(count: int, args: argparse.Namespace) -> dict[str, Any]:
    with (
        harness.compass_service(gateways=str(count)) as (base, _),
        httpx.Client(base_url=base, timeout=60, trust_env=False) as http,
    ):
        _fill(http, args.chunks)
        _rest()
        swap = _swapper(http)
        idle_ms = [1e3 * (ended - began) for began, ended in (swap() for _ in range(args.swaps))]
        with _load(f"{base}/collections/bench/search", args.chunks, args.clients) as load:
            time.sleep(args.every)
            spans = []
            for _ in range(args.swaps):
                spans.append(swap())
                time.sleep(args.every)
    return {"gateways": count, "idle": _percentiles(idle_ms), **_under_load(spans, load)}


def _under_load(spans: list[tuple[float, float]], load: Load) -> dict[str, Any]:
    began, ended, status = load.rows.T
    good = status == 200
    near = np.zeros(len(began), bool)
    for start, end in spans:
        near |= (ended > start - AROUND_S) & (began < end + AROUND_S)
    took_ms = 1e3 * (ended - began)
    swaps, quiet = _percentiles([1e3 * (e - s) for s, e in spans]), _percentiles(took_ms[good & ~near])
    around = _percentiles(took_ms[good & near])
    return {
        "loaded": swaps,
        "queries": {"quiet": quiet, "around_swaps": around, "failed": int(np.count_nonzero(~good))},
        "q_per_s": round(float(np.count_nonzero(good) / (ended.max() - began.min())), 1),
        "generator_cpu": round(load.cpu_s / float(ended.max() - began.min()), 3),
        "loaded_swap_p99_to_query_p99": round(swaps["p99_ms"] / quiet["p99_ms"], 3),
        "query_p99_around_to_quiet": round(around["p99_ms"] / quiet["p99_ms"], 3),
    }


def _percentiles(took_ms: Any) -> dict[str, Any]:
    if not len(took_ms):
        raise SystemExit("nothing was measured: more swaps, or more time between them")
    p50, p99 = np.percentile(took_ms, (50, 99))
    return {"count": len(took_ms), "p50_ms": round(float(p50), 3), "p99_ms": round(float(p99), 3)}


def _client(base: str) -> httpx.Client:
    return httpx.Client(base_url=base, timeout=GIVE_UP_S, trust_env=False)


def _swapper(http: httpx.Client) -> Callable[[], tuple[float, float]]:
    """To the other space with each call; when it began and ended."""
    targets = itertools.cycle(("new", "old"))

    def swap() -> tuple[float, float]:
        body = {"name": next(targets)}
        began = time.monotonic()
        answer = http.put("/collections/bench/default-vector-space", json=body)
        ended = time.monotonic()
        answer.raise_for_status()
        return began, ended

    return swap


class Load:
    """What timed_load.py measured, once its block has ended."""

    rows: Any
    cpu_s: float


@contextlib.contextmanager
def _load(url: str, chunks: int, clients: int) -> Iterator[Load]:
    load = Load()
    with tempfile.TemporaryDirectory(prefix="bench-swap-") as folder:
        bodies, out = Path(folder, "bodies.jsonl"), Path(folder, "rows.npy")
        queries = ({"query": _text(i), "top_k": 10} for i in range(0, chunks, max(1, chunks // 500)))
        bodies.write_text("".join(json.dumps(query) + "\n" for query in queries))
        command = [sys.executable, str(harness.HERE / "timed_load.py"), url, str(bodies), str(clients), str(out)]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        try:
            yield load
            said, _ = process.communicate("", timeout=30)
            load.rows, load.cpu_s = np.load(out), json.loads(said)["cpu_s"]
        finally:
            process.kill()
            process.wait()


def _text(i: int) -> str:
    return f"document {i} about subject{i % 97} and object{i % 89}"


def _fill(http: httpx.Client, chunks: int) -> None:
    spaces = {name: {"dims": dims, "model": name, "embed_endpoint": "builtin"} for name, dims in DIMS.items()}
    body = {"name": "bench", "vector_spaces": spaces, "default_vector_space": "old"}
    http.post("/collections", json=body).raise_for_status()
    for batch in harness.batches(range(chunks), 500):
        rows = [{"file_id": "bench", "chunk_index": i, "text": _text(i)} for i in batch]
        http.post("/collections/bench/ingest", json={"chunks": rows, "wait_s": 30}).raise_for_status()
    for name in (*DIMS, *DIMS):  # both indexes have been asked before anything is measured
        query = {"query": _text(0), "vector_space": name}
        http.post("/collections/bench/search", json=query).raise_for_status()


def _rest() -> None:
    """Return when the service does: what was ingested moves into the graphs in the background."""
    for _ in range(int(GIVE_UP_S)):
        with Usage() as usage:
            time.sleep(1.0)
        if sum(usage.spent_s().values()) < IDLE_CPU_S:
            return
    raise SystemExit(f"the service has not come to rest within {GIVE_UP_S:g} s")


# ---- kill -9


def _recovery(args: argparse.Namespace) -> dict[str, Any]:
    with harness.compass_service(lease_s=LEASE_S) as (base, _):
        with _client(base) as http:
            _fill(http, args.chunks)
        measured = {kind: [round(_killed(base, kind), 3) for _ in range(args.kills)] for kind in KINDS}
    shown = {kind: {"what": KINDS[kind][1], "seconds": seconds} for kind, seconds in measured.items()}
    return {"gateways": 1, "lease_s": float(LEASE_S), "kind": shown}


def _killed(base: str, kind: str) -> float:
    """Kill the processes of a kind; seconds until what they serve is done well again."""
    with _client(base) as http:
        default = http.get("/collections/bench").json()["default_vector_space"]
    other = next(name for name in ("new", "old") if name != default)
    requests: dict[str, tuple[str, str, dict[str, Any]]] = {
        "query": ("POST", "/search", {"query": _text(1), "top_k": 1}),
        "write": ("POST", "/ingest", {"chunks": [{"file_id": "w", "chunk_index": 0, "text": "x"}], "wait_s": 0}),
        "swap": ("PUT", "/default-vector-space", {"name": other}),
    }
    title, what = KINDS[kind]
    method, path, body = requests[what]
    victims = [p for p in psutil.Process().children(recursive=True) if _title(p).startswith(f"ray::{title}")]
    for victim in victims:
        victim.kill()
    psutil.wait_procs(victims, timeout=10)
    at = time.monotonic()
    while time.monotonic() - at < GIVE_UP_S:
        with contextlib.suppress(httpx.TransportError), _client(f"{base}/collections/bench") as http:
            if http.request(method, path, json=body).status_code == 200:
                return time.monotonic() - at
        time.sleep(0.01)
    raise SystemExit(f"no good {what} within {GIVE_UP_S:g} s of a killed {title}")


def _title(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.NoSuchProcess):
        return " ".join(process.cmdline())
    return ""


if __name__ == "__main__":
    main()
