"""`compass rebuild` talks HTTP to a running service, and shows a bar where somebody looks."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from click.testing import CliRunner

from compass.cli.rebuild import HttpClient, bar, command
from compass.errors import CompassError, NotFoundError, RebuildRunningError, UnavailableError

ARGS = ["--collection", "docs", "--space", "new"]


class FakeService(BaseHTTPRequestHandler):
    """Answers the two calls from a script of (status, body)."""

    script: list[tuple[int, Any]]
    asked: list[tuple[str, str, str | None, Any]]

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        kind = type(self)
        kind.asked.append((self.command, self.path, self.headers.get("authorization"), json.loads(body or b"null")))
        status, said = kind.script.pop(0) if len(kind.script) > 1 else kind.script[0]
        raw = said if isinstance(said, bytes) else json.dumps(said).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    do_GET = do_POST = _answer  # noqa: N815 - the names that the server looks for

    def log_message(self, *args: Any) -> None:
        return


@contextlib.contextmanager
def answering(*script: tuple[int, Any]) -> Iterator[tuple[str, type[FakeService]]]:
    kind = type("Scripted", (FakeService,), {"script": list(script), "asked": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), kind)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", kind
    finally:
        server.shutdown()
        server.server_close()


def status(state: str, percent: float, **more: Any) -> dict[str, Any]:
    counts = {"embedded": int(percent), "total": 100, "failed": 0, "docs_per_s": 5.0, "eta_s": 3.0}
    return {"percent": percent, **counts, "run": {"state": state}, "endpoints": [], **more}


def test_it_orders_watches_and_ends_with_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """The order carries the options and the key; without a terminal the progress is lines; done is exit code 0."""
    monkeypatch.setenv("COMPASS_API_KEY", "k")
    down = {"url": "http://b/embed", "state": "down", "last_error": "connection refused"}
    script = [(202, {"job_id": "j"}), (200, status("running", 40, endpoints=[down])), (200, status("done", 100))]
    with answering(*script) as (url, service):
        result = CliRunner().invoke(command, ["--url", url, *ARGS, "--batch-size", "8", "--reason", "new model"])
    assert (result.exit_code, "40.00 %" in result.output, "100.00 %" in result.output) == (0, True, True)
    assert "http://b/embed is down: connection refused" in result.output
    assert service.asked[0] == (
        "POST",
        "/collections/docs/vector-spaces/new/rebuild",
        "Bearer k",
        {"batch_size": 8, "reason": "new model"},
    )


def test_a_dry_run_is_one_call_that_may_take_long() -> None:
    """It is ordered with its prices, and what comes back is shown; nothing is watched."""
    span = {"low": 1.0, "estimate": 2.0, "high": 3.0}
    report: dict[str, Any] = {
        "chunks": {"total": 4, "without_text": 0, "embedded": 1, "missing": 3, "sampled": 3},
        "endpoints": [],
        "docs_per_s": span,
        "tokens": span,
        "tokens_from": "server",
        "time_s": {"embedding": span, "building": span, "total": span},
        "disk_bytes": {"total": 1, "peak": 2},
        "memory_bytes": {"total": 3},
        "cost": span,
        "budget": None,
        "failures": [],
        "rests_on": "3 texts",
    }
    with answering((200, report)) as (url, service):
        result = CliRunner().invoke(command, ["--url", url, *ARGS, "--dry-run", "--cost-per-hour", "2"])
    assert result.exit_code == 0, result.output
    assert "2 s (1 s to 3 s)" in result.output
    assert [asked[3] for asked in service.asked] == [{"dry_run": True, "cost_per_hour": 2.0}]


def test_a_failed_run_is_exit_code_1() -> None:
    """With the reason, and what to do."""
    with answering((202, {"job_id": "j"}), (200, status("failed", 40, error="the GPU is gone"))) as (url, _):
        result = CliRunner().invoke(command, ["--url", url, *ARGS])
    assert result.exit_code == 1
    assert "the GPU is gone" in result.output
    assert "start it again" in result.output


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        ((409, {"type": "rebuild-running", "detail": "runs"}), RebuildRunningError),
        ((404, {"type": "not-found", "detail": "no space"}), NotFoundError),
        ((503, b"<html>"), UnavailableError),
        ((422, {"type": "invalid-request", "detail": "bad"}), CompassError),
    ],
)
def test_problems_are_the_errors_that_they_name(answer: tuple[int, Any], kind: type[CompassError]) -> None:
    """So that a running rebuild is joined, and an absent service is waited for."""
    with answering(answer) as (url, _), pytest.raises(kind):
        HttpClient(url, None).rebuild("docs", "new")


def test_nobody_there_is_said_with_the_address() -> None:
    """Not a stack trace."""
    result = CliRunner().invoke(command, ["--url", "http://127.0.0.1:9", *ARGS])
    assert result.exit_code == 1
    assert "no Compass answers at http://127.0.0.1:9" in result.output


def test_the_bar_shows_counts_speed_and_complaints(capsys: pytest.CaptureFixture[str]) -> None:
    """Each complaint once."""
    with bar() as show:
        for _ in range(3):
            show(status("running", 40, error="no endpoint answers"))
        show(status("running", 80))
    shown = capsys.readouterr().out
    assert shown.count("no endpoint answers") == 1
    assert "80/100" in shown
    assert "5/s" in shown
