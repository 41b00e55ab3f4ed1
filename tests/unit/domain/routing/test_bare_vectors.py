"""A vector that names no space is taken as long as nobody can be mistaken about the default."""

from __future__ import annotations

from dataclasses import replace

import pytest

from compass.domain.routing.bare_vectors import check_bare_vector, check_expected_epoch
from compass.domain.routing.table import CollectionRoute
from compass.errors import BareVectorError, EpochMismatchError

FIRST = CollectionRoute("u", "c", 1, "a", {})
SECOND = replace(FIRST, epoch=2, default="b")


def test_a_bare_vector_is_refused_once_the_default_has_changed() -> None:
    """The message says how to go on."""
    check_bare_vector(FIRST, None, "name it")
    with pytest.raises(BareVectorError, match="name it") as refused:
        check_bare_vector(SECOND, None, "name it")
    assert refused.value.fields == {"epoch": 2, "default_vector_space": "b"}


def test_who_knows_the_epoch_or_follows_the_default_may_send_one() -> None:
    """By the call, or by the collection's config."""
    check_bare_vector(SECOND, 2, "name it")
    check_bare_vector(replace(SECOND, config={"bare_vectors": "follow-default"}), None, "name it")


def test_another_epoch_is_a_mismatch() -> None:
    """None is no guess."""
    check_expected_epoch(SECOND, None)
    check_expected_epoch(SECOND, 2)
    with pytest.raises(EpochMismatchError) as refused:
        check_expected_epoch(SECOND, 1)
    assert refused.value.fields == {"epoch": 2, "expected_epoch": 1, "default_vector_space": "b"}
