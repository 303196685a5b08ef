"""Races and hostile values that an attack on the job machine found, each kept as a test."""

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any
from uuid import UUID, uuid4

import pytest
import sqlalchemy as sa

from factories import World, classes
from ppworker import telemetry
from ppworker.domain.job import Status, Transition
from ppworker.errors import CommitUnknown, RunnerError, RunnerUnavailable, StoreUnavailable
from ppworker.monitoring.folder import Place
from ppworker.pipeline.control import operate
from ppworker.pipeline.runs import finish, refresh, rescue
from ppworker.process import worker as worker_process
from ppworker.runners.child import LOAD_TIMEOUT_S
from ppworker.store import items, job_operations, jobs, labels, stats
from ppworker.store.db import Database, Tx
from ppworker.worker.heartbeat import Heartbeat
from ppworker.worker.signals import Signals


@pytest.mark.parametrize(
    ("module", "step"),
    [
        (job_operations, "retry"),
        (job_operations, "revive_successors"),
        (jobs, "recompute_ready"),
        (job_operations, "rerun_processing_successors"),
    ],
)
def test_a_successor_claimed_while_its_predecessor_is_retried_runs_again(
    world: World, monkeypatch: pytest.MonkeyPatch, module: Any, step: str
) -> None:
    """A claim takes no item lock, so it may commit between any two statements of a retry."""
    early, late = world.processor(max_attempts=1), world.processor(order=1)
    (item,) = world.add("one")
    world.run(early, RunnerUnavailable("gone"))
    original, claimed = getattr(module, step), []

    def then_claim(*arguments: Any, **options: Any) -> Any:
        answer = original(*arguments, **options)
        claimed.append(world.claim(late))
        return answer

    monkeypatch.setattr(module, step, then_claim)
    operate.retry(world.deps, world.user, world.jobs(early)[0].id)
    monkeypatch.undo()
    (batch,) = claimed
    if batch.jobs:
        assert world.run(late, classes("old"), batch=batch).again == 1
    assert [(job.status, job.ready) for job in world.jobs(late)] == [("pending", False)]
    assert world.annotations(item) == []
    world.run(early)
    assert world.run(late).completed == 1
    world.check()


@pytest.mark.parametrize("text", ["a\x00b", "a\ud800b"])
def test_an_error_whose_words_postgresql_refuses_fails_its_own_job_only(
    world: World, text: str
) -> None:
    processor = world.processor()
    world.add("good", "bad", "good")
    report = world.run(
        processor, lambda given: RunnerError(text) if given.text == "bad" else classes("cat")
    )
    assert (report.completed, report.failed) == (2, 1)
    assert [job.error for job in world.jobs() if job.status == "failed"] == ["ab"]
    world.check()


def test_an_answer_beyond_a_limit_of_postgresql_fails_alone(world: World) -> None:
    """Class 54 is an OperationalError to psycopg, and yet no repetition of it can succeed."""
    processor = world.processor()
    world.add(*(f"t{i}" for i in range(4)))
    world.sql(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        "IF new.score = 0.123 THEN RAISE EXCEPTION 'too large' USING ERRCODE = '54000'; END IF; "
        "RETURN new; END $$"
    )
    world.sql(
        "CREATE TRIGGER refuse BEFORE INSERT ON annotations FOR EACH ROW EXECUTE FUNCTION refuse()"
    )
    ended = threading.Event()
    reports: list[finish.Report] = []

    def work() -> None:
        reports.append(
            world.run(processor, lambda g: classes("cat", score=0.123 if g.text == "t2" else 0.9))
        )
        ended.set()

    threading.Thread(target=work, daemon=True).start()
    assert ended.wait(5), "it is repeated for minutes as if the database were away"
    assert (reports[0].completed, reports[0].failed) == (3, 1)
    world.check()


def test_the_deadline_of_a_batch_leaves_time_to_load_the_model(world: World) -> None:
    """Loading has a limit of its own: a slow load must not burn attempts of what waits for it."""
    processor = world.processor(timeout_s=1.0)
    world.add("one")
    world.claim(processor, limit=1)
    left = world.sql("SELECT extract(epoch FROM deadline_at - now()) AS s FROM post_processor_jobs")
    assert left[0].s > LOAD_TIMEOUT_S + processor.timeout_s


