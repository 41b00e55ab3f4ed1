"""What a space takes in memory is known before it is there."""

from __future__ import annotations

import pytest

from compass.domain.memory import SMALL_BYTES, UNLIMITED, Room, grown
from compass.errors import InsufficientMemoryError


def test_a_graph_grows_by_half_until_the_rows_fit() -> None:
    """The capacity that is paid for is the one that the graph will have."""
    assert grown(1_024, 1_024) == 1_024
    assert grown(1_024, 1_025) == 1_536
    assert grown(1_024, 3_000) == 3_456


def test_what_does_not_fit_says_what_it_needs_and_what_is_free() -> None:
    """The error has both numbers and the node; what will be given back before counts as free."""
    room = Room(lambda: 500 << 20, "node-7")
    room.require("it", 500 << 20, 0)
    with pytest.raises(InsufficientMemoryError, match="node-7") as refused:
        room.require("it", 501 << 20, 0)
    assert refused.value.fields == {"needed_bytes": 501 << 20, "free_bytes": 500 << 20, "node": "node-7"}
    room.require("it", 501 << 20, 0, freed_bytes=1 << 20)
    with pytest.raises(InsufficientMemoryError) as refused:
        room.require("it", 503 << 20, 0, freed_bytes=1 << 20)
    assert refused.value.fields["free_bytes"] == 501 << 20


def test_a_small_space_is_never_turned_away() -> None:
    """Up to a total of 64 MiB nothing is asked, however full the node is; beyond, every byte counts."""
    full = Room(lambda: 0, "n")
    full.require("it", SMALL_BYTES, 0)
    full.require("it", 1, SMALL_BYTES - 1)
    full.require("it", 0, 10 * SMALL_BYTES)
    for more, held in [(SMALL_BYTES + 1, 0), (1, SMALL_BYTES)]:
        with pytest.raises(InsufficientMemoryError):
            full.require("it", more, held)
    UNLIMITED.require("it", 1 << 60, 1 << 60)
