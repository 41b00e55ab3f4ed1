"""What an endpoint is given of chunks and queries, through the real service: templates and prompts."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from compass.domain.embedding.contract import CONTROL_TEXT
from compass.testing.embed_server import served

pytestmark = pytest.mark.ray

DIMS = 32
PROMPTS = {"template": "{title}\n{text}", "document_prompt": "passage: ", "query_prompt": "query: "}


def test_templates_and_prompts_are_what_the_endpoint_is_given(
    http: httpx.Client, name: str, wait_until: Callable[..., Any]
) -> None:
    """A rebuild, the follower and a query each send what the space says, and the fingerprint tells such spaces apart.

    A change of metadata that the template reads is embedded again, another one is not.
    """
    given: list[str] = []
    base = f"/collections/{name}"

    def status() -> dict[str, Any]:
        answer = http.get(f"{base}/vector-spaces/new/status")
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def write(number: int, text: str, **metadata: str) -> None:
        chunk = {"file_id": "f", "chunk_index": number, "text": text, "metadata": metadata}
        assert http.post(f"{base}/ingest", json={"chunks": [chunk]}).status_code == 200
        wait_until(lambda: status()["lag"] == 0, 20, "the follower")

    with served("words", DIMS, reply=lambda texts: given.extend(texts)) as endpoint:
        default = {"dims": DIMS, "model": "words", "embed_endpoint": "builtin"}
        assert http.post("/collections", json={"name": name, "vector_spaces": {"old": default}}).status_code == 201
        first = {"file_id": "f", "chunk_index": 0, "text": "a walrus", "metadata": {"title": "Seas"}}
        assert http.post(f"{base}/ingest", json={"chunks": [first]}).status_code == 200
        for space, config in (("new", PROMPTS), ("plain", {})):
            body = {"name": space, "dims": DIMS, "model": "words", **config}
            assert http.post(f"{base}/vector-spaces", json=body).status_code == 201
            order = http.post(f"{base}/vector-spaces/{space}/rebuild", json={"embed_endpoint": endpoint.url})
            assert order.status_code == 202, order.text
            wait_until(lambda s=space: _space(http, base, s)["status"] == "active", 30, "the activation")
            if space == "new":
                assert set(given) - {CONTROL_TEXT} == {"passage: Seas\na walrus"}
        fingerprints = {s: _space(http, base, s)["fingerprint"] for s in ("new", "plain")}
        assert len(set(map(str, fingerprints.values()))) == 2, fingerprints

        given.clear()
        write(1, "an otter", title="Rivers")
        assert {"passage: Rivers\nan otter", "an otter"} <= set(given)
        given.clear()
        write(1, "an otter", title="Lakes")
        assert "passage: Lakes\nan otter" in given
        given.clear()
        write(1, "an otter", title="Lakes", page_colour="blue")
        assert not any("otter" in text for text in given)

        query = f"who swims {time.monotonic()}"
        found = http.post(f"{base}/search", json={"query": query, "vector_space": "new", "top_k": 2})
        assert len(found.json()["results"]) == 2
        assert [text for text in given if "who swims" in text] == [f"query: {query}"]


def _space(http: httpx.Client, base: str, space: str) -> dict[str, Any]:
    return next(dict(s) for s in http.get(f"{base}/vector-spaces").json() if s["name"] == space)
