"""The tree shows the processes and the capabilities: no folder is the house, no file is a folder."""

from __future__ import annotations

from pathlib import Path

import compass

PACKAGE = Path(compass.__file__).parent
MOST_LINES = 450  # of a file
LARGEST_SHARE = 0.2  # of the package's lines in one folder, those below it included


def lines_of(path: Path) -> int:
    return len(path.read_text("utf-8").splitlines())


def test_no_file_is_too_long_to_be_read_at_once() -> None:
    """A file that has grown past the limit has more than one thing to say."""
    long = {str(path.relative_to(PACKAGE)): lines_of(path) for path in PACKAGE.rglob("*.py")}
    assert {name: lines for name, lines in long.items() if lines > MOST_LINES} == {}


def test_no_folder_holds_a_fifth_of_the_lines() -> None:
    """What has grown so large is several capabilities, or several processes."""
    folders = {
        folder.name: sum(map(lines_of, folder.rglob("*.py"))) for folder in PACKAGE.iterdir() if folder.is_dir()
    }
    total = sum(folders.values()) + sum(map(lines_of, PACKAGE.glob("*.py")))
    assert {name: lines for name, lines in folders.items() if lines > LARGEST_SHARE * total} == {}
