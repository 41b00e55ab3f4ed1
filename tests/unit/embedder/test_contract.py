"""The embedder speaks TEI's contract: every status of it, in the shapes of TEI's OpenAPI document."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import jsonschema
import numpy as np
import pytest
from starlette.applications import Starlette

from compass.domain.embedding.contract import Reply
from compass.embedder.backend import SentenceBackend
from compass.embedder.tei import Limits
from compass.embedder.tei_server import TeiServer
from compass.errors import InvalidRequestError

# What TEI 1.9's document says of these three bodies, as JSON Schema.
ROWS = {"type": "array", "items": {"type": "array", "items": {"type": "number"}, "minItems": 1}}
ERROR_TYPES = ["Unhealthy", "Backend", "Overloaded", "Validation", "Tokenizer", "Empty"]
ERROR = {
    "type": "object",
    "required": ["error", "error_type"],
    "properties": {"error": {"type": "string", "minLength": 1}, "error_type": {"enum": ERROR_TYPES}},
    "additionalProperties": False,
}
COUNT, TEXT = {"type": "integer", "minimum": 0}, {"type": "string"}
INFO = {
    "type": "object",
    "required": [
        *("model_id", "model_dtype", "served_model_name", "model_type", "max_concurrent_requests"),
        *("max_input_length", "max_batch_tokens", "max_client_batch_size", "auto_truncate"),
        *("tokenization_workers", "version"),
    ],
    "properties": {
        **dict.fromkeys(("model_id", "model_dtype", "served_model_name", "version"), TEXT),
        **dict.fromkeys(("max_concurrent_requests", "max_input_length", "max_batch_tokens"), COUNT),
        **dict.fromkeys(("max_client_batch_size", "tokenization_workers"), COUNT),
        "model_sha": {"type": ["string", "null"]},
        "max_batch_requests": {"type": ["integer", "null"]},
        "auto_truncate": {"type": "boolean"},
        "model_type": {
            "type": "object",
            "required": ["embedding"],
            "properties": {"embedding": {"type": "object", "required": ["pooling"], "properties": {"pooling": TEXT}}},
        },
    },
}

LIMITS = Limits(max_client_batch_size=4, max_concurrent_requests=6, payload_limit=2_000)


def _served(server: TeiServer) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(Starlette(routes=server.routes()))
    return httpx.AsyncClient(transport=transport, base_url="http://embedder")


@pytest.fixture
def server(fake: Any) -> TeiServer:
    """A server of the fake model with small limits."""
    return TeiServer(SentenceBackend(fake, LIMITS), LIMITS)


@pytest.fixture
async def http(server: TeiServer) -> AsyncIterator[httpx.AsyncClient]:
    """A client of it."""
    async with _served(server) as client:
        yield client


async def _embed(http: httpx.AsyncClient, inputs: Any, **options: Any) -> Any:
    answer = await http.post("/embed", json={"inputs": inputs, **options})
    assert answer.status_code == 200, answer.text
    jsonschema.validate(answer.json(), ROWS)
    return np.asarray(answer.json(), np.float32)


async def test_rows_come_in_the_order_of_the_inputs(http: httpx.AsyncClient, fake: Any) -> None:
    """200: one row an input, of length 1; a single string has one too; TEI's headers say what was computed."""
    answer = await http.post("/embed", json={"inputs": ["b", "a longer c"]})
    jsonschema.validate(answer.json(), ROWS)
    np.testing.assert_allclose(answer.json(), fake.encode(["b", "a longer c"]) / 3, atol=1e-6)
    assert answer.headers["x-compute-characters"] == "11"
    assert answer.headers["x-compute-tokens"] == "8"
    assert int(answer.headers["x-compute-time"]) >= 0
    np.testing.assert_array_equal(await _embed(http, "b"), await _embed(http, ["b"]))


async def test_normalize_false_gives_what_the_model_gives(http: httpx.AsyncClient) -> None:
    """The rows as they are; and of length 1 by default."""
    lengths = np.linalg.norm(await _embed(http, ["a", "b c"], normalize=False), axis=1)
    np.testing.assert_allclose(lengths, 3, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(await _embed(http, ["a"]), axis=1), 1, atol=1e-6)


