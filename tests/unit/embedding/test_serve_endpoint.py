"""An endpoint that is called by a Serve handle behaves as one over HTTP: same rows, same errors, same account."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from compass.domain.embedding.contract import Reply
from compass.domain.embedding.endpoint_url import EndpointUrl
from compass.domain.space import SpaceConfig
from compass.embedder.tei import Limits, RefusalError
from compass.embedder.tei_server import TeiServer
from compass.embedding.builtin import HashingModel
from compass.embedding.endpoint.base import TooManyError
from compass.embedding.endpoint.connections import Connections
from compass.embedding.endpoint.http import HttpEndpoint
from compass.embedding.endpoint.open import open_endpoint
from compass.embedding.endpoint.serve import ServeEndpoint
from compass.embedding.endpoint.serve_application import ServeApplication
from compass.embedding.fleet.fleet import FleetEmbedder
from compass.errors import (
    EndpointAnswerError,
    EndpointForbiddenError,
    EndpointRefusedError,
    EndpointUnavailableError,
    InvalidRequestError,
)
from compass.testing.embed_server import EmbedServer

DIMS = 16
CONFIG = SpaceConfig(DIMS, "m")
URL = EndpointUrl.parse("serve://embedder")


class FakeApplication:
    """The built-in model's server, called as the embedder's replicas are; `instead` is answered in its place."""

    def __init__(self, **options: Any) -> None:
        server = EmbedServer("m", DIMS, **options)
        limits = Limits(max_client_batch_size=options.get("max_client_batch_size", 32))
        self._server = TeiServer(server, limits)
        self.instead: Any = None
        self.calls: list[tuple[str, Any, float]] = []

    async def call(self, method: str, *arguments: Any, timeout_s: float) -> Any:
        self.calls.append((method, arguments, timeout_s))
        if isinstance(self.instead, Exception):
            raise self.instead
        if method == "tei_info":
            return self._server.info()
        assert method == "tei_embed"
        return self.instead or await self._server.reply(*arguments)


def _endpoint(application: FakeApplication, config: SpaceConfig = CONFIG) -> ServeEndpoint:
    return ServeEndpoint(URL, config, "document", application)


async def test_rows_are_checked_and_counted() -> None:
    """float32 of the space's dims; docs and tokens are in the account; the server is asked once what it is."""
    application = FakeApplication()
    endpoint = _endpoint(application)
    for _ in range(2):
        rows = await endpoint.embed(["a b", "c"], 5)
    np.testing.assert_array_equal(rows, HashingModel("m", DIMS).embed(["a b", "c"]))
    told = endpoint.stats()
    assert (told.url, told.docs, told.tokens, told.errors) == ("serve://embedder", 4, 6, 0)
    assert [method for method, *_ in application.calls] == ["tei_info", "tei_embed", "tei_embed"]
    assert application.calls[1][1] == (["a b", "c"], {"truncate": True}), "a proven TEI is told to truncate"


