"""The report of a dry run, for people to read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

Report = Mapping[str, Any]
WIDTH = 120  # of a log or a file
UNITS = ("B", "KB", "MB", "GB", "TB")


def show(report: Report, space: str, console: Console | None = None) -> None:
    """Print the report.

    Raises:
        ClickException: the rebuild would not end well; the report above says why.
    """
    out = console or Console(soft_wrap=True, highlight=False)
    if not out.is_terminal:
        out.width = WIDTH
    out.print(_endpoints(report))
    out.print(_whole(report, space))
    for failure in report["failures"]:
        sign = "[red]would fail[/red]" if failure["ends_run"] else "[yellow]note[/yellow]"
        out.print(f"{sign} {escape(failure['detail'])}")
        for chunk in failure.get("chunks", ()):
            named = f"{chunk['file_id']} #{chunk['chunk_index']} (chunk {chunk['id']}): {chunk['reason']}"
            out.print(f"  {escape(named)}")
    out.print(f"rests on: {escape(report['rests_on'])}; nothing was changed", style="dim")
    if any(failure["ends_run"] for failure in report["failures"]):
        raise click.ClickException(f"the rebuild of {space!r} would fail as it is ordered")


def _endpoints(report: Report) -> Table:
    table = Table(box=None)
    for name in ("endpoint", "docs/s", "tokens/s", "batch", ""):
        table.add_column(name, no_wrap=True, overflow="fold" if name == "endpoint" else "ellipsis")
    for one in report["endpoints"]:
        state = "fails" if one["error"] else "answers" if one["docs_per_s"] else "was not asked"
        tokens = _number(one["tokens_per_s"]["estimate"]) if one["tokens_per_s"] else "unknown"
        speed = _span(one["docs_per_s"], _number)
        table.add_row(escape(one["url"]), speed, tokens, str(one["batch_size"] or ""), state)
    return table


def _whole(report: Report, space: str) -> Table:
    chunks, time_s = report["chunks"], report["time_s"]
    table = Table(f"rebuild of {escape(space)}", "", box=None)
    table.add_row("chunks", f"{chunks['missing']:,} to embed of {chunks['total']:,}, {chunks['sampled']:,} sampled")
    table.add_row("docs/s together", _span(report["docs_per_s"], _number))
    table.add_row("time", _span(time_s["total"], duration))
    table.add_row("  embedding", _span(time_s["embedding"], duration))
    table.add_row("  building, beside it", _span(time_s["building"], duration))
    counted = {"server": "counted by the server", "characters": "guessed from characters"}
    by = counted.get(report["tokens_from"] or "", "")
    table.add_row("tokens", f"{_span(report['tokens'], _number)} {by}".strip())
    table.add_row("disk", f"{size(report['disk_bytes']['total'])}, at its peak {size(report['disk_bytes']['peak'])}")
    table.add_row("memory", size(report["memory_bytes"]["total"]))
    if report["cost"] is not None:
        budget = f", the budget is {report['budget']:g}" if report["budget"] else ""
        table.add_row("cost", _span(report["cost"], lambda x: f"{x:,.4g}") + budget)
    return table


def _span(span: Mapping[str, float] | None, say: Callable[[float], str]) -> str:
    if span is None:
        return "unknown"
    low, middle, high = (say(span[name]) for name in ("low", "estimate", "high"))
    return middle if low == high else f"{middle} ({low} to {high})"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:,.3g}"


def duration(seconds: float) -> str:
    """Seconds as people say them: `42 s`, `3 min 20 s`, `5 h 12 min`."""
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def size(count: float) -> str:
    """Bytes as people say them: `1.7 GB`."""
    for unit in UNITS[:-1]:
        if count < 1_000:
            return f"{count:.3g} {unit}"
        count /= 1_000
    return f"{count:.3g} {UNITS[-1]}"
