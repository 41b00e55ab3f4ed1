"""Clients that other people wrote for text-embeddings-inference work with the embedder, over a real socket."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from starlette.applications import Starlette

from compass.domain.embedding.endpoint_url import EndpointUrl
from compass.domain.space import SpaceConfig
from compass.embedder import http_server
from compass.embedder.backend import open_server
from compass.embedder.config import EmbedderConfig
from compass.embedding.pool import PoolEmbedder

KEY = "a-key-of-the-embedder"
TEXTS = ["A man is eating food.", "Rotate a log file when it grows too large."]


@pytest.fixture(scope="module")
def original(minilm: str) -> Any:
    """The rows that sentence-transformers itself gives."""
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(minilm, device="cpu").encode(TEXTS)


@pytest.fixture(scope="module")
def url(minilm: str) -> Iterator[str]:
    """An embedder of all-MiniLM-L6-v2 that wants a key."""
    server = open_server(EmbedderConfig(model=minilm, device="cpu"), KEY)
    with http_server.served(Starlette(routes=server.routes()), "embedder") as base:
        yield base


def test_hugging_faces_own_client(url: str, original: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """InferenceClient.feature_extraction: one text, many, and each of its options."""
    hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", False)  # it would not call 127.0.0.1 either
    client = hub.InferenceClient(base_url=f"{url}/embed", api_key=KEY)
    np.testing.assert_allclose(client.feature_extraction(TEXTS), original, atol=1e-5)
    np.testing.assert_allclose(client.feature_extraction(TEXTS[0]), original[:1], atol=1e-5)
    options = {"normalize": True, "prompt_name": "query", "truncate": True, "truncation_direction": "left"}
    np.testing.assert_allclose(client.feature_extraction(TEXTS, **options), original, atol=1e-5)
    assert client.feature_extraction(TEXTS, dimensions=64).shape == (2, 64)
    with pytest.raises(hub.errors.HfHubHTTPError) as caught:
        client.feature_extraction(["long " * 300])
    assert caught.value.response.status_code == 422
    with pytest.raises(hub.errors.HfHubHTTPError) as caught:
        hub.InferenceClient(base_url=f"{url}/embed", api_key="another").feature_extraction(TEXTS)
    assert caught.value.response.status_code == 401


def test_chromas_embedding_function(url: str, original: Any) -> None:
    """HuggingFaceEmbeddingServer, which Chroma uses for collections on a TEI server."""
    functions = pytest.importorskip("chromadb.utils.embedding_functions")
    with pytest.warns(DeprecationWarning, match="api_key"):
        embed = functions.HuggingFaceEmbeddingServer(url=f"{url}/embed", api_key=KEY)
    np.testing.assert_allclose(embed(TEXTS), original, atol=1e-5)


async def test_compasss_own_client(url: str, original: Any) -> None:
    """It takes the embedder for TEI, by its `/info`, and has what is too long cut."""
    config = SpaceConfig(384, "minilm")
    embedder = PoolEmbedder([EndpointUrl.parse(url)], config, timeout_s=60, retry_s=0, api_key=KEY, kind="document")
    rows = await embedder.embed([*TEXTS, "long " * 300])
    np.testing.assert_allclose(rows[:2], original, atol=1e-5)
    (info,) = await embedder.describe()
    assert (info.tei, info.max_batch, info.max_input, info.pooling) == (True, 32, 256, "mean")
    await embedder.close()
