"""The few operations that the store asks of a disk or an object store."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa

from compass.errors import StorageError, UnavailableError

Bytes = bytes | bytearray | memoryview | Any  # anything with the buffer protocol

Keys = list[str]  # within a class that has a method `list`, the builtin has no other name


class MissingObjectError(StorageError):
    """The object is not there: compaction has replaced it, list again."""


class Objects(Protocol):
    """Immutable bytes under keys like `a/b/c`. All methods block and are thread-safe.

    A failed call raises OSError and says nothing of whether it took effect.
    """

    def create(self, key: str, data: Bytes) -> bool:
        """Write an object unless it exists; False if it does. What is there is durable then, whoever wrote it."""

    def write(self, key: str, data: Bytes) -> None:
        """Write or replace an object. Durable when it returns."""

    def ensure_durable(self, key: str) -> bool:
        """Make durable what is under a key, whoever wrote it and whatever became of that call; False if nothing is.

        An object that can be read need not be durable: the call that wrote it may have failed after the object
        got its name. Whoever finds such an object and rests anything on it, an acknowledgement or a delete of
        something else, calls this first.
        """

    def read(self, key: str) -> pa.Buffer | None:
        """The object's bytes, memory-mapped where it can be; None if there is none."""

    def list(self, prefix: str) -> Keys:
        """The keys under a folder, at any depth, sorted."""

    def folders(self, prefix: str) -> Keys:
        """The names of the folders directly under a folder, sorted."""

    def delete(self, keys: Iterable[str]) -> None:
        """Delete objects; one that is not there is no error."""

    def delete_prefix(self, prefix: str) -> None:
        """Delete a folder and all under it."""

    def bytes_under(self, prefix: str) -> int:
        """The bytes of all objects under a folder."""

    def scratch(self) -> Path:
        """A folder for files in the making, on a disk that has room for an object; what is left there is swept."""

    def local_path(self, key: str) -> Path | None:
        """The object's file, None where objects are not files."""


@contextlib.contextmanager
def answering(what: str) -> Iterator[None]:
    """Turn a disk that fails, or a database on it, into an error that says so and that a retry may help.

    Raises:
        UnavailableError: instead of OSError and sqlite3.Error.
    """
    try:
        yield
    except (OSError, sqlite3.Error) as error:
        raise UnavailableError(f"{what} failed: {error}") from error


def create_mine(objects: Objects, key: str, data: Bytes, is_mine: Callable[[pa.Buffer], bool]) -> bool:
    """Create an object, and settle a lost answer: True if what is there is ours *and durable*; False: another's.

    Reading one's own bytes back proves nothing but that they reached the page cache. So before it says "mine" of
    what it has read, all that durability takes must have succeeded, in a call made after the failure.

    Raises:
        UnavailableError: it is not known whether the object was or will be there, or whether it will stay.
    """
    failure: OSError | None = None
    try:
        if objects.create(key, data):
            return True
    except OSError as error:
        failure = error
    try:
        found = objects.read(key)
        if found is not None and not is_mine(found):
            return False
        if found is not None and objects.ensure_durable(key):
            return True
    except OSError as error:
        raise UnavailableError(f"creating {key} failed: {failure or error}", {"key": key}) from error
    raise UnavailableError(f"creating {key} failed, and it may yet appear: {failure}", {"key": key}) from failure
