"""What does not fit in a request: every flaw by its place, so that one error names all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from compass.errors import InvalidRequestError

MAX_ERRORS = 100  # named in one answer


@dataclass(frozen=True, slots=True)
class Flaw:
    """A field that does not fit, and why. `index`: of the chunk that it belongs to, in a batch of them."""

    field: str
    detail: str
    index: int | None = None

    def to_json(self) -> dict[str, Any]:
        """{index?, field, detail}."""
        where = {} if self.index is None else {"index": self.index}
        return {**where, "field": self.field, "detail": self.detail}


def invalid(flaws: Sequence[Flaw], **fields: Any) -> InvalidRequestError:
    """The error of these flaws; its sentence tells of the first.

    Args:
        flaws: At least one. `MAX_ERRORS` of them are named, the others are counted.
        fields: What else a program needs, JSON-able.
    """
    first = flaws[0]
    where = "" if first.index is None else f"chunk {first.index}: "
    more = f" (and {len(flaws) - 1} more)" if len(flaws) > 1 else ""
    errors = [flaw.to_json() for flaw in flaws[:MAX_ERRORS]]
    return InvalidRequestError(f"{where}{first.field}: {first.detail}{more}", {"errors": errors, **fields})
