"""An embedding endpoint without a model: the rows are encoded beforehand and chosen by the text.

It answers at once; or at the pace of a GPU that embeds one batch after the other; or after a while, to so many
requests at once, and to more with 429. It speaks as much of text-embeddings-inference's contract as a rebuild needs:
/embed, /info and /health. Several ports of one process are as many endpoints, each with a pace of its own.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Sequence
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

    def __init__(self, rows: Sequence[bytes], args: argparse.Namespace) -> None:
        self._rows, self._args = rows, args
        self._info = {
            "model_id": f"instant-{args.dims}",
            "max_client_batch_size": args.max_batch,
            "max_concurrent_requests": 512,
        }
        self._free_at, self._at_work = 0.0, 0
        self._decoder = msgspec.json.Decoder(Inputs)

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        status, body = 200, b""
        if scope["method"] == "POST":
            more = True
            while more:
                message = await receive()
                body += message.get("body", b"")
                more = message.get("more_body", False)
            status, body = await self._embed(self._decoder.decode(body).inputs)
        elif scope["path"] == "/info":
            body = msgspec.json.encode(self._info)
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _embed(self, texts: Sequence[str]) -> tuple[int, bytes]:
        if self._args.at_once and self._at_work >= self._args.at_once:
            return 429, b'{"error": "Model is overloaded", "error_type": "Overloaded"}'
        self._at_work += 1
        try:
            await self._take_time(len(texts))
        finally:
            self._at_work -= 1
        return 200, b"[" + b",".join(self._rows[crc32(text.encode()) % ROWS] for text in texts) + b"]"

    async def _take_time(self, texts: int) -> None:
        if self._args.batch_ms:
            await asyncio.sleep(self._args.batch_ms / 1_000)
        if self._args.docs_per_s:
            now = asyncio.get_running_loop().time()
            self._free_at = max(now, self._free_at) + texts / self._args.docs_per_s
            await asyncio.sleep(self._free_at - now)


def main() -> None:
    """Serve until terminated."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dims", type=int, default=384)
    parser.add_argument("--max-batch", type=int, default=64)
    parser.add_argument("--docs-per-s", type=float, default=0, help="its pace; 0: at once")
    parser.add_argument("--batch-ms", type=float, default=0, help="how long each request takes")
    parser.add_argument("--at-once", type=int, default=0, help="requests at once, more are refused; 0: any number")
    parser.add_argument("--port", type=int, required=True, nargs="+")
    args = parser.parse_args()
    made = harness.vectors(ROWS, args.dims, seed=3).tolist()
    rows = [msgspec.json.encode([round(x, 6) for x in row]) for row in made]
    asyncio.run(_serve([(port, Endpoint(rows, args)) for port in args.port]))


async def _serve(endpoints: Sequence[tuple[int, Endpoint]]) -> None:
    settings: dict[str, Any] = {"log_level": "warning", "access_log": False, "lifespan": "off", "interface": "asgi3"}
    servers = [uvicorn.Server(uvicorn.Config(app, port=port, **settings)) for port, app in endpoints]
    await asyncio.gather(*(server.serve() for server in servers))


if __name__ == "__main__":
    main()
