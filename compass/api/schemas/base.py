"""What all schemas share: the type of a body, and of its numbers, names and vectors.

Vectors stay undecoded (`msgspec.Raw`) until `vectors.read_vector`: a float object per number would cost
twice the time, and a bad one must be reported with the index of its chunk.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from compass.domain.ingest import INT64_MAX, INT64_MIN

Int64 = Annotated[int, Meta(ge=INT64_MIN, le=INT64_MAX)]
Beam = Annotated[int, Meta(ge=1, le=10_000)]
Dims = Annotated[int, Meta(extra_json_schema={"minimum": 1, "maximum": 16_384})]
Name = Annotated[str, Meta(extra_json_schema={"pattern": "^[a-z0-9][a-z0-9_-]{0,62}$"})]
Text = Annotated[str, Meta(min_length=1)]
Prompt = Annotated[str, Meta(max_length=4_000, description="Put before each text.")] | None
Reason = Annotated[str, Meta(max_length=1000, description="Why, for the history.")] | None
MetaValue = bool | int | float | str | list[str]
Status = Literal["building", "active", "failed"]

_NUMBERS = {"type": "array", "items": {"type": "number"}}
_BASE64 = {"type": "string", "contentEncoding": "base64", "description": "Little-endian float32, base64."}
_ROW = {"oneOf": [_NUMBERS, _BASE64]}
_ROWS = {"type": "object", "description": "By space.", "additionalProperties": _ROW}
Vector = Annotated[msgspec.Raw, Meta(extra_json_schema=_ROW)]
QueryVector = Annotated[msgspec.Raw, Meta(extra_json_schema={"oneOf": [_NUMBERS, _BASE64, _ROWS]})]


class Request(Struct, forbid_unknown_fields=True, kw_only=True):
    """A body that callers send: a field that nobody knows is refused, never ignored."""
