"""The tree of errors: each leaf survives a process boundary, and stands in the drawing."""

from __future__ import annotations

import pickle
from collections.abc import Iterator

import pytest

import compass.rebuild.stage
import compass.storage.snapshot.parts  # noqa: F401 - modules with leaves of their own
from compass import errors
from compass.errors import CompassError


def _tree(kind: type[CompassError]) -> Iterator[type[CompassError]]:
    yield kind
    for below in kind.__subclasses__():
        yield from _tree(below)


def _name(kind: type[CompassError]) -> str:
    return kind.__name__


KINDS = sorted(set(_tree(CompassError)), key=_name)


@pytest.mark.parametrize("kind", KINDS)
def test_each_error_leaves_an_actor_as_it_was(kind: type[CompassError]) -> None:
    """Pickled and back: the same class, the same words, the same fields."""
    error = kind("a sentence", {"space": "new", "lag": 3})
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind
    assert (again.detail, again.fields, again.status) == ("a sentence", {"space": "new", "lag": 3}, kind.status)
    assert str(again) == "a sentence"


@pytest.mark.parametrize("kind", KINDS)
def test_each_error_is_a_problem_document(kind: type[CompassError]) -> None:
    """The members of RFC 9457, and what a program needs; a retry helps where the class says so."""
    problem = kind("a sentence", {"lag": 3}).problem()
    assert problem == {
        "type": kind.type,
        "title": kind.title,
        "status": kind.status,
        "detail": "a sentence",
        "lag": 3,
    }
    assert 400 <= kind.status < 600


def test_the_drawing_shows_every_error() -> None:
    """Who opens errors.py first sees the whole tree."""
    drawn = errors.__doc__ or ""
    ours = [kind for kind in _tree(CompassError) if kind.__module__ == "compass.errors"]
    assert [kind.__name__ for kind in ours if kind.__name__ not in drawn] == []


def test_no_two_conflicts_share_a_type() -> None:
    """A program tells one 409 from another by its type."""
    types = [kind.type for kind in _tree(errors.ConflictError)]
    assert len(types) == len(set(types))
