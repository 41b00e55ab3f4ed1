"""What a rebuild has to do: the live chunks that have a text and no vector, in pieces of a few thousand.

Descriptors travel instead of texts: which rows of which part. The stage that works on one reads it itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from compass.domain.chunk import IntVector, has_text
from compass.domain.rebuild.run_record import EVERY_VID
from compass.storage.objects import Objects
from compass.storage.snapshot.parts import PartRef, Snapshot, read_part

MOST_ROWS = 2_048
LEAST_ROWS = 512
PIECES = 32  # of a rebuild between the two

Offsets = npt.NDArray[np.int32]
BoolVector = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class Descriptor:
    """Rows of one part to embed: their offsets among the rows of the part that its mask leaves."""

    part: PartRef
    rows: Offsets

    @property
    def count(self) -> int:
        """How many chunks."""
        return len(self.rows)


@dataclass(frozen=True, slots=True, eq=False)
class PartRows:
    """What a plan must know of a part's live rows, in their order."""

    part: PartRef
    vids: IntVector
    blank: BoolVector


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """The work, and how far the space is.

    Attributes:
        live: Live chunks.
        blank: Those among them without text.
        had: Those with a text and a vector already.
        skipped: Those with a text that are quarantined and have no vector.
        newest: The greatest vid, -1 of none: what is written later has a greater one.
    """

    descriptors: tuple[Descriptor, ...]
    live: int
    blank: int
    had: int
    skipped: int
    newest: int

    @property
    def missing(self) -> int:
        """Chunks to embed."""
        return sum(d.count for d in self.descriptors)


def plan(parts: Iterable[PartRows], have: IntVector, skip: IntVector, below: int = EVERY_VID) -> Plan:
    """Plan the chunks that have a text and whose vid is less than `below`, and neither in `have` nor in `skip`.

    Args:
        parts: The live rows of a snapshot.
        have: vids that have a vector in the space.
        skip: vids that no attempt would change: the quarantine.
        below: the other vids are the work of the space's follower.
    """
    missing: list[tuple[PartRef, Offsets]] = []
    live = blank = had = skipped = 0
    newest = -1
    for part in parts:
        has_vector = ~part.blank & np.isin(part.vids, have)
        refused = ~part.blank & ~has_vector & np.isin(part.vids, skip)
        wanted = ~(part.blank | has_vector | refused) & (part.vids < below)
        missing.append((part.part, np.flatnonzero(wanted).astype(np.int32)))
        live += len(part.vids)
        blank += int(part.blank.sum())
        had += int(has_vector.sum())
        skipped += int(refused.sum())
        newest = max(newest, int(part.vids.max(initial=-1)))
    return Plan(tuple(_cut(missing)), live, blank, had, skipped, newest)


def _cut(missing: Sequence[tuple[PartRef, Offsets]]) -> Iterator[Descriptor]:
    """Cut into pieces: large ones are cheaper, but a small rebuild also wants its progress to be seen."""
    share = sum(len(rows) for _, rows in missing) // PIECES
    size = min(max(share, LEAST_ROWS), MOST_ROWS)
    for part, rows in missing:
        for at in range(0, len(rows), size):
            yield Descriptor(part, rows[at : at + size])


def read_plan(objects: Objects, snapshot: Snapshot, have: IntVector, skip: IntVector, below: int = EVERY_VID) -> Plan:
    """Plan a snapshot, reading one part after the other.

    Raises:
        MissingObjectError: compaction has removed a part meanwhile; take a new snapshot.
    """
    return plan((_rows(objects, ref) for ref in snapshot.parts), have, skip, below)


def _rows(objects: Objects, ref: PartRef) -> PartRows:
    table = read_part(objects, ref, columns=["vid", "text"])
    vids = table["vid"].to_numpy().astype(np.int64, copy=False)
    return PartRows(ref, vids, _blank(table["text"]))


def _blank(texts: pa.ChunkedArray) -> BoolVector:
    """Which texts have nothing to embed; one printable ASCII character settles almost all without Python."""
    unsure = np.flatnonzero(~pc.match_substring_regex(texts, "[!-~]").to_numpy())
    blank = np.zeros(len(texts), np.bool_)
    blank[unsure] = [not has_text(text) for text in texts.take(pa.array(unsure)).to_pylist()]
    return blank
