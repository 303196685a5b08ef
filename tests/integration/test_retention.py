"""What is over for long is removed, a little at a time, and nothing that anybody needs."""

import os
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa

from factories import World, classes
from ppworker import wiring
from ppworker.domain.measurements import JobsPruned
from ppworker.errors import Conflict, NotFound, UnreadableInput
from ppworker.pipeline.control import operate, operations, reapply
from ppworker.pipeline.control.operation_steps import STEPS
from ppworker.pipeline.deps import Deps
from ppworker.pipeline.edits import undo
from ppworker.pipeline.runs.retention import Retention
from ppworker.pipeline.transfer import shelf
from ppworker.store import job_operations, retention, stats
from ppworker.store.db import Database
from ppworker.store.ids import new_id
from ppworker.store.results import Scope
from ppworker.worker.sweeps import run_once

DAY = 24 * 3600.0


def keeping(world: World, **seconds: float) -> Deps:
    """Collaborators that keep what is over for a second, unless told otherwise."""
    values = {"keep_completed_s": 1.0, "keep_failed_s": 1.0, "keep_keys_s": 1.0} | seconds
    return replace(world.deps, settings=world.deps.settings.model_copy(update=values))


def sweep(deps: Deps) -> int:
    """Everything that is old, at once."""
    return Retention(deps, budget_s=60, rest_s=0).sweep()


def age(world: World, days: float = 1) -> None:
    """Let everything be older than it is."""
    for table, column in [
        ("post_processor_jobs", "completed_at"), ("operations", "completed_at"),
        ("idempotency_keys", "created_at"), ("dead_letters", "created_at"),
        ("dead_letters", "replayed_at"),
        ("login_attempts", "window_ends_at"),
    ]:  # fmt: skip
        world.sql(f"UPDATE {table} SET {column} = {column} - make_interval(secs => {days * DAY})")


def count(world: World, table: str) -> int:
    return int(world.sql(f"SELECT count(*) FROM {table}")[0][0])


def finished(world: World, *texts: str, says: object = None) -> list[object]:
    """Jobs of one post-processor that are over."""
    processor = world.processor()
    world.add(*texts)
    world.run(processor, says if says is not None else classes("cat"))  # type: ignore[arg-type]
    return list(world.jobs(processor))


def test_each_status_has_its_own_age_and_what_is_younger_or_lives_stays(world: World) -> None:
    finished(world, "done")
    failed = world.processor(max_attempts=1)
    world.add("fails")
    world.run(failed, UnreadableInput("no"))
    cancelled = world.processor()
    (item,) = world.add("cancelled")
    (job,) = [j for j in world.jobs(cancelled) if j.item_id == item]
    operate.cancel(world.deps, world.user, job.id)
    before = sorted(each.status for each in world.jobs())
    assert sweep(keeping(world, keep_completed_s=2 * DAY, keep_failed_s=2 * DAY)) == 0
    age(world)
    assert sweep(keeping(world, keep_completed_s=2 * DAY, keep_failed_s=2 * DAY)) == 0
    assert sorted(each.status for each in world.jobs()) == before
    assert sweep(keeping(world, keep_failed_s=2 * DAY)) == before.count("completed")
    assert "completed" not in world.statuses()
    assert sweep(keeping(world)) == before.count("failed")
    assert set(world.statuses()) == {"pending"}
    assert count(world, "job_attempts") == 0
    world.check()


def test_zero_keeps_for_ever(world: World) -> None:
    finished(world, "one")
    age(world, days=3650)
    for_ever = keeping(world, keep_completed_s=0, keep_failed_s=0, keep_keys_s=0)
    assert sweep(for_ever) == 0
    assert world.statuses() == ["completed"]


def test_answers_annotations_and_label_stats_outlive_their_jobs(world: World) -> None:
    processor = world.processor()
    (item,) = world.add("one")
    world.run(
        processor, {"predictions": [{"label": "cat", "score": 0.9}, {"label": "dog", "score": 0.3}]}
    )
    (job,) = world.jobs(processor)

    def counted() -> list[stats.LabelStat]:
        with world.deps.db.begin() as tx:
            return list(stats.read_stats(tx, [world.train.id]))

    before = counted()
    age(world)
    assert sweep(keeping(world)) == 1
    assert counted() == before
    assert len(world.annotations(item)) == 2
    with world.deps.db.begin() as tx:
        assert job_operations.find_job(tx, world.user, job.id) is None
    with pytest.raises(NotFound):
        operate.retry(world.deps, world.user, job.id)
    world.check()

    world.change(processor, confidence_threshold=0.5)
    scope = Scope(
        post_processor_id=processor.id, dataset_id=world.dataset.id, split_id=None, item_id=None
    )
    done = operations.run(
        world.deps, STEPS, operation_id=reapply.begin(world.deps, processor, scope, world.user)
    )
    assert done is not None
    assert done.counts["annotations_removed"] == 1
    world.check()


