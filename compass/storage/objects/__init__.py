"""Immutable bytes by key: the port, and the stores that fit it."""

from __future__ import annotations

from pathlib import Path

from compass.errors import NotImplementedYetError
from compass.storage.objects.local import LocalObjects
from compass.storage.objects.port import Keys, MissingObjectError, Objects, answering, create_mine
from compass.storage.objects.system_calls import SystemCalls

__all__ = [
    "Keys",
    "LocalObjects",
    "MissingObjectError",
    "Objects",
    "SystemCalls",
    "answering",
    "create_mine",
    "open_objects",
]


def open_objects(root: str | Path) -> Objects:
    """The objects under a root: a path (local disk, NFS).

    Raises:
        NotImplementedYetError: a URL such as s3://.
    """
    if "://" in str(root):
        raise NotImplementedYetError(f"{str(root)!r}: this version keeps its data in a folder, not at a URL")
    return LocalObjects(Path(root))
