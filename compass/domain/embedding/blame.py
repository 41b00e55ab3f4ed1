"""One text or the endpoint: what an error says about who is to blame. Rules without a socket.

A bad answer to a batch may be the fault of one of its texts, of the moment, or of the endpoint. The answer to a
harmless text, a control, tells them apart; `compass.embedding.isolate` asks for it.
"""

from __future__ import annotations

from enum import Enum

from compass.domain.embedding.contract import shorten
from compass.errors import (
    EmbeddingError,
    EndpointAnswerError,
    EndpointForbiddenError,
    EndpointRefusedError,
    EndpointUnavailableError,
)

WANTS_KEY = 401  # for any text
OVERLOADED = 429
MODEL_FAILED = 424
TURNED_AWAY = frozenset({502, 503, 504})  # by a proxy, or while it starts
FILTERED = frozenset({403, 406, 451})  # a key, or a filter before the endpoint that minds one text

_ADVICE = {
    400: "check the options that the space sends, such as dimensions and prompt names",
    403: "it wants another key: see api_key_env",
    406: "ask who runs it: a filter before it turns requests away",
    413: "raise its limit on the size of a request",
    422: "check the options that the space sends, such as dimensions and prompt names",
    424: "its model fails: look at its log",
    451: "ask who runs it: a filter before it turns requests away",
}
_ANSWER_ADVICE = "does it serve the model of this space?"
_FAILURE_ADVICE = "look at its log, or at what stands before it"


class Fault(Enum):
    """What a failed request says of the texts in it."""

    REFUSED = "refused"  # it will not take one of them, or any text at all
    FAILED = "failed"  # it fails at one of them, at any, or did so this once
    PASSING = "passing"  # it is away for a moment; or it breaks off at one of them, again and again
    BUSY = "busy"  # it has too much to do, or nobody listens: nothing about the texts
    ENDPOINT = "endpoint"  # no request will ever succeed, whatever its texts

    @property
    def may_pass(self) -> bool:
        """Whether the same request may succeed a moment later."""
        return self in (Fault.FAILED, Fault.PASSING)

    @property
    def may_be_a_texts(self) -> bool:
        """Whether one of the texts may be to blame."""
        return self not in (Fault.BUSY, Fault.ENDPOINT)


class Blame(Enum):
    """What the answer to a control says about a text that fails alone."""

    TEXT = "text"  # the control is embedded: the text is to blame
    ENDPOINT = "endpoint"  # the control is refused too: no request of this form succeeds
    MOMENT = "moment"  # the control fails too: it may be mended


def fault_of(error: EmbeddingError) -> Fault:
    """What a failed request says of its texts."""
    status = error.fields.get("status")
    match error:
        case EndpointRefusedError():
            return Fault.FAILED if status == MODEL_FAILED else Fault.REFUSED
        case EndpointForbiddenError():
            return Fault.ENDPOINT if status in (None, WANTS_KEY) else Fault.REFUSED
        case EndpointAnswerError():
            return Fault.FAILED
    if status is not None and (status == MODEL_FAILED or (status >= 500 and status not in TURNED_AWAY)):
        return Fault.FAILED
    if status == OVERLOADED or error.fields.get("unreachable") or error.fields.get("retry_after"):
        return Fault.BUSY
    return Fault.PASSING


def blame(control_error: EmbeddingError | None) -> Blame:
    """Who is to blame for a text that fails alone, by the error that a control has met since; None: none."""
    match control_error:
        case None:
            return Blame.TEXT
        case EndpointRefusedError() if control_error.fields.get("status") != MODEL_FAILED:
            return Blame.ENDPOINT
        case EndpointForbiddenError():
            return Blame.ENDPOINT
    return Blame.MOMENT


def endpoint_error(control_error: EmbeddingError) -> EmbeddingError:
    """The error that blames the endpoint: what it answered to a control, and what to do about that."""
    if not fault_of(control_error).may_be_a_texts:  # it says so itself
        return control_error
    refused = isinstance(control_error, EndpointRefusedError | EndpointForbiddenError)
    what = "it refuses every text, a harmless one too" if refused else "it fails at every text, a harmless one too"
    advice = _advice(control_error)
    detail = f"{control_error.detail} ({what}{f'; {advice}' if advice else ''})"
    if blame(control_error) is Blame.ENDPOINT:
        return EndpointForbiddenError(detail, control_error.fields)
    if isinstance(control_error, EndpointAnswerError):
        return EndpointAnswerError(detail, control_error.fields)
    return EndpointUnavailableError(detail, control_error.fields)


def reason_of(error: EmbeddingError) -> str:
    """Why a text is refused, as it is kept: what the endpoint answered, in one short line."""
    endpoint = str(error.fields.get("endpoint", ""))
    whole = " ".join(error.detail.split())
    return whole if shorten(whole) == whole else shorten(whole.removeprefix(endpoint).lstrip(": "))


def _advice(error: EmbeddingError) -> str | None:
    if isinstance(error, EndpointAnswerError):
        return _ANSWER_ADVICE
    if isinstance(error, EndpointUnavailableError):
        return _ADVICE.get(error.fields.get("status", 0), _FAILURE_ADVICE)
    return _ADVICE.get(error.fields.get("status", 0))
