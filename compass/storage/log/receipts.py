"""Receipts: what a write was answered, so that its repetition is answered the same and changes nothing.

A caller whose answer is lost with the writer's process sends the write again, and cannot know that it was
committed, or what others have written since. So it names the attempt, the name is committed with what it wrote,
and the writer, or its successor, finds it. Only as far back as `KEPT_BYTES` of receipts reach.
"""

from __future__ import annotations

import msgspec

KEPT_BYTES = 1 << 20  # some 26,000 writes of one chunk, or 130 of a thousand
_ID_BYTES = 8


class Receipt(msgspec.Struct, frozen=True, omit_defaults=True):
    """The answer of one attempt.

    Attributes:
        attempt: The caller's name for it; no other attempt has it.
        ids: Those of the chunks that it wrote, in the order given.
        deleted: How many chunks it deleted.
    """

    attempt: str
    ids: list[int] = []
    deleted: int = 0

    @property
    def bytes(self) -> int:
        """What it counts for against `KEPT_BYTES`."""
        return len(self.attempt) + _ID_BYTES * (len(self.ids) + 1)
