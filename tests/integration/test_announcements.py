"""What is told after a COMMIT is what happened: no more, no less, whoever else was at it."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest

from factories import World, classes
from ppworker.domain.events import Event, JobMoved
from ppworker.domain.job import EDGES, ENDS, Status
from ppworker.errors import CommitUnknown, RunnerTimeout, RunnerUnavailable, UnreadableInput
from ppworker.pipeline.control import operate
from ppworker.runners.base import RunnerInput
from ppworker.store import items, labels
from ppworker.store.db import Database, Tx


def moves(events: list[Event], cause: str | None = None) -> list[JobMoved]:
    return [e for e in events if isinstance(e, JobMoved) and cause in {None, e.cause}]


class _AnswerLost(Database):
    """A database that applies the next COMMIT after ``armed``, and loses the answer to it."""

    def __init__(self, inner: Database) -> None:
        vars(self).update(vars(inner))
        self.armed = False

    @contextmanager
    def begin(self, *, limit_s: float | None = None) -> Iterator[Tx]:
        is_cut, self.armed = self.armed, False
        with super().begin() as tx:
            yield tx
        if is_cut:
            raise CommitUnknown("the link was cut after COMMIT was applied")


def test_a_finish_found_applied_after_a_doubtful_commit_is_told_with_its_hints(
    world: World, events: list[Event]
) -> None:
    first, then = world.processor(), world.processor(order=1)
    world.add("good", "bad", "slow")
    with world.deps.db.begin() as tx:
        labels.create_label(tx, world.train.version_id, world.user, "cat")
    lost, hinted = _AnswerLost(world.deps.db), set[UUID]()
    deps = replace(world.deps, db=lost, hint=hinted.update)
    batch = world.claim(first, deps=deps)
    events.clear()

    def say(given: RunnerInput) -> Any:
        lost.armed = True  # the next transaction is the finish
        if given.text == "bad":
            return UnreadableInput("broken")
        return RunnerTimeout("slow") if given.text == "slow" else classes("cat")

    report = world.run(first, say, batch=batch, deps=deps)
    assert (report.completed, report.failed, report.again) == (1, 1, 1)
    told = {(e.to, e.cause, e.reason, e.error) for e in moves(events)}
    assert told == {
        (Status.COMPLETED, "finished", "", ""),
        (Status.FAILED, "permanent_error", "unreadable_input", "broken"),
        (Status.PENDING, "transient_error", "timeout", "slow"),
    }
    assert {(e.job_id, e.attempt, e.lease_token) for e in moves(events)} == {
        (job.id, 1, 1) for job in batch.jobs
    }
    assert all((e.seconds or 0) > 0 and (e.age_s or 0) > 0 for e in moves(events))
    assert then.id in hinted, "its jobs became ready by that COMMIT"
    world.check()


def test_every_end_of_an_attempt_has_its_edge() -> None:
    for cause, to in ENDS.items():
        assert cause in EDGES[Status.PROCESSING, to]


def test_two_backfills_at_once_announce_each_job_once(
    world: World, events: list[Event], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second has read its items before the first took their locks, and the jobs are over."""
    world.add(*(f"t{i}" for i in range(5)))
    processor = world.processor()
    original = items.lock_items
    nested: list[int] = []

    def other_first(tx: Tx, ids: Any, **options: Any) -> Any:
        if not nested:
            nested.append(1)
            other = threading.Thread(
                target=lambda: list(operate.backfill(world.deps, processor, [world.train]))
            )
            other.start()
            other.join()
            assert world.run(processor).completed == 5
        return original(tx, ids, **options)

    monkeypatch.setattr(items, "lock_items", other_first)
    done = list(operate.backfill(world.deps, processor, [world.train]))
    monkeypatch.undo()
    assert sum(each.changed for each in done) == 0
    assert world.statuses(processor) == ["completed"] * 5
    assert {e.job_id for e in moves(events, "planned")} == {job.id for job in world.jobs(processor)}
    assert len(moves(events, "planned")) == 5
    world.check()


def test_a_retry_with_successors_tells_of_the_jobs_it_makes(
    world: World, events: list[Event]
) -> None:
    early, late = world.processor(max_attempts=1), world.processor(order=1)
    world.add("one", "two")
    world.run(early, RunnerUnavailable("gone"))
    world.run(late)
    events.clear()
    for job in world.jobs(early):
        operate.retry(world.deps, world.user, job.id, successors=True)
    planned = moves(events, "planned")
    new = [job for job in world.jobs(late) if job.status == "pending"]
    assert {e.job_id for e in planned} == {job.id for job in new}
    assert len(new) == len(planned) == 2
    assert {e.post_processor for e in planned} == {late.name}
    events.clear()
    world.sql("UPDATE post_processor_jobs SET status = 'failed', completed_at = now(), ready = false, "
              "reason = 'x' WHERE post_processor_id = :p", p=early.id)  # fmt: skip
    operate.retry(world.deps, world.user, world.jobs(early)[0].id, successors=True)
    assert moves(events, "planned") == [], "they live already"
