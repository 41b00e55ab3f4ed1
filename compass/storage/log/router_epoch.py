"""Which router is the newest: a number that each new one claims by creating it."""

from __future__ import annotations

from compass.storage.objects import Objects, answering

PREFIX = "router"


def claim(objects: Objects) -> int:
    """A number greater than any claimed before; 1 for the first router of a root. Durable.

    A claim whose answer was lost is nobody's: claims are alike, so it cannot be told whose it is.

    Raises:
        UnavailableError: the store failed.
    """
    with answering("claiming a number for the router"):
        number = latest(objects) + 1
        while not objects.create(f"{PREFIX}/{number:012d}", b""):
            number += 1
        return number


def latest(objects: Objects) -> int:
    """The greatest number that was claimed; 0 for none."""
    return max((int(key.rsplit("/", 1)[1]) for key in objects.list(PREFIX) if "." not in key), default=0)


def release(objects: Objects, number: int) -> None:
    """Say that this router has ended after all its gateways: its successor has no lease to wait for."""
    objects.create(f"{PREFIX}/{number:012d}.released", b"")


def follows_nobody(objects: Objects, number: int) -> bool:
    """Whether no gateway can hold a lease of the predecessor's: there was none, or it was released."""
    return number == 1 or objects.read(f"{PREFIX}/{number - 1:012d}.released") is not None
