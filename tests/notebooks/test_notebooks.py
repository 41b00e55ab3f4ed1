"""Every notebook runs from top to bottom, and is kept without outputs."""

from __future__ import annotations

import os
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbformat import NotebookNode

NOTEBOOKS = sorted(Path(__file__).parents[2].joinpath("notebooks").glob("*.ipynb"))


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def notebook(request: pytest.FixtureRequest) -> NotebookNode:
    read: NotebookNode = nbformat.read(request.param, as_version=4)  # type: ignore[no-untyped-call]
    return read


def test_there_are_notebooks() -> None:
    """An empty folder would make the tests below pass without a notebook."""
    assert NOTEBOOKS


def test_a_notebook_is_valid_and_kept_without_outputs(notebook: NotebookNode) -> None:
    """Outputs tell of the machine that wrote them and make every diff unreadable."""
    nbformat.validate(notebook)
    assert [c for c in notebook.cells if c.cell_type == "code" and (c.outputs or c.execution_count)] == []


@pytest.mark.ray
def test_a_notebook_runs_from_top_to_bottom(
    notebook: NotebookNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader who runs all cells sees no error, and nothing is left running."""
    monkeypatch.setenv("COMPASS_NOTEBOOK_CHUNKS", os.environ.get("COMPASS_NOTEBOOK_CHUNKS", "500"))
    client = NotebookClient(notebook, timeout=180, kernel_name="python3", resources={"metadata": {"path": tmp_path}})
    client.execute()
    printed = "".join(o.get("text", "") for c in notebook.cells for o in c.get("outputs", ()))
    assert printed.rstrip().endswith("stopped")