async def test_dimensions_are_the_first_ones(http: httpx.AsyncClient) -> None:
    """Cut before they are brought to length 1."""
    whole, cut = await _embed(http, "a b c"), await _embed(http, "a b c", dimensions=5)
    np.testing.assert_allclose(cut, whole[:, :5] / np.linalg.norm(whole[:, :5]), atol=1e-6)


async def test_a_prompt_is_put_before_each_input(http: httpx.AsyncClient, fake: Any) -> None:
    """By its name; without one no prompt is used, unless the server has a default."""
    np.testing.assert_array_equal(await _embed(http, "a", prompt_name="query"), await _embed(http, "query: a"))
    server = TeiServer(SentenceBackend(fake, LIMITS, "query"), LIMITS)
    async with _served(server) as other:
        np.testing.assert_array_equal(await _embed(other, "a"), await _embed(http, "query: a"))


def test_a_default_prompt_that_there_is_not_is_an_error(fake: Any) -> None:
    """At the start, not at the first request."""
    with pytest.raises(InvalidRequestError, match="'passage'"):
        SentenceBackend(fake, LIMITS, "passage")


async def test_tokens_may_be_sent_for_a_text(http: httpx.AsyncClient) -> None:
    """A list of numbers is one input, a list of such lists many."""
    np.testing.assert_array_equal(await _embed(http, [5, 6]), await _embed(http, "w5 w6"))
    np.testing.assert_array_equal(await _embed(http, [[5], "w6"]), await _embed(http, ["w5", "w6"]))


@pytest.mark.parametrize("direction", ["left", "Left", "right", "Right"])
async def test_what_is_too_long_is_cut_where_it_is_asked(http: httpx.AsyncClient, fake: Any, direction: str) -> None:
    """`truncate` cuts at the named side, and only what is read is counted."""
    body = {"inputs": ["w " * 30, "short"], "truncate": True, "truncation_direction": direction}
    answer = await http.post("/embed", json=body)
    assert answer.status_code == 200
    assert answer.headers["x-compute-tokens"] == str(12 + 3)
    assert set(fake.sides) == {"right", direction.lower()}


async def test_a_server_may_truncate_by_default(fake: Any) -> None:
    """Then a request must say that it does not want it."""
    limits = Limits(auto_truncate=True)
    async with _served(TeiServer(SentenceBackend(fake, limits), limits)) as http:
        await _embed(http, "w " * 30)
        assert (await http.post("/embed", json={"inputs": "w " * 30, "truncate": False})).status_code == 422


@pytest.mark.parametrize(
    ("body", "status", "error_type", "error"),
    [
        ({"inputs": []}, 400, "Empty", "cannot be empty"),
        ({"inputs": ["a"] * 5}, 422, "Validation", "batch size 5 > maximum allowed batch size 4"),
        ({"inputs": ["a", ""]}, 422, "Validation", "cannot be empty"),
        ({"inputs": ["a", []]}, 422, "Validation", "cannot be empty"),
        ({"inputs": ["w " * 11]}, 422, "Validation", "must have less than 12 tokens. Given: 13"),
        ({"inputs": ["a"], "dimensions": 9}, 422, "Validation", "`dimensions` must be within 1 and 8. Given: 9"),
        ({"inputs": ["a"], "prompt_name": "no"}, 422, "Validation", "'no' is not one of the model's prompts"),
        ({"inputs": ["untokenizable"]}, 422, "Tokenizer", "no such token"),
        ({"inputs": ["a", "poison"]}, 424, "Backend", "device-side assert"),
        ({"inputs": ["nan"]}, 424, "Backend", "NaN"),
    ],
)
async def test_refusals_are_teis(
    http: httpx.AsyncClient, server: TeiServer, body: dict[str, Any], status: int, error_type: str, error: str
) -> None:
    """Status, error and error_type of each refusal are TEI's; by handle they are the same."""
    answer = await http.post("/embed", json=body)
    assert answer.status_code == status
    jsonschema.validate(answer.json(), ERROR)
    assert answer.json()["error_type"] == error_type
    assert error in answer.json()["error"]
    options = {name: value for name, value in body.items() if name != "inputs"}
    assert await server.reply(body["inputs"], options) == Reply(status, None, 0, **answer.json())


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"inputs": 3},
        {"inputs": [3, "a"]},
        {"inputs": [-1]},
        {"inputs": [[["a"]]]},
        {"inputs": ["a"], "normalize": "yes"},
        {"inputs": ["a"], "truncation_direction": "up"},
    ],
)
async def test_json_that_does_not_fit_is_plain_text_422(http: httpx.AsyncClient, body: dict[str, Any]) -> None:
    """No JSON, so that a client can tell a bug from a bad input."""
    answer = await http.post("/embed", json=body)
    assert answer.status_code == 422
    assert answer.headers["content-type"].startswith("text/plain")


