"""What of a chunk is embedded: its text, or a template over its text, metadata and built-in fields.

A template looks like Python's `str.format`, "{title}\\n{text}", but is filled in by this module alone: there are
no attributes, indexes, conversions and format specs, so a template reaches nothing but the chunk's values.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from string import Formatter
from typing import Any

from compass.errors import InvalidRequestError

TEXT = "text"
BUILTIN_FIELDS = ("text", "file_id", "chunk_index", "doc_type", "page", "group_id")  # win over metadata of the name


def check_template(template: str) -> str:
    """Return the template if it can be filled in for any chunk.

    Raises:
        InvalidRequestError: a brace without its partner, a field with a format or an attribute, or no {text}.
    """
    if TEXT not in fields_of(template):
        raise _unfit(template, "has no {text}: chunks that differ in their text alone would be one to the model")
    return template


def fields_of(template: str) -> tuple[str, ...]:
    """The fields that a template names.

    Raises:
        InvalidRequestError: it is no template.
    """
    return tuple(field for _, field in _parse(template) if field is not None)


def render(template: str, values: Mapping[str, Any], metadata: Mapping[str, Any]) -> str:
    """The template with a chunk's values; a field that the chunk does not have is empty, lists are joined by ", ".

    Args:
        template: One that passed `check_template`.
        values: The built-in fields, by name.
        metadata: Its metadata.
    """
    return "".join(literal + _shown(field, values, metadata) for literal, field in _parse(template))


@lru_cache(maxsize=256)
def _parse(template: str) -> tuple[tuple[str, str | None], ...]:
    parts = []
    try:
        for literal, field, spec, conversion in Formatter().parse(template):
            if field is not None and (spec or conversion or not field or any(c in field for c in ".[]")):
                raise _unfit(template, f"has the field {field!r} with something beside its name")
            parts.append((literal, field))
    except ValueError as error:  # braces that do not match
        raise _unfit(template, str(error)) from None
    return tuple(parts)


def _shown(field: str | None, values: Mapping[str, Any], metadata: Mapping[str, Any]) -> str:
    if field is None:
        return ""
    value = values.get(field) if field in BUILTIN_FIELDS else metadata.get(field)
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    return ", ".join(map(str, value)) if isinstance(value, Iterable) else str(value)


def _unfit(template: str, why: str) -> InvalidRequestError:
    return InvalidRequestError(f"the template {template!r} {why}", {"errors": [{"field": "template", "detail": why}]})
