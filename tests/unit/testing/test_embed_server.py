"""The embed server speaks TEI's contract."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import httpx
import numpy as np
import pytest
from starlette.responses import PlainTextResponse, Response

from compass.embedding.builtin import HashingModel
from compass.errors import UnavailableError
from compass.testing.embed_server import Served, served

# The members that TEI 1.9's OpenAPI document requires of `Info`.
INFO = {
    "model_id",
    "model_dtype",
    "served_model_name",
    "model_type",
    "max_concurrent_requests",
    "max_input_length",
    "max_batch_tokens",
    "max_client_batch_size",
    "auto_truncate",
    "tokenization_workers",
    "version",
}


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    """A server with small limits."""
    with served("m", 16, max_client_batch_size=4, max_input_length=10, payload_limit=2_000) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: Served) -> Iterator[httpx.Client]:
    """A client of it."""
    with httpx.Client(base_url=server.url.removesuffix("/embed"), trust_env=False) as running:
        yield running


def test_rows_come_in_the_order_of_the_inputs(client: httpx.Client) -> None:
    """One row per input, the model's, to seven digits; TEI's headers say what was computed."""
    answer = client.post("/embed", json={"inputs": ["b", "a c"]})
    assert answer.status_code == 200
    np.testing.assert_allclose(answer.json(), HashingModel("m", 16).embed(["b", "a c"]), atol=1e-7)
    assert answer.headers["x-compute-characters"] == "4"
    assert answer.headers["x-compute-tokens"] == "3"


def test_a_single_string_has_one_row(client: httpx.Client) -> None:
    """A string is a list of one."""
    assert client.post("/embed", json={"inputs": "a"}).json() == client.post("/embed", json={"inputs": ["a"]}).json()


def test_teis_options_are_taken(client: httpx.Client) -> None:
    """normalize, truncate, truncation_direction, prompt_name and dimensions; the last shortens the rows."""
    options = {"normalize": True, "truncate": True, "truncation_direction": "left", "prompt_name": "query"}
    (row,) = client.post("/embed", json={"inputs": "a b", "dimensions": 5, **options}).json()
    assert len(row) == 5
    assert np.linalg.norm(row) == pytest.approx(1, abs=1e-6)


def test_truncate_keeps_the_side_that_was_asked_for(client: httpx.Client) -> None:
    """Direction "right" cuts the end off, "left" the beginning."""
    words = " ".join(f"w{i}" for i in range(20))
    for direction, kept in (("right", words.split()[:10]), ("left", words.split()[10:])):
        body = {"inputs": words, "truncate": True, "truncation_direction": direction}
        rows = client.post("/embed", json=body).json()
        np.testing.assert_allclose(rows, HashingModel("m", 16).embed([" ".join(kept)]), atol=1e-7)


@pytest.mark.parametrize(
    ("body", "status", "error_type", "error"),
    [
        ({"inputs": []}, 400, "Empty", "cannot be empty"),
        ({"inputs": ["a"] * 5}, 422, "Validation", "batch size 5 > maximum allowed batch size 4"),
        ({"inputs": ["a", ""]}, 422, "Validation", "cannot be empty"),
        ({"inputs": ["w " * 11]}, 422, "Validation", "must have less than 10 tokens. Given: 11"),
        ({"inputs": ["a"], "dimensions": 17}, 422, "Validation", "dimensions"),
    ],
)
def test_refusals_are_teis(
    client: httpx.Client, body: dict[str, object], status: int, error_type: str, error: str
) -> None:
    """Status, error and error_type of each refusal are TEI's."""
    answer = client.post("/embed", json=body)
    assert answer.status_code == status
    assert answer.json()["error_type"] == error_type
    assert error in answer.json()["error"]


@pytest.mark.parametrize(
    "body",
    [{}, {"inputs": 3}, {"inputs": ["a"], "normalize": "yes"}, {"inputs": ["a"], "truncation_direction": "up"}],
)
def test_json_that_does_not_fit_is_plain_text_422(client: httpx.Client, body: dict[str, object]) -> None:
    """As axum answers: no JSON, so a client can tell a bug from a bad input."""
    answer = client.post("/embed", json=body)
    assert answer.status_code == 422
    assert answer.headers["content-type"].startswith("text/plain")


def test_what_is_not_json_is_400(client: httpx.Client) -> None:
    """A body that does not parse."""
    assert client.post("/embed", content=b"{").status_code == 400


