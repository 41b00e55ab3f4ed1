"""How long a rebuild's run waits for what."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RunTimings:
    """Seconds.

    Attributes:
        report_s: How often the stored progress moves.
        stall_s: Nothing lands for so long: somebody should look.
        check_model_s: How often stored texts are embedded again, to find a model that was changed under way.
        follow_s: How long the index may follow before it is asked again what it lacks.
        last_word_s: What an ended run may still wait for, so that a cancel takes less than two seconds.
    """

    report_s: float = 1.0
    stall_s: float = 60.0
    check_model_s: float = 30.0
    follow_s: float = 2.0
    last_word_s: float = 1.0


DEFAULT_TIMINGS = RunTimings()
