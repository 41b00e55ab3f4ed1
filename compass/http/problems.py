"""Errors as replies: RFC 9457 problem documents."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import msgspec

from compass.errors import CompassError
from compass.http.messages import Reply

PROBLEM_JSON = b"application/problem+json"
RETRY_AFTER_S = 1


def reply_to(error: CompassError) -> Reply:
    """The answer that an error prescribes; a retryable one says when to come back."""
    headers = []
    if error.retryable:
        after_s = math.ceil(error.fields.get("retry_after", RETRY_AFTER_S))  # the header has whole seconds only
        headers.append((b"retry-after", str(max(after_s, RETRY_AFTER_S)).encode()))
    if error.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    return problem(error.problem(), headers)


def problem(document: dict[str, Any], headers: Iterable[tuple[bytes, bytes]] = ()) -> Reply:
    """An answer of this problem document."""
    body = msgspec.json.encode(document, enc_hook=str)
    return Reply(document["status"], body, ((b"content-type", PROBLEM_JSON), *headers))


def internal() -> Reply:
    """The answer to a bug: it says nothing of the inside."""
    return reply_to(CompassError("an error that Compass did not expect; its log has the details"))


def method_not_allowed(method: str, allowed: Iterable[str]) -> Reply:
    """The path is there, the method is not."""
    allow = ", ".join(sorted(allowed))
    document = {
        "type": "method-not-allowed",
        "title": "Method not allowed",
        "status": 405,
        "detail": f"{method} is not one of {allow}",
    }
    return problem(document, [(b"allow", allow.encode())])