def test_a_cancelled_job_that_says_stop_stops_its_successors_until_it_is_retried(
    world: World,
) -> None:
    early, late = world.processor(on_failure="stop"), world.processor(order=1)
    world.add("one")
    (job,) = world.jobs(early)
    operate.cancel(world.deps, world.user, job.id)
    assert [j.reason for j in world.jobs(late)] == ["predecessor_failed"]
    operate.retry(world.deps, world.user, job.id)
    world.run(early)
    assert world.run(late).completed == 1
    world.check()


def test_a_heartbeat_never_renews_a_lease_that_is_somebody_elses_now(world: World) -> None:
    processor = world.processor()
    world.add("one")
    (first,) = world.claim(processor).jobs
    world.expire()
    rescue.rescue(world.deps)
    world.make_due()
    (second,) = world.claim(processor).jobs
    read = "SELECT lease_expires_at FROM post_processor_jobs"
    before = world.sql(read)
    with world.deps.db.begin() as tx:
        assert jobs.extend_leases(tx, {first.id: first.lease_token}, lease_s=600) == {first.id}
    assert world.sql(read) == before
    with world.deps.db.begin() as tx:
        assert not jobs.extend_leases(tx, {second.id: second.lease_token}, lease_s=600)
    assert world.sql(read) > before


def test_a_move_is_fenced_by_its_token_even_without_the_lock(world: World) -> None:
    processor = world.processor()
    world.add("one")
    (old,) = world.claim(processor).jobs
    with world.deps.db.begin() as tx:
        (held,) = jobs.lock_leased(tx, {old.id: old.lease_token})
    finish.release(world.deps, {}, {old.id: (old.item_id, old.lease_token)})
    world.claim(processor)
    done = Transition(to=Status.COMPLETED, cause="finished", attempts=1)
    with world.deps.db.begin() as tx:
        assert jobs.move(tx, [jobs.Move(job=held, transition=done)]) == 0
    assert world.statuses() == ["processing"]
    assert len(world.attempts(old.id)) == 1


def test_a_released_job_waits_for_a_predecessor_that_was_retried_meanwhile(world: World) -> None:
    early, late = world.processor(max_attempts=1), world.processor(order=1)
    world.add("one")
    world.run(early, RunnerUnavailable("gone"))
    (job,) = world.claim(late).jobs
    operate.retry(world.deps, world.user, world.jobs(early)[0].id)
    finish.release(world.deps, {}, {job.id: (job.item_id, job.lease_token)})
    assert not world.claim(late).jobs
    world.check()


def test_two_versions_of_an_item_in_one_batch_are_counted_apart(world: World) -> None:
    processor = world.processor()
    (item,) = world.add("one")
    version, split = uuid4(), uuid4()
    with world.deps.db.begin() as tx:
        _copy(tx, "dataset_versions", world.train.version_id, {"id": version, "name": "v-two"})
        _copy(tx, "dataset_splits", world.train.id, {"id": split, "version_id": version})
        tx.execute(
            sa.text("INSERT INTO item_splits (split_id, item_id, version_id) VALUES (:s, :i, :v)"),
            {"s": split, "i": item, "v": version},
        )
        tx.execute(
            sa.text(
                "INSERT INTO label_stat_deltas "
                "(split_id, bucket, annotation_count, item_count) "
                "VALUES (:s, 'total', 0, 1), (:s, 'unlabelled', 0, 1)"
            ),
            {"s": split},
        )
        jobs.insert_jobs(
            tx,
            [
                jobs.NewJob(
                    id=uuid4(),
                    post_processor_id=processor.id,
                    item_id=item,
                    version_id=version,
                    user_id=world.user,
                    order=0,
                    ready=True,
                    max_attempts=3,
                )
            ],
        )
    world.check()
    assert world.run(processor, classes("cat", "dog")).completed == 2
    assert len(world.annotations(item)) == 4
    world.check()


