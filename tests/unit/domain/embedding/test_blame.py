"""What an error says about who is to blame, without a socket."""

from __future__ import annotations

from typing import Any

import pytest

from compass.domain.embedding.blame import Blame, Fault, blame, endpoint_error, fault_of, reason_of
from compass.domain.embedding.contract import REASON_CHARS
from compass.errors import (
    EmbeddingError,
    EndpointAnswerError,
    EndpointForbiddenError,
    EndpointRefusedError,
    EndpointUnavailableError,
)

URL = "http://endpoint/embed"


def unavailable(status: int | None = None, **fields: Any) -> EndpointUnavailableError:
    return EndpointUnavailableError("no", {"endpoint": URL} | ({} if status is None else {"status": status}) | fields)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (EndpointRefusedError("no", {"status": 422}), Fault.REFUSED),
        (EndpointRefusedError("half a surrogate pair"), Fault.REFUSED),
        (EndpointRefusedError("the model failed", {"status": 424}), Fault.FAILED),
        (EndpointForbiddenError("no", {"status": 403}), Fault.REFUSED),
        (EndpointForbiddenError("no", {"status": 406}), Fault.REFUSED),
        (EndpointForbiddenError("no", {"status": 451}), Fault.REFUSED),
        (EndpointForbiddenError("no", {"status": 302}), Fault.REFUSED),
        (EndpointForbiddenError("no", {"status": 401}), Fault.ENDPOINT),
        (EndpointForbiddenError("a trap's address"), Fault.ENDPOINT),
        (EndpointAnswerError("null"), Fault.FAILED),
        (unavailable(424), Fault.FAILED),
        (unavailable(500), Fault.FAILED),
        (unavailable(500, retry_after=3.0), Fault.FAILED),
        (unavailable(502), Fault.PASSING),
        (unavailable(503), Fault.PASSING),
        (unavailable(504), Fault.PASSING),
        (unavailable(408), Fault.PASSING),
        (unavailable(), Fault.PASSING),
        (unavailable(timed_out=True), Fault.PASSING),
        (unavailable(429), Fault.BUSY),
        (unavailable(503, retry_after=3.0), Fault.BUSY),
        (unavailable(unreachable=True), Fault.BUSY),
    ],
)
def test_each_error_says_what_it_says_of_the_texts(error: EmbeddingError, expected: Fault) -> None:
    """A key and an overload say nothing of them; what may pass is told from what stays."""
    assert fault_of(error) is expected


@pytest.mark.parametrize(
    ("control_error", "expected"),
    [
        (None, Blame.TEXT),
        (EndpointRefusedError("no", {"status": 422}), Blame.ENDPOINT),
        (EndpointRefusedError("too many bytes"), Blame.ENDPOINT),
        (EndpointForbiddenError("no", {"status": 403}), Blame.ENDPOINT),
        (EndpointRefusedError("the model failed", {"status": 424}), Blame.MOMENT),
        (EndpointUnavailableError("down", {"status": 503}), Blame.MOMENT),
        (EndpointAnswerError("no rows"), Blame.MOMENT),
    ],
)
def test_a_harmless_text_says_who_is_to_blame(control_error: EmbeddingError | None, expected: Blame) -> None:
    """The text only where the harmless one is embedded; a refusal is for good, a failure may be mended."""
    assert blame(control_error) is expected


@pytest.mark.parametrize(
    ("control_error", "expected", "advice"),
    [
        (EndpointRefusedError("no", {"status": 422}), EndpointForbiddenError, "options"),
        (EndpointForbiddenError("no", {"status": 403}), EndpointForbiddenError, "another key: see api_key_env"),
        (EndpointForbiddenError("no", {"status": 451}), EndpointForbiddenError, "filter"),
        (EndpointRefusedError("no", {"status": 424}), EndpointUnavailableError, "log"),
        (unavailable(500), EndpointUnavailableError, "log"),
        (EndpointAnswerError("no"), EndpointAnswerError, "the model of this space"),
    ],
)
def test_the_error_that_blames_the_endpoint_says_what_to_do(
    control_error: EmbeddingError, expected: type[EmbeddingError], advice: str
) -> None:
    """Its class says whether waiting helps; the fields stay, and its sentence names the control and the remedy."""
    error = endpoint_error(control_error)
    assert type(error) is expected
    assert error.fields == control_error.fields
    assert "every text, a harmless one too" in error.detail
    assert advice in error.detail


@pytest.mark.parametrize("error", [EndpointForbiddenError("a key", {"status": 401}), unavailable(429)])
def test_what_says_nothing_of_the_texts_stays_as_it_is(error: EmbeddingError) -> None:
    """A key that is missing and an overload need no control to be believed."""
    assert endpoint_error(error) is error


def test_the_reason_that_is_kept_is_one_short_line() -> None:
    """A URL that is too long for it goes, the endpoint's answer stays."""
    assert (
        reason_of(EndpointRefusedError(f"{URL} answered\n422: bad", {"endpoint": URL})) == f"{URL} answered 422: bad"
    )
    long = "http://endpoint/" + "x" * 2_000
    reason = reason_of(EndpointRefusedError(f"{long} answered 422: {'bad ' * 200}", {"endpoint": long}))
    assert reason.startswith("answered 422: bad")
    assert len(reason) == REASON_CHARS
