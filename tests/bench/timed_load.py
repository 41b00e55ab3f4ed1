"""A load generator that tells when each request began and ended, for figures around an event.

python timed_load.py URL BODIES CLIENTS OUT sends the JSON bodies of a file (one a line, in turn) over kept
connections, until its standard input ends. It then writes an array of rows (began, ended, status) to OUT, on the
clock `time.monotonic`; status 0 is a broken connection. The CPU seconds it took are its last line.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np

Rows = list[tuple[float, float, int]]


async def _client(host: str, port: int, requests: itertools.cycle[bytes], rows: Rows, ended: asyncio.Event) -> None:
    writer: asyncio.StreamWriter | None = None
    while not ended.is_set():
        began = time.monotonic()
        try:
            if writer is None:
                reader, writer = await asyncio.open_connection(host, port)
            writer.write(next(requests))
            status, keeps = await asyncio.wait_for(_answer(reader), 10)
        except (OSError, EOFError, TimeoutError):
            status, keeps = 0, False
        rows.append((began, time.monotonic(), status))
        if not keeps and writer is not None:
            writer.close()
            writer = None
        if status != 200:
            await asyncio.sleep(0.005)


async def _answer(reader: asyncio.StreamReader) -> tuple[int, bool]:
    """The status, and whether the connection is kept."""
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    length = int(head.split(b"content-length:", 1)[1].split(b"\r\n", 1)[0])
    await reader.readexactly(length)
    return int(head[9:12]), b"connection: close" not in head


def _request(url: str, body: str) -> bytes:
    parts = urlsplit(url)
    head = f"POST {parts.path} HTTP/1.1\r\nhost: {parts.netloc}\r\ncontent-type: application/json\r\n"
    return f"{head}content-length: {len(body)}\r\n\r\n{body}".encode()


async def _run(url: str, bodies: list[str], clients: int) -> Rows:
    parts = urlsplit(url)
    assert parts.hostname is not None
    assert parts.port is not None
    rows: Rows = []
    ended = asyncio.Event()
    requests = itertools.cycle([_request(url, body) for body in bodies])
    async with asyncio.TaskGroup() as group:
        for _ in range(clients):
            group.create_task(_client(parts.hostname, parts.port, requests, rows, ended))
        await asyncio.to_thread(sys.stdin.read)
        ended.set()
    return rows


def main() -> None:
    """See the module."""
    url, bodies, clients, out = sys.argv[1:]
    rows = asyncio.run(_run(url, Path(bodies).read_text().splitlines(), int(clients)))
    np.save(out, np.array(rows, np.float64).reshape(-1, 3))
    print(json.dumps({"cpu_s": time.process_time()}))


if __name__ == "__main__":
    main()
