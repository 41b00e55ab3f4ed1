"""How often a space's index looks, tries again and saves."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Pace:
    """The timings and sizes of a space's index.

    Attributes:
        poll_s: How often the log is looked at when nobody says that it has grown.
        retry_s: The wait after an endpoint that did not answer, and after an error that nobody foresaw.
        batch_rows: Texts of one durable vector file of live ingest.
        save_growth: The graph is saved when it has grown by this share ...
        save_rows: ... and by more rows than this.
    """

    poll_s: float = 0.5
    retry_s: float = 5.0
    batch_rows: int = 256
    save_growth: float = 0.2
    save_rows: int = 1_000


DEFAULT_PACE = Pace()
