"""What a rebuild will take and cost, from the figures of a pilot. Pure arithmetic: a sample in, an estimate out.

Every figure that is not simply counted is a `Span`: the best guess between a low and a high one. The spans are
meant to hold most of the time, not always: a pilot of a few seconds does not see what the endpoints do tomorrow.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from compass.domain.chunk import IntVector
from compass.domain.rebuild.budget import Price, guessed_tokens

GOLDEN = 0.6180339887498949  # its multiples, less their whole parts, fill 0..1 evenly, however many there are
BLOCKS = 5  # that the answers are cut into, to see how steady an endpoint is
UNSTEADY = 0.1  # of a speed that was measured for some seconds, at least
WILD = 0.9  # of one that rests on a single answer
ROUGH = 0.5  # of one that rests on very few answers, or on a moment
SHORT_S = 1.0
TOKENS_OFF = 0.1  # of tokens that a server counted in a sample
GUESSED_LOW, GUESSED_HIGH = 0.5, 2.0  # times the tokens that were guessed from characters
BUILD_LOW, BUILD_HIGH = 0.6, 1.8  # times the building, whose speed is measured on a far smaller graph
START_S = 3.0  # processes that start, and the last look before the activation
Z = 1.96  # of a 95 % interval

TokensFrom = Literal["server", "characters"]


@dataclass(frozen=True, slots=True)
class Span:
    """A figure that is not certain."""

    low: float
    estimate: float
    high: float

    @staticmethod
    def exactly(value: float) -> Span:
        """A figure that is certain."""
        return Span(value, value, value)

    @staticmethod
    def about(value: float, share: float) -> Span:
        """A figure, and so much of it more or less."""
        return Span(value * (1 - share), value, value * (1 + share))

    def map(self, change: Callable[[float], float]) -> Span:
        """Each of the three changed; `change` must not fall."""
        return Span(change(self.low), change(self.estimate), change(self.high))

    def __add__(self, other: Span) -> Span:
        return Span(self.low + other.low, self.estimate + other.estimate, self.high + other.high)

    def time_for(self, count: int) -> Span | None:
        """Seconds for so many, at this speed; None at a speed of zero."""
        if not count:
            return Span.exactly(0.0)
        return Span(count / self.high, count / self.estimate, count / self.low) if self.low > 0 else None

    def rounded(self) -> Span:
        """As it is shown: four digits are more than it knows."""
        return Span(*(float(f"{figure:.4g}") for figure in (self.low, self.estimate, self.high)))


@dataclass(frozen=True, slots=True)
class Answer:
    """A request that was answered: when, in seconds since the pilot began, and how many texts it took care of."""

    at_s: float
    docs: int


@dataclass(frozen=True, slots=True)
class Fault:
    """An error's type, and its sentence."""

    type: str
    detail: str


@dataclass(frozen=True, slots=True)
class Probed:
    """What a pilot saw of one endpoint.

    Attributes:
        endpoint: Without secrets.
        answers: In the order of their arrival; the first is that of the warm-up, and only begins the clock.
        docs: Texts that have a vector now.
        chars: Characters of those.
        tokens: Of those, as the server counted them; 0: it does not.
        refused: By position in the sample, why the endpoint takes a text for itself.
        taken: Positions in the sample of the texts that have a vector.
        fault: What ended it early.
    """

    endpoint: str
    answers: Sequence[Answer] = ()
    docs: int = 0
    chars: int = 0
    tokens: int = 0
    refused: Mapping[int, str] = field(default_factory=dict)
    taken: Sequence[int] = ()
    batch_size: int | None = None
    fault: Fault | None = None

    @property
    def docs_per_s(self) -> Span | None:
        """The speed while several requests were in flight; None without an answer."""
        return speed(self.answers)

    @property
    def tokens_per_doc(self) -> float:
        """Counted by the server, or guessed from the characters."""
        return (self.tokens or guessed_tokens(self.chars)) / self.docs if self.docs else 0.0

    @property
    def tokens_from(self) -> TokensFrom:
        """Who says how many tokens there are."""
        return "server" if self.tokens else "characters"


