"""An embedding endpoint without a model: the rows are encoded beforehand and chosen by the text.

It answers at once, or at the pace of a GPU that embeds one batch after the other. It speaks as much of
text-embeddings-inference's contract as a rebuild needs: /embed, /info and /health.
"""

from __future__ import annotations

import argparse
import asyncio
from typing import Any
from zlib import crc32

import harness
import msgspec
import uvicorn

ROWS = 16_384


class Inputs(msgspec.Struct):
    """The body of /embed; the other fields are passed over."""

    inputs: list[str]


class Endpoint:
    """Answers the same text with the same row, whatever its process."""

    def __init__(self, dims: int, max_batch: int, docs_per_s: float) -> None:
        rows = harness.vectors(ROWS, dims, seed=3)
        self._rows = [msgspec.json.encode([round(x, 6) for x in row]) for row in rows.tolist()]
        self._info = {
            "model_id": f"instant-{dims}",
            "max_client_batch_size": max_batch,
            "max_concurrent_requests": 512,
        }
        self._docs_per_s, self._free_at = docs_per_s, 0.0
        self._decoder = msgspec.json.Decoder(Inputs)

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        body = b""
        if scope["method"] == "POST":
            more = True
            while more:
                message = await receive()
                body += message.get("body", b"")
                more = message.get("more_body", False)
            texts = self._decoder.decode(body).inputs
            await self._take_turn(len(texts))
            body = b"[" + b",".join(self._rows[crc32(text.encode()) % ROWS] for text in texts) + b"]"
        elif scope["path"] == "/info":
            body = msgspec.json.encode(self._info)
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _take_turn(self, texts: int) -> None:
        if self._docs_per_s:
            now = asyncio.get_running_loop().time()
            self._free_at = max(now, self._free_at) + texts / self._docs_per_s
            await asyncio.sleep(self._free_at - now)


def main() -> None:
    """Serve until terminated."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dims", type=int, default=384)
    parser.add_argument("--max-batch", type=int, default=64)
    parser.add_argument("--docs-per-s", type=float, default=0, help="its pace; 0: at once")
    parser.add_argument("--port", type=int, required=True)
    args = parser.parse_args()
    app = Endpoint(args.dims, args.max_batch, args.docs_per_s)
    uvicorn.run(app, port=args.port, log_level="warning", access_log=False, lifespan="off", interface="asgi3")


if __name__ == "__main__":
    main()