def test_a_body_over_the_limit_is_413_in_plain_text(client: httpx.Client) -> None:
    """The payload limit is bytes, and is looked at first."""
    answer = client.post("/embed", json={"inputs": ["a" * 2_000]})
    assert answer.status_code == 413
    assert answer.headers["content-type"].startswith("text/plain")


def test_info_has_teis_members(client: httpx.Client) -> None:
    """Every member that TEI's document requires, and the limits that hold."""
    info = client.get("/info").json()
    assert info.keys() >= INFO
    assert info["model_id"] == "m"
    assert info["max_client_batch_size"] == 4


def test_health_is_up(client: httpx.Client) -> None:
    """200, as long as it runs."""
    assert client.get("/health").status_code == 200


def test_a_key_is_wanted_where_one_is_set() -> None:
    """401 with an empty body for /embed and /info; /health stays open."""
    with served("m", 4, api_key="k") as server, httpx.Client(trust_env=False) as client:
        base = server.url.removesuffix("/embed")
        answer = client.post(server.url, json={"inputs": ["a"]})
        assert (answer.status_code, answer.content) == (401, b"")
        assert client.get(f"{base}/info", headers={"Authorization": "Bearer wrong"}).status_code == 401
        assert client.get(f"{base}/health").status_code == 200
        right = {"Authorization": "Bearer k"}
        assert client.post(server.url, json={"inputs": ["a"]}, headers=right).status_code == 200


async def test_each_input_takes_a_permit() -> None:
    """Inputs above the permits are answered 429 at once, and the permits come back."""
    arrived, release = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    async def hold(texts: list[str]) -> Response | None:
        loop.call_soon_threadsafe(arrived.set)
        await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(release.wait(), loop))
        return None

    with served("m", 4, max_concurrent_requests=5, reply=hold) as server:
        async with httpx.AsyncClient(trust_env=False) as client:
            first = asyncio.create_task(client.post(server.url, json={"inputs": ["a"] * 3}))
            await arrived.wait()
            over = await client.post(server.url, json={"inputs": ["a"] * 3})
            assert (over.status_code, over.json()["error_type"]) == (429, "Overloaded")
            release.set()
            assert (await first).status_code == 200
            assert (await client.post(server.url, json={"inputs": ["a"] * 5})).status_code == 200


def test_a_plain_server_knows_inputs_alone() -> None:
    """tei=False: no /info, and any other member is refused, as strict servers do."""
    with served("m", 4, tei=False) as server, httpx.Client(trust_env=False) as client:
        assert client.get(server.url.replace("/embed", "/info")).status_code == 404
        assert client.post(server.url, json={"inputs": ["a"]}).status_code == 200
        assert client.post(server.url, json={"inputs": ["a"], "truncate": True}).status_code == 422


def test_a_fault_can_be_put_in() -> None:
    """`reply` sees the inputs, and its response goes out in place of the vectors; None lets them pass."""

    def reply(texts: list[str]) -> Response | None:
        return PlainTextResponse("down", 503) if texts == ["bad"] else None

    with served("m", 4, reply=reply) as server, httpx.Client(trust_env=False) as client:
        assert client.post(server.url, json={"inputs": ["bad"]}).status_code == 503
        assert client.post(server.url, json={"inputs": ["good"]}).status_code == 200
        assert server.stats() == {"requests": 2, "inputs": 2}
        assert client.get(server.url.replace("/embed", "/stats")).json() == server.stats()


def test_an_option_that_there_is_not_is_refused() -> None:
    """A misspelt option must not be ignored."""
    with pytest.raises(TypeError, match="max_batch"), served("m", 4, max_batch=3):  # type: ignore[call-arg]
        pass


def test_a_served_server_is_gone_afterwards() -> None:
    """When the block ends nobody listens any more."""
    with served("m", 4) as server:
        pass
    with pytest.raises(httpx.ConnectError), httpx.Client(trust_env=False) as client:
        client.post(server.url, json={"inputs": ["a"]})


def test_run_serves_until_it_is_told_to_stop() -> None:
    """A process of its own: it says its URL, answers, and ends on SIGTERM; a taken port is said plainly."""
    code = "from compass.testing.embed_server import run; run('m', 4, on_ready=lambda url: print(url, flush=True))"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=dict(os.environ))
    try:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        with httpx.Client(trust_env=False) as client:
            assert len(client.post(url, json={"inputs": ["a"]}).json()[0]) == 4
        port = httpx.URL(url).port
        from compass.testing.embed_server import run

        with pytest.raises(UnavailableError, match=f"cannot listen on 127.0.0.1:{port}"):
            run("m", 4, port=port or 0)
        process.send_signal(signal.SIGTERM)
        process.wait(60)
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()
