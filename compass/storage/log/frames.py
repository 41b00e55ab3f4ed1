"""A frame: compressed bytes that notice when they are damaged.

4 bytes  b"CPF1"
4 bytes  crc32 of what follows, little-endian
8 bytes  length of the payload before compression, little-endian
rest     the payload, zstd
"""

from __future__ import annotations

import struct
import zlib

import pyarrow as pa

from compass.errors import StorageError

_MAGIC = b"CPF1"
_HEAD = struct.Struct("<4sI")
_SIZE = struct.Struct("<Q")
_CODEC = pa.Codec("zstd", compression_level=1)


def seal(payload: bytes) -> bytes:
    """The payload as a frame."""
    body: bytes = _SIZE.pack(len(payload)) + _CODEC.compress(payload, asbytes=True)
    head = _HEAD.pack(_MAGIC, zlib.crc32(body))
    return head + body


def unseal(frame: pa.Buffer, name: str) -> bytes:
    """The payload of a frame; `name` is for the message.

    Raises:
        StorageError: not a frame, cut short, or changed.
    """
    data = memoryview(frame)
    if len(data) < _HEAD.size + _SIZE.size:
        raise StorageError(f"{name} is cut short: {len(data)} bytes", {"key": name})
    magic, crc = _HEAD.unpack_from(data)
    body = data[_HEAD.size :]
    if magic != _MAGIC:
        raise StorageError(f"{name} is not a Compass frame, or of a later version", {"key": name})
    if zlib.crc32(body) != crc:
        raise StorageError(f"{name} does not match its checksum", {"key": name})
    (size,) = _SIZE.unpack_from(body)
    return bytes(_CODEC.decompress(body[_SIZE.size :], size, asbytes=True))
