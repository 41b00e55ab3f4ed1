"""Which embedder a space has."""

from __future__ import annotations

import pytest

from compass.domain.space import SpaceConfig
from compass.embedding.builtin import BuiltinEmbedder
from compass.embedding.open import open_embedder
from compass.embedding.pool import PoolEmbedder
from compass.errors import (
    EndpointForbiddenError,
    InvalidRequestError,
)
from compass.testing.embed_server import served

KEY_VARIABLE = "COMPASS_EMBED_KEY_TEST"
URL = "http://127.0.0.1:9/embed"


def test_builtin_needs_no_network() -> None:
    """The endpoint "builtin" is the model of this package, salted with the space's model."""
    embedder = open_embedder(SpaceConfig(8, "m", "builtin"), kind="query", timeout_s=1, retry_s=0)
    assert isinstance(embedder, BuiltinEmbedder)


def test_a_rebuilds_endpoints_come_before_the_spaces_own() -> None:
    """Endpoints that are named serve; the space's own only where none is."""
    config = SpaceConfig(8, "m", "builtin")
    embedder = open_embedder(config, kind="document", timeout_s=1, retry_s=0, endpoints=[URL])
    assert isinstance(embedder, PoolEmbedder)
    assert URL in repr(embedder)


def test_a_space_without_an_endpoint_has_no_embedder() -> None:
    """The error says what to do instead."""
    with pytest.raises(InvalidRequestError, match="no embed_endpoint"):
        open_embedder(SpaceConfig(8, "m"), kind="query", timeout_s=1, retry_s=0)


def test_builtin_and_urls_do_not_mix() -> None:
    """A fleet serves one model."""
    with pytest.raises(InvalidRequestError, match="builtin"):
        open_embedder(SpaceConfig(8, "m"), kind="query", timeout_s=1, retry_s=0, endpoints=["builtin", URL])


@pytest.mark.parametrize("endpoint_timeout_s", [None, 1.0])
def test_an_endpoint_that_must_not_be_called_is_refused_when_opening(endpoint_timeout_s: float | None) -> None:
    """As `EndpointUrl` says, whoever built the list, for a query and for a rebuild."""
    with pytest.raises(InvalidRequestError, match="it is not called"):
        open_embedder(
            SpaceConfig(8, "m"),
            kind="document",
            timeout_s=1,
            retry_s=0,
            endpoints=["http://169.254.169.254"],
            endpoint_timeout_s=endpoint_timeout_s,
        )


def test_a_variable_that_is_not_set_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing key is said at once, by the variable's name."""
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    config = SpaceConfig(8, "m", URL, api_key_env=KEY_VARIABLE)
    with pytest.raises(InvalidRequestError, match=KEY_VARIABLE):
        open_embedder(config, kind="query", timeout_s=1, retry_s=0)


def test_no_other_variable_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """A request that names a variable cannot name the server's other secrets."""
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
    with pytest.raises(InvalidRequestError) as caught:
        open_embedder(
            SpaceConfig(8, "m", URL), kind="query", timeout_s=1, retry_s=0, api_key_env="AWS_SECRET_ACCESS_KEY"
        )
    assert "hunter2" not in repr(caught.value)


async def test_the_spaces_key_goes_to_the_spaces_own_endpoint_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other endpoints get a key only if one is named for them: a rebuild must not carry a key to a stranger."""
    monkeypatch.setenv(KEY_VARIABLE, "hunter2")
    with served("m", 8, api_key="hunter2") as own, served("m", 8, api_key="hunter2") as other:
        config = SpaceConfig(8, "m", own.url, api_key_env=KEY_VARIABLE)
        mine = open_embedder(config, kind="query", timeout_s=60, retry_s=0)
        strange = open_embedder(config, kind="query", timeout_s=60, retry_s=0, endpoints=[other.url])
        named = open_embedder(
            config, kind="query", timeout_s=60, retry_s=0, endpoints=[other.url], api_key_env=KEY_VARIABLE
        )
        assert (await mine.embed(["a"])).shape == (1, 8)
        with pytest.raises(EndpointForbiddenError, match="401"):
            await strange.embed(["a"])
        assert (await named.embed(["a"])).shape == (1, 8)
        for embedder in (mine, strange, named):
            await embedder.close()
