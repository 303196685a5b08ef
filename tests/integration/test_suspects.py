"""A worker that dies with a batch in its own process: who is suspected, and what becomes of them."""

from uuid import UUID

import pytest

from factories import Model, World, classes
from ppworker.domain.job import MAX_CRASHES
from ppworker.domain.post_processor import PostProcessor
from ppworker.errors import RunnerCrashed, RunnerError, RunnerTimeout
from ppworker.pipeline.control import operate
from ppworker.pipeline.runs import execute, finish, rescue
from ppworker.runners.base import RunnerInput
from ppworker.store import model_entries


class Death(Exception):  # noqa: N818  what it stands for
    """The process is gone at this very moment."""


def die() -> None:
    raise Death


def run(world: World, processor: PostProcessor, *, dies_of: str = "", limit: int = 100) -> int:
    """One batch of those that are due: of ordinary jobs in the worker's own process, which dies of
    a text; of suspects in a process of the model's own, where the one that kills it is told."""

    def say(given: RunnerInput) -> dict[str, object] | RunnerError:
        if dies_of and dies_of in str(given.text):
            if is_apart:
                return RunnerCrashed("the model's process died of signal 9")
            raise Death
        return classes("cat")

    world.make_due()
    batch = execute.claim(world.deps, processor, limit=limit)
    is_apart = not batch.jobs and batch.suspects_wait
    if is_apart:
        batch = execute.claim_suspects(world.deps, processor, limit=limit)
    if not batch.jobs:
        return 0
    try:
        model = Model(say, shares_process=not is_apart)
        execute.run(world.deps, world.labels, processor, model, batch)
    except Death:
        world.expire()
        rescue.rescue(world.deps)
    return len(batch.jobs)


def entries(world: World) -> int:
    return int(world.sql("SELECT count(*) FROM model_entries")[0][0])


def suspects(world: World) -> int:
    rows = world.sql("SELECT count(*) FROM post_processor_jobs WHERE is_suspect")
    return int(rows[0][0])


def test_a_batch_is_noted_while_it_is_in_the_model_and_no_longer(world: World) -> None:
    processor = world.processor()
    world.add("one", "two")
    seen: list[int] = []
    model = Model(lambda _: classes("cat"), lambda: seen.append(entries(world)), [], True)
    execute.run(world.deps, world.labels, processor, model, world.claim(processor))
    assert (seen, entries(world)) == ([1], 0)


def test_a_model_in_a_process_of_its_own_is_not_noted(world: World) -> None:
    processor = world.processor()
    world.add("one")
    seen: list[int] = []
    world.run(processor, during=lambda: seen.append(entries(world)))
    assert seen == [0]


def test_the_jobs_of_a_dead_batch_run_apart_and_complete(world: World) -> None:
    processor = world.processor()
    world.add(*(f"good {i}" for i in range(7)))
    batch = world.claim(processor)
    with pytest.raises(Death):
        execute.run(
            world.deps,
            world.labels,
            processor,
            Model(lambda _: classes("cat"), die, shares_process=True),
            batch,
        )
    world.expire()
    rescue.rescue(world.deps)
    assert (suspects(world), entries(world)) == (7, 0)
    world.add("newcomer")
    world.make_due()
    ordinary = execute.claim(world.deps, processor, limit=100)
    assert (len(ordinary.jobs), ordinary.suspects_wait) == (1, True)
    assert [run(world, processor), run(world, processor)] == [7, 0]
    assert suspects(world) == 0
    assert {job.attempts for job in world.jobs() if job.status == "completed"} == {2}
    world.check()


def test_poison_is_put_away_and_the_others_pay_one_attempt(world: World) -> None:
    processor = world.processor(max_attempts=10)
    texts = [f"good {i}" for i in range(20)]
    texts[5] = texts[13] = "POISON"
    world.add(*texts)
    batches = 0
    while run(world, processor, dies_of="POISON"):
        batches += 1
        assert batches < 50
    bad = [job for job in world.jobs() if job.status == "failed"]
    assert len(bad) == 2
    for job in bad:
        assert (job.reason, job.crash_count) == ("crash", MAX_CRASHES)
    good = [job for job in world.jobs() if job.status == "completed"]
    assert len(good) == 18
    assert {job.attempts for job in good} == {2}
    assert (suspects(world), entries(world)) == (0, 0)
    world.check()