def test_an_undo_after_the_jobs_are_gone_takes_the_suggestions_away(world: World) -> None:
    processor = world.processor()
    (item,) = world.add("one")
    world.run(processor)
    age(world)
    sweep(keeping(world))
    id_ = undo.begin(world.deps, world.dataset.id, world.user, world.train.version_id, processor.id)
    done = operations.run(world.deps, STEPS, operation_id=id_)
    assert done is not None
    assert done.status == "completed"
    assert world.annotations(item) == []
    world.check()


def test_a_backfill_leaves_items_alone_that_were_answered_by_jobs_now_gone(world: World) -> None:
    processor = world.processor()
    world.add("one", "two")
    world.run(processor)
    age(world)
    sweep(keeping(world))
    assert [each.changed for each in operate.backfill(world.deps, processor, [world.train])] == []


def test_a_retry_with_successors_finds_those_whose_jobs_are_gone(world: World) -> None:
    first = world.processor("first", order=0, max_attempts=1)
    second = world.processor("second", order=1)
    world.add("one")
    world.run(first, UnreadableInput("no"))
    world.run(second)
    age(world)
    sweep(keeping(world, keep_failed_s=2 * DAY))
    assert world.jobs(second) == []
    done = operate.retry_failed(world.deps, world.user, successors=True)
    assert done.changed == 1
    assert [(j.status, j.ready) for j in world.jobs(second)] == [("pending", False)]
    world.check()


def test_a_job_that_is_removed_while_somebody_retries_it_is_gone_not_refused(world: World) -> None:
    processor = world.processor(max_attempts=1)
    world.add("one")
    world.run(processor, UnreadableInput("no"))
    (job,) = world.jobs(processor)
    age(world)
    refused: list[Exception] = []

    def retry() -> None:
        try:
            operate.retry(world.deps, world.user, job.id)
        except (NotFound, Conflict) as error:
            refused.append(error)

    with world.deps.db.begin() as tx:
        before = retention.read_clock(tx)
        walked = retention.prune_jobs(
            tx, processor.id, "failed", before, after=retention.FIRST, limit=10
        )
        assert walked.gone == 1
        thread = threading.Thread(target=retry)
        thread.start()
        _wait_for_lock(world)
    thread.join(20)
    assert [type(each) for each in refused] == [NotFound]
    assert world.jobs(processor) == []
    assert count(world, "job_attempts") == 0


def test_a_job_that_somebody_retries_is_not_removed(world: World) -> None:
    processor = world.processor(max_attempts=1)
    world.add("one")
    world.run(processor, UnreadableInput("no"))
    (job,) = world.jobs(processor)
    age(world)
    with world.deps.db.begin() as tx:
        assert job_operations.retry(tx, [job.id])
        assert sweep(keeping(world)) == 0
    assert sweep(keeping(world)) == 0
    assert world.statuses(processor) == ["pending"]
    assert len(world.attempts(job.id)) == 1


def _wait_for_lock(world: World) -> None:
    until = time.monotonic() + 20
    while not world.sql("SELECT 1 FROM pg_locks WHERE NOT granted"):
        assert time.monotonic() < until
        time.sleep(0.01)


def test_everything_else_that_ages_goes_too(world: World) -> None:
    user = {"u": world.user}
    for word, status in [("a", "completed"), ("b", "failed"), ("c", "failed")]:
        world.sql(
            "INSERT INTO operations (id, user_id, kind, arguments, status, completed_at) "
            "VALUES (:id, :u, :kind, '{}', :status, now())",
            id=new_id(), kind="delete" if word == "c" else "reapply", status=status, **user,
        )  # fmt: skip
    world.sql(
        "INSERT INTO operations (id, user_id, kind, arguments) VALUES (:id, :u, 'reapply', '{}')",
        id=new_id(), **user,
    )  # fmt: skip
    world.sql(
        "INSERT INTO idempotency_keys (user_id, key, request_sha256, ids) VALUES (:u, 'k', '', '{}')",
        **user,
    )
    for word in ("waiting", "replayed"):
        world.sql(
            "INSERT INTO dead_letters (id, message_id, actor, field, error, body, body_sha256, "
            "replayed_at) VALUES (:id, :w, 'a', 'f', 'e', '{}', 's', "
            "CASE WHEN :w = 'replayed' THEN now() END)",
            id=new_id(), w=word,
        )  # fmt: skip
    world.sql(
        "INSERT INTO login_attempts (subject, failures, window_ends_at) VALUES ('s', 1, now() + interval '1 h')"
    )
    assert sweep(keeping(world, keep_completed_s=60, keep_failed_s=60, keep_keys_s=60)) == 0
    age(world, days=1.5)
    kinds = "SELECT kind, status FROM operations ORDER BY kind, status"
    sweep(keeping(world, keep_failed_s=2 * DAY, keep_keys_s=2 * DAY))
    assert world.sql(kinds) == [("delete", "failed"), ("reapply", "failed"), ("reapply", "pending")]
    assert world.sql("SELECT message_id FROM dead_letters") == [("waiting",)]
    assert count(world, "idempotency_keys") == 1
    sweep(keeping(world))
    assert world.sql(kinds) == [("delete", "failed"), ("reapply", "pending")]
    for table in ("dead_letters", "idempotency_keys", "login_attempts"):
        assert count(world, table) == 0, table


