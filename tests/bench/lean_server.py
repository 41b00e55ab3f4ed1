"""The least that answers a vector search over HTTP: uvicorn, a bare ASGI application, msgspec and hnswlib."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import hnswlib
import msgspec
import numpy as np
import uvicorn


class Search(msgspec.Struct):
    """The fields of a search that matter here; the others are passed over."""

    query_vector: list[float]
    top_k: int = 10


class LeanServer:
    """Answers every POST from one graph; a GET with 200."""

    def __init__(self, vectors: Path, m: int, ef_construction: int, ef_search: int) -> None:
        rows = np.load(vectors)
        self._graph = hnswlib.Index("cosine", rows.shape[1])
        self._graph.init_index(len(rows), M=m, ef_construction=ef_construction)
        self._graph.add_items(rows)
        self._graph.set_ef(ef_search)
        self._chunks = [{"id": i, "file_id": "bench", "chunk_index": i, "text": f"row {i}"} for i in range(len(rows))]
        self._decoder, self._encoder = msgspec.json.Decoder(Search), msgspec.json.Encoder()

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        body = b""
        if scope["method"] == "POST":
            more = True
            while more:
                message = await receive()
                body += message.get("body", b"")
                more = message.get("more_body", False)
            body = self._search(body)
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    def _search(self, body: bytes) -> bytes:
        search = self._decoder.decode(body)
        vector = np.array(search.query_vector, np.float32)
        labels, distances = self._graph.knn_query(vector, k=search.top_k, num_threads=1)
        pairs = zip(labels[0].tolist(), distances[0].tolist(), strict=True)
        return self._encoder.encode({"results": [{"chunk": self._chunks[i], "score": 1 - d} for i, d in pairs]})


def main() -> None:
    """Serve until terminated."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vectors", type=Path, required=True, help=".npy file, float32, shape (n, dims)")
    parser.add_argument("--port", type=int, required=True)
    for name, value in (("m", 16), ("ef-construction", 200), ("ef-search", 64)):
        parser.add_argument(f"--{name}", type=int, default=value)
    args = parser.parse_args()
    app = LeanServer(args.vectors, args.m, args.ef_construction, args.ef_search)
    uvicorn.run(app, port=args.port, log_level="warning", access_log=False, lifespan="off", interface="asgi3")


if __name__ == "__main__":
    main()
