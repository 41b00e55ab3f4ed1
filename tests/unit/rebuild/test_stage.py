"""A stage turns a descriptor into one durable vector file, or into nothing at all."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest
from rebuild_world import World
from records import run_record
from waiting import until

from compass.domain.chunk import ChunkInput
from compass.domain.embedding.endpoint_stats import EndpointStats
from compass.domain.rebuild.run_record import RunRecord
from compass.domain.space import SpaceConfig
from compass.errors import EndpointRefusedError, EndpointUnavailableError
from compass.rebuild.plan import Descriptor, read_plan
from compass.rebuild.run_store import StaleRunError
from compass.rebuild.stage import EmbedStage

NONE = np.empty(0, np.int64)
RUNNING = run_record("ours")


def descriptor_of(world: World) -> Descriptor:
    (descriptor,) = read_plan(world.objects, world.store.checkpoint(), NONE, NONE).descriptors
    return descriptor


async def test_fills_a_descriptor(world: World) -> None:
    """Every row of the descriptor has its vector in the file, under its vid, as the model gave it."""
    world.ingest(["one", "", "three", "four"])
    world.vectors.write_run(RUNNING)
    stage = EmbedStage(world.objects, world.vectors, world.embedder, "ours")
    filled = await stage.fill(descriptor_of(world))
    assert filled.key is not None
    vids, rows = world.vectors.read(filled.key)
    texts = world.store.view.texts(vids)
    assert filled.count == 3
    assert vids.tolist() == world.embeddable()
    np.testing.assert_allclose(rows, world.embedder.model.embed([texts[v] for v in vids.tolist()]), atol=1e-6)
    assert world.vectors.run_of(filled.key) == "ours"


async def test_a_descriptor_that_is_durable_is_not_embedded_again(world: World) -> None:
    """A stage that died before it could say so has done the work: its successor finds the file."""
    world.ingest(["one", "two"])
    world.vectors.write_run(RUNNING)
    descriptor = descriptor_of(world)
    first = await EmbedStage(world.objects, world.vectors, world.embedder, "ours").fill(descriptor)
    again = await EmbedStage(world.objects, world.vectors, world.embedder, "ours").fill(descriptor)
    assert (again.key, again.count) == (first.key, 2)
    assert world.embedder.sent["one"] == 1
    assert world.vectors.files() == [first.key]


@pytest.mark.parametrize(
    "record", [run_record("another"), run_record("another", "done"), run_record("ours", "cancelled")]
)
async def test_a_stale_attempt_appends_nothing(world: World, record: RunRecord) -> None:
    """A stage whose run was replaced or cancelled while it embedded leaves no file."""
    world.ingest(["one"])
    world.vectors.write_run(RUNNING)
    world.embedder.open_gate.clear()
    stage = EmbedStage(world.objects, world.vectors, world.embedder, "ours")
    filling = asyncio.create_task(stage.fill(descriptor_of(world)))
    await world.embedder.waiting.wait()
    world.vectors.write_run(record)
    world.embedder.open_gate.set()
    with pytest.raises(StaleRunError):
        await filling
    assert world.vectors.files() == []


async def test_a_refused_text_is_quarantined_and_the_rest_lands(world: World) -> None:
    """The stage finds the text by halving; its reason is stored, the others have their vectors."""
    world.ingest(["one", "POISON", "three", "four"])
    world.vectors.write_run(RUNNING)

    def refuse(texts: Any) -> None:
        if "POISON" in texts:
            raise EndpointRefusedError("too long")

    world.embedder.before = refuse
    stage = EmbedStage(world.objects, world.vectors, world.embedder, "ours")
    filled = await stage.fill(descriptor_of(world))
    assert (filled.count, filled.refused) == (3, 1)
    (poison,) = world.vectors.quarantined().items()
    assert world.store.view.texts([poison[0]]) == {poison[0]: "POISON"}
    assert poison[1] == "too long"
    assert world.vectors.have().tolist() == [vid for vid in world.embeddable() if vid != poison[0]]


async def test_where_every_text_is_refused_there_is_no_file(world: World) -> None:
    """A descriptor of nothing but poison lands as a quarantine alone."""
    world.ingest(["POISON a", "POISON b"])
    world.vectors.write_run(RUNNING)

    def refuse(texts: Any) -> None:
        if any("POISON" in text for text in texts):
            raise EndpointRefusedError("no")

    world.embedder.before = refuse
    filled = await EmbedStage(world.objects, world.vectors, world.embedder, "ours").fill(descriptor_of(world))
    assert (filled.key, filled.count, filled.refused) == (None, 0, 2)
    assert world.vectors.files() == []


async def test_an_endpoints_error_is_raised_and_nothing_is_stored(world: World, error_once: Any) -> None:
    """What no text is to blame for reaches the run as it was, and no file of the descriptor is there."""
    world.ingest(["one", "two"])
    world.vectors.write_run(RUNNING)
    world.embedder.before = error_once(EndpointUnavailableError("down"))
    stage = EmbedStage(world.objects, world.vectors, world.embedder, "ours")
    with pytest.raises(EndpointUnavailableError, match="down"):
        await stage.fill(descriptor_of(world))
    assert world.vectors.files() == []
    assert world.vectors.quarantined() == {}


async def test_a_stage_tells_how_its_endpoints_do_while_nothing_lands(world: World) -> None:
    """Again and again, with its attempt and its name."""
    world.ingest(["one"])
    world.vectors.write_run(RUNNING)
    world.embedder.open_gate.clear()
    world.embedder.stats = [EndpointStats("u", "down")]
    reports: list[tuple[str, str, tuple[EndpointStats, ...]]] = []

    def report(attempt: str, stage: str, endpoints: tuple[EndpointStats, ...]) -> None:
        reports.append((attempt, stage, endpoints))

    stage = EmbedStage(world.objects, world.vectors, world.embedder, "ours", report=report, check_s=0.01)
    filling = asyncio.create_task(stage.fill(descriptor_of(world)))
    await until(lambda: len(reports) > 1)
    world.embedder.open_gate.set()
    await filling
    assert set(reports) == {("ours", stage.name, (EndpointStats("u", "down"),))}


async def test_a_cancelled_run_leaves_the_endpoint_alone(world: World) -> None:
    """A stage notices that its run has ended while the endpoint is slow, and does not wait for it."""
    world.ingest(["one"])
    world.vectors.write_run(RUNNING)
    world.embedder.open_gate.clear()
    stage = EmbedStage(world.objects, world.vectors, world.embedder, "ours", check_s=0.01)
    filling = asyncio.create_task(stage.fill(descriptor_of(world)))
    await world.embedder.waiting.wait()
    world.vectors.write_run(run_record("ours", "cancelled"))
    with pytest.raises(StaleRunError):
        await asyncio.wait_for(filling, 60)


async def test_closing_closes_the_embedder(world: World) -> None:
    """No connection outlives its stage."""
    stage = EmbedStage(world.objects, world.vectors, world.embedder, "ours")
    await stage.close()
    assert world.embedder.closed == 1


async def test_what_the_template_says_is_embedded(world: World) -> None:
    """Metadata and built-in fields as the space's template has them, the document's prompt before all."""
    chunks = [
        ChunkInput("a.md", 0, "first", {"title": "One", "tags": ["x", "y"]}),
        ChunkInput("b.md", 0, "second", {}, page=3),
        ChunkInput("c.md", 0, "", {"title": "Empty"}),
    ]
    world.store.ingest(chunks)
    world.vectors.write_run(RUNNING)
    config = SpaceConfig(16, "m", template="{title}|{tags}|{page}|{file_id}: {text}", document_prompt="passage: ")
    stage = EmbedStage(world.objects, world.vectors, world.embedder, "ours", config)
    assert (await stage.fill(descriptor_of(world))).count == 2
    assert sorted(world.embedder.sent) == ["passage: One|x, y||a.md: first", "passage: ||3|b.md: second"]
