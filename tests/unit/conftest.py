"""Unit tests take seconds and no Ray: whoever starts one here fails."""

from __future__ import annotations

from typing import Any

import pytest


@pytest.fixture(autouse=True)
def _no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make `ray.init` an error, where Ray is imported at all."""
    import sys

    if "ray" in sys.modules:

        def refuse(*_: Any, **__: Any) -> None:
            raise AssertionError("a unit test must not start Ray")

        monkeypatch.setattr(sys.modules["ray"], "init", refuse)
