"""A rebuild beside a flood of writes of every kind: what turns active is the live chunks, exactly."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections import Counter
from typing import Any

import httpx
import numpy as np
import pytest
from starlette.responses import Response

from compass.embedding.builtin import HashingModel
from compass.index.backfill import SAMPLES
from compass.testing.embed_server import served

pytestmark = pytest.mark.ray

MODEL, DIMS = "words-b", 64
FILES, PER_FILE = 8, 500
LAST = "the very last document of the bulk"
OF_EACH = 300  # writes of each kind that have been acknowledged before the bulk may end
AT_ONCE = 4  # writes of each kind in a turn

Key = tuple[str, int]


class Writer(threading.Thread):
    """Inserts, updates, changes metadata and deletes as fast as it is let; knows what must be there."""

    def __init__(self, url: str, number: int, stored: list[dict[str, Any]]) -> None:
        super().__init__(daemon=True)
        self.url, self.number, self.stopped = url, number, threading.Event()
        self.ids: dict[Key, int] = {(c["file_id"], c["chunk_index"]): c["id"] for c in stored}
        self.texts: dict[Key, str] = {(c["file_id"], c["chunk_index"]): c["text"] for c in stored}
        self.tags: dict[Key, int] = {}
        self.written: Counter[str] = Counter()
        self.wrong: list[str] = []
        self._fresh = itertools.count()

    def run(self) -> None:
        with httpx.Client(base_url=self.url, trust_env=False, timeout=30) as http:
            try:
                for turn in itertools.count():
                    if self.stopped.is_set():
                        return
                    self._turn(http, turn)
            except (httpx.HTTPError, AssertionError) as error:
                self.wrong.append(repr(error))

    def _turn(self, http: httpx.Client, turn: int) -> None:
        keys = list(self.texts)
        at = [keys[(turn * 37 + step * 101) % len(keys)] for step in range(3 * AT_ONCE)]
        changed, tagged, deleted = at[:AT_ONCE], at[AT_ONCE : 2 * AT_ONCE], at[2 * AT_ONCE :]
        new: dict[Key, str] = {}
        for _ in range(AT_ONCE):
            fresh = next(self._fresh)
            new[(f"w{self.number}-{fresh // PER_FILE}", fresh % PER_FILE)] = f"inserted {self.number} {fresh}"
        texts = {key: self.texts[key] for key in tagged}
        texts |= {key: f"updated {self.number} {turn} {step}" for step, key in enumerate(changed)} | new
        chunks = [
            {"client_id": f"{f}:{i}", "file_id": f, "chunk_index": i, "text": text, "metadata": {"turn": turn}}
            for (f, i), text in texts.items()
        ]
        answer = http.post("/ingest", json={"chunks": chunks, "wait_s": 0})
        assert answer.status_code == 200, answer.text
        self.texts |= texts
        self.tags |= dict.fromkeys(texts, turn)
        self.ids |= {key: answer.json()["id_map"][f"{key[0]}:{key[1]}"] for key in texts}
        gone = [key for key in dict.fromkeys(deleted) if key not in texts]
        answer = http.post("/delete", json={"ids": [self.ids[key] for key in gone]})
        assert answer.json()["deleted"] == len(gone), answer.text
        for key in gone:
            del self.texts[key], self.ids[key]
            self.tags.pop(key, None)
        self.written += Counter(
            insert=len(new), update=len(set(changed)), metadata=len(set(tagged) - set(changed)), delete=len(gone)
        )


def test_what_turns_active_is_what_lives(service: Any, http: httpx.Client, name: str, wait_until: Any) -> None:
    """Under hundreds of writes a second of all four kinds each live text has its vector in the end, and no other has.

    The bulk is held until enough has been written, and writes go on over the activation and the swap.
    """
    enough = threading.Event()
    sent: Counter[str] = Counter()

    async def reply(texts: list[str]) -> Response | None:
        if LAST in texts:
            await asyncio.to_thread(enough.wait, 90)
        if len(texts) > SAMPLES:  # a few stored texts are embedded again to see whether the model is still the same
            sent.update(texts)
        return None

    base = f"/collections/{name}"
    with served(MODEL, DIMS, reply=reply) as endpoint:
        _fill(http, base)
        stored = _all_chunks(http, base)
        shares = [[c for c in stored[number::2] if c["text"] != LAST] for number in range(2)]
        writers = [Writer(f"{service.url}{base}", number, share) for number, share in enumerate(shares)]
        order = http.post(f"{base}/vector-spaces/new/rebuild", json={"embed_endpoint": endpoint.url})
        assert order.status_code == 202, order.text
        began = time.monotonic()
        for writer in writers:
            writer.start()

        def least() -> int:
            written = sum((w.written for w in writers), Counter[str]())
            assert [w.wrong for w in writers] == [[], []]
            return min(written[kind] for kind in ("insert", "update", "metadata", "delete"))

        wait_until(lambda: least() >= OF_EACH, 60, "enough writes of each kind")
        rate = sum(sum(w.written.values()) for w in writers) / (time.monotonic() - began)
        print(f"{rate:.0f} writes a second")
        assert _status(http, base)["status"] == "building"
        shown = http.get("/metrics").text.splitlines()
        labels = f'{{collection="{name}",space="new"}}'
        assert f"compass_rebuild_running{labels} 1.0" in shown
        share = next(
            float(line.split()[-1]) for line in shown if line.startswith(f"compass_rebuild_progress_ratio{labels}")
        )
        docs = next(
            float(line.split()[-1])
            for line in shown
            if line.startswith("compass_rebuild_endpoint_docs{") and name in line
        )
        assert 0 < share < 1
        assert docs > 0
        enough.set()
        wait_until(lambda: _status(http, base)["status"] == "active", 60, "the activation")
        swapped = http.put(f"{base}/default-vector-space", json={"name": "new", "wait_s": 20})
        assert swapped.status_code == 200, swapped.text
        for writer in writers:
            writer.stopped.set()
        for writer in writers:
            writer.join(30)
        assert [w.wrong for w in writers] == [[], []]
        wait_until(lambda: _status(http, base)["lag"] == 0, 30, "the follower")

        expected = {writer.ids[key]: text for writer in writers for key, text in writer.texts.items()}
        stored = _all_chunks(http, base)
        expected |= {c["id"]: c["text"] for c in stored if c["text"] == LAST}
        assert {c["id"]: c["text"] for c in stored} == expected
        tags = {writer.ids[key]: tag for writer in writers for key, tag in writer.tags.items()}
        assert {c["id"]: c["metadata"]["turn"] for c in stored if c["metadata"]} == tags
        found = _vectors(http, base, sorted({c["file_id"] for c in stored}))
        assert found.keys() == expected.keys()
        ids = list(expected)
        wanted = HashingModel(MODEL, DIMS).embed([expected[i] for i in ids])
        np.testing.assert_allclose(np.array([found[i] for i in ids]), wanted, atol=1e-5)
        status = _status(http, base)
        assert (status["embedded"], status["failed"]) == (len(expected), 0)
    assert [text for text, times in sent.items() if times > 1] == [], "metadata alone embeds nothing again"


def _fill(http: httpx.Client, base: str) -> None:
    """The bulk under a small default, and a space beside it."""
    space = {"dims": 8, "model": "m", "embed_endpoint": "builtin"}
    created = http.post("/collections", json={"name": base.split("/")[-1], "vector_spaces": {"old": space}})
    assert created.status_code == 201, created.text
    for file in range(FILES):
        rows = [
            {"file_id": f"f{file}", "chunk_index": i, "text": f"document {file} {i} of topic{i % 17}"}
            for i in range(PER_FILE)
        ]
        if file == FILES - 1:
            rows[-1]["text"] = LAST
        assert http.post(f"{base}/ingest", json={"chunks": rows, "wait_s": 0}).status_code == 200
    added = http.post(f"{base}/vector-spaces", json={"name": "new", "dims": DIMS, "model": MODEL})
    assert added.status_code == 201, added.text


def _status(http: httpx.Client, base: str) -> dict[str, Any]:
    answer = http.get(f"{base}/vector-spaces/new/status")
    assert answer.status_code == 200, answer.text
    status: dict[str, Any] = answer.json()
    assert status["run"]["state"] != "failed", status
    return status


def _all_chunks(http: httpx.Client, base: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    after: int | None = 0
    while after is not None:
        page = http.get(f"{base}/chunks", params={"after": after, "limit": 1000}).json()
        found += page["chunks"]
        after = page["next"]
    return found


def _vectors(http: httpx.Client, base: str, files: list[str]) -> dict[int, list[float]]:
    """Every vector that the new space holds, by chunk id: an exact search of each file for more than it has."""
    found: dict[int, list[float]] = {}
    for file in files:
        body = {"query": "anything", "vector_space": "new", "filters": {"file_id": file}, "exact": True}
        answer = http.post(f"{base}/search", json={**body, "top_k": 1000, "include_vectors": True})
        assert answer.status_code == 200, answer.text
        found |= {h["chunk"]["id"]: h["chunk"]["embeddings"]["new"] for h in answer.json()["results"]}
    return found
