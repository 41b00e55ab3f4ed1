"""`python -m compass.rebuild` starts or joins, shows progress, and its exit code says how the run ended."""

from __future__ import annotations

import runpy
import signal
import sys
from typing import Any

import pytest
from click.testing import CliRunner

from compass.cli.rebuild_job import TIMING, Timing, main, watch
from compass.client import handle as client_module
from compass.errors import DefaultSpaceError, RebuildRunningError, UnavailableError

ARGS = ["--collection", "docs", "--space", "new"]


def status(state: str, percent: float = 50.0, **more: Any) -> dict[str, Any]:
    return {
        "progress": percent / 100,
        "percent": percent,
        "embedded": 1_500,
        "total": 3_000,
        "failed": 0,
        "docs_per_s": 250.0,
        "eta_s": 6.0,
        "run": {"state": state, "job_id": "j", "started_at": 1.0},
        **more,
    }


class ScriptedClient:
    """Answers what a test has prepared, and keeps what it was asked."""

    def __init__(self, *answers: Any, start_error: Exception | None = None, estimate: Any = None) -> None:
        self.answers, self.start_error, self.estimate = list(answers), start_error, estimate
        self.started: list[dict[str, Any]] = []
        self.start_answer: dict[str, Any] = {"status": "building", "job_id": "j"}

    def rebuild(self, collection: str, space: str, **fields: Any) -> Any:
        self.started.append({"collection": collection, "space": space, **fields})
        if self.start_error:
            raise self.start_error
        if self.estimate is not None:
            return self.estimate
        return {"status": "building", "job_id": "j"}

    def rebuild_status(self, collection: str, space: str) -> Any:
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, BaseException):
            raise answer
        return dict(answer)


def report(*failures: dict[str, Any]) -> dict[str, Any]:
    span = {"low": 90.0, "estimate": 100.0, "high": 110.0}
    return {
        "chunks": {"total": 3_000, "without_text": 0, "embedded": 1_000, "missing": 2_000, "sampled": 341},
        "endpoints": [
            {"url": "http://a/embed", "docs_per_s": span, "tokens_per_s": span, "batch_size": 32, "error": None},
            {
                "url": "http://b/embed",
                "docs_per_s": None,
                "tokens_per_s": None,
                "batch_size": None,
                "error": "is [down]",
            },
        ],
        "docs_per_s": span,
        "tokens": span,
        "tokens_from": "characters",
        "time_s": {"embedding": {"low": 8_000, "estimate": 9_000, "high": 11_000}, "building": None, "total": span},
        "disk_bytes": {"total": 1_700_000_000, "peak": 3_400_000_000},
        "memory_bytes": {"total": 2_500_000_000},
        "cost": span,
        "budget": 105.0,
        "failures": list(failures),
        "rests_on": "341 texts",
    }


def invoke(monkeypatch: pytest.MonkeyPatch, client: ScriptedClient, *arguments: str) -> Any:
    monkeypatch.setattr(client_module, "connect", lambda: client)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    return CliRunner().invoke(main, [*ARGS, *arguments], obj=Timing(poll_s=0.001))


