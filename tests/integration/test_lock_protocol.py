"""Locks, deadlocks and lost connections: the races that broke the plausible versions."""

import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest

from factories import World, classes
from ppworker.errors import CommitUnknown, RunnerUnavailable, StoreUnavailable
from ppworker.pipeline.control import operate
from ppworker.pipeline.runs import finish, rescue
from ppworker.store import items, jobs, labels, verify
from ppworker.store.db import Database, Tx


def test_heartbeats_finishes_and_rescues_at_once_never_deadlock(world: World) -> None:
    """A heartbeat that locked in the order of its arrays deadlocked with finishes."""
    processor = world.processor(max_attempts=50)
    world.add(*(f"t{i}" for i in range(400)))
    ended = threading.Event()
    deadlocks = _count_deadlocks(world)
    errors: list[BaseException] = []

    def beat() -> None:
        while not ended.is_set():
            held = {
                row.id: row.lease_token
                for row in world.sql(
                    "SELECT id, lease_token FROM post_processor_jobs WHERE status = 'processing'"
                )
            }
            shuffled = list(held.items())
            random.shuffle(shuffled)
            with world.deps.db.begin() as tx:
                jobs.extend_leases(tx, dict(shuffled), lease_s=30)

    def work() -> None:
        while not ended.is_set():
            batch = world.claim(processor, limit=20)
            if not batch.jobs:
                return
            world.run(processor, classes("cat"), batch=batch)

    def sweep() -> None:
        while not ended.is_set():
            world.sql(
                "UPDATE post_processor_jobs SET lease_expires_at = now() - interval '1 s' WHERE id IN "
                "(SELECT id FROM post_processor_jobs WHERE status = 'processing' ORDER BY id "
                "LIMIT 5 FOR UPDATE SKIP LOCKED)"
            )
            rescue.rescue(world.deps)
            world.make_due()

    def guarded(run: Any) -> None:
        try:
            run()
        except BaseException as error:  # noqa: BLE001  shown below
            errors.append(error)

    threads = [
        threading.Thread(target=guarded, args=(run,)) for run in (beat, beat, work, work, sweep)
    ]
    for thread in threads:
        thread.start()
    time.sleep(4)
    ended.set()
    for thread in threads:
        thread.join()
    assert errors == []
    assert _count_deadlocks(world) == deadlocks
    world.check()


def _count_deadlocks(world: World) -> int:
    world.sql("SELECT pg_stat_force_next_flush()")
    return int(
        world.sql("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()")[0][0]
    )


def test_retry_and_cancel_against_finish_never_deadlock(world: World) -> None:
    """Both lock the item before the job, as a finish does."""
    processor, after = world.processor(max_attempts=1), world.processor(order=1)
    world.add(*(f"t{i}" for i in range(60)))
    deadlocks = _count_deadlocks(world)
    ended = threading.Event()

    def steer() -> None:
        while not ended.is_set():
            operate.retry_failed(world.deps, world.user)
            for job in world.jobs(processor)[:10]:
                if job.status in {"pending", "processing"}:
                    try:
                        operate.cancel(world.deps, world.user, job.id)
                    except Exception as error:  # noqa: BLE001  it ended meanwhile
                        assert "is over" in str(error)  # noqa: PT017

    def work(which: Any) -> None:
        while not ended.is_set():
            world.run(
                which,
                lambda _: classes("cat") if random.random() < 0.5 else RunnerUnavailable("gone"),
                limit=7,
            )

    threads = [
        threading.Thread(target=steer),
        *(threading.Thread(target=work, args=(p,)) for p in (processor, processor, after)),
    ]
    for thread in threads:
        thread.start()
    time.sleep(3)
    ended.set()
    for thread in threads:
        thread.join()
    assert _count_deadlocks(world) == deadlocks
    world.sql("SELECT 1")
    rescue.Repair(world.deps).sweep()
    world.check()


