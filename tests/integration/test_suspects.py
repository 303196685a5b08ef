"""A worker that dies with a batch in its own process: who is suspected, and what becomes of them."""

from uuid import UUID

import pytest

from factories import Model, World, classes
from ppworker.domain.job import MAX_CRASHES
from ppworker.domain.post_processor import PostProcessor
from ppworker.pipeline.control import operate
from ppworker.pipeline.runs import execute, rescue
from ppworker.runners.base import RunnerInput
from ppworker.store import model_entries


class Death(Exception):  # noqa: N818  what it stands for
    """The process is gone at this very moment."""


def die() -> None:
    raise Death


def run(world: World, processor: PostProcessor, *, dies_of: str = "", limit: int = 100) -> int:
    """One batch in the worker's own process, of those that are due; dies of a text, or lives."""

    def say(given: RunnerInput) -> dict[str, object]:
        if dies_of and dies_of in str(given.text):
            raise Death
        return classes("cat")

    world.make_due()
    batch = world.claim(processor, limit=limit)
    if not batch.jobs:
        return 0
    try:
        execute.run(world.deps, world.labels, processor, Model(say, shares_process=True), batch)
    except Death:
        world.expire()
        rescue.rescue(world.deps)
    return len(batch.jobs)


def entries(world: World) -> int:
    return int(world.sql("SELECT count(*) FROM model_entries")[0][0])


def groups(world: World) -> list[int]:
    rows = world.sql(
        "SELECT count(*) FROM post_processor_jobs WHERE suspect_group IS NOT NULL "
        "GROUP BY suspect_group ORDER BY 1"
    )
    return [row[0] for row in rows]


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


def test_a_death_makes_two_groups_that_run_apart_and_complete(world: World) -> None:
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
    assert groups(world) == [3, 4]
    assert entries(world) == 0
    world.add("newcomer")
    world.make_due()
    ordinary = execute.claim(world.deps, processor, limit=100)
    assert (len(ordinary.jobs), ordinary.suspects_wait) == (1, True)
    sizes = [run(world, processor), run(world, processor), run(world, processor)]
    assert sorted(sizes) == [0, 3, 4]
    assert groups(world) == []
    assert {job.attempts for job in world.jobs() if job.status == "completed"} == {2}
    world.check()


def test_poison_is_found_alone_and_the_others_pay_one_attempt(world: World) -> None:
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
        assert "alone" in job.error
        assert "3 x" in job.error
    good = [job for job in world.jobs() if job.status == "completed"]
    assert len(good) == 18
    assert {job.attempts for job in good} == {2}
    assert groups(world) == []
    assert entries(world) == 0
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
    assert groups(world) == []
    assert run(world, processor) == 2


def test_a_hung_model_makes_suspects_that_fail_for_the_deadline(world: World) -> None:
    processor = world.processor(max_attempts=2)
    world.add("one")
    for _ in range(2):
        world.make_due()
        batch = world.claim(processor)
        with world.deps.db.begin() as tx:
            model_entries.enter(tx, batch.id, jobs=1)
        world.sql("UPDATE post_processor_jobs SET deadline_at = now() - interval '1 s'")
        rescue.rescue(world.deps)
    (job,) = world.jobs()
    assert (job.status, job.reason, job.crash_count) == ("failed", "deadline", 1)
    assert "hung" in job.error
    world.check()


def test_a_retry_gives_a_fresh_budget_and_forgets_the_suspicion(world: World) -> None:
    processor = world.processor(max_attempts=1)
    world.add("POISON")
    while run(world, processor, dies_of="POISON"):
        pass
    (job,) = world.jobs()
    assert job.reason == "crash"
    operate.retry(world.deps, world.user, job.id)
    assert groups(world) == []
    assert (world.jobs()[0].attempts, world.jobs()[0].crash_count) == (0, 0)
    assert run(world, processor) == 1
    assert world.statuses() == ["completed"]
    world.check()


def test_a_part_of_a_dead_batch_is_not_taken_for_alone(world: World) -> None:
    """A sweep may get one job of a batch, while the others' items are locked."""
    processor = world.processor()
    world.add(*(f"good {i}" for i in range(4)))
    batch = world.claim(processor)
    with world.deps.db.begin() as tx:
        model_entries.enter(tx, batch.id, jobs=4)
    world.expire()
    for job in batch.jobs:
        with world.deps.db.begin() as tx:
            rescue._rescue(tx, [(job.id, job.item_id)])
    assert groups(world) == [1, 1, 1, 1]
    assert {job.crash_count for job in world.jobs()} == {0}
    assert entries(world) == 0


def test_entries_that_nobody_ended_are_pruned_and_those_of_running_batches_stay(
    world: World,
) -> None:
    processor = world.processor()
    world.add("one")
    batch = world.claim(processor)
    with world.deps.db.begin() as tx:
        model_entries.enter(tx, batch.id, jobs=1)
        model_entries.enter(tx, UUID(int=7), jobs=1)
    world.sql("UPDATE model_entries SET entered_at = now() - interval '2 days'")
    with world.deps.db.begin() as tx:
        assert model_entries.prune(tx) == 1
    assert entries(world) == 1


def test_a_release_keeps_the_group_and_a_transient_error_ends_it(world: World) -> None:
    from ppworker.errors import RunnerTimeout
    from ppworker.pipeline.runs import finish

    processor = world.processor(max_attempts=5)
    world.add("one", "two")
    run(world, processor, dies_of="t")
    run(world, processor, dies_of="w")
    world.make_due()
    batch = world.claim(processor)
    held = {job.id: (job.item_id, job.lease_token) for job in batch.jobs}
    finish.release(world.deps, {}, held)
    assert groups(world), "a stop proves nothing"
    while groups(world):
        world.make_due()
        world.run(processor, RunnerTimeout("slow"))
    assert "pending" in world.statuses()
    world.check()
