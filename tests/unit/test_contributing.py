"""What the pages name is there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = ("README.md", "CONTRIBUTING.md", "SECURITY.md", *(f"docs/{page.name}" for page in ROOT.glob("docs/*.md")))
AT_ROOT = re.compile(r"\.?[\w-]+\.(md|toml|yaml)|LICENSE|justfile")
BELOW = re.compile(r"(compass|docs|tests|\.ci|cluster|notebooks)/[\w./-]*")


def code_spans(page: str) -> list[str]:
    """What stands between backticks outside blocks of code."""
    prose = re.sub(r"```.*?```", "", (ROOT / page).read_text(), flags=re.DOTALL)
    return re.findall(r"`([^`\n]+)`", prose)


def paths(page: str) -> Iterator[str]:
    """The files and folders that a page names, as seen from the root."""
    for span in code_spans(page):
        if AT_ROOT.fullmatch(span) or BELOW.fullmatch(span):
            yield span
    for link in re.findall(r"\]\(([^)#:]+)\)", (ROOT / page).read_text()):
        yield str((ROOT / page).parent.joinpath(link).resolve().relative_to(ROOT))


RECIPES = sorted({span.split()[1] for span in code_spans("CONTRIBUTING.md") if span.startswith("just ")})
NAMED = sorted({(page, path) for page in PAGES for path in paths(page)})


def test_recipes_and_paths_are_found_in_the_page() -> None:
    """Else the tests below would pass on a page that they cannot read."""
    assert {"check", "quick", "all"} <= set(RECIPES)
    named = {path for page, path in NAMED if page == "CONTRIBUTING.md"}
    assert {"docs/architecture.md", "compass/domain/routing/publication.py", "justfile", "LICENSE"} <= named


@pytest.mark.parametrize("recipe", RECIPES)
def test_each_recipe_is_in_the_justfile(recipe: str) -> None:
    """Who types it gets more than a list of what there is."""
    assert re.search(rf"^{recipe}\b[^=\n]*:(?!=)", (ROOT / "justfile").read_text(), re.MULTILINE)


@pytest.mark.parametrize(("page", "path"), NAMED)
def test_each_path_is_there(page: str, path: str) -> None:
    """A file that has moved is told by its new name."""
    assert (ROOT / path).exists(), page


def test_the_recipes_run_the_readmes_tests() -> None:
    """The justfile and the README do not drift apart."""
    recipes = (ROOT / "justfile").read_text().replace("{{ python }}", ".venv/bin/python")
    lines = [line for line in (ROOT / "README.md").read_text().splitlines() if ".venv/bin/python -m pytest" in line]
    assert len(lines) == 2
    assert [line for line in lines if line not in recipes] == []
