"""Frames notice damage."""

from __future__ import annotations

import pyarrow as pa
import pytest

from compass.errors import StorageError
from compass.storage.log.frames import seal, unseal


@pytest.mark.parametrize("payload", [b"", b"x", b"abc" * 10_000])
def test_round_trip(payload: bytes) -> None:
    """What was sealed is unsealed."""
    assert unseal(pa.py_buffer(seal(payload)), "k") == payload


def test_every_flipped_bit_is_noticed() -> None:
    """No single changed byte, wherever it is, goes unnoticed."""
    frame = seal(b"some payload")
    for at in range(len(frame)):
        damaged = bytearray(frame)
        damaged[at] ^= 1
        with pytest.raises(StorageError):
            unseal(pa.py_buffer(bytes(damaged)), "k")


def test_every_cut_is_noticed() -> None:
    """A frame that ends early is damaged, wherever it ends."""
    frame = seal(b"some payload")
    for end in range(len(frame)):
        with pytest.raises(StorageError):
            unseal(pa.py_buffer(frame[:end]), "k")