async def test_a_body_over_the_limit_is_413_in_plain_text(http: httpx.AsyncClient) -> None:
    """It is not read to its end."""
    read = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal read
        while read < 100_000:
            read += 1_000
            yield b"a" * 1_000

    answer = await http.post("/embed", content=endless())
    assert answer.status_code == 413
    assert answer.headers["content-type"].startswith("text/plain")
    assert read == 3_000


async def test_each_input_takes_a_permit(http: httpx.AsyncClient, fake: Any) -> None:
    """429 at once, never queued, where the inputs at work would pass the permits; they come back."""
    fake.gate.clear()
    first = asyncio.create_task(http.post("/embed", json={"inputs": ["a"] * 4}))
    assert await asyncio.to_thread(fake.started.wait, 60)
    over = await http.post("/embed", json={"inputs": ["a"] * 3})
    assert (over.status_code, over.json()) == (429, {"error": "Model is overloaded", "error_type": "Overloaded"})
    fitting = asyncio.create_task(http.post("/embed", json={"inputs": ["a"] * 2}))
    fake.gate.set()
    assert [(await one).status_code for one in (first, fitting)] == [200, 200]
    assert (await http.post("/embed", json={"inputs": ["a"] * 4})).status_code == 200


async def test_info_has_teis_members(http: httpx.AsyncClient) -> None:
    """What TEI's document requires, and the limits that hold."""
    info = (await http.get("/info")).json()
    jsonschema.validate(info, INFO)
    assert (info["model_id"], info["model_type"]) == ("fake", {"embedding": {"pooling": "mean"}})
    assert (info["max_client_batch_size"], info["max_concurrent_requests"]) == (4, 6)
    assert info["max_input_length"] == 12


async def test_health_follows_the_model(http: httpx.AsyncClient, fake: Any) -> None:
    """A text that the model fails at is not the model's end; failing at a harmless one is 503."""
    assert (await http.get("/health")).status_code == 200
    await http.post("/embed", json={"inputs": ["poison"]})
    assert (await http.get("/health")).status_code == 200
    fake.broken = True
    await http.post("/embed", json={"inputs": ["a"]})
    answer = await http.get("/health")
    assert answer.status_code == 503
    jsonschema.validate(answer.json(), ERROR)
    assert answer.json()["error_type"] == "Unhealthy"
    fake.broken = False
    assert (await http.get("/health")).status_code == 200


async def test_a_key_is_wanted_where_one_is_set(fake: Any) -> None:
    """401 with an empty body for /embed and /info; /health stays open."""
    server = TeiServer(SentenceBackend(fake, LIMITS), LIMITS, api_key="k")
    async with _served(server) as http:
        answer = await http.post("/embed", json={"inputs": ["a"]})
        assert (answer.status_code, answer.content) == (401, b"")
        assert (await http.get("/info", headers={"Authorization": "Bearer wrong"})).status_code == 401
        assert (await http.get("/health")).status_code == 200
        http.headers["Authorization"] = "Bearer k"
        assert (await http.post("/embed", json={"inputs": ["a"]})).status_code == 200
        assert (await http.get("/info")).status_code == 200
