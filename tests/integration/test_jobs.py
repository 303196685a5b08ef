"""The life of a job: claim, lease, finish, retry, rescue, each rule under its own name."""

import threading
from uuid import uuid4

import pytest

from factories import Model, World, classes
from ppworker.domain.events import JobMoved, LeaseRefused
from ppworker.errors import (
    Conflict,
    NotFound,
    RunnerOverloaded,
    RunnerTimeout,
    RunnerUnavailable,
    UnreadableInput,
)
from ppworker.pipeline.control import operate
from ppworker.pipeline.runs import execute, finish, rescue
from ppworker.store import jobs


def test_an_upload_and_its_jobs_commit_together(world: World) -> None:
    first, second = world.processor(order=0), world.processor(order=1)
    world.processor(enabled=False)
    items = world.add("one", "two")
    planned = world.jobs()
    assert len(items) == 2
    assert [(j.post_processor_id, j.status, j.ready) for j in planned] == [
        (first.id, "pending", True),
        (second.id, "pending", False),
    ] * 2
    world.check()


def test_an_upload_that_fails_leaves_nothing(world: World) -> None:
    processor = world.processor()
    world.sql("ALTER TABLE post_processor_jobs ADD CHECK (max_attempts < 3)")
    with pytest.raises(Exception, match="max_attempts"):
        world.add("one")
    assert world.sql("SELECT count(*) FROM dataset_items")[0][0] == 0
    assert world.jobs(processor) == []
    world.check()


def test_a_claim_counts_an_attempt_and_grows_the_token(world: World) -> None:
    processor = world.processor()
    world.add("one", "two", "three")
    batch = world.claim(processor, limit=2)
    assert batch.is_full
    assert [(j.attempts, j.lease_token) for j in batch.jobs] == [(1, 1), (1, 1)]
    rest = world.claim(processor, limit=2)
    assert len(rest.jobs) == 1
    assert not rest.is_full
    assert not world.claim(processor).jobs


def test_completed_jobs_write_annotations_result_and_history(world: World) -> None:
    processor = world.processor()
    (item,) = world.add("one")
    report = world.run(processor, classes("cat", "dog"))
    assert report == finish.Report(completed=1)
    assert sorted((a.label, a.score, a.source) for a in world.annotations(item)) == [
        ("cat", 0.9, "model"),
        ("dog", 0.9, "model"),
    ]
    (job,) = world.jobs()
    assert [(a.cause, a.attempt) for a in world.attempts(job.id)] == [("finished", 1)]
    assert world.sql("SELECT raw FROM job_results")[0].raw == classes("cat", "dog")
    world.check()


def test_a_transient_error_waits_with_back_off_then_fails_when_exhausted(world: World) -> None:
    processor = world.processor(max_attempts=2)
    world.add("one")
    assert world.run(processor, RunnerTimeout("too slow")).again == 1
    (job,) = world.jobs()
    assert (job.status, job.attempts, job.reason, job.error) == (
        "pending",
        1,
        "timeout",
        "too slow",
    )
    assert not world.claim(processor).jobs, "it must wait"
    world.make_due()
    assert world.run(processor, RunnerTimeout("too slow")).failed == 1
    (job,) = world.jobs()
    assert (job.status, job.attempts, job.reason) == ("failed", 2, "timeout")
    world.check()


def test_a_permanent_error_fails_at_once(world: World) -> None:
    processor = world.processor(max_attempts=3)
    world.add("one")
    assert world.run(processor, UnreadableInput("the image is broken")).failed == 1
    (job,) = world.jobs()
    assert (job.status, job.attempts, job.reason) == ("failed", 1, "unreadable_input")
    assert job.error == "the image is broken"
    world.check()


def test_a_snooze_burns_no_attempt_and_waits_as_told(world: World) -> None:
    processor = world.processor(max_attempts=1)
    world.add("one")
    world.run(processor, RunnerOverloaded("busy", retry_after_s=30))
    wait = world.sql("SELECT extract(epoch FROM run_at - now()) AS s FROM post_processor_jobs")
    assert 25 < wait[0].s <= 30
    (job,) = world.jobs()
    assert (job.status, job.attempts) == ("pending", 0)
    world.check()


def test_one_bad_item_does_not_sink_its_batch(world: World) -> None:
    processor = world.processor()
    world.add("good", "bad", "good")
    report = world.run(
        processor, lambda given: UnreadableInput("no") if given.text == "bad" else classes("cat")
    )
    assert (report.completed, report.failed) == (2, 1)
    assert world.statuses() == ["completed", "failed", "completed"]
    world.check()


