"""One error tells of every flaw."""

from __future__ import annotations

from compass.domain.flaws import MAX_ERRORS, Flaw, invalid


def test_each_flaw_is_named_by_its_place() -> None:
    """With the index of its chunk, if it is one of a batch; the sentence tells of the first."""
    error = invalid([Flaw("page", "is no number", 3), Flaw("wait_s", "is too long")], got_dims=3)
    assert error.detail == "chunk 3: page: is no number (and 1 more)"
    assert error.fields == {
        "errors": [
            {"index": 3, "field": "page", "detail": "is no number"},
            {"field": "wait_s", "detail": "is too long"},
        ],
        "got_dims": 3,
    }
    assert [list(flaw) for flaw in error.fields["errors"]] == [["index", "field", "detail"], ["field", "detail"]]


def test_one_flaw_is_a_sentence() -> None:
    """Without a count of others."""
    assert invalid([Flaw("name", "is missing")]).detail == "name: is missing"


def test_many_flaws_are_counted_not_listed() -> None:
    """An error names so many of them at most."""
    error = invalid([Flaw("page", "is no number", index) for index in range(MAX_ERRORS + 5)])
    assert len(error.fields["errors"]) == MAX_ERRORS
    assert f"{MAX_ERRORS + 4} more" in error.detail
