"""Queries are embedded by the model that built the space, or not at all."""

from __future__ import annotations

import pytest

from compass.domain.embedding.contract import ServerInfo
from compass.domain.embedding.fingerprint import model_of
from compass.domain.space import BuiltBy, Space, SpaceConfig
from compass.embedding.open import open_embedder
from compass.embedding.verified import CHECK_S, CheckedEmbedder
from compass.errors import FingerprintMismatchError
from compass.testing.clock import ManualClock
from compass.testing.embed_server import served

DIMS = 8


class CountingEmbedder:
    """The embedder of a real endpoint, that counts how often the server is asked what it is."""

    def __init__(self, url: str) -> None:
        self._real = open_embedder(SpaceConfig(DIMS, "m", url), kind="query", timeout_s=60.0, retry_s=0.0)
        self.embed, self.endpoints, self.close = self._real.embed, self._real.endpoints, self._real.close
        self.count = 0

    async def describe(self) -> list[ServerInfo]:
        self.count += 1
        return await self._real.describe()


def checked(counting: CountingEmbedder, built_by: BuiltBy | None, clock: ManualClock) -> CheckedEmbedder:
    space = Space("s-1", "s", SpaceConfig(DIMS, "m", "http://m"), "active", 0.0, built_by=built_by)
    return CheckedEmbedder(counting, space, clock, check_timeout_s=60.0)


async def test_a_server_that_names_another_model_is_refused_until_it_is_back() -> None:
    """Each text is refused with both fingerprints; nothing is remembered against a server that is right again."""
    clock = ManualClock()
    with served("m", DIMS, tei=True) as server:
        counting = CountingEmbedder(server.url)
        right = model_of((await counting.describe())[0])
        embedder = checked(counting, BuiltBy("another"), clock)
        for _ in range(2):
            with pytest.raises(FingerprintMismatchError, match="not 'another'") as refused:
                await embedder.embed(["text"])
        assert refused.value.fields["recorded"]["model_id"] == "another"
        embedder = checked(counting, right, clock)
        assert (await embedder.embed(["text"])).shape == (1, DIMS)
        await embedder.close()


async def test_the_server_is_asked_twice_a_minute_and_not_each_time() -> None:
    """A check costs one GET beside a request, and the next ones cost nothing."""
    clock = ManualClock()
    with served("m", DIMS, tei=True) as server:
        counting = CountingEmbedder(server.url)
        embedder = checked(counting, BuiltBy(), clock)
        await embedder.embed(["first"])
        for _ in range(3):
            await embedder.embed(["again"])
        assert counting.count == 1
        clock.advance(CHECK_S)
        await embedder.embed(["later"])
        assert counting.count == 2
        await embedder.close()
