"""What ``top`` reads is the database's truth, and costs what lives, not what is over."""

from typing import Any
from uuid import uuid4

import pytest
import sqlalchemy as sa

from factories import World, classes
from ppworker.errors import UnreadableInput
from ppworker.store import activity
from ppworker.store.activity import Activity, read_activity

HISTORY = 60_000


def read(world: World) -> Activity:
    with world.deps.db.begin() as tx:
        return read_activity(tx, timeout_s=30)


def test_live_failed_and_just_ended_jobs_are_counted(world: World) -> None:
    first, second = world.processor("first", order=0), world.processor("second", order=1)
    paused = world.processor("paused", order=0)
    world.sql("UPDATE post_processors SET paused_by_operator = true WHERE id = :id", id=paused.id)
    world.add("one", "two", "bad")
    world.run(first, lambda g: UnreadableInput("no") if g.text == "bad" else classes("x"))
    now = read(world)
    by_name = {each.name: each for each in now.processors}
    assert (by_name["first"].failed, by_name["first"].due) == (1, 0)
    assert by_name["first"].reasons == {"unreadable_input": 1}
    assert (by_name["second"].waiting, by_name["paused"].due) == (3, 3)
    assert by_name["paused"].is_held
    assert 0 <= (by_name["paused"].oldest_due_s or -1) < 60
    assert now.ended == {"finished": 0.2, "permanent_error": 0.1}
    assert now.finished == {first.id: 0.2}
    assert second.id not in now.finished
    assert now.deltas.rows > 0
    assert not now.failed_is_bound


@pytest.mark.parametrize("looked_up", [1, 5000])
def test_busy_times_are_judged_by_a_shorter_window(
    world: World, monkeypatch: pytest.MonkeyPatch, looked_up: int
) -> None:
    monkeypatch.setattr(activity, "_LOOKED_UP", looked_up)
    processor = world.processor()
    world.add(*"abcd")
    world.run(processor)
    world.sql("UPDATE job_attempts SET ended_at = ended_at - interval '5 s'")
    now = read(world)
    assert now.ended == {"finished": 0.4}
    assert now.finished == ({processor.id: 0.4} if looked_up > 4 else {}), "2.5 s ago was nothing"


def test_workers_have_a_state_their_leases_and_the_age_of_their_last_sign(world: World) -> None:
    processor = world.processor()
    world.add("a", "b")
    world.claim(processor)
    signs = {"live": 1, "draining": 2, "lost": 120}
    for state, seconds in signs.items():
        world.sql(
            "INSERT INTO workers (id, host, pid, version, slots, draining, seen_at) VALUES "
            "(:id, :state, 1, '1', 2, :drains, now() - make_interval(secs => :s))",
            id=world.deps.worker_id if state == "live" else uuid4(),
            state=state, drains=state == "draining", s=seconds,
        )  # fmt: skip
    found = {each.host: each for each in read(world).workers}
    assert {host: each.state for host, each in found.items()} == {s: s for s in signs}
    assert {host: each.leases for host, each in found.items() if each.leases} == {"live": 2}
    assert found["lost"].seen_s == pytest.approx(120, abs=20)


def test_operations_that_are_not_over_and_letters_that_wait_are_counted(world: World) -> None:
    for n, (status, total) in enumerate(
        [("pending", 50), ("pending", None), ("failed", 5), ("completed", 5)]
    ):
        world.sql(
            "INSERT INTO operations (id, user_id, dataset_id, kind, arguments, total, done, status,"
            " completed_at, run_at) VALUES (:id, :user, :dataset, 'reapply', '{}', :total, 5, "
            ":status, CASE WHEN :status IN ('failed', 'completed') THEN now() END, "
            "now() + make_interval(secs => :n))",
            id=uuid4(), user=world.user, dataset=world.dataset.id, total=total, status=status, n=n,
        )  # fmt: skip
    for replayed in ("NULL", "NULL", "now()"):
        world.sql(
            "INSERT INTO dead_letters (id, message_id, actor, field, error, body, body_sha256, "
            f"replayed_at) VALUES (:id, :m, 'take_upload', 'x', 'x', '', 's', {replayed})",
            id=uuid4(), m=str(uuid4()),
        )  # fmt: skip
    now = read(world)
    assert [(o.kind, o.dataset, o.percent) for o in now.operations] == [
        ("reapply", world.dataset.name, 10.0),
        ("reapply", world.dataset.name, None),
    ]
    assert now.operations_live == 2
    assert now.dead_letters.rows == 2
    with world.deps.db.begin() as tx:
        named, live = activity.read_operations(tx, limit=1)
    assert (len(named), live) == (1, 2)


@pytest.fixture
def aged(world: World) -> World:
    """A long history that the planner knows nothing of, and very little that lives."""
    processor = world.processor()
    with world.deps.db.begin() as tx:
        tx.execute(sa.text("SET LOCAL session_replication_role = replica"))  # no foreign keys
        tx.execute(
            sa.text(
                "INSERT INTO post_processor_jobs (id, post_processor_id, item_id, version_id, "
                'user_id, ready, "order", max_attempts, status, attempts, completed_at) '
                "SELECT gen_random_uuid(), :p, gen_random_uuid(), :v, :u, true, 0, 3, 'completed', "
                "1, now() FROM generate_series(1, :n)"
            ),
            {"p": processor.id, "v": world.train.version_id, "u": world.user, "n": HISTORY},
        )
        tx.execute(
            sa.text(
                "INSERT INTO job_attempts (job_id, lease_token, attempt, worker_id, started_at, "
                "ended_at, cause, reason, error) SELECT id, 1, 1, id, now(), "
                "now() - interval '1 day', 'finished', '', '' FROM post_processor_jobs"
            )
        )
        tx.execute(sa.text("SELECT brin_summarize_new_values('job_attempts_ended')"))
    world.add("live")
    return world


def test_a_frame_reads_rows_by_what_lives_not_by_what_is_over(aged: World) -> None:
    read_rows: dict[str, Any] = {}
    aged.deps.db.engine.dispose()  # a new connection has counted nothing yet
    with aged.deps.db.begin() as tx:
        now = read_activity(tx, timeout_s=30)
        for row in tx.execute(
            sa.text("SELECT relname, seq_tup_read + idx_tup_fetch FROM pg_stat_xact_user_tables")
        ):
            read_rows[row.relname] = row[1]
    assert sum(each.due for each in now.processors) == 1
    assert now.ended == {}
    assert {name: n for name, n in read_rows.items() if (n or 0) > HISTORY / 20} == {}
    assert read_rows["post_processor_jobs"] < 10