def _copy(tx: Any, table: str, id_: Any, other: dict[str, Any]) -> None:
    row = dict(
        tx.execute(sa.text(f"SELECT * FROM {table} WHERE id = :id"), {"id": id_}).one()._mapping
    )
    row.pop("public_id", None)
    row.pop("number", None)
    row |= other
    names = ", ".join(f'"{name}"' for name in row)
    values = ", ".join(f":{name}" for name in row)
    tx.execute(sa.text(f"INSERT INTO {table} ({names}) VALUES ({values})"), row)


def test_a_label_that_a_finish_uses_cannot_be_deleted_before_its_commit(world: World) -> None:
    with world.deps.db.begin() as tx:
        ids, _ = labels.ensure_labels(
            tx, world.train.version_id, world.user, ["cat"], post_processor_id=None, cap=None
        )
    with world.deps.db.begin() as finishing:
        assert labels.lock_labels(finishing, ids.values()) == set(ids.values())
        with pytest.raises(StoreUnavailable, match="lock timeout"):
            world.sql(
                "WITH s AS (SELECT set_config('lock_timeout', '200ms', true)) "
                "DELETE FROM labels USING s"
            )
    world.sql("DELETE FROM labels")


def test_labels_made_at_once_get_their_index_and_share_the_cap_in_turn(world: World) -> None:
    processor = world.processor(max_new_labels=2)
    created: list[str] = []

    def ensure(*names: str, pause: float = 0.0) -> None:
        with world.deps.db.begin() as tx:
            _, new = labels.ensure_labels(
                tx,
                world.train.version_id,
                world.user,
                names,
                post_processor_id=processor.id,
                cap=processor.max_new_labels,
            )
            created.extend(new)
            time.sleep(pause)

    first = threading.Thread(target=ensure, args=("a",), kwargs={"pause": 0.5})
    first.start()
    while not created:
        time.sleep(0.01)
    second = threading.Thread(target=ensure, args=("b", "c", "A"))
    second.start()
    first.join()
    second.join()
    rows = world.sql('SELECT name, "index" FROM labels ORDER BY "index"')
    assert [tuple(row) for row in rows] == [("a", 0), ("b", 1)]


def test_a_cap_counts_calls_of_the_model_not_the_jobs_in_them(world: World) -> None:
    processor = world.processor(concurrency_cap=2)
    world.add(*(f"t{i}" for i in range(9)))
    assert [len(world.claim(processor, limit=3).jobs) for _ in range(3)] == [3, 3, 0]


def test_an_expired_batch_counts_against_the_cap_until_it_is_rescued(world: World) -> None:
    """Its call may still be at the endpoint that the cap protects."""
    processor = world.processor(concurrency_cap=1)
    world.add("one", "two")
    world.claim(processor, limit=1)
    world.expire()
    assert not world.claim(processor, limit=1).jobs
    rescue.rescue(world.deps)
    assert len(world.claim(processor, limit=1).jobs) == 1


class _CommitsLater(Database):
    """A database that says once that a COMMIT is in doubt, which is applied half a second later."""

    def __init__(self, inner: Database) -> None:
        vars(self).update(vars(inner))
        self.is_slow = False

    @contextmanager
    def begin(self, *, limit_s: float | None = None) -> Iterator[Tx]:
        slow, self.is_slow = self.is_slow, False
        if not slow:
            with super().begin(limit_s=limit_s) as tx:
                yield tx
            return
        connection = self.engine.connect()
        transaction = connection.begin()
        yield connection

        def commit() -> None:
            transaction.commit()
            connection.close()

        threading.Timer(0.5, commit).start()
        raise CommitUnknown("the link was cut while COMMIT was in flight")


def test_a_commit_still_in_flight_is_waited_for_before_it_is_repeated(world: World) -> None:
    """An unlocked look would see the job processing, and take its own finish for another's."""
    processor = world.processor()
    (item,) = world.add("one")
    world.run(processor, classes("cat"))  # makes the label, which else had a COMMIT of its own
    (item,) = world.add("two")
    slow = _CommitsLater(world.deps.db)
    deps = replace(world.deps, db=slow)
    batch = world.claim(processor, deps=deps)

    def cut() -> None:
        slow.is_slow = True

    world.labels.get([world.train.version_id])
    report = world.run(processor, classes("cat"), during=cut, batch=batch, deps=deps)
    assert report == finish.Report(completed=1)
    assert len(world.annotations(item)) == 1
    world.check()