async def test_the_spaces_options_are_sent() -> None:
    """As over HTTP: prompts by name, normalize, truncate, dimensions."""
    application = FakeApplication()
    config = SpaceConfig(DIMS, "m", document_prompt_name="passage", normalize=False, truncate=False)
    await _endpoint(application, config).embed(["a"], 5)
    assert application.calls[1][1][1] == {"prompt_name": "passage", "normalize": False, "truncate": False}


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        (Reply(422, error="Input validation error: bad", error_type="Validation"), EndpointRefusedError),
        (Reply(424, error="the model failed", error_type="Backend"), EndpointUnavailableError),
        (Reply(429, error="Model is overloaded", error_type="Overloaded"), EndpointUnavailableError),
        (Reply(422, error="Failed to deserialize"), EndpointForbiddenError),
        (Reply(200), EndpointAnswerError),
        (Reply(200, np.ones((1, DIMS), np.float32)), EndpointAnswerError),
        (Reply(200, np.ones((2, DIMS + 1), np.float32)), EndpointAnswerError),
        (Reply(200, np.full((2, DIMS), np.nan, np.float32)), EndpointAnswerError),
        (Reply(200, np.zeros((2, DIMS), np.float32)), EndpointAnswerError),
        ([[1.0] * DIMS] * 2, EndpointAnswerError),
    ],
)
async def test_every_answer_has_the_error_that_http_has(reply: Any, error: type[Exception]) -> None:
    """By the same table; what is no vector of the space is never returned."""
    application = FakeApplication()
    endpoint = _endpoint(application)
    await endpoint.describe()
    application.instead = reply
    with pytest.raises(error) as caught:
        await endpoint.embed(["a", "b"], 5)
    assert caught.value.fields["endpoint"] == "serve://embedder"  # type: ignore[attr-defined]
    if isinstance(reply, Reply) and reply.status != 200:
        assert caught.value.fields["status"] == reply.status  # type: ignore[attr-defined]
    assert endpoint.stats().errors == 1


async def test_after_silence_it_is_asked_what_it_is_first() -> None:
    """That is given seconds, not the time of an embedding; another replica may have other limits, too."""
    application = FakeApplication()
    endpoint = _endpoint(application)
    await endpoint.embed(["a"], 60)
    application.instead = EndpointUnavailableError("serve://embedder: its replica ended meanwhile")
    for _ in range(2):
        with pytest.raises(EndpointUnavailableError):
            await endpoint.embed(["a"], 60)
    application.instead = None
    await endpoint.embed(["a"], 60)
    calls = [(method, timeout_s) for method, _, timeout_s in application.calls]
    info, embed = ("tei_info", 5.0), ("tei_embed", 60)
    assert calls == [info, embed, embed, info, info, embed]


async def test_too_many_inputs_name_the_limit() -> None:
    """So that the next request has the right size."""
    application = FakeApplication(max_client_batch_size=4)
    with pytest.raises(TooManyError) as caught:
        await _endpoint(application).embed(["a"] * 5, 5)
    assert caught.value.limit == 4


async def test_a_fleet_works_with_it() -> None:
    """A poison text is found by halving and the rest is embedded; nothing of the fleet knows of handles."""

    def reply(texts: list[str]) -> Any:
        if "poison" in texts:
            raise RefusalError(422, "Input validation error: poison", "Validation")
        return None

    application = FakeApplication(max_client_batch_size=8, reply=reply)
    connections = Connections({"embedder": application}.__getitem__)
    fleet = FleetEmbedder([URL], CONFIG, timeout_s=60, endpoint_timeout_s=60, connections=connections)
    done = await fleet.embed_each([f"text {i}" for i in range(20)] + ["poison", ""])
    assert done.rows == list(range(20))
    assert done.refused.keys() == {20, 21}
    (told,) = fleet.endpoints()
    assert (told.url, told.state, told.docs >= 20) == ("serve://embedder", "up", True)
    await fleet.close()


def test_the_url_decides() -> None:
    """serve:// is called by handle; a name that is none is refused before anything is called."""
    assert isinstance(open_endpoint(URL, CONFIG, "query", None, Connections()), ServeEndpoint)
    http = EndpointUrl.parse("http://embedder")
    assert isinstance(open_endpoint(http, CONFIG, "query", None, Connections()), HttpEndpoint)
    with pytest.raises(InvalidRequestError, match="serve://"):
        EndpointUrl.parse("serve://a/b")


async def test_outside_a_cluster_it_is_not_reachable() -> None:
    """Said plainly, and no cluster is started to look for it."""
    with pytest.raises(EndpointUnavailableError, match="inside a Ray cluster") as caught:
        await ServeApplication("embedder").call("tei_info", timeout_s=60)  # Ray may have to be imported
    assert caught.value.fields == {"endpoint": "serve://embedder", "unreachable": True}
