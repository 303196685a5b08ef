"""Many failed jobs are restarted by an operation: resumable, exact, and behind live work."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa

from factories import World
from ppworker.domain import restart_pace
from ppworker.domain.restart_pace import Pace
from ppworker.pipeline.control import operate, operations, retry_jobs
from ppworker.pipeline.control.operate import Operated
from ppworker.pipeline.control.operation_steps import STEPS
from ppworker.store import workers
from ppworker.store.db import Database
from ppworker.store.ids import new_id
from ppworker.store.operations import Operation


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten are many."""
    monkeypatch.setattr(retry_jobs, "AT_ONCE", 9)


def fail(world: World, n: int, *, reason: str = "unavailable", **options: Any) -> Any:
    """A post-processor with so many failed jobs, written as a finish leaves them."""
    processor = world.processor(**options)
    world.add(*(f"text {i}" for i in range(n)))
    with world.deps.db.begin() as tx:
        tx.execute(
            sa.text(
                "WITH done AS (UPDATE post_processor_jobs SET status = 'failed', reason = :reason, "
                "attempts = 1, lease_token = 1, completed_at = now() "
                "WHERE post_processor_id = :p RETURNING id) "
                "INSERT INTO job_attempts SELECT id, 1, 1, :p, now(), now(), 'exhausted', :reason, '' "
                "FROM done"
            ),
            {"p": processor.id, "reason": reason},
        )
    return processor


def begun(world: World, **wanted: Any) -> UUID:
    id_ = retry_jobs.begin(world.deps, world.user, retry_jobs.Wanted(**wanted))
    assert isinstance(id_, UUID)
    return id_


def a_turn(world: World, id_: UUID) -> Operation:
    """One turn of the operation, as soon as it is due."""
    world.sql("UPDATE operations SET run_at = now()")
    done = operations.run(world.deps, STEPS, operation_id=id_)
    assert done is not None
    return done


def to_the_end(world: World, id_: UUID, *, turns: int = 200) -> tuple[Operation, int]:
    for turn in range(turns):
        done = a_turn(world, id_)
        if done.is_over:
            return done, turn + 1
    raise AssertionError("it does not end")


def with_workers(world: World, slots: int = 4) -> None:
    with world.deps.db.begin() as tx:
        workers.register(tx, new_id(), host="h", pid=1, version="1", slots=slots, lease_s=30)


def test_few_are_restarted_at_once_and_many_by_an_operation(world: World) -> None:
    few = fail(world, 9)
    done = retry_jobs.begin(world.deps, world.user, retry_jobs.Wanted(post_processor_id=few.id))
    assert done == Operated(changed=9)
    many = fail(world, 10)
    id_ = begun(world, post_processor_id=many.id)
    assert set(world.statuses(many)) == {"failed"}
    end, _ = to_the_end(world, id_)
    assert (end.status, end.done, end.total) == ("completed", 10, 10)
    assert end.counts == {"retried": 10, "skipped": 0}
    assert set(world.statuses(many)) == {"pending"}
    world.check()


def test_without_workers_nobody_is_kept_waiting_and_all_are_due_at_once(world: World) -> None:
    fail(world, 30)
    _, turns = to_the_end(world, begun(world))
    assert turns == 1
    assert world.sql("SELECT count(*) FROM post_processor_jobs WHERE run_at > now()")[0][0] == 0


def test_with_workers_they_are_spread_over_time_and_let_others_go_first(world: World) -> None:
    with_workers(world)
    processor = fail(world, 200)
    id_ = begun(world)
    first = a_turn(world, id_)
    assert first.status == "pending", "it rests, on nobody's lease"
    n = int(restart_pace.FIRST * 1.5 * 2)
    assert first.counts == {"retried": n, "skipped": 0}
    ahead = world.sql(
        "SELECT count(*) AS n, count(DISTINCT run_at) AS times, min(priority) AS priority, "
        "extract(epoch FROM max(run_at) - min(run_at))::float8 AS span_s "
        "FROM post_processor_jobs WHERE status = 'pending'"
    )[0]
    assert (ahead.n, ahead.times, ahead.priority) == (n, n, 1)
    assert 1.5 < ahead.span_s < 2.5
    world.add("live")
    world.make_due()
    (claimed,) = world.claim(processor, limit=1).jobs
    assert claimed.priority == 0


def test_it_waits_for_what_it_restarted_before(world: World) -> None:
    with_workers(world)
    fail(world, 200)
    id_ = begun(world)
    before = a_turn(world, id_)
    world.sql(
        "UPDATE post_processor_jobs SET run_at = now() - interval '1 min' WHERE status = 'pending'"
    )
    after = a_turn(world, id_)
    assert (after.status, after.done) == ("pending", before.done)


def test_those_of_a_paused_post_processor_hold_nobody_up(world: World) -> None:
    with_workers(world)
    processor = fail(world, 60)
    id_ = begun(world)
    a_turn(world, id_)
    operate.set_paused(world.deps, processor, paused=True)
    world.sql(
        "UPDATE post_processor_jobs SET run_at = now() - interval '1 min' WHERE status = 'pending'"
    )
    assert to_the_end(world, id_)[0].counts["retried"] == 60


