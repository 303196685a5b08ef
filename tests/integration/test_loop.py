"""A turn of a post-processor: batch sizes, turns, busy models, unknown runners."""

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest

from factories import World
from ppworker.domain.events import Event, JobMoved
from ppworker.domain.job import Status
from ppworker.runners.base import RunnerInput
from ppworker.runners.pool import Permit, RunnerPool
from ppworker.store import jobs
from ppworker.worker.heartbeat import Heartbeat
from ppworker.worker.inside import Inside
from ppworker.worker.loop import Loop


@pytest.fixture
def models() -> Iterator[RunnerPool]:
    pool = RunnerPool()
    yield pool
    pool.close()


def made(
    world: World,
    models: RunnerPool,
    *,
    heartbeat: Heartbeat | None = None,
    slice_s: float = 2.0,
    **parts: Any,
) -> Loop:
    heartbeat = heartbeat or Heartbeat(lambda _: set(), lambda: None, lease_s=30)
    settings = world.deps.settings.model_copy(update={"slice_s": slice_s})
    deps = replace(world.deps, settings=settings, **parts)
    return Loop(deps, models, heartbeat, refresh=lambda: None, stopping=threading.Event())


@pytest.fixture
def loop(world: World, models: RunnerPool) -> Loop:
    return made(world, models)


def wait_until_processing(world: World) -> None:
    until = time.monotonic() + 10
    while "processing" not in world.statuses():
        assert time.monotonic() < until
        time.sleep(0.01)


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
    wait_until_processing(world)
    assert not loop.run_slice(processor.id, lambda: None), "the model is busy"
    slot.join()
    assert results == [True], "who had the model is told to look again"
    assert not loop.run_slice(processor.id, lambda: None)


def test_who_met_a_shared_model_busy_is_served_before_its_holder_comes_back(
    world: World, models: RunnerPool
) -> None:
    hints: list[UUID] = []
    loop = made(world, models, slice_s=1.0, hint=hints.extend)
    other = World(world.deps)
    sharing: dict[str, Any] = {
        "runner": "scripted_runners:SerialRunner",
        "runner_config": {"seconds": 0.02},
        "batch_size": 1,
    }
    holder, waiting = world.processor(**sharing), other.processor(**sharing)
    world.add(*("word" for _ in range(100)))
    other.add(*("word" for _ in range(100)))
    results: list[bool] = []
    slot = threading.Thread(target=lambda: results.append(loop.run_slice(holder.id, lambda: None)))
    slot.start()
    wait_until_processing(world)
    assert not loop.run_slice(waiting.id, lambda: None), "the model is busy"
    slot.join()
    assert "completed" in other.statuses(waiting)
    assert hints == [waiting.id], "it has more, and comes before who had the model"
    assert results == [True]


def test_who_met_a_shared_model_busy_and_has_nothing_to_do_is_not_called_again(
    world: World, models: RunnerPool
) -> None:
    hints: list[UUID] = []
    loop = made(world, models, hint=hints.extend)
    sharing: dict[str, Any] = {
        "runner": "scripted_runners:SlowRunner",
        "runner_config": {"seconds": 0.4},
    }
    holder, idle = world.processor(**sharing), World(world.deps).processor(**sharing)
    world.add("one")
    results: list[bool] = []
    slot = threading.Thread(target=lambda: results.append(loop.run_slice(holder.id, lambda: None)))
    slot.start()
    wait_until_processing(world)
    assert not loop.run_slice(idle.id, lambda: None), "the model is busy"
    slot.join()
    assert (results, hints) == ([False], [])


def test_what_a_batch_waited_for_before_its_model_is_no_hang_of_the_model(
    world: World, models: RunnerPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A database that was away for longer than the deadline must not end healthy workers."""
    heartbeat = Heartbeat(lambda _: set(), lambda: None, lease_s=30)
    loop = made(world, models, heartbeat=heartbeat)
    late_s, hung = [0.0], []
    original, predict = time.monotonic, models.predict
    monkeypatch.setattr(time, "monotonic", lambda: original() + late_s[0])
    loop.inside = Inside(hangs_after_s=0, clock=time.monotonic)

    def confirmed(leases: Mapping[UUID, int]) -> set[UUID]:
        late_s[0] += 3600
        return set(leases)

    def ask(permit: Permit, inputs: Sequence[RunnerInput], timeout_s: float) -> Any:
        hung.append(len(loop.inside.hung()))
        late_s[0] += 3600
        hung.append(len(loop.inside.hung()))
        return predict(permit, inputs, timeout_s)

    monkeypatch.setattr(heartbeat, "confirmed", confirmed)
    monkeypatch.setattr(models, "predict", ask)
    processor = world.processor(runner="scripted_runners:EchoRunner")
    world.add("one")
    loop.run_slice(processor.id, lambda: None)
    assert hung == [0, 1]
    assert loop.inside.hung() == []
    assert world.statuses() == ["completed"]


def test_a_beat_between_the_commit_of_a_batch_and_its_end_calls_no_lease_lost(
    world: World, models: RunnerPool, caplog: pytest.LogCaptureFixture
) -> None:
    lost: list[str] = []
    asked: list[int] = []

    def extend(held: Mapping[UUID, int]) -> set[UUID]:
        asked.append(len(held))
        with world.deps.db.begin() as tx:
            return jobs.extend_leases(tx, held, lease_s=30)

    def emit(events: Sequence[Event]) -> None:
        if any(isinstance(each, JobMoved) and each.to is Status.COMPLETED for each in events):
            heartbeat.beat()

    heartbeat = Heartbeat(extend, lambda: None, lease_s=30, lost=lost.extend)
    loop = made(world, models, heartbeat=heartbeat, emit=emit)
    processor = world.processor(runner="scripted_runners:EchoRunner")
    world.add("one")
    loop.run_slice(processor.id, lambda: None)
    assert world.statuses() == ["completed"]
    assert asked == [1]
    assert (lost, caplog.messages) == ([], [])


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