def test_exports_and_abandoned_imports_go_by_the_sweep(world: World) -> None:
    old = shelf.folder(world.deps, new_id())
    young = shelf.folder(world.deps, new_id())
    for folder in (old, young):
        folder.mkdir(parents=True)
        (folder / shelf.ARCHIVE).touch()
    for path in (old / shelf.ARCHIVE, old):
        _touch(path, days_ago=1.1)
    (transfers,) = [s for s in wiring.sweeps(world.deps) if s.name == "transfers"]
    assert run_once(transfers) == 1
    assert (old.exists(), young.exists()) == (False, True)


def _touch(path: Path, *, days_ago: float) -> None:
    at = time.time() - days_ago * DAY
    os.utime(path, (at, at))


def seed(world: World, completed: int) -> None:
    """So many completed jobs of two days ago, keys in the order of their making."""
    processor = world.processor()
    (item,) = world.add("one")
    with world.deps.db.begin() as tx:
        tx.execute(sa.text("SET LOCAL session_replication_role = replica"))
        tx.execute(
            sa.text(
                "INSERT INTO post_processor_jobs (id, post_processor_id, item_id, version_id, user_id, "
                'ready, "order", max_attempts, status, attempts, lease_token, completed_at) '
                "SELECT (lpad(to_hex((extract(epoch FROM now() - interval '2 days') * 1000)::bigint + n), "
                "12, '0') || '70008000000000000000')::uuid, :p, :i, :v, :u, true, 0, 3, 'completed', 1, 1, "
                "now() - interval '2 days' FROM generate_series(1, :n) n"
            ),
            {
                "p": processor.id,
                "i": item,
                "v": world.train.version_id,
                "u": world.user,
                "n": completed,
            },
        )
        tx.execute(
            sa.text(
                "INSERT INTO job_attempts SELECT id, 1, 1, id, now(), now(), 'finished', '', '' "
                "FROM post_processor_jobs WHERE status = 'completed'"
            )
        )


def test_a_sweep_does_a_little_and_the_next_one_goes_on(world: World) -> None:
    seed(world, 2_500)
    told: list[object] = []
    deps = replace(keeping(world), emit=told.extend)
    old = Retention(deps, budget_s=0, rest_s=0)
    gone = [old.sweep() for _ in range(4)]
    assert gone == [1000, 1000, 500, 0]
    assert sum(each.jobs for each in told if isinstance(each, JobsPruned)) == 2_500
    assert count(world, "job_attempts") == 0


def test_of_many_processes_one_removes_at_a_time_and_each_row_goes_once(world: World) -> None:
    seed(world, 20_000)
    deps = keeping(world)
    sweepers = [Retention(deps, budget_s=0.05, rest_s=0) for _ in range(6)]
    gone: list[int] = []
    until = time.monotonic() + 60

    def work(sweeper: Retention) -> None:
        while count(world, "job_attempts") and time.monotonic() < until:
            gone.append(sweeper.sweep())

    threads = [threading.Thread(target=work, args=(each,)) for each in sweepers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(70)
    assert sum(gone) == 20_000


def test_it_is_planned_by_indexes_as_workers_send_it(world: World) -> None:
    seed(world, 20_000)
    world.sql("ANALYZE")
    url = world.deps.db.engine.url.render_as_string(hide_password=False)
    steady = Database(url, connections=2, steady_plans=True)

    def scans() -> dict[str, int]:
        world.sql("SELECT pg_stat_force_next_flush()")
        rows = world.sql(
            "SELECT relname, seq_scan FROM pg_stat_user_tables WHERE relname IN "
            "('post_processor_jobs', 'job_attempts', 'idempotency_keys', 'operations', 'dead_letters')"
        )
        return {row.relname: row.seq_scan for row in rows}

    before = scans()
    deps = replace(keeping(world), db=steady)
    try:
        assert sweep(deps) == 20_000
        with steady.begin() as tx:
            tx.execute(sa.text("SELECT pg_stat_force_next_flush()"))
    finally:
        steady.close()
    assert scans() == before
