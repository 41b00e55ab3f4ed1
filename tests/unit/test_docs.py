"""What can be set and called is told in the README."""

from __future__ import annotations

from pathlib import Path

import pytest

from compass.cli.main import main
from compass.settings import Settings

README = (Path(__file__).parents[2] / "README.md").read_text()


@pytest.mark.parametrize("name", sorted(Settings.model_fields))
def test_each_setting_is_documented(name: str) -> None:
    """By the variable that sets it, with its default if that is a plain value."""
    rows = [line for line in README.splitlines() if line.startswith("|") and f"`COMPASS_{name.upper()}`" in line]
    assert len(rows) == 1
    default = Settings.model_fields[name].default
    if isinstance(default, int | float):
        assert f"`{default:g}`" in rows[0] or f"`{default}`" in rows[0]


@pytest.mark.parametrize("name", sorted(main.commands))
def test_each_command_is_documented(name: str) -> None:
    """Somewhere a newcomer sees it being used."""
    pages = README + (Path(__file__).parents[2] / "docs" / "operations.md").read_text()
    assert f"compass {name}" in pages
