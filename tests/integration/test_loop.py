"""A turn of a post-processor: batch sizes, turns, busy models, unknown runners."""

import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from uuid import UUID

import pytest

from factories import World
from ppworker.runners.pool import RunnerPool
from ppworker.worker.heartbeat import Heartbeat
from ppworker.worker.loop import Loop


@pytest.fixture
def models() -> Iterator[RunnerPool]:
    pool = RunnerPool()
    yield pool
    pool.close()


@pytest.fixture
def loop(world: World, models: RunnerPool) -> Loop:
    heartbeat = Heartbeat(lambda _: set(), lambda: None, lease_s=30)
    settings = world.deps.settings.model_copy(update={"slice_s": 2.0})
    deps = replace(world.deps, settings=settings)
    return Loop(deps, models, heartbeat, refresh=lambda: None, stopping=threading.Event())


def sizes(world: World) -> list[int]:
    """Sizes of the batches, in the order they ended: what one transaction wrote is one batch."""
    rows = world.sql("SELECT count(*) FROM job_attempts GROUP BY xmin::text ORDER BY min(ended_at)")
    return [row[0] for row in rows]


def test_batches_of_a_quick_model_grow_and_a_slow_ones_stay_small(world: World, loop: Loop) -> None:
    quick = world.processor(runner="scripted_runners:EchoRunner", batch_size=100)
    world.add(*("word" for _ in range(300)))
    while loop.run_slice(quick.id, lambda: None):
        pass
    grown = sizes(world)
    assert grown[:4] == [1, 4, 16, 64]
    assert max(grown) == 100
    world.sql("DELETE FROM job_attempts")
    world.sql("UPDATE post_processors SET enabled = false")
    slow = world.processor(runner="scripted_runners:DawdlingRunner", runner_config={"seconds": 0.6})
    world.add(*("word" for _ in range(4)))
    loop.run_slice(slow.id, lambda: None)
    assert set(sizes(world)) == {1}


def test_a_full_claim_recruits_and_a_slice_ends_for_the_others_turn(
    world: World, loop: Loop
) -> None:
    processor = world.processor(
        runner="scripted_runners:DawdlingRunner", runner_config={"seconds": 0.3}
    )
    world.add(*("word" for _ in range(30)))
    recruited: list[int] = []
    started = time.monotonic()
    assert loop.run_slice(processor.id, lambda: recruited.append(1)), "more is due"
    assert recruited
    assert 1.5 < time.monotonic() - started < 4


def test_an_unknown_runner_leaves_its_jobs_to_processes_that_know_it(
    world: World, loop: Loop
) -> None:
    processor = world.processor(runner="not-installed-here")
    world.add("one")
    assert not loop.run_slice(processor.id, lambda: None)
    (job,) = world.jobs()
    assert (job.status, job.attempts) == ("pending", 0)


def test_a_vanished_post_processor_is_no_error(loop: Loop) -> None:
    assert not loop.run_slice(UUID(int=7), lambda: None)


def test_a_hint_that_met_a_busy_model_is_not_lost(world: World, loop: Loop) -> None:
    """Its slot may have claimed nothing just before: it must look once more."""
    processor = world.processor(
        runner="scripted_runners:SlowRunner", runner_config={"seconds": 0.4}, batch_size=1
    )
    world.add("one")
    results: list[bool] = []
    slot = threading.Thread(
        target=lambda: results.append(loop.run_slice(processor.id, lambda: None))
    )
    slot.start()
    until = time.monotonic() + 10
    while world.statuses() != ["processing"]:
        assert time.monotonic() < until
        time.sleep(0.01)
    assert not loop.run_slice(processor.id, lambda: None), "the model is busy"
    slot.join()
    assert results == [True], "who had the model is told to look again"
    assert not loop.run_slice(processor.id, lambda: None)


def test_the_speed_of_a_post_processor_that_is_gone_is_forgotten(
    world: World, loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone, idle, used = (world.processor(runner="scripted_runners:EchoRunner") for _ in range(3))
    for processor in (gone, idle, used):
        loop.run_slice(processor.id, lambda: None)
    assert len(loop._paces) == 3
    original = time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: original() + 3000)
    loop.run_slice(used.id, lambda: None)
    monkeypatch.setattr(time, "monotonic", lambda: original() + 4000)
    new = world.processor(runner="scripted_runners:EchoRunner")
    loop.run_slice(new.id, lambda: None)
    assert loop._paces.keys() == {used.id, new.id}