def test_starts_watches_and_ends_well(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that is done exits 0; its order holds what was said and nothing else."""
    client = ScriptedClient(status("running"), status("done", 100.0))
    arguments = ["--embed-endpoint", "http://a", "--embed-endpoint", "http://b", "--batch-size", "8"]
    done = invoke(monkeypatch, client, *arguments)
    assert done.exit_code == 0, done.output
    assert client.started == [
        {"collection": "docs", "space": "new", "embed_endpoint": ["http://a", "http://b"], "batch_size": 8}
    ]
    assert "50.00 %  1,500 of 3,000 chunks  250/s  6 s to go" in done.output
    assert "100.00 %" in done.output


def test_a_dry_run_is_shown_and_nothing_is_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    """The order says so; the report has speeds, times, sizes, cost and what they rest on."""
    client = ScriptedClient(estimate=report())
    arguments = ["--dry-run", "--budget", "105", "--cost-per-million-tokens", "0.5"]
    done = invoke(monkeypatch, client, *arguments)
    assert done.exit_code == 0, done.output
    order = {"dry_run": True, "budget": 105.0, "cost_per_million_tokens": 0.5}
    assert client.started == [{"collection": "docs", "space": "new", **order}]
    for said in (
        "http://a/embed",
        "http://b/embed  unknown",
        "2,000 to embed of 3,000, 341 sampled",
        "2 h 30 min (2 h 13 min to 3 h 3 min)",
        "guessed from characters",
        "1.7 GB, at its peak 3.4 GB",
        "100 (90 to 110), the budget is 105",
        "341 texts; nothing was changed",
    ):
        assert said in done.output


def test_a_dry_run_of_what_would_fail_exits_non_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    """With each reason, and the chunks that would be refused; what only concerns one endpoint is a note."""
    chunk = {"id": 9, "file_id": "guide", "chunk_index": 4, "reason": "longer than 512 tokens"}
    refusals = {"type": "chunks-refused", "detail": "refuses 1 of 341", "ends_run": True, "chunks": [chunk]}
    down = {"type": "endpoint-unavailable", "detail": "b is down", "ends_run": False}
    done = invoke(monkeypatch, ScriptedClient(estimate=report(down, refusals)), "--dry-run")
    assert done.exit_code == 1
    assert "would fail refuses 1 of 341" in done.output
    assert "guide #4 (chunk 9): longer than 512 tokens" in done.output
    assert "note b is down" in done.output
    assert "would fail as it is ordered" in done.stderr
    assert invoke(monkeypatch, ScriptedClient(estimate=report(down)), "--dry-run").exit_code == 0


def test_what_a_run_has_spent_is_in_its_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where its order names a price."""
    paid = status("done", cost={"spent": 3.25, "budget": 10.0})
    assert "3.25 of 10 spent" in invoke(monkeypatch, ScriptedClient(paid)).output


def test_a_stall_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the service says of a run that goes on stands in its line."""
    stalled = status("running", eta_s=None, error="nothing has landed for 75 s")
    assert "nothing has landed for 75 s" in invoke(monkeypatch, ScriptedClient(stalled, status("done"))).output


def test_joins_a_run_that_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rebuild that somebody else has started is watched, not refused."""
    client = ScriptedClient(status("done", 100.0), start_error=RebuildRunningError("running"))
    done = invoke(monkeypatch, client)
    assert done.exit_code == 0
    assert "joining" in done.output


def test_a_restart_joins_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who asked to empty the space must not be told that another run did it."""
    client = ScriptedClient(status("done"), start_error=RebuildRunningError("a rebuild is running"))
    done = invoke(monkeypatch, client, "--restart")
    assert done.exit_code == 1
    assert "a rebuild is running" in done.stderr


@pytest.mark.parametrize("state", ["failed", "cancelled"])
def test_a_run_that_is_not_done_exits_non_zero(monkeypatch: pytest.MonkeyPatch, state: str) -> None:
    """The reason is on stderr, and that the work is kept."""
    done = invoke(monkeypatch, ScriptedClient(status(state, error="http://a answered 401")))
    assert done.exit_code == 1
    assert state in done.stderr
    assert "http://a answered 401" in done.stderr
    assert "is kept" in done.stderr


def test_a_refused_order_exits_non_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the service says against the order is on stderr, without a traceback."""
    done = invoke(monkeypatch, ScriptedClient(status("done"), start_error=DefaultSpaceError("is the default")))
    assert done.exit_code == 1
    assert done.stderr.strip() == "Error: is the default"


def test_ctrl_c_leaves_the_rebuild_running(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ending the watcher is not ending the rebuild, and it says so."""
    done = invoke(monkeypatch, ScriptedClient(status("running"), KeyboardInterrupt()))
    assert done.exit_code == 130
    assert "goes on" in done.stderr


def test_a_gateway_that_is_away_for_a_moment_ends_nothing() -> None:
    """The watcher outlives a rollout, but not a service that stays away."""
    now = [0.0]

    def sleep(seconds: float) -> None:
        now[0] += 1.0

    away = UnavailableError("no gateway")
    back = ScriptedClient(away, away, status("done", 100.0))
    assert watch(back, "docs", "new", sleep=sleep, clock=lambda: now[0]) is None
    with pytest.raises(UnavailableError):
        watch(ScriptedClient(away), "docs", "new", sleep=sleep, clock=lambda: now[0])
    assert now[0] > TIMING.away_s


def test_says_something_every_two_seconds(capsys: pytest.CaptureFixture[str]) -> None:
    """A long run prints a line every two seconds, whatever the poll, and one more when the state changes."""
    now = [0.0]

    def sleep(seconds: float) -> None:
        now[0] += 0.5

    answers = [status("running")] * 20 + [status("done", 100.0)]
    assert watch(ScriptedClient(*answers), "docs", "new", sleep=sleep, clock=lambda: now[0]) is None
    assert len(capsys.readouterr().out.splitlines()) == 5 + 1


def test_runs_as_a_module(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """`python -m compass.rebuild --help` names every option."""
    monkeypatch.setattr(sys, "argv", ["compass.rebuild", "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("compass.rebuild", run_name="__main__")
    assert ended.value.code == 0
    said = capsys.readouterr().out
    for option in ("--collection", "--space", "--embed-endpoint", "--batch-size", "--api-key-env", "--restart"):
        assert option in said
