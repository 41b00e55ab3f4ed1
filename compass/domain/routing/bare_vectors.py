"""A vector that names no space means the default, until the default has changed."""

from __future__ import annotations

from compass.domain.routing.table import CollectionRoute
from compass.errors import BareVectorError, EpochMismatchError


def check_expected_epoch(route: CollectionRoute, expected_epoch: int | None) -> None:
    """Compare the epoch that the caller knows of, if he says one.

    Raises:
        EpochMismatchError: it is another one.
    """
    if expected_epoch is not None and expected_epoch != route.epoch:
        raise EpochMismatchError(
            f"the epoch of {route.name!r} is {route.epoch}, not {expected_epoch}; its default is {route.default!r}",
            {"epoch": route.epoch, "expected_epoch": expected_epoch, "default_vector_space": route.default},
        )


def check_bare_vector(route: CollectionRoute, expected_epoch: int | None, advice: str) -> None:
    """Refuse a vector without a space once the default has changed: it may come from the old model.

    Raises:
        BareVectorError: the epoch is past 1 and nothing says that the caller knows.
    """
    guarded = route.epoch > 1 and route.config.get("bare_vectors") != "follow-default"
    if guarded and expected_epoch is None:
        raise BareVectorError(
            f"the default of {route.name!r} has changed (epoch {route.epoch}, now {route.default!r}), so a vector "
            f"without a space may come from another model: {advice}",
            {"epoch": route.epoch, "default_vector_space": route.default},
        )
