"""The record of a space's rebuild: one object, replaced as a whole."""

from __future__ import annotations

import json

from compass.domain.rebuild.run_record import RunRecord
from compass.storage.objects import Objects


class RunStore:
    """Where the last rebuild of a space says what it does."""

    def __init__(self, objects: Objects, folder: str) -> None:
        self._objects, self._key = objects, f"{folder}/run.json"

    def write(self, record: RunRecord) -> None:
        """Replace the record. Durable when it returns."""
        self._objects.write(self._key, json.dumps(record.to_json()).encode())

    def read(self) -> RunRecord | None:
        """The record of the last run; None without one."""
        stored = self._objects.read(self._key)
        return None if stored is None else RunRecord.from_json(json.loads(stored.to_pybytes()))
