"""The same run against a real endpoint on a real socket, with the stages that production opens."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from rebuild_world import World, ended
from records import run_record

from compass.domain.rebuild.order import RebuildOrder
from compass.domain.space import SpaceConfig
from compass.embedding.builtin import HashingModel
from compass.rebuild.pipeline import run_inline
from compass.rebuild.plan import read_plan
from compass.rebuild.run import RebuildRun
from compass.rebuild.stage import StageOpener
from compass.testing.embed_server import served

DIMS = 16
NONE = np.empty(0, np.int64)


@pytest.fixture
def opener(world: World, tmp_path: Path) -> StageOpener:
    """What opens production's stages for the space of this world."""
    uuid = world.store.state.uuid
    return StageOpener(str(tmp_path / "data"), uuid, "new-1", SpaceConfig(DIMS, "m"), timeout_s=5.0)


def run_of(world: World, opener: StageOpener) -> RebuildRun:
    world.open_stage = opener
    return world.new_run()


async def test_rebuilds_over_http_and_resumes(world: World, opener: StageOpener) -> None:
    """Every vector is the endpoint's own; a second run sends it nothing but what was written since."""
    with served("m", DIMS) as endpoint:
        world.ingest(f"text {i} about subject{i % 7}" for i in range(300))
        run = run_of(world, opener)
        await run.start(RebuildOrder((endpoint.url,), "j1", batch_size=16))
        assert (await ended(run)).state == "done"
        vids, rows = world.vectors.get(world.store.view.embeddable_vids())
        texts = world.store.view.texts(vids)
        expected = HashingModel("m", DIMS).embed([texts[v] for v in vids.tolist()])
        np.testing.assert_allclose(rows, expected, atol=1e-5)
        assert endpoint.stats()["inputs"] == 300
        world.ingest((f"later {i}" for i in range(20)), "g")
        await run.start(RebuildOrder((endpoint.url,), "j2"))
        assert (await ended(run)).state == "done"
        assert endpoint.stats()["inputs"] == 320
        assert world.vectors.have().tolist() == world.embeddable()


async def test_wrong_dims_fail_the_run_with_both_numbers(world: World, opener: StageOpener) -> None:
    """An endpoint of another model's size is named with what it sent and what the space wants; nothing is stored."""
    with served("other", 24) as endpoint:
        world.ingest(["one", "two"])
        run = run_of(world, opener)
        await run.start(RebuildOrder((endpoint.url,), "j"))
        record = await ended(run)
    assert record.state == "failed"
    assert "16" in str(record.error)
    assert "24" in str(record.error)
    assert world.vectors.files() == []


async def test_a_speed_limit_holds_over_http(world: World, opener: StageOpener) -> None:
    """max_docs_per_s of the order is what the stage keeps to."""
    with served("m", DIMS) as endpoint:
        world.ingest(f"text {i}" for i in range(60))
        plan = read_plan(world.objects, world.store.checkpoint(), NONE, NONE)
        world.vectors.write_run(run_record())
        order = RebuildOrder((endpoint.url,), "j", batch_size=10, max_docs_per_s=100.0)
        started = time.monotonic()
        landed = [f.count async for f in run_inline(plan.descriptors, opener, order, "a")]
        assert landed == [60]
        assert time.monotonic() - started >= 0.49
