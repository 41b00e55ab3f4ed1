"""The chunks that no endpoint takes: notes of a space whose union is its quarantine."""

from __future__ import annotations

import contextlib
import json
import uuid as uuids
from collections.abc import Mapping, Sequence

from compass.domain.chunk import IntVector
from compass.errors import StorageError
from compass.storage.objects import MissingObjectError, Objects

_RELISTS = 100


class Quarantine:
    """The vids of a space whose text is refused for itself. Any process may add to it."""

    def __init__(self, objects: Objects, folder: str) -> None:
        self._objects, self._folder = objects, f"{folder}/quarantine"
        self._space_id = folder.rsplit("/", 1)[-1]

    def add(self, reasons: Mapping[int, str]) -> None:
        """Remember vids, and why. Durable when it returns."""
        if reasons:
            named = {str(int(vid)): reason for vid, reason in reasons.items()}
            self._objects.write(f"{self._folder}/{uuids.uuid4().hex}.json", json.dumps(named).encode())

    def all(self) -> dict[int, str]:
        """All vids that were quarantined, and why; dead ones may be among them.

        A merge may take notes away that were listed: then they are listed again.
        """
        for _ in range(_RELISTS):
            with contextlib.suppress(MissingObjectError):
                return self._read(self.notes())
        raise StorageError(f"the notes of space {self._space_id!r} keep vanishing", {"space_id": self._space_id})

    def lift(self) -> None:
        """Forget who was quarantined: these vids are as missing as any other without a vector."""
        self._objects.delete(self.notes())

    def notes(self) -> list[str]:
        """The keys of the notes."""
        return self._objects.list(self._folder)

    def merge(self, notes: Sequence[str], live: IntVector) -> None:
        """Make several notes one, of the vids in `live`; the new note is written before the others go.

        `live` must not be older than the notes: then a vid that is not in it is dead, and not merely new.
        """
        if len(notes) > 1:
            alive = set(live.tolist())
            self.add({vid: reason for vid, reason in self._read(notes).items() if vid in alive})
            self._objects.delete(notes)

    def _read(self, notes: Sequence[str]) -> dict[int, str]:
        reasons: dict[int, str] = {}
        for key in notes:
            note = self._objects.read(key)
            if note is None:
                raise MissingObjectError(f"{key} is gone", {"key": key})
            reasons.update((int(vid), reason) for vid, reason in json.loads(note.to_pybytes()).items())
        return reasons