def test_an_answer_that_postgresql_refuses_fails_alone(world: World) -> None:
    processor = world.processor()
    world.add(*(f"t{i}" for i in range(8)))
    world.sql("ALTER TABLE annotations ADD CONSTRAINT refuses CHECK (score IS DISTINCT FROM 0.123)")
    report = world.run(
        processor, lambda given: classes("cat", score=0.123 if given.text == "t5" else 0.9)
    )
    assert (report.completed, report.failed) == (7, 1)
    bad = [job for job in world.jobs() if job.status == "failed"]
    assert [job.reason for job in bad] == ["refused_data"]
    world.check()


def test_text_that_postgresql_cannot_hold_is_cleaned_not_failed(world: World) -> None:
    processor = world.processor(model_type="ocr", output_target="both")
    (item,) = world.add("one")
    raw = {
        "text": "a\x00b\ud800c",
        "pages": [
            {
                "page": 0,
                "lines": [{"text": "x\x00", "score": 0.9, "polygon": [[0, 0], [9, 0], [9, 9]]}],
            }
        ],
    }
    assert world.run(processor, raw).completed == 1
    assert world.sql("SELECT text FROM dataset_items")[0].text == "abc"
    assert [a.text for a in world.annotations(item)] == ["x"]
    assert world.jobs()[0].dropped == {"refused_values": 3}
    world.check()


def test_a_stale_token_cannot_finish(world: World) -> None:
    processor = world.processor()
    (item,) = world.add("one")
    zombie = world.claim(processor)
    world.expire()
    assert rescue.rescue(world.deps) == 1
    world.make_due()
    world.run(processor, classes("dog"))
    told = len(world.deps.emit.__self__)  # type: ignore[attr-defined]  # the events fixture
    report = world.run(processor, classes("cat"), batch=zombie)
    assert report == finish.Report(lost=1)
    assert [a.label for a in world.annotations(item)] == ["dog"]
    refused = [e for e in world.deps.emit.__self__[told:] if isinstance(e, LeaseRefused)]  # type: ignore[attr-defined]
    assert [e.lease_token for e in refused] == [1]
    world.check()


def test_the_attempt_number_is_no_fence(world: World) -> None:
    """After a refund the next claim has the same attempt number; the token still tells them apart."""
    processor = world.processor()
    (item,) = world.add("one")
    first = world.claim(processor)
    held = {j.id: (j.item_id, j.lease_token) for j in first.jobs}
    assert finish.release(world.deps, {}, held) == 1
    second = world.claim(processor)
    assert [j.attempts for j in first.jobs] == [j.attempts for j in second.jobs] == [1]
    assert world.run(processor, classes("cat"), batch=first).lost == 1
    assert world.annotations(item) == []
    assert world.run(processor, classes("dog"), batch=second).completed == 1
    world.check()


def test_a_release_refunds_the_attempt_and_is_due_at_once(world: World) -> None:
    processor = world.processor(max_attempts=1)
    world.add("one")
    batch = world.claim(processor)
    finish.release(world.deps, {}, {j.id: (j.item_id, j.lease_token) for j in batch.jobs})
    (job,) = world.jobs()
    assert (job.status, job.attempts, job.reason) == ("pending", 0, "released")
    assert len(world.claim(processor).jobs) == 1
    world.check()


def test_a_rescue_takes_expired_leases_only(world: World) -> None:
    processor = world.processor()
    world.add("one", "two")
    world.claim(processor, limit=1)
    world.expire()
    live = world.claim(processor, limit=1)
    assert rescue.rescue(world.deps) == 1
    assert world.statuses() == ["pending", "processing"]
    assert world.run(processor, batch=live).completed == 1
    world.check()


def test_a_rescue_of_the_last_attempt_fails_the_job_and_wakes_its_successor(world: World) -> None:
    first, second = world.processor(max_attempts=1), world.processor(order=1)
    world.add("one")
    world.claim(first)
    assert not world.claim(second).jobs
    world.expire()
    rescue.rescue(world.deps)
    assert world.jobs(first)[0].reason == "lease_expired"
    assert world.statuses(first) == ["failed"]
    assert len(world.claim(second).jobs) == 1
    world.check()


