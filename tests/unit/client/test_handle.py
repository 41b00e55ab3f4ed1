"""The Python client asks the operations of the HTTP interface by the same names."""

from __future__ import annotations

from typing import Any

from compass.client.handle import Operations


class RecordingOperations(Operations):
    """Answers each call with what it was."""

    def _call(self, operation: str, **arguments: Any) -> Any:
        return operation, arguments


def test_an_estimate_is_a_dry_run_of_a_rebuild() -> None:
    """With the fields of the order."""
    fields = {"embed_endpoint": "http://a", "budget": 5.0}
    operation, arguments = RecordingOperations().estimate_rebuild("docs", "new", **fields)
    assert operation == "rebuild"
    assert arguments == {
        "collection": "docs",
        "space": "new",
        "body": {**fields, "dry_run": True},
    }
