"""The processes below another one, by their command lines. One that ends while it is looked at has none."""

from __future__ import annotations

import psutil


def command_of(process: psutil.Process) -> list[str]:
    """Its command line; nothing of one that has ended meanwhile."""
    try:
        return list(process.cmdline())
    except psutil.NoSuchProcess:
        return []


def workers_below(root: psutil.Process, title: str = "") -> dict[psutil.Process, str]:
    """Ray's workers below a process whose title begins with `ray::<title>`, each with its title."""
    titles = {child: " ".join(command_of(child)) for child in root.children(recursive=True)}
    return {child: found for child, found in titles.items() if found.startswith(f"ray::{title}")}
