"""The rules of the embed contract, without a socket."""

from __future__ import annotations

import json

import pytest

from compass.domain.embedding.contract import (
    REASON_CHARS,
    ErrorBody,
    ServerInfo,
    Verdict,
    classify_answer,
    read_error_body,
    read_info,
    request_options,
    retry_after_s,
    smaller_batch,
)
from compass.domain.space import SpaceConfig

TEI = ServerInfo(tei=True, max_batch=32)


def tei_error(error: str, error_type: str) -> bytes:
    return json.dumps({"error": error, "error_type": error_type}).encode()


BATCH = tei_error("batch size 64 > maximum allowed batch size 32", "Validation")


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (200, b"[[1.0]]", Verdict.ROWS),
        (400, tei_error("`inputs` cannot be empty", "Empty"), Verdict.REFUSED),
        (401, b"", Verdict.FORBIDDEN),
        (403, b"", Verdict.FORBIDDEN),
        (404, b"Not Found", Verdict.FORBIDDEN),
        (405, b"", Verdict.FORBIDDEN),
        (302, b"", Verdict.FORBIDDEN),
        (413, b"length limit exceeded", Verdict.TOO_LARGE),
        (413, BATCH, Verdict.TOO_MANY),
        (422, BATCH, Verdict.TOO_MANY),
        (422, tei_error("Input validation error: too long", "Validation"), Verdict.REFUSED),
        (422, tei_error("cannot tokenize", "Tokenizer"), Verdict.REFUSED),
        (422, b"Failed to deserialize the JSON body", Verdict.FORBIDDEN),
        (422, b'{"detail": [{"msg": "too long"}]}', Verdict.REFUSED),
        (424, tei_error("inference failed", "Backend"), Verdict.BACKEND),
        (429, tei_error("Model is overloaded", "Overloaded"), Verdict.BUSY),
        (500, b"", Verdict.BUSY),
        (502, b"<html>", Verdict.BUSY),
        (503, tei_error("unhealthy", "Unhealthy"), Verdict.BUSY),
        (504, b"", Verdict.BUSY),
    ],
)
def test_each_row_of_the_contract_has_its_verdict(status: int, body: bytes, expected: Verdict) -> None:
    """A status and its body say what the client does next, as TEI's table has it."""
    assert classify_answer(status, read_error_body(body)) is expected


def test_the_reason_is_the_servers_own_words_in_one_short_line() -> None:
    """Whatever a server says, the reason fits one line and cannot carry a document."""
    assert read_error_body(tei_error("it\nfailed", "Backend")) == ErrorBody("it failed", True, "Backend")
    for body in (
        b'{"detail": "no"}',
        b'{"object": "error", "message": "no", "type": "BadRequestError", "code": 400}',
        b'{"error": {"message": "no", "type": "BadRequestError", "code": 400}}',
    ):
        assert read_error_body(body).reason == "no"
    assert len(read_error_body(b"x" * 10_000).reason) == REASON_CHARS
    assert read_error_body(b"\xff\xfe").reason  # not UTF-8, still a reason


@pytest.mark.parametrize(
    ("page", "reason"),
    [
        (
            "<html><head><title>Access\n denied &amp; logged</title></head><body>Ray ID</body></html>",
            "Access denied & logged",
        ),
        ("<!DOCTYPE html><html><body><h1>Request</h1><p>blocked</p></body></html>", "Request blocked"),
        ("<html><style>p {color: red}</style><script>if (1<2) go()</script>Blocked</html>", "Blocked"),
        ("<html>Request blocked</html>", "Request blocked"),
        ("<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "AccessDenied"),
        ("1 < 2 is no page", "1 < 2 is no page"),
        ("<html></html>", ""),
    ],
)
def test_the_reason_in_a_page_is_its_title_or_its_words(page: str, reason: str) -> None:
    """A filter before an endpoint answers with HTML, of which markup tells nobody anything."""
    assert read_error_body(page.encode()).reason == reason


def test_a_page_without_end_costs_no_time() -> None:
    """Comments that nobody closes, as many as fit."""
    assert len(read_error_body(b"<html>" + b"<!--" * 500_000).reason) <= REASON_CHARS


def test_the_next_batch_size_is_the_limit_named_or_half() -> None:
    """A server that names its limit is believed, another one gets half; never the same size again, never 0."""
    assert smaller_batch(64, read_error_body(BATCH)) == 32
    assert smaller_batch(64, ErrorBody("batch size too big")) == 32
    assert smaller_batch(1, ErrorBody("batch size too big")) == 1
    assert smaller_batch(16, read_error_body(BATCH)) == 15, "a limit that it refused itself"


def test_only_teis_own_info_proves_tei() -> None:
    """A size is taken from any /info; `truncate` and the like go to a server that has TEI's members."""
    full = {"model_id": "m", "model_type": {}, "max_concurrent_requests": 512, "max_client_batch_size": 16}
    assert read_info(200, json.dumps(full).encode()) == ServerInfo(True, 16, model_id="m")
    assert read_info(200, b'{"max_client_batch_size": 8}') == ServerInfo(False, 8)
    for status, body in ((404, b"{}"), (200, b"<html>"), (200, b"[1]"), (200, b'{"max_client_batch_size": true}')):
        assert read_info(status, body) == ServerInfo()


def test_a_server_gets_only_what_it_is_known_to_understand() -> None:
    """Nothing beside `inputs`, unless the server is TEI or the space sets the option; prompts by kind."""
    assert request_options(SpaceConfig(8, "m"), "document", ServerInfo()) == {}
    assert request_options(SpaceConfig(8, "m"), "query", TEI) == {"truncate": True}
    config = SpaceConfig(8, "m", query_prompt_name="q", document_prompt_name="d", normalize=False)
    assert request_options(config, "query", ServerInfo()) == {"prompt_name": "q", "normalize": False}
    assert request_options(config, "document", TEI)["prompt_name"] == "d"


def test_retry_after_is_read_in_both_its_forms() -> None:
    """Seconds, or an HTTP date from which the clock is taken; nonsense asks for nothing."""
    assert retry_after_s("3", now=0) == 3
    assert retry_after_s("Thu, 01 Jan 1970 00:01:40 GMT", now=40) == 60
    assert retry_after_s("Thu, 01 Jan 1970 00:00:00 GMT", now=40) == 0
    assert retry_after_s("soon", now=0) is None
    assert retry_after_s(None, now=0) is None
