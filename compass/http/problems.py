"""Errors as RFC 9457 problem documents, and what msgspec says of a body as fields that a program can use."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import Any

import msgspec

from compass.api.vectors import invalid
from compass.errors import CompassError, InvalidRequestError, MalformedBodyError
from compass.http.messages import Reply

PROBLEM_JSON = b"application/problem+json"
RETRY_AFTER_S = 1
_SAID = re.compile(r"(?P<detail>.*?)(?: - at `(?P<path>.+)`)?", re.DOTALL)
_INDEX = re.compile(r"chunks\[(\d+)\]")
_NAMED = re.compile(r"Object (?:contains unknown|missing required) field `(?P<name>.+)`", re.DOTALL)


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


def of_decoding(error: Exception, *, index: int | None = None) -> InvalidRequestError:
    """What msgspec raised, as 422 with the field, or 400 if it was no JSON at all."""
    if not isinstance(error, msgspec.ValidationError):
        return MalformedBodyError(f"the body is not valid JSON: {error}")
    return invalid([flaw(error, index=index)])


def flaw(error: msgspec.ValidationError, *, index: int | None = None) -> dict[str, Any]:
    """{index?, field, detail} of a value that does not fit; `index` if it was decoded by itself."""
    said = _SAID.fullmatch(str(error))
    assert said is not None  # the pattern matches every string
    path, detail = (said["path"] or "$").removeprefix("$").removeprefix("."), said["detail"]
    named = _NAMED.fullmatch(detail)
    if named:
        path = f"{path}.{named['name']}".removeprefix(".")
        detail = "is missing" if detail.startswith("Object missing") else "is not a field of this request"
    found = _INDEX.match(path)
    if found:
        index, path = int(found[1]), path[found.end() :].removeprefix(".")
    located = {} if index is None else {"index": index}
    return {**located, "field": path or "body", "detail": detail}