def test_one_that_fails_again_meanwhile_is_not_restarted_twice(world: World) -> None:
    with_workers(world)
    processor = fail(world, 100)
    id_ = begun(world)
    a_turn(world, id_)
    world.sql(
        "UPDATE post_processor_jobs SET status = 'failed', completed_at = clock_timestamp(), "
        "reason = 'unavailable', ready = false WHERE status = 'pending'"
    )
    fail_later = fail(world, 20)
    end, _ = to_the_end(world, id_)
    assert end.counts["retried"] == 100
    assert set(world.statuses(fail_later)) == {"failed"}
    assert world.statuses(processor).count("failed") == int(restart_pace.FIRST * 1.5 * 2)


def test_the_newest_of_a_key_is_restarted_and_none_where_one_lives(world: World) -> None:
    processor = fail(world, 20)
    assert operate.retry_failed(world.deps, world.user).changed == 20
    pending = world.jobs(processor)
    world.sql(
        "INSERT INTO post_processor_jobs (id, post_processor_id, item_id, version_id, user_id, ready, "
        '"order", max_attempts, status, completed_at) '
        "SELECT gen_random_uuid(), post_processor_id, item_id, version_id, user_id, false, 0, 3, "
        "'failed', now() FROM post_processor_jobs"
    )
    end, _ = to_the_end(world, begun(world))
    assert end.counts == {"retried": 0, "skipped": 20}
    assert [j.id for j in world.jobs(processor) if j.status == "pending"] == [j.id for j in pending]


def test_a_reason_a_dataset_and_an_owner_limit_it(world: World, worlds: Any) -> None:
    fail(world, 12, reason="unavailable")
    other = fail(world, 12, reason="timeout")
    stranger = worlds()
    theirs = fail(stranger, 12)
    end, _ = to_the_end(world, begun(world, dataset_id=world.dataset.id, reason="unavailable"))
    assert end.counts == {"retried": 12, "skipped": 12}
    assert set(world.statuses(other)) == {"failed"}
    assert set(stranger.statuses(theirs)) == {"failed"}


def test_a_chunk_that_dies_leaves_no_trace_and_the_rest_goes_on(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_workers(world)
    processor = fail(world, 150)
    id_ = begun(world)
    a_turn(world, id_)
    restarted = world.statuses(processor).count("pending")

    class Died(BaseException):
        """As a kill would."""

    def die(*_: object, **__: object) -> None:
        raise Died

    with monkeypatch.context() as patched:
        patched.setattr("ppworker.store.operations.advance", die)
        world.sql("UPDATE operations SET run_at = now()")
        with pytest.raises(Died):
            operations.run(world.deps, STEPS, operation_id=id_)
    assert world.statuses(processor).count("pending") == restarted
    end, _ = to_the_end(world, id_)
    assert end.counts == {"retried": 150, "skipped": 0}
    assert all(len(world.attempts(job.id)) == 1 for job in world.jobs(processor))
    world.check()


def test_its_statements_walk_indexes_as_workers_send_them(world: World) -> None:
    fail(world, 300)
    id_ = begun(world)
    url = world.deps.db.engine.url.render_as_string(hide_password=False)

    def scans() -> int:
        world.sql("SELECT pg_stat_force_next_flush()")
        return int(
            world.sql(
                "SELECT sum(seq_scan) FROM pg_stat_user_tables WHERE relname IN "
                "('post_processor_jobs', 'job_results', 'dataset_items', 'operations')"
            )[0][0]
        )

    before = scans()
    steady = Database(url, connections=2, steady_plans=True)
    try:
        done = operations.run(replace(world.deps, db=steady), STEPS, operation_id=id_)
        with steady.begin() as tx:
            tx.execute(sa.text("SELECT pg_stat_force_next_flush()"))
    finally:
        steady.close()
    assert done is not None
    assert done.counts["retried"] == 300
    assert scans() == before


def test_the_pace_grows_while_there_is_room_and_falls_without() -> None:
    idle = restart_pace.learn(Pace(), busy=0, slots=4, is_behind=False)
    assert idle.per_second > restart_pace.FIRST
    full = idle
    for _ in range(30):
        full = restart_pace.learn(full, busy=4, slots=4, is_behind=False)
    assert full.per_second == restart_pace.LEAST
    behind = restart_pace.learn(idle, busy=0, slots=4, is_behind=True)
    assert behind.per_second < idle.per_second
    again = full
    for _ in range(60):
        again = restart_pace.learn(again, busy=0, slots=4, is_behind=False)
    assert again.per_second == restart_pace.MOST


def test_its_result_can_be_read_by_people(world: World) -> None:
    with_workers(world)
    fail(world, 100)
    done = a_turn(world, begun(world))
    assert json.loads(json.dumps(dict(done.result)))["pace"][0] == restart_pace.FIRST * 1.5


def test_the_command_begins_an_operation_for_many_and_waits_for_it_if_told(
    worlds: Any, database_url: str, tmp_path: Path
) -> None:
    world = worlds(username="local")
    fail(world, retry_jobs.AT_ONCE + 992)  # the program's own limit is a thousand

    def retry(*options: str) -> Any:
        ran = subprocess.run(
            [sys.executable, "-m", "ppworker", "jobs", "retry", "--failed", *options, "--json"],
            env={
                "PATH": os.environ["PATH"],
                "PPWORKER_DATABASE_URL": database_url,
                "PPWORKER_DATA_DIR": str(tmp_path / "data"),
            },
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert ran.returncode == 0, ran.stderr
        return json.loads(ran.stdout)

    begun = retry()
    assert (begun["retried"], begun["operation"]["kind"]) == (0, "retry_jobs")
    assert begun["operation"]["status"] == "pending"
    ended = retry("--wait")
    assert (ended["status"], ended["total"]) == ("completed", 1001)
    world.check()
