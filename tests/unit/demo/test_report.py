"""What the demo prints, and what makes it fail."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console

from compass.demo.report import DemoReport, Example, show

Printed = Callable[[DemoReport], str]

GOOD = DemoReport(
    chunks=6000,
    written_meanwhile=300,
    ingest_s=3.0,
    rebuild_s=4.0,
    old="words-256",
    new="words-512",
    before="words-256",
    after="words-512",
    swaps_ms=(31.4, 20.0, 25.0),
    missing=0,
    bytes_freed=6_200_000,
    queries=400,
    failed=0,
    p50_ms=8.0,
    p99_ms=30.0,
    examples=(Example("compress a file", ("gzip", "bz2"), ("gzip.open", "lzma")),),
)


@pytest.fixture
def printed() -> Printed:
    def show_plainly(report: DemoReport) -> str:
        out = io.StringIO()
        show(report, Console(file=out, width=100, force_terminal=False))
        return out.getvalue()

    return show_plainly


def test_a_good_report_says_what_was_measured(printed: Printed) -> None:
    """The rate, the queries, the spaces, the swap and the bytes stand in the output."""
    text = printed(GOOD)
    for words in (
        "6,000 (300 written",
        "1,500 docs/s",
        "400",
        "words-256",
        "31 ms",
        "6.2 MB",
        "gzip.open",
        "1,900 chunks/s",
    ):
        assert words in text
    assert "Problem" not in text
    assert GOOD.ok


def test_the_spaces_stand_side_by_side(printed: Printed) -> None:
    """The best of both spaces share a line, under the question."""
    lines = printed(GOOD).splitlines()
    asked = next(i for i, line in enumerate(lines) if "compress a file" in line)
    assert "gzip " in lines[asked + 1]
    assert "gzip.open" in lines[asked + 1]


def test_output_is_plain_without_a_terminal(printed: Printed) -> None:
    """No escape sequence reaches a log file."""
    assert "\x1b" not in printed(GOOD)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"failed": 1, "failures": ("status 503: [starting]",)}, "1 of 400 queries failed: status 503: [starting]"),
        ({"queries": 0}, "no query was answered"),
        ({"missing": 2}, "2 chunks are not in the space 'words-512'"),
        ({"after": "words-256"}, "'words-256' answered before and 'words-256' after"),
        ({"before": "words-512"}, "'words-512' answered before"),
        ({"bytes_freed": 0}, "freed nothing"),
    ],
)
def test_what_went_wrong_is_said_and_fails_the_report(printed: Printed, change: dict[str, Any], words: str) -> None:
    """Each promise that was not kept makes the report not ok and is named."""
    report = replace(GOOD, **change)
    assert not report.ok
    assert words in printed(report).replace("\n", " ")
