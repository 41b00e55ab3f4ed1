"""A stage turns a descriptor into one durable vector file, or into nothing at all."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import numpy as np
import pytest

from compass.errors import EndpointRefusedError, EndpointUnavailableError
from compass.rebuild.plan import read_plan
from compass.rebuild.stage import EmbedStage, StaleRunError, Throttle, together

NONE = np.empty(0, np.int64)
RUNNING = {"attempt": "ours", "state": "running"}


def descriptor_of(world: Any) -> Any:
    (descriptor,) = read_plan(world.objects, world.store.checkpoint(), NONE, NONE).descriptors
    return descriptor


async def test_fills_a_descriptor(world: Any) -> None:
    """Every row of the descriptor has its vector in the file, under its vid, as the model gave it."""
    world.ingest(["one", "", "three", "four"])
    world.vectors.write_run(RUNNING)
    stage = EmbedStage(world.objects, world.vectors, world.embedder, "ours")
    filled = await stage.fill(descriptor_of(world))
    vids, rows = world.vectors.read(filled.key)
    texts = world.store.view.texts(vids)
    assert filled.count == 3
    assert vids.tolist() == world.embeddable()
    np.testing.assert_allclose(rows, world.embedder.model.embed([texts[v] for v in vids.tolist()]), atol=1e-6)
    assert world.vectors.run_of(filled.key) == "ours"


@pytest.mark.parametrize(
    "record", [None, {"attempt": "another", "state": "running"}, {"attempt": "ours", "state": "cancelled"}]
)
async def test_a_stale_attempt_appends_nothing(world: Any, record: dict[str, Any] | None) -> None:
    """A stage whose run was replaced or cancelled while it embedded leaves no file."""
    world.ingest(["one"])
    world.vectors.write_run(RUNNING)
    world.embedder.open_gate.clear()
    stage = EmbedStage(world.objects, world.vectors, world.embedder, "ours")
    filling = asyncio.create_task(stage.fill(descriptor_of(world)))
    await world.embedder.waiting.wait()
    world.vectors.write_run(record or {})
    world.embedder.open_gate.set()
    with pytest.raises(StaleRunError):
        await filling
    assert world.vectors.files() == []


async def test_what_stays_is_raised_and_nothing_is_stored(world: Any, error_once: Any) -> None:
    """An endpoint's error reaches the run as it was, and no file of the descriptor is there."""
    world.ingest(["one", "two"])
    world.vectors.write_run(RUNNING)
    world.embedder.before = error_once(EndpointRefusedError("too long", {"row": 1}))
    stage = EmbedStage(world.objects, world.vectors, world.embedder, "ours")
    with pytest.raises(EndpointRefusedError, match="too long"):
        await stage.fill(descriptor_of(world))
    assert world.vectors.files() == []


async def test_a_cancelled_run_leaves_the_endpoint_alone(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stage notices that its run has ended while the endpoint is slow, and does not wait for it."""
    monkeypatch.setattr("compass.rebuild.stage.CHECK_S", 0.01)
    world.ingest(["one"])
    world.vectors.write_run(RUNNING)
    world.embedder.open_gate.clear()
    stage = EmbedStage(world.objects, world.vectors, world.embedder, "ours")
    filling = asyncio.create_task(stage.fill(descriptor_of(world)))
    await world.embedder.waiting.wait()
    world.vectors.write_run({**RUNNING, "state": "cancelled"})
    with pytest.raises(StaleRunError):
        await asyncio.wait_for(filling, 5)


async def test_closing_closes_the_embedder(world: Any) -> None:
    """No connection outlives its stage."""
    stage = EmbedStage(world.objects, world.vectors, world.embedder, "ours")
    await stage.close()
    assert world.embedder.closed == 1


async def test_a_throttle_keeps_order_size_and_requests_at_once() -> None:
    """Batches have the size asked for, no more are out at once than asked for, and the rows stay in order."""
    out, most, sizes = 0, 0, []

    async def embed(texts: Any) -> Any:
        nonlocal out, most
        out += 1
        most = max(most, out)
        sizes.append(len(texts))
        await asyncio.sleep(0.001 * (10 - int(texts[0])))
        out -= 1
        return np.array([[float(t)] for t in texts], np.float32)

    rows = await Throttle(2, 3, None).embed(embed, [str(i) for i in range(9)])
    assert rows[:, 0].tolist() == list(range(9))
    assert (most, sorted(sizes)) == (3, [1, 2, 2, 2, 2])


async def test_a_throttle_holds_the_speed() -> None:
    """Texts after the first batch wait until those before have had their time."""

    async def embed(texts: Any) -> Any:
        return np.zeros((len(texts), 1), np.float32)

    started = time.monotonic()
    await Throttle(10, None, 200.0).embed(embed, ["x"] * 40)
    assert time.monotonic() - started >= 0.149


async def test_together_raises_the_first_error_and_cancels_the_rest() -> None:
    """One batch's error is raised as it was, and the others stop."""
    stopped = asyncio.Event()

    async def slow() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            stopped.set()

    async def failing() -> None:
        await asyncio.sleep(0)
        raise EndpointUnavailableError("down")

    with pytest.raises(EndpointUnavailableError, match="down"):
        await together([slow(), failing()])
    await asyncio.wait_for(stopped.wait(), 1)
