"""How much an endpoint is given at once: requests in flight, and texts in one of them. Pure; no clock of its own.

The window follows additive increase, multiplicative decrease (Chiu and Jain, 1989): it grows by one for each
window of good answers while the latency stays low, and is halved when the endpoint refuses. Where it was refused
is remembered, so that it stays just below instead of running into the same wall again and again.
"""

from __future__ import annotations

from dataclasses import dataclass

FIRST_WINDOW = 4
MOST_REQUESTS = 256
SLOW = 2.0  # times the best latency: what is added now only queues at the endpoint
HOLD_WINDOWS = 30  # how long it first stays below a known limit before it tries beyond
HURRY = 4  # so many times shorter after each try that was taken: the limit has moved, by how much is not known

FIRST_BATCH = 32  # TEI's own default limit; where a server does not say what it takes, begin here
MOST_TEXTS = 256
PROOFS = 4  # good answers at a size before a larger one is tried
WORSE = 1.5  # times the seconds per text: a larger batch that costs so much more is not worth its wait


@dataclass(slots=True)
class Window:
    """Requests that may be in flight at one endpoint.

    Attributes:
        size: The window, at least 1.
        ceiling: The most that it has taken without a refusal, once it has refused; None before.
    """

    size: int = FIRST_WINDOW
    ceiling: int | None = None
    _good: int = 0  # answers since the size last changed
    _held: int = 0  # windows since the ceiling was met
    _hold: int = HOLD_WINDOWS  # how many of them it waits before it tries beyond
    _latency_s: float = 0.0  # of those answers, their sum
    _best_s: float | None = None
    _cut_at: float = float("-inf")

    def answered(self, latency_s: float) -> None:
        """Count a good answer to a full batch."""
        self._good, self._latency_s = self._good + 1, self._latency_s + latency_s
        if self._good >= self.size:
            self._consider(self._latency_s / self._good)

    def refused(self, sent_at: float, now: float) -> None:
        """Count a refusal (429, or a timeout) of a request sent at `sent_at`, on the clock of `now`.

        Those sent before the last cut are of the same flight, and say nothing new.
        """
        if sent_at < self._cut_at:
            return
        tried_beyond = self.ceiling is not None and self.size == self.ceiling + 1
        if tried_beyond and self.ceiling is not None:
            self._resize(self.ceiling)  # a known limit: one step back is enough
        else:
            self.ceiling = max(1, self.size - 1)
            self._resize(max(1, self.size // 2))
        self._cut_at, self._held, self._hold = now, 0, HOLD_WINDOWS

    def restart(self) -> None:
        """Begin again with what is known of the limit: the endpoint was away."""
        self._resize(min(FIRST_WINDOW, self.ceiling or FIRST_WINDOW))

    def other_batches(self) -> None:
        """Forget the latencies: batches have another size from now on."""
        self._best_s = None
        self._good, self._latency_s = 0, 0.0

    def _consider(self, mean_s: float) -> None:
        """A window of good answers: grow, unless that would only queue, or is known to be refused."""
        best_s = mean_s if self._best_s is None else min(mean_s, self._best_s)
        slow = mean_s > SLOW * best_s
        self._best_s = best_s
        self._good, self._latency_s = 0, 0.0
        if slow or self.size >= MOST_REQUESTS:
            return
        if self.ceiling is not None and self.size > self.ceiling:
            self.ceiling, self._held, self._hold = self.size, 0, max(1, self._hold // HURRY)
        if self.size == self.ceiling:
            self._held += 1
            if self._held < self._hold:
                return
            self._held = 0
        self._resize(self.size + 1)

    def _resize(self, size: int) -> None:
        self.size, self._good, self._latency_s = size, 0, 0.0


@dataclass(slots=True)
class BatchSize:
    """Texts of one request to one endpoint.

    Attributes:
        size: The texts to send.
        limit: The most that it may ever be: what the caller or the server says, or what was refused; None: not known.
    """

    size: int = FIRST_BATCH
    limit: int | None = None
    _proven: int = 0  # the largest size that was answered
    _good: int = 0
    _seconds: float = 0.0  # per text, the sum over the good answers at this size
    _before: float | None = None  # seconds per text at half of this size

    @staticmethod
    def of(wanted: int | None, server: int | None) -> BatchSize:
        """What the caller wants, and no more than the server says; neither known: to be learnt."""
        known = [size for size in (wanted, server) if size is not None]
        return BatchSize(min(known), min(known)) if known else BatchSize()

    @property
    def settled(self) -> bool:
        """Whether it will not grow any more."""
        return self.size >= (self.limit or MOST_TEXTS)

    def is_proven(self, count: int) -> bool:
        """Whether so many texts were answered in one request before."""
        return count <= self._proven

    def answered(self, count: int, latency_s: float) -> bool:
        """Count a good answer to `count` texts; True when the size has changed."""
        self._proven = max(self._proven, count)
        if count < self.size or self.settled:
            return False
        self._good, self._seconds = self._good + 1, self._seconds + latency_s / count
        if self._good < PROOFS:
            return False
        per_text = self._seconds / self._good
        if self._before is not None and per_text > WORSE * self._before:
            self.limit = self.size // 2
            return self._resize(self.limit, None)
        return self._resize(min(2 * self.size, self.limit or MOST_TEXTS), per_text)

    def refused(self, count: int, limit: int) -> bool:
        """Remember that `count` texts were too many, and `limit` is the most to send; True: the size has changed."""
        self.limit = max(1, min(limit, count - 1, self.limit or limit))
        return self._resize(min(self.size, self.limit), None)

    def _resize(self, size: int, before: float | None) -> bool:
        changed = size != self.size
        self.size, self._before, self._good, self._seconds = size, before, 0, 0.0
        return changed