@dataclass(frozen=True, slots=True)
class Work:
    """What a rebuild has to do.

    Attributes:
        total: Live chunks.
        embeddable: Those of them with a text.
        lengths: Characters of the text of each chunk that has no vector.
    """

    total: int
    embeddable: int
    lengths: IntVector

    @property
    def missing(self) -> int:
        """Chunks to embed."""
        return len(self.lengths)


@dataclass(frozen=True, slots=True)
class Built:
    """A small graph that was built for a measure: from `first` to `last` rows in `seconds`, with a beam of `ef`."""

    first: int
    last: int
    seconds: float
    ef: int

    def time_for(self, have: int, rows: int) -> Span:
        """Seconds to grow a graph from `have` to `rows` rows.

        A row costs in proportion to ln(1 + k / 2 ef) in a graph of k rows: measured with 128 and 384 dims from
        1,000 to 32,000 rows, where it held within a fifth.
        """
        share = self._work(have, rows) / self._work(self.first, self.last)
        return Span(BUILD_LOW, 1.0, BUILD_HIGH).map(lambda x: x * share * self.seconds)

    def _work(self, first: int, last: int) -> float:
        knee = 2.0 * self.ef
        return max(0.0, _integral(last / knee) - _integral(first / knee))


@dataclass(frozen=True, slots=True)
class SpaceSize:
    """Bytes of a whole space: its files, its saved graph, and both halves of it in memory."""

    vector_files: int
    graph_file: int
    graph_memory: int
    rows_memory: int


@dataclass(frozen=True, slots=True)
class Terms:
    """What the order says that bears on the estimate."""

    endpoints: int
    max_docs_per_s: float | None = None
    max_failed: int = 0
    price: Price = field(default_factory=Price)
    budget: float | None = None


def sample_order(lengths: IntVector, most: int) -> IntVector:
    """Up to `most` positions, of which every first few are spread evenly over the quantiles of the lengths.

    The longest comes first and the shortest second, so that a text that is too long is met. Deterministic.
    """
    count = len(lengths)
    by_length = np.argsort(lengths, kind="stable")[::-1]
    turns = (np.arange(1, 4 * min(most, count) + 1) * GOLDEN) % 1.0
    ranks = np.concatenate([[0, count - 1], (turns * count).astype(np.int64), np.arange(count)])[: 8 * most]
    _, first = np.unique(ranks, return_index=True)
    order = ranks[np.sort(first)][: min(most, count)]
    return np.asarray(by_length[order], np.int64)


def speed(answers: Sequence[Answer]) -> Span | None:
    """Texts a second between the first answer and the last; None without an answer.

    Where there are not two that lie apart, it is by the time that the first took, and not to be relied on.
    """
    if not answers or answers[-1].at_s <= 0:
        return None
    if answers[-1].at_s <= answers[0].at_s:
        return Span.about(sum(a.docs for a in answers) / answers[-1].at_s, WILD)
    measured_s = answers[-1].at_s - answers[0].at_s
    rate = sum(a.docs for a in answers[1:]) / measured_s
    blocks = [answers[i : j + 1] for i, j in _cuts(len(answers) - 1)]
    rates = [sum(a.docs for a in b[1:]) / (b[-1].at_s - b[0].at_s) for b in blocks if b[-1].at_s > b[0].at_s]
    if len(rates) < BLOCKS or measured_s < SHORT_S:
        return Span.about(rate, ROUGH)
    spread = Z * statistics.stdev(rates) / math.sqrt(len(rates)) / rate
    return Span.about(rate, min(max(UNSTEADY, spread), 0.9))


