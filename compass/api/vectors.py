"""Vectors as callers send them, read into float32: from JSON without a float object per number, or from Python."""

from __future__ import annotations

import base64
import binascii
from typing import cast

import numpy as np
import simdjson
from msgspec import Raw, UnsetType
from msgspec.json import Decoder

from compass.domain.chunk import FloatVector
from compass.domain.vector import SentVector, Unreadable

_BY_SPACE = Decoder(dict[str, Raw])
_NO_VECTOR = Unreadable("is neither an array of numbers nor base64 of float32")
_NO_NUMBER = Unreadable("holds something that is not a number")
_OUT_OF_RANGE = Unreadable("holds a number that is out of range")
_NO_BASE64 = Unreadable("is a string, but not base64")
_INT_MIN, _INT_MAX = -(2**63), 2**64 - 1  # as JSON is read


def read_vector(value: object) -> SentVector:
    """The vector that a field holds, shape (n,), or why there is none.

    Args:
        value: JSON that is still to be read, or what a Python caller has sent: an array or a list of numbers.
            Either may be a string, of base64 of little-endian float32.
    """
    if isinstance(value, Raw):
        return _read_json(bytes(value))
    if isinstance(value, np.ndarray):
        return _read_array(value)
    if isinstance(value, list):
        return _read_numbers(value)
    return _read_base64(value.encode()) if isinstance(value, str) else _NO_VECTOR


def by_space(value: object) -> dict[str, object] | None:
    """What a field holds by the names of spaces; None where it holds a single vector."""
    if isinstance(value, Raw):
        return {**_BY_SPACE.decode(value)} if bytes(value)[:1] == b"{" else None
    return value if isinstance(value, dict) else None


def is_left_out(value: object) -> bool:
    """Whether a field holds nothing: null counts as left out."""
    if isinstance(value, Raw):
        return bytes(value) == b"null"
    return value is None or isinstance(value, UnsetType)


def _read_json(text: bytes) -> SentVector:
    if text[:1] == b'"':
        return _read_base64(text[1:-1].replace(b"\\/", b"/"))
    if text[:1] != b"[" or b"[" in text[1:]:
        return _NO_VECTOR
    try:
        array = cast(simdjson.Array, simdjson.Parser().parse(text))
        numbers = array.as_buffer(of_type="d")
    except TypeError:
        return _NO_NUMBER
    except (ValueError, RuntimeError):
        return _OUT_OF_RANGE
    return _float32(np.frombuffer(numbers, np.float64))


def _read_array(array: np.ndarray[tuple[int, ...], np.dtype[np.generic]]) -> SentVector:
    if array.ndim != 1:
        return _NO_VECTOR
    return _float32(array) if array.dtype.kind in "fiu" else _NO_NUMBER


def _read_numbers(numbers: list[object]) -> SentVector:
    kinds = set(map(type, numbers))
    if list in kinds:
        return _NO_VECTOR
    if not kinds <= {int, float}:
        return _NO_NUMBER
    if int in kinds and not all(_INT_MIN <= n <= _INT_MAX for n in numbers if isinstance(n, int)):
        return _OUT_OF_RANGE
    return _float32(np.array(numbers, np.float64))


def _read_base64(text: bytes) -> SentVector:
    try:
        data = base64.b64decode(text, validate=True)
    except binascii.Error:
        return _NO_BASE64
    if len(data) % 4:
        return Unreadable("is base64 of a number of bytes that is no multiple of 4")
    return _float32(np.frombuffer(data, "<f4"))


def _float32(numbers: np.ndarray[tuple[int, ...], np.dtype[np.generic]]) -> FloatVector:
    with np.errstate(over="ignore"):  # what overflows becomes infinite, which `why_unfit` finds
        return np.asarray(numbers, np.float32)
