"""Queries are embedded by the model that built the space, or not at all."""

from __future__ import annotations

from typing import Any

import pytest

from compass.domain.embedding.fingerprint import model_of
from compass.domain.space import BuiltBy, Space, SpaceConfig
from compass.embedding.open import open_embedder
from compass.embedding.verified import CHECK_S, CheckedEmbedder
from compass.errors import FingerprintMismatchError
from compass.testing.embed_server import served

DIMS = 8


class Seconds:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Asked:
    """The embedder of a real endpoint, that counts how often the server is asked what it is."""

    def __init__(self, url: str) -> None:
        self._real = open_embedder(SpaceConfig(DIMS, "m", url), kind="query", timeout_s=5.0, retry_s=0.0)
        self.embed, self.endpoints, self.close = self._real.embed, self._real.endpoints, self._real.close
        self.count = 0

    async def describe(self) -> Any:
        self.count += 1
        return await self._real.describe()


def checked(asked: Asked, built_by: BuiltBy | None, clock: Any) -> CheckedEmbedder:
    space = Space("s-1", "s", SpaceConfig(DIMS, "m", "http://m"), "active", 0.0, built_by=built_by)
    return CheckedEmbedder(asked, space, clock)


async def test_a_server_that_names_another_model_is_refused_until_it_is_back() -> None:
    """Each text is refused with both fingerprints; nothing is remembered against a server that is right again."""
    clock = Seconds()
    with served("m", DIMS, tei=True) as server:
        asked = Asked(server.url)
        right = model_of((await asked.describe())[0])
        embedder = checked(asked, BuiltBy("another"), clock)
        for _ in range(2):
            with pytest.raises(FingerprintMismatchError, match="not 'another'") as refused:
                await embedder.embed(["text"])
        assert refused.value.fields["recorded"]["model_id"] == "another"
        embedder = checked(asked, right, clock)
        assert (await embedder.embed(["text"])).shape == (1, DIMS)
        await embedder.close()


async def test_the_server_is_asked_twice_a_minute_and_not_each_time() -> None:
    """A check costs one GET beside a request, and the next ones cost nothing."""
    clock = Seconds()
    with served("m", DIMS, tei=True) as server:
        asked = Asked(server.url)
        embedder = checked(asked, BuiltBy(), clock)
        await embedder.embed(["first"])
        for _ in range(3):
            await embedder.embed(["again"])
        assert asked.count == 1
        clock.now += CHECK_S
        await embedder.embed(["later"])
        assert asked.count == 2
        await embedder.close()