def test_a_passed_deadline_is_rescued_in_spite_of_heartbeats(world: World) -> None:
    processor = world.processor()
    world.add("one")
    world.claim(processor)
    world.sql("UPDATE post_processor_jobs SET deadline_at = clock_timestamp() - interval '1 s'")
    assert rescue.rescue(world.deps) == 1
    assert world.jobs()[0].reason == "deadline"


def test_a_heartbeat_extends_what_is_held_and_names_what_is_lost(world: World) -> None:
    processor = world.processor()
    world.add("one", "two")
    first, second = world.claim(processor).jobs
    world.sql("UPDATE post_processor_jobs SET lease_expires_at = now() + interval '1 s'")
    operate.cancel(world.deps, world.user, second.id)
    with world.deps.db.begin() as tx:
        lost = jobs.extend_leases(
            tx, {first.id: first.lease_token, second.id: second.lease_token}, lease_s=60
        )
    assert lost == {second.id}
    left = world.sql(
        "SELECT extract(epoch FROM lease_expires_at - now()) AS s FROM post_processor_jobs "
        "WHERE id = :id",
        id=first.id,
    )
    assert left[0].s > 50


def test_a_heartbeat_skips_a_locked_row_and_does_not_call_it_lost(world: World) -> None:
    processor = world.processor()
    world.add("one", "two")
    held = {j.id: j.lease_token for j in world.claim(processor).jobs}
    with world.deps.db.begin() as other:
        jobs.lock_leased(other, dict([next(iter(held.items()))]))
        with world.deps.db.begin() as tx:
            tx.exec_driver_sql("SET LOCAL statement_timeout = '2s'")
            assert jobs.extend_leases(tx, held, lease_s=60) == set()


def test_order_one_writes_and_order_two_reads(world: World) -> None:
    reader = world.processor(model_type="ocr", output_target="text", order=1)
    ner = world.processor(model_type="ner", reads="text", order=2)
    (item,) = world.add("before")
    assert not world.claim(ner).jobs, "it must wait for the one before"
    world.run(reader, {"text": "Rome is old"})
    seen: list[str | None] = []

    def say(given):
        seen.append(given.text)
        return {
            "predictions": [{"label": "place", "score": 1.0, "start": 0, "end": 4, "text": "Rome"}]
        }

    assert world.run(ner, say).completed == 1
    assert seen == ["Rome is old"]
    assert [(a.text, a.coordinates) for a in world.annotations(item)] == [("Rome", "0 4")]
    world.check()


