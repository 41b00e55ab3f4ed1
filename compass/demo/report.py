"""What the demo measured, and how it is shown."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import zip_longest

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True, slots=True)
class Example:
    """The same question to both spaces: the names of the best chunks of each."""

    query: str
    old: tuple[str, ...]
    new: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class DemoReport:
    """What one run of the main job measured.

    Attributes:
        chunks: Chunks in the collection, those written during the rebuild included.
        written_meanwhile: How many were written while the rebuild ran.
        rebuild_s: From the POST until the space was active.
        old, new: The spaces' names.
        before, after: The space that answered an unnamed query before the first and after the last swap.
        swaps_ms: Each PUT of the default: swap, roll back, swap.
        missing: Live chunks that the new space did not hold at the end.
        bytes_freed: By dropping the old space: of the data folder, or as the space's own count said.
    """

    chunks: int
    written_meanwhile: int
    ingest_s: float
    rebuild_s: float
    old: str
    new: str
    before: str
    after: str
    swaps_ms: tuple[float, ...]
    missing: int
    bytes_freed: int
    queries: int
    failed: int
    p50_ms: float
    p99_ms: float
    failures: tuple[str, ...] = ()
    examples: tuple[Example, ...] = field(default=())

    @property
    def docs_per_s(self) -> float:
        """Chunks embedded, stored and indexed per second of the rebuild."""
        return self.chunks / self.rebuild_s if self.rebuild_s else 0.0

    @property
    def problems(self) -> list[str]:
        """What did not go as promised; empty after a good run."""
        found = []
        if self.failed:
            found.append(f"{self.failed} of {self.queries} queries failed: {'; '.join(self.failures)}")
        if not self.queries:
            found.append("no query was answered")
        if self.missing:
            found.append(f"{self.missing} chunks are not in the space {self.new!r}")
        if (self.before, self.after) != (self.old, self.new):
            found.append(f"{self.before!r} answered before and {self.after!r} after the swap")
        if self.bytes_freed <= 0:
            found.append("dropping the old space freed nothing")
        return found

    @property
    def ok(self) -> bool:
        """Whether everything went as promised."""
        return not self.problems


def show(report: DemoReport, console: Console) -> None:
    """Print the report: the example searches, the figures, and the verdict."""
    if report.examples:
        console.print(_examples(report))
    console.print(_figures(report))
    if report.ok:
        console.print("The model was swapped, and no query noticed.", style="green")
    for problem in report.problems:
        console.print(f"Problem: {problem}", style="red", markup=False)


def _figures(report: DemoReport) -> Table:
    table = Table(title="What was measured", show_header=False, title_justify="left")
    for name, value in figures(report):
        table.add_row(name, value)
    return table


def figures(report: DemoReport) -> list[tuple[str, str]]:
    """The report as (name, value) for people."""
    ingested = report.chunks - report.written_meanwhile
    swap, back, again = (*report.swaps_ms, 0.0, 0.0, 0.0)[:3]
    return [
        ("chunks", f"{report.chunks:,} ({report.written_meanwhile:,} written during the rebuild)"),
        (
            "ingest",
            f"{ingested / report.ingest_s if report.ingest_s else 0:,.0f} chunks/s, embedded and durable",
        ),
        ("rebuild", f"{report.docs_per_s:,.0f} docs/s, {report.rebuild_s:.1f} s"),
        ("queries answered", f"{report.queries - report.failed:,}"),
        ("queries failed", f"{report.failed:,}"),
        ("query latency", f"p50 {report.p50_ms:.1f} ms, p99 {report.p99_ms:.1f} ms"),
        ("answered before", report.before),
        ("answered after", report.after),
        ("swap", f"{swap:.0f} ms (rolled back in {back:.0f} ms, swapped again in {again:.0f} ms)"),
        ("freed on disk", f"{report.bytes_freed / 1e6:,.1f} MB"),
    ]


def _examples(report: DemoReport) -> Table:
    table = Table(title="The same question to both: the best three", title_justify="left")
    for space in (report.old, report.new):
        table.add_column(space, overflow="fold")
    for example in report.examples:
        table.add_row(f"“{example.query}”", style="bold")
        for names in zip_longest(example.old, example.new, fillvalue=""):
            table.add_row(*names)
        table.add_section()
    return table