def test_an_exhausted_budget_ends_poison_sooner_and_nobody_else(world: World) -> None:
    processor = world.processor(max_attempts=1)
    world.add("good", "POISON", "good too")
    while run(world, processor, dies_of="POISON"):
        pass
    assert sorted(job.reason for job in world.jobs()) == ["", "", "crash"]
    world.check()


def test_a_death_outside_the_model_makes_no_suspects(world: World) -> None:
    processor = world.processor()
    world.add("one", "two")
    world.claim(processor)
    world.expire()
    rescue.rescue(world.deps)
    assert suspects(world) == 0
    assert run(world, processor) == 2


def test_a_hung_model_makes_suspects(world: World) -> None:
    processor = world.processor(max_attempts=1)
    world.add("one")
    batch = world.claim(processor)
    with world.deps.db.begin() as tx:
        model_entries.enter(tx, batch.id)
    world.sql("UPDATE post_processor_jobs SET deadline_at = now() - interval '1 s'")
    rescue.rescue(world.deps)
    (job,) = world.jobs()
    assert (job.status, job.reason, job.attempts) == ("pending", "deadline", 0)
    assert suspects(world) == 1
    assert run(world, processor) == 1
    assert world.statuses() == ["completed"]
    world.check()


def test_a_retry_gives_a_fresh_budget_and_forgets_the_suspicion(world: World) -> None:
    processor = world.processor(max_attempts=1)
    world.add("POISON")
    while run(world, processor, dies_of="POISON"):
        pass
    (job,) = world.jobs()
    assert job.reason == "crash"
    operate.retry(world.deps, world.user, job.id)
    assert suspects(world) == 0
    assert (world.jobs()[0].attempts, world.jobs()[0].crash_count) == (0, 0)
    assert run(world, processor) == 1
    assert world.statuses() == ["completed"]
    world.check()


def test_a_batch_that_is_rescued_bit_by_bit_is_suspected_whole(world: World) -> None:
    """A sweep may get one job of a batch, while the others' items are locked."""
    processor = world.processor()
    world.add(*(f"good {i}" for i in range(4)))
    batch = world.claim(processor)
    with world.deps.db.begin() as tx:
        model_entries.enter(tx, batch.id)
    world.expire()
    for number, job in enumerate(batch.jobs, start=1):
        with world.deps.db.begin() as tx:
            rescue._rescue(tx, [(job.id, job.item_id)])
        assert suspects(world) == number
    assert entries(world) == 0


def test_entries_that_nobody_ended_are_pruned_and_those_of_running_batches_stay(
    world: World,
) -> None:
    processor = world.processor()
    world.add("one")
    batch = world.claim(processor)
    with world.deps.db.begin() as tx:
        model_entries.enter(tx, batch.id)
        model_entries.enter(tx, UUID(int=7))
    world.sql("UPDATE model_entries SET entered_at = now() - interval '2 days'")
    with world.deps.db.begin() as tx:
        assert model_entries.prune(tx) == 1
    assert entries(world) == 1


def test_a_release_and_a_time_out_keep_the_suspicion_and_another_error_ends_it(
    world: World,
) -> None:
    processor = world.processor(max_attempts=5)
    world.add("one", "two")
    run(world, processor, dies_of="t")
    world.make_due()
    batch = world.claim(processor)
    held = {job.id: (job.item_id, job.lease_token) for job in batch.jobs}
    finish.release(world.deps, {}, held)
    assert suspects(world) == 2, "a stop proves nothing"
    world.make_due()
    world.run(processor, RunnerTimeout("slow"))
    assert suspects(world) == 2, "nor does a model that never came back"
    world.make_due()
    world.run(processor, RunnerError("it will not", retryable=True))
    assert (suspects(world), set(world.statuses())) == (0, {"pending"})
    world.check()