def test_equal_orders_run_side_by_side_and_the_last_to_finish_wakes_the_next(world: World) -> None:
    """Two finishes of equal order at once: a single statement that locks and decides would let
    both see the other unfinished (protocol 2)."""
    left, right, after = world.processor(), world.processor(), world.processor(order=1)
    for round_ in range(15):
        world.add(f"text {round_}")
        batches = [(p, world.claim(p)) for p in (left, right)]
        barrier = threading.Barrier(2)

        threads = [
            threading.Thread(
                target=world.run,
                args=(p, classes("cat")),
                kwargs={"during": barrier.wait, "batch": batch},
            )
            for p, batch in batches
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert world.run(after).completed == 1
    world.check()


def test_a_failed_early_job_lets_later_ones_run_unless_it_says_stop(world: World) -> None:
    lenient = world.processor(order=0)
    later = world.processor(order=2)
    world.add("one")
    world.run(lenient, UnreadableInput("no"))
    assert world.run(later).completed == 1
    strict = world.processor(order=1, on_failure="stop")
    world.add("two")
    world.run(lenient)
    world.run(strict, UnreadableInput("no"))
    assert world.jobs(later)[-1].reason == "predecessor_failed"
    world.check()


def test_retry_starts_afresh_on_the_same_row(world: World) -> None:
    processor = world.processor(max_attempts=1)
    (item,) = world.add("one")
    world.run(processor, RunnerUnavailable("the model is gone"))
    (job,) = world.jobs()
    operate.retry(world.deps, world.user, job.id)
    (again,) = world.jobs()
    assert (again.id, again.status, again.attempts, again.error, again.started_at) == (
        job.id,
        "pending",
        0,
        "",
        None,
    )
    assert world.run(processor).completed == 1
    assert len(world.annotations(item)) == 1
    assert [a.cause for a in world.attempts(job.id)] == ["exhausted", "finished"]
    world.check()


def test_of_many_retries_at_once_exactly_one_wins(world: World) -> None:
    processor = world.processor(max_attempts=1)
    world.add("one")
    world.run(processor, RunnerUnavailable("gone"))
    (job,) = world.jobs()
    results: list[str] = []
    barrier = threading.Barrier(10)

    def press() -> None:
        barrier.wait()
        try:
            operate.retry(world.deps, world.user, job.id)
            results.append("won")
        except Conflict:
            results.append("conflict")

    threads = [threading.Thread(target=press) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == ["conflict"] * 9 + ["won"]
    world.check()


def test_only_failed_jobs_of_the_user_can_be_retried(world: World, worlds) -> None:
    processor = world.processor()
    world.add("one")
    (job,) = world.jobs()
    with pytest.raises(Conflict, match="pending"):
        operate.retry(world.deps, world.user, job.id)
    with pytest.raises(NotFound):
        operate.retry(world.deps, worlds().user, job.id)
    with pytest.raises(NotFound):
        operate.retry(world.deps, world.user, uuid4())
    world.run(processor)
    with pytest.raises(Conflict, match="completed"):
        operate.retry(world.deps, world.user, job.id)


def test_bulk_retry_takes_the_newest_failed_job_of_a_key_and_skips_live_ones(world: World) -> None:
    processor = world.processor(max_attempts=1)
    (item,) = world.add("one")
    world.run(processor, RunnerUnavailable("gone"))
    (job,) = world.jobs()
    # A second, newer failed job and then a live one of the same key, as re-planning makes them.
    for _ in range(2):
        with world.deps.db.begin() as tx:
            jobs.insert_jobs(
                tx,
                [
                    jobs.NewJob(
                        id=uuid4(),
                        post_processor_id=processor.id,
                        item_id=item,
                        version_id=world.train.version_id,
                        user_id=world.user,
                        order=0,
                        ready=True,
                        max_attempts=1,
                    )
                ],
            )
        world.run(processor, RunnerUnavailable("gone"))
    done = operate.retry_failed(world.deps, world.user)
    assert (done.changed, done.skipped) == (1, 2)
    pending = [j for j in world.jobs() if j.status == "pending"]
    assert [p.created_at for p in pending] == [max(j.created_at for j in world.jobs())]
    assert operate.retry_failed(world.deps, world.user).changed == 0, "its key lives already"
    assert job.id not in {p.id for p in pending}
    world.check()


def test_a_retried_early_job_unreadies_pending_successors(world: World) -> None:
    early, late = world.processor(max_attempts=1), world.processor(order=1)
    world.add("one")
    world.run(early, RunnerUnavailable("gone"))
    assert world.jobs(late)[0].ready
    operate.retry(world.deps, world.user, world.jobs(early)[0].id)
    assert not world.jobs(late)[0].ready
    assert not world.claim(late).jobs
    world.run(early)
    assert len(world.claim(late).jobs) == 1
    world.check()


def test_a_retried_early_job_has_a_running_successor_run_again(world: World) -> None:
    early, late = world.processor(max_attempts=1), world.processor(order=1)
    world.add("one")
    world.run(early, RunnerUnavailable("gone"))
    running = world.claim(late)
    operate.retry(world.deps, world.user, world.jobs(early)[0].id)
    assert world.run(late, classes("old"), batch=running).again == 1
    (job,) = world.jobs(late)
    assert (job.status, job.ready, job.attempts, job.reason) == (
        "pending",
        False,
        0,
        "input_changed",
    )
    world.check()


def test_retry_with_successors_runs_completed_later_ones_again(world: World) -> None:
    early, late = world.processor(max_attempts=1), world.processor(order=1)
    world.add("one")
    world.run(early, RunnerUnavailable("gone"))
    world.run(late)
    operate.retry(world.deps, world.user, world.jobs(early)[0].id, successors=True)
    assert world.statuses(late) == ["completed", "pending"]
    assert not world.claim(late).jobs
    world.run(early)
    assert world.run(late).completed == 1
    world.check()


def test_a_text_job_without_text_fails_and_is_revived_with_its_predecessor(world: World) -> None:
    reader = world.processor(model_type="ocr", output_target="text", reads="any", max_attempts=1)
    ner = world.processor(model_type="ner", reads="text", order=1)
    world.add("x")
    world.sql("UPDATE dataset_items SET text = NULL, text_sha256 = NULL")
    world.run(reader, RunnerUnavailable("gone"))
    assert world.run(ner).failed == 1
    assert world.jobs(ner)[0].reason == "no_input"
    operate.retry(world.deps, world.user, world.jobs(reader)[0].id)
    world.run(reader, {"text": "now there is text"})
    assert world.run(ner, {"predictions": []}).completed == 1
    world.check()


def test_cancel_ends_a_pending_and_a_running_job_and_refuses_the_answer(world: World) -> None:
    processor, after = world.processor(), world.processor(order=1)
    (item, other) = world.add("one", "two")
    running = world.claim(processor, limit=1)
    for job in world.jobs(processor):
        operate.cancel(world.deps, world.user, job.id)
    assert world.run(processor, classes("cat"), batch=running).lost == 1
    assert {j.reason for j in world.jobs(processor)} == {"cancelled"}
    assert world.annotations(item) == world.annotations(other) == []
    assert len(world.claim(after).jobs) == 2, "their successors go on"
    with pytest.raises(Conflict):
        operate.cancel(world.deps, world.user, world.jobs(processor)[0].id)
    world.check()


def test_a_cap_counts_batches_over_all_workers(world: World) -> None:
    processor = world.processor(concurrency_cap=4)
    world.add(*(f"t{i}" for i in range(40)))
    barrier = threading.Barrier(8)
    taken: list[int] = []

    def grab() -> None:
        barrier.wait()
        taken.append(len(world.claim(processor, limit=1).jobs))

    threads = [threading.Thread(target=grab) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(taken) == 4
    assert (
        len(
            world.sql(
                "SELECT DISTINCT batch_id FROM post_processor_jobs WHERE status = 'processing'"
            )
        )
        == 4
    )


def test_pauses_by_operator_and_by_failures_do_not_lift_each_other(world: World) -> None:
    processor = world.processor()
    world.add("one")
    world.sql(
        "INSERT INTO post_processor_circuits (post_processor_id, open_until) SELECT id, now() + interval '1 h' FROM post_processors"
    )
    operate.set_paused(world.deps, processor, paused=True)
    operate.set_paused(world.deps, processor, paused=False)
    assert not world.claim(processor).jobs
    operate.set_paused(world.deps, processor, paused=True)
    world.sql("DELETE FROM post_processor_circuits")
    assert not world.claim(processor).jobs
    operate.set_paused(world.deps, processor, paused=False)
    assert len(world.claim(processor).jobs) == 1


def test_a_changed_text_makes_the_running_answer_stale(world: World) -> None:
    processor = world.processor(model_type="ner", reads="text", max_attempts=1)
    (item,) = world.add("Rome is old")
    raw = {"predictions": [{"label": "place", "score": 1, "start": 0, "end": 4, "text": "Rome"}]}

    def edit() -> None:
        world.sql("UPDATE dataset_items SET text = 'Oslo!', text_sha256 = 'other'")

    assert world.run(processor, raw, during=edit).again == 1
    (job,) = world.jobs()
    assert (job.status, job.attempts, job.reason) == ("pending", 0, "input_changed")
    assert world.annotations(item) == []
    world.check()


def test_a_claim_behind_its_bound_still_finds_what_was_committed_late(world: World) -> None:
    processor = world.processor()
    world.add("first", "second")
    first = world.claim(processor, limit=1)
    world.sql(
        "UPDATE post_processor_jobs SET run_at = run_at - interval '1 h' WHERE status = 'pending'"
    )
    late = execute.claim(world.deps, processor, limit=5, behind=first.places)
    assert len(late.jobs) == 1


def test_every_edge_is_told_once_after_its_commit(world: World, events: list) -> None:  # type: ignore[type-arg]
    processor = world.processor(max_attempts=1)
    world.add("one")
    world.run(processor, RunnerUnavailable("gone"))
    operate.retry(world.deps, world.user, world.jobs()[0].id)
    world.run(processor)
    told = [(e.source, e.to, e.cause) for e in events if isinstance(e, JobMoved)]
    assert told == [
        (None, "pending", "planned"),
        ("pending", "processing", "claimed"),
        ("processing", "failed", "exhausted"),
        ("failed", "pending", "retried"),
        ("pending", "processing", "claimed"),
        ("processing", "completed", "finished"),
    ]


def test_a_batch_of_a_scripted_model_is_one_call(world: World) -> None:
    processor = world.processor()
    world.add(*(f"t{i}" for i in range(20)))
    model = Model(lambda _: classes("cat"))
    execute.run(world.deps, world.labels, processor, model, world.claim(processor))
    assert model.batches == [20]
