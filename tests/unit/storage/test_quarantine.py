"""The quarantine of a space is the union of its notes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from compass.errors import StorageError
from compass.storage.spaces.quarantine import Quarantine


@pytest.fixture
def quarantine(disk: Any) -> Quarantine:
    return Quarantine(disk.objects, f"{disk.uuid}/spaces/one-id")


def test_who_was_lifted_is_forgotten(quarantine: Quarantine) -> None:
    """Notes add up until all of them are lifted; an empty one is not written."""
    quarantine.add({})
    assert quarantine.notes() == []
    quarantine.add({1: "too long"})
    quarantine.add({2: "empty"})
    assert quarantine.all() == {1: "too long", 2: "empty"}
    quarantine.lift()
    assert quarantine.all() == {}


def test_a_merge_makes_one_note_of_the_live(quarantine: Quarantine) -> None:
    """Notes of dead vids go, what was added after the listing stays, and a single note is left alone."""
    quarantine.add({1: "too long"})
    notes = quarantine.notes()
    quarantine.merge(notes, np.empty(0, np.int64))
    assert quarantine.notes() == notes
    quarantine.add({2: "empty"})
    notes = quarantine.notes()
    quarantine.add({3: "odd"})
    quarantine.merge(notes, np.array([2]))
    assert quarantine.all() == {2: "empty", 3: "odd"}
    assert len(quarantine.notes()) == 2


def test_a_note_that_a_merge_takes_away_is_read_from_the_merged_one(disk: Any, quarantine: Quarantine) -> None:
    """Who has listed notes that are gone when he reads them lists again, and gives up in the end."""
    quarantine.add({1: "too long"})
    quarantine.add({2: "empty"})
    merged: list[str] = []

    def merge(operation: str, key: str) -> None:
        if operation == "list" and not merged:
            merged.append(key)
            quarantine.merge(quarantine.notes(), np.array([1, 2]))

    disk.objects.after = merge
    assert quarantine.all() == {1: "too long", 2: "empty"}
    assert merged

    def add(operation: str, key: str) -> None:
        if operation == "list":
            disk.objects.objects.write(f"{key}/new.json", b"{}")

    def lose(operation: str, key: str) -> None:
        if operation == "list":
            disk.objects.objects.delete(disk.objects.objects.list(key))

    disk.objects.before, disk.objects.after = add, lose
    with pytest.raises(StorageError, match="one-id"):
        quarantine.all()