class _CutAtCommit(Database):
    """A database whose link is cut at COMMIT: before it arrives, or when it has been applied."""

    def __init__(self, inner: Database) -> None:
        vars(self).update(vars(inner))
        self.cut: str | None = None

    @contextmanager
    def begin(self, *, limit_s: float | None = None) -> Iterator[Tx]:
        cut, self.cut = self.cut, None
        if cut is None:
            with super().begin() as tx:
                yield tx
        elif cut == "applied":
            with super().begin() as tx:
                yield tx
            raise CommitUnknown("the link was cut after COMMIT was applied")
        else:
            try:
                with super().begin() as tx:
                    yield tx
                    raise _Undone  # noqa: TRY301  stands for a server that never saw the COMMIT
            except _Undone:
                raise CommitUnknown("the link was cut before COMMIT arrived") from None


class _Undone(Exception):  # noqa: N818
    pass


@pytest.mark.parametrize("how", ["applied", "lost"])
def test_a_commit_whose_answer_was_lost_is_decided_right(world: World, how: str) -> None:
    processor = world.processor()
    (item,) = world.add("one")
    cutting = _CutAtCommit(world.deps.db)
    deps = replace(world.deps, db=cutting)
    batch = world.claim(processor, deps=deps)
    # The label is made first, so that the next transaction with a cut is the finish itself.
    with world.deps.db.begin() as tx:
        labels.ensure_labels(
            tx, world.train.version_id, world.user, ["cat"], post_processor_id=None, cap=None
        )
    world.labels.get([world.train.version_id])

    def cut() -> None:
        cutting.cut = how

    report = world.run(processor, classes("cat"), during=cut, batch=batch, deps=deps)
    assert report == finish.Report(completed=1), "neither lost nor taken for somebody else's"
    assert len(world.annotations(item)) == 1
    (job,) = world.jobs()
    assert [a.cause for a in world.attempts(job.id)] == ["finished"]
    world.check()


def test_a_claim_whose_commit_is_in_doubt_gives_back_what_it_took(world: World) -> None:
    processor = world.processor(max_attempts=1)
    world.add("one", "two")
    cutting = _CutAtCommit(world.deps.db)
    cutting.cut = "applied"
    with pytest.raises(CommitUnknown):
        world.claim(processor, deps=replace(world.deps, db=cutting))
    assert [(j.status, j.attempts, j.reason) for j in world.jobs()] == [
        ("pending", 0, "released")
    ] * 2
    assert world.run(processor).completed == 2
    world.check()


def test_a_finish_waits_for_a_database_that_is_away(world: World) -> None:
    processor = world.processor()
    world.add("one")
    batch = world.claim(processor)
    failures = iter([StoreUnavailable("away")] * 3)

    class Flaky(_CutAtCommit):
        @contextmanager
        def begin(self, *, limit_s: float | None = None) -> Iterator[Tx]:
            if self.cut and (error := next(failures, None)):
                raise error
            with Database.begin(self) as tx:
                yield tx

    flaky = Flaky(world.deps.db)
    deps = replace(world.deps, db=flaky)

    def go_away() -> None:
        flaky.cut = "away"

    assert world.run(processor, during=go_away, batch=batch, deps=deps).completed == 1
    world.check()


def test_a_sweep_leaves_an_item_that_somebody_holds(world: World) -> None:
    processor = world.processor()
    held, free = world.add("one", "two")
    world.claim(processor)
    world.expire()
    with world.deps.db.begin() as tx:
        items.lock_items(tx, [held])
        assert rescue.rescue(world.deps) == 1
    assert {job.item_id: job.status for job in world.jobs()} == {
        held: "processing",
        free: "pending",
    }
    assert rescue.rescue(world.deps) == 1


def test_a_missed_wake_up_is_reported_and_repaired(world: World) -> None:
    world.processor()
    after = world.processor(order=1)
    world.add("one")
    world.run(world.processor("unused"))
    first = next(job for job in world.jobs() if job.post_processor_id != after.id)
    world.sql("DELETE FROM post_processor_jobs WHERE id = :id", id=first.id)
    with world.deps.db.begin() as tx:
        assert [f.invariant for f in verify.run(tx)] == [
            "a pending job is ready if and only if no job of lower order of its item lives"
        ]
    assert rescue.Repair(world.deps).sweep() == 1
    world.check()
    assert len(world.claim(after).jobs) == 1
