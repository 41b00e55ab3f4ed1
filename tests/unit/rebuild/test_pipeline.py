"""Results stream back as they land, and an error of a stage comes back as it was."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import AsyncGenerator
from typing import Any

import numpy as np
import pytest
from rebuild_world import MakeOrder

from compass.domain.rebuild.order import RebuildOrder
from compass.errors import EndpointAnswerError, EndpointUnavailableError, UnavailableError
from compass.rebuild import pipeline
from compass.rebuild.pipeline import RemoteStage, run_inline, stream
from compass.rebuild.plan import Descriptor
from compass.rebuild.stage import StageResult
from compass.storage.snapshot.parts import PartRef


class ScriptedStage:
    """A stage that answers by the number of rows: 13 is an error; 40 or more wait until a test lets them go on."""

    def __init__(self) -> None:
        self.go_on = asyncio.Event()
        self.closed, self.at_once, self.most = 0, 0, 0
        self.cancelled: list[int] = []

    async def fill(self, descriptor: Descriptor) -> StageResult:
        self.at_once += 1
        self.most = max(self.most, self.at_once)
        try:
            await (self.go_on.wait() if descriptor.count >= 40 else asyncio.sleep(0))
            if descriptor.count == 13:
                raise EndpointAnswerError("sent NaN", {"endpoint": "http://e"})
            return StageResult(f"key-{descriptor.count}", descriptor.count)
        except asyncio.CancelledError:
            self.cancelled.append(descriptor.count)
            raise
        finally:
            self.at_once -= 1

    async def close(self) -> None:
        self.closed += 1


def descriptors(*counts: int) -> list[Descriptor]:
    return [Descriptor(PartRef("p", None, 100), np.arange(count, dtype=np.int32)) for count in counts]


async def test_inline_yields_each_as_it_lands(order: MakeOrder) -> None:
    """A quick descriptor is not held up by a slow one, a few run at once, and the stage is closed at the end."""
    stage = ScriptedStage()
    landed: list[int] = []
    async for result in run_inline(descriptors(40, 1, 2, 3, 4), lambda *_: stage, order(), "a"):
        landed.append(result.count)
        if sorted(landed) == [1, 2, 3, 4]:
            stage.go_on.set()
    assert landed[-1] == 40
    assert len(landed) == 5
    assert stage.most == pipeline.AT_ONCE
    assert stage.closed == 1


async def test_inline_raises_what_the_stage_raised(order: MakeOrder) -> None:
    """The first error ends the stream, the other descriptors stop, and the stage is closed."""
    stage = ScriptedStage()
    with pytest.raises(EndpointAnswerError, match="sent NaN"):
        async for _ in run_inline(descriptors(60, 13, 61), lambda *_: stage, order(), "a"):
            pass
    assert sorted(stage.cancelled) == [60, 61]
    assert stage.closed == 1


def as_named(name: str) -> Any:
    """A stream that yields how many chunks it was given, under its name."""

    async def stream(descriptors: Any, *order: Any) -> Any:
        for descriptor in descriptors:
            yield StageResult(name, descriptor.count)

    return stream


@pytest.mark.parametrize(
    ("local_rows", "limits", "expected"),
    [
        (5, {}, {"here": [2, 3], "ray": [4]}),
        (9, {}, {"here": [2, 3, 4]}),
        (1, {}, {"ray": [2, 3, 4]}),
        (5, {"max_docs_per_s": 10.0}, {"here": [2, 3, 4]}),
        (5, {"concurrency": 1}, {"here": [2, 3, 4]}),
    ],
)
async def test_the_head_of_a_rebuild_is_filled_here(
    order: MakeOrder, monkeypatch: pytest.MonkeyPatch, local_rows: int, limits: Any, expected: Any
) -> None:
    """Ray Data has what is beyond it, but nothing of a order that counts its texts or requests."""
    monkeypatch.setattr(pipeline, "run_inline", as_named("here"))
    monkeypatch.setattr(pipeline, "run_ray_data", as_named("ray"))
    counts: dict[str, list[int]] = {}
    spread = {"actors": 2, "local_rows": local_rows}
    async for result in stream(descriptors(2, 3, 4), lambda *_: ScriptedStage(), order(**limits), "a", **spread):
        counts.setdefault(str(result.key), []).append(result.count)
    assert counts == expected


async def test_an_error_of_one_stream_ends_the_other(order: MakeOrder, monkeypatch: pytest.MonkeyPatch) -> None:
    """What Ray Data raises is raised here, and the stage of this process is closed."""
    stage = ScriptedStage()

    async def dies(*order: Any) -> AsyncGenerator[StageResult, None]:
        for _ in range(1):
            raise UnavailableError("the cluster is gone")
        yield StageResult(None, 0)

    monkeypatch.setattr(pipeline, "run_ray_data", dies)
    with pytest.raises(UnavailableError, match="gone"):
        async for _ in stream(descriptors(60, 61), lambda *_: stage, order(), "a", actors=2, local_rows=60):
            pass
    assert (stage.closed, stage.at_once) == (1, 0)


def test_a_remote_stage_answers_errors_as_values(order: MakeOrder) -> None:
    """In an actor an error travels as it was, fields included, and the stage works on afterwards."""
    stage = ScriptedStage()
    opened: list[Any] = []

    def open_stage(order: RebuildOrder, attempt: str) -> ScriptedStage:
        opened.append((order, attempt))
        return stage

    remote = RemoteStage(open_stage, order(), "a")
    batch = {"descriptor": [pickle.dumps(d) for d in descriptors(3, 13, 4)]}
    first, error, last = [pickle.loads(r) for r in remote(batch)["result"]]
    assert (first, last) == (StageResult("key-3", 3), StageResult("key-4", 4))
    assert type(error) is EndpointAnswerError
    assert error.args == ("sent NaN", {"endpoint": "http://e"})
    assert opened == [(order(), "a")]
    del remote
    assert stage.closed == 1


def test_ray_wrapping_is_taken_off() -> None:
    """Whatever Ray wraps a CompassError in, it is found; a fault of the cluster is a retryable error."""
    ours = EndpointUnavailableError("down", {"endpoint": "http://e"})
    outer = RuntimeError("task failed")
    outer.__cause__ = ValueError("user code")
    outer.__cause__.cause = ours  # type: ignore[attr-defined]  # as RayTaskError has it
    assert pipeline._unwrapped(outer) is ours
    fault = pipeline._unwrapped(RuntimeError("header\nThe actor died"))
    assert type(fault) is UnavailableError
    assert "The actor died" in fault.detail
