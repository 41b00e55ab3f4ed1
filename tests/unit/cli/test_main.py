"""The `compass` command says what is wrong in one line, and starts nothing."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from compass.cli.main import main


@pytest.mark.parametrize(
    ("arguments", "variables", "sentence"),
    [
        (["serve", "--port", "99999"], {}, "COMPASS_PORT"),
        (["serve"], {"COMPASS_LEASE_S": "soon"}, "COMPASS_LEASE_S"),
        (["serve"], {"COMPASS_DATA": "s3://bucket/compass"}, "keeps its data in a folder"),
        (["stop", "--data", "nowhere"], {}, "no `compass serve` runs on nowhere"),
    ],
)
def test_bad_settings_end_it_with_a_sentence(
    arguments: list[str], variables: dict[str, str], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit code 1, the setting's name, what is wrong with it; no traceback."""
    monkeypatch.chdir(tmp_path)
    done: Any = CliRunner().invoke(main, arguments, env=variables)
    assert done.exit_code == 1
    assert sentence in done.output
    assert "Traceback" not in done.output
    assert list(tmp_path.iterdir()) == []


def test_a_taken_port_is_told(tmp_path: Path) -> None:
    """Before Ray is started: which address, and why."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = CliRunner().invoke(main, ["serve", "--data", str(tmp_path / "data"), "--port", str(port)])
    assert done.exit_code == 1
    assert f"cannot listen on 127.0.0.1:{port}" in done.output
