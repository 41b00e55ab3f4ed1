"""What can be set and called is told in the README, and how the tree is."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from compass.cli.main import main
from compass.settings import Settings

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
FOLDERS = sorted(folder.parent.name for folder in ROOT.glob("compass/*/__init__.py"))


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
    pages = README + (ROOT / "docs" / "operations.md").read_text()
    assert f"compass {name}" in pages


@pytest.mark.parametrize("folder", FOLDERS)
def test_each_folder_is_in_the_tree(folder: str) -> None:
    """With what it is for."""
    tree = README.split("## The tree")[1].split("```")[1]
    assert f"  {folder}/" in tree


def test_the_layers_are_told_as_they_are_held() -> None:
    """From the lowest to the highest, as import-linter reads them."""
    config = tomllib.loads((ROOT / "pyproject.toml").read_text())
    layers = config["tool"]["importlinter"]["contracts"][0]["layers"]
    page = " ".join((ROOT / "docs" / "architecture.md").read_text().split())
    assert f"``` {' ← '.join(reversed(layers))} ```" in page
