"""Whatever goes wrong with a Serve application arrives as an error of an endpoint, and nothing else does."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, RayTaskError
from ray.serve.exceptions import BackPressureError, RayServeException

from compass.embedding.endpoint.serve_application import ServeApplication
from compass.errors import EmbeddingError, EndpointForbiddenError, EndpointUnavailableError


class FakeHandle:
    """A handle whose calls end as `outcome` does."""

    def __init__(self, outcome: Callable[[], Any]) -> None:
        self._outcome = outcome

    def options(self, *, method_name: str) -> FakeHandle:
        assert method_name == "tei_embed"
        return self

    async def remote(self, *arguments: Any) -> Any:
        return await self._outcome()


def _application(outcome: Callable[[], Any]) -> ServeApplication:
    application = ServeApplication("embedder")
    application._handle = FakeHandle(outcome)
    return application


def _raising(error: BaseException) -> Callable[[], Any]:
    async def outcome() -> Any:
        raise error

    return outcome


def _task_error(trace: str) -> Exception:
    make: Callable[[str, str, None], Exception] = RayTaskError  # untyped in Ray
    return make("tei_embed", trace, None)


@pytest.mark.parametrize(
    ("error", "kind", "fields"),
    [
        (BackPressureError(3, 2), EndpointUnavailableError, {"status": 429}),
        (
            RayServeException("Application 'embedder' does not exist."),
            EndpointUnavailableError,
            {"unreachable": True},
        ),
        (ActorDiedError(), EndpointUnavailableError, {}),
        (_task_error("a trace\nOutOfMemoryError"), EndpointUnavailableError, {"status": 500}),
        (ConnectionError("closed"), EndpointUnavailableError, {}),
        (AttributeError("it does not exist. Available methods: ['call']."), EndpointForbiddenError, {}),
    ],
)
async def test_each_fault_has_its_error(error: Exception, kind: type[EmbeddingError], fields: dict[str, Any]) -> None:
    """Back pressure is 429, a failing replica 500, one that is not there unreachable, a foreign one forbidden."""
    with pytest.raises(kind) as caught:
        await _application(_raising(error)).call("tei_embed", timeout_s=60)
    assert caught.value.fields == {"endpoint": "serve://embedder", **fields}
    assert caught.value.detail.startswith("serve://embedder: ")
    assert "\n" not in caught.value.detail


async def test_an_application_that_was_deployed_anew_is_looked_for() -> None:
    """A handle that Serve does not know any more is not used again."""
    application = _application(_raising(RayServeException("deleted")))
    with pytest.raises(EndpointUnavailableError, match="deleted"):
        await application.call("tei_embed", timeout_s=60)
    with pytest.raises(EndpointUnavailableError, match="this process is in none"):
        await application.call("tei_embed", timeout_s=60)


async def test_silence_ends_at_the_timeout() -> None:
    """A replica that does not answer is one that is not there."""
    with pytest.raises(EndpointUnavailableError, match=r"did not answer within 0\.01 s"):
        await _application(asyncio.Event().wait).call("tei_embed", timeout_s=0.01)


async def test_a_replica_that_is_stopped_cancels_nobody_here() -> None:
    """Serve cancels what a stopped replica leaves behind; the caller goes on with an error it can retry."""
    with pytest.raises(EndpointUnavailableError, match="ended meanwhile"):
        await _application(_raising(asyncio.CancelledError())).call("tei_embed", timeout_s=60)


async def test_a_caller_that_is_cancelled_is_cancelled() -> None:
    """And not told of an error instead."""
    call = asyncio.create_task(_application(asyncio.Event().wait).call("tei_embed", timeout_s=60))
    await asyncio.sleep(0)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
