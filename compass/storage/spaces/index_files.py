"""Snapshots of an index: a file in a foreign format and a checksum beside it, since the format has none."""

from __future__ import annotations

import json
import logging
import tempfile
import time
import uuid as uuids
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa

from compass.errors import StorageError
from compass.storage.objects import Objects

_log = logging.getLogger(__name__)

T = TypeVar("T")


def save(objects: Objects, folder: str, write: Callable[[Path], None], meta: Mapping[str, Any]) -> None:
    """Keep what `write` puts into the file it is given, with `meta` (JSON-able); older snapshots go.

    Durable when it returns. The note is written last: a snapshot without one is not there.
    """
    name = f"{time.time_ns():020d}-{uuids.uuid4().hex[:8]}"
    path = objects.scratch() / name
    try:
        write(path)
        with pa.memory_map(str(path)) as mapped:
            data = mapped.read_buffer()
        objects.write(f"{folder}/{name}.bin", data)
        note = {"crc32": zlib.crc32(memoryview(data)), "bytes": data.size, "meta": dict(meta)}
    finally:
        path.unlink(missing_ok=True)
    objects.write(f"{folder}/{name}.json", json.dumps(note).encode())
    objects.delete(key for key in objects.list(folder) if key.rsplit("/", 1)[1] < name)


def load(objects: Objects, folder: str, read: Callable[[Path], T]) -> tuple[T, dict[str, Any]] | None:
    """What `read` makes of the newest snapshot's file, and its meta; None without a sound one (logged)."""
    notes = [key for key in objects.list(folder) if key.endswith(".json")]
    if not notes:
        return None
    try:
        return _load(objects, notes[-1], read)
    except (
        StorageError,
        OSError,
        ValueError,
        KeyError,
        RuntimeError,
    ) as error:  # RuntimeError: hnswlib's word for damaged
        _log.warning("the index snapshot %s is not usable, it is built anew: %s", notes[-1], error)
        return None


def _load(objects: Objects, key: str, read: Callable[[Path], T]) -> tuple[T, dict[str, Any]]:
    stored_note = objects.read(key)
    data_key = key.removesuffix(".json") + ".bin"
    data = objects.read(data_key)
    if stored_note is None or data is None:
        raise StorageError(f"{data_key} is gone", {"key": data_key})
    note = json.loads(stored_note.to_pybytes())
    if data.size != note["bytes"] or zlib.crc32(memoryview(data)) != note["crc32"]:
        raise StorageError(f"{data_key} does not match its checksum", {"key": data_key})
    path = objects.local_path(data_key)
    if path is not None:
        return read(path), dict(note["meta"])
    with tempfile.TemporaryDirectory(prefix="compass-index-") as scratch:
        copy = Path(scratch) / "index"
        copy.write_bytes(memoryview(data))
        return read(copy), dict(note["meta"])