def fleet_speed(probed: Sequence[Probed], max_docs_per_s: float | None) -> Span | None:
    """The sum over the endpoints, and no more than the order allows; None: none answers."""
    speeds = [s for s in (p.docs_per_s for p in probed) if s is not None]
    if not speeds:
        return None
    total = sum(speeds[1:], speeds[0])
    return total if max_docs_per_s is None else total.map(lambda x: min(x, max_docs_per_s))


def refused_in_all(probed: Probed, sampled: IntVector, lengths: IntVector) -> Span:
    """How many chunks an endpoint will refuse for themselves.

    Where every refused text of the sample is longer than every one that was taken, length decides, and all are
    counted that are as long. Else it is the share of the sample (Wilson's interval).
    """
    bad, good = sampled[list(probed.refused)], sampled[list(probed.taken)]
    if not len(bad):
        return Span.exactly(0.0)
    if not len(good) or lengths[bad].min() > lengths[good].max():
        least = int((lengths >= lengths[bad].min()).sum())
        most = int((lengths > (lengths[good].max() if len(good) else -1)).sum())
        return Span(least, (least + most) / 2, most)
    answered = len(bad) + len(good)
    low, high = _wilson(len(bad), answered)
    missing = len(lengths)
    return Span(max(len(bad), low * missing), max(len(bad), len(bad) / answered * missing), high * missing)


def tokens_in_all(probed: Sequence[Probed], sampled: IntVector, lengths: IntVector) -> tuple[Span, TokensFrom] | None:
    """Tokens of everything that is missing, in proportion to the lengths of texts; None: nothing was answered."""
    answered = [p for p in probed if p.docs]
    if not answered:
        return None
    chars = sum(int(lengths[sampled[list(p.taken)]].sum()) for p in answered)
    tokens = sum(p.tokens_per_doc * p.docs for p in answered)
    total = tokens * float(lengths.sum()) / max(1, chars)
    if all(p.tokens_from == "server" for p in answered):
        return Span.about(total, TOKENS_OFF), "server"
    return Span(total * GUESSED_LOW, total, total * GUESSED_HIGH), "characters"


def times(work: Work, docs_per_s: Span | None, built: Built | None) -> dict[str, Span | None]:
    """Seconds for embedding and for building, which go on side by side, and for all."""
    embedding = docs_per_s.time_for(work.missing) if docs_per_s is not None else None
    if not work.missing:
        embedding = Span.exactly(0.0)
    building = built.time_for(work.embeddable - work.missing, work.embeddable) if built is not None else None
    total = None
    if embedding is not None:
        beside = building or Span.exactly(0.0)
        pairs = [(getattr(embedding, n), getattr(beside, n)) for n in ("low", "estimate", "high")]
        total = Span(*(max(pair) for pair in pairs)) + Span.exactly(START_S)
    return {"embedding": embedding, "building": building, "total": total}


def cost(terms: Terms, tokens: Span | None, total_s: Span | None) -> Span | None:
    """What it will cost; None where the order names no price, or nothing is known to go by."""
    price = terms.price
    if price.per_million_tokens is not None:
        return tokens.map(lambda n: n * price.of_token) if tokens is not None else None
    if price.per_hour is None or total_s is None:
        return None
    return total_s.map(lambda s: price.of_time(s, terms.endpoints))


def _cuts(count: int) -> list[tuple[int, int]]:
    edges = [round(i * count / BLOCKS) for i in range(BLOCKS + 1)]
    return [(a, b) for a, b in itertools.pairwise(edges) if b > a]


def _integral(x: float) -> float:
    """Of ln(1 + x)."""
    return (1 + x) * math.log1p(x) - x


def _wilson(hits: int, trials: int) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson, 1927)."""
    share, z2 = hits / trials, Z * Z
    middle = (share + z2 / (2 * trials)) / (1 + z2 / trials)
    half = Z * math.sqrt(share * (1 - share) / trials + z2 / (4 * trials * trials)) / (1 + z2 / trials)
    return max(0.0, middle - half), min(1.0, middle + half)