def test_an_attempt_that_others_ended_is_not_taken_for_a_finish_of_ours(world: World) -> None:
    """The history names the lease's owner whoever ended it, so the cause has to tell."""
    processor = world.processor()
    world.add("one", "two")
    batch = world.claim(processor)
    held = {job.id: job.lease_token for job in batch.jobs}
    operate.cancel(world.deps, world.user, batch.jobs[0].id)
    world.expire()
    rescue.rescue(world.deps)
    with world.deps.db.begin() as tx:
        assert jobs.finished_by(tx, held, world.deps.worker_id) == {}


def test_a_batch_that_ends_during_a_beat_is_not_called_lost(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    processor = world.processor()
    world.add("one")
    batch = world.claim(processor)
    holding = ExitStack()

    def extend(held: Mapping[UUID, int]) -> set[UUID]:
        world.run(processor, batch=batch)
        holding.close()
        with world.deps.db.begin() as tx:
            return jobs.extend_leases(tx, held, lease_s=30)

    heartbeat = Heartbeat(extend, lambda: None, lease_s=30)
    holding.enter_context(heartbeat.holding(processor.id, batch.jobs))
    heartbeat.beat()
    assert caplog.messages == []


@pytest.mark.parametrize("change", ["enabled = false", "deleted_at = now()"])
def test_jobs_of_a_post_processor_that_is_off_or_gone_are_neither_due_nor_claimed(
    world: World, change: str
) -> None:
    processor = world.processor()
    world.add("one")
    world.sql(f"UPDATE post_processors SET {change}")
    with world.deps.db.look() as tx:
        assert jobs.find_due(tx) == ([], None)
    assert not world.claim(processor).jobs


def test_folds_at_once_do_not_wait_for_each_others_deltas(world: World) -> None:
    world.add("one", split=world.train)
    world.add("two", split=world.valid)
    with world.deps.db.begin() as first:
        assert stats.fold(first, limit=2) == 2
        with world.deps.db.begin() as second:
            second.execute(sa.text("SET LOCAL lock_timeout = '500ms'"))
            assert stats.fold(second, limit=10) == 2
    world.check()


def test_an_answer_for_an_item_deleted_meanwhile_fails_its_job_and_writes_nothing(
    world: World,
) -> None:
    processor = world.processor()
    (item,) = world.add("one")

    def delete() -> None:
        world.sql("UPDATE dataset_items SET deleted_at = now()")

    assert world.run(processor, during=delete).failed == 1
    assert [(job.reason, job.status) for job in world.jobs()] == [("item_deleted", "failed")]
    assert world.annotations(item) == []
    world.check()


def test_a_job_that_goes_back_at_once_is_hinted(world: World) -> None:
    hinted: list[UUID] = []
    processor = world.processor()
    world.add("one")

    def edit() -> None:
        world.sql("UPDATE dataset_items SET text = 'new', text_sha256 = 'other'")

    batch = world.claim(processor)
    world.run(processor, during=edit, batch=batch, deps=replace(world.deps, hint=hinted.extend))
    assert hinted == [processor.id]


def test_a_rebuild_waits_for_another_and_sees_what_it_has_set_right(world: World) -> None:
    world.add("one", "two")
    world.sql("DELETE FROM label_stat_deltas")
    changed: list[int] = []
    rebuilding = threading.Thread(
        target=lambda: changed.append(refresh.rebuild(world.deps, world.train.id))
    )
    with world.deps.db.begin() as tx:
        stats.lock_rebuild(tx, world.train.id)
        rebuilding.start()
        time.sleep(0.5)
        drift = stats.find_drift(tx, [world.train.id])
        rows = [(r.split_id, r.bucket, r.annotation_count, r.item_count) for r in drift]
        for row in rows:
            tx.execute(
                sa.text(
                    "INSERT INTO label_stat_deltas (split_id, bucket, annotation_count, item_count)"
                    " VALUES (:s, :b, :a, :i)"
                ),
                dict(zip("sbai", row, strict=True)),
            )
    rebuilding.join()
    assert changed == [0]
    world.check()


class _FoldsBetween:
    """A transaction after each of whose statements somebody else folds."""

    def __init__(self, world: World, tx: Tx) -> None:
        self._world, self._tx = world, tx

    def execute(self, *arguments: Any) -> Any:
        rows = self._tx.execute(*arguments)
        refresh.fold(self._world.deps)
        return rows


def test_stats_read_while_deltas_are_folded_are_exact(world: World) -> None:
    processor = world.processor()
    world.add("one", "two")
    world.run(processor, classes("cat"))
    with world.deps.db.begin() as tx:
        wanted = stats.recount(tx, [world.train.id])
    with world.deps.db.begin() as tx:
        assert stats.read_stats(_FoldsBetween(world, tx), [world.train.id]) == wanted  # type: ignore[arg-type]
    world.check()


def test_a_lease_renewed_after_the_sweep_looked_is_not_rescued(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    processor = world.processor()
    world.add("one")
    (job,) = world.claim(processor).jobs
    world.expire()
    original = jobs.find_expired

    def then_renew(tx: Tx, *, limit: int) -> list[tuple[UUID, UUID]]:
        found = original(tx, limit=limit)
        with world.deps.db.begin() as other:
            jobs.extend_leases(other, {job.id: job.lease_token}, lease_s=30)
        return found

    monkeypatch.setattr(jobs, "find_expired", then_renew)
    assert rescue.rescue(world.deps) == 0
    assert world.statuses() == ["processing"]


def test_a_rescue_leaves_an_item_that_somebody_holds_to_the_next_sweep(world: World) -> None:
    processor = world.processor()
    held, free = world.add("one", "two")
    world.claim(processor)
    world.expire()
    with world.deps.db.begin() as tx:
        items.lock_items(tx, [held])
        sweeping = threading.Thread(target=rescue.rescue, args=(world.deps,))
        sweeping.start()
        sweeping.join(5)
        assert not sweeping.is_alive(), "it waits for whoever holds an item"
        assert {job.item_id for job in world.jobs() if job.status == "processing"} == {held}
    assert rescue.rescue(world.deps) == 1
    assert {job.item_id for job in world.jobs() if job.status == "pending"} == {held, free}


def test_a_claim_goes_past_what_another_claim_holds(world: World) -> None:
    processor = world.processor()
    world.add("one", "two")
    with world.deps.db.begin() as tx:
        tx.execute(sa.text("SELECT id FROM post_processor_jobs ORDER BY id LIMIT 1 FOR UPDATE"))
        claimed: list[int] = []
        claiming = threading.Thread(
            target=lambda: claimed.append(len(world.claim(processor, limit=2).jobs))
        )
        claiming.start()
        claiming.join(5)
        assert claimed == [1]


def test_a_rescue_that_fails_a_job_which_says_stop_stops_its_successors(world: World) -> None:
    early, late = world.processor(on_failure="stop", max_attempts=1), world.processor(order=1)
    world.add("one")
    world.claim(early)
    world.expire()
    rescue.rescue(world.deps)
    assert [job.reason for job in world.jobs(late)] == ["predecessor_failed"]
    world.check()


def test_a_stopping_process_gives_back_what_a_slot_still_holds(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    processor = world.processor(max_attempts=1)
    world.add("one")
    hearts: list[Heartbeat] = []
    hung = ExitStack()

    def heartbeat(*arguments: Any, **options: Any) -> Heartbeat:
        hearts.append(Heartbeat(*arguments, **options))
        return hearts[-1]

    def hang(*_arguments: Any, **_options: Any) -> bool:
        hung.enter_context(hearts[0].holding(processor.id, world.claim(processor).jobs))
        return False

    monkeypatch.setattr(worker_process, "Heartbeat", heartbeat)
    monkeypatch.setattr(worker_process, "run_worker", hang)
    monkeypatch.setattr(telemetry, "configure", lambda *_a, **_o: None)
    with hung:
        assert not worker_process.run(world.deps.settings, Signals(), Place())
    (job,) = world.jobs()
    assert (job.status, job.attempts, job.reason) == ("pending", 0, "released")
