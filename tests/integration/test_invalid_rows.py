"""Rows that nobody can work on: refused by the schema, or ended alone and at once."""

import logging
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from factories import World, classes
from ppworker.errors import StoreRefused
from ppworker.pipeline.control import operate, operations
from ppworker.pipeline.control.operation_steps import STEPS
from ppworker.pipeline.runs import answers, rescue
from ppworker.runners.pool import RunnerPool
from ppworker.worker.heartbeat import Heartbeat
from ppworker.worker.loop import Loop
from promises import Keep

REFUSED = [
    "UPDATE post_processors SET runner_config = '[]'",
    "UPDATE post_processors SET runner_config = 'null'",
    "UPDATE post_processors SET runner_config = '7'",
    "UPDATE post_processors SET label_mapping = '[\"cat\"]'",
    "UPDATE post_processors SET label_mapping = '{\"cat\": 7}'",
    'UPDATE post_processors SET label_mapping = \'{"cat": {"to": "dog"}}\'',
    "UPDATE post_processors SET timeout_s = -1",
    "UPDATE post_processors SET timeout_s = 0",
    "UPDATE post_processors SET timeout_s = 'NaN'",
    "UPDATE post_processors SET timeout_s = 'Infinity'",
    "UPDATE post_processors SET max_new_labels = -1",
    "UPDATE post_processors SET media_types = '{NULL}'",
    "UPDATE post_processors SET file_types = '{pdf,NULL}'",
    "UPDATE post_processors SET confidence_threshold = 'NaN'",
    "UPDATE post_processor_jobs SET run_at = '-infinity'",
    "UPDATE post_processor_jobs SET run_at = '4000-01-01 BC'",
    "UPDATE post_processor_jobs SET run_at = '12000-01-01'",
    "UPDATE post_processor_jobs SET created_at = 'infinity'",
    "UPDATE post_processor_jobs SET lease_token = 9223372036854775807",
    "UPDATE post_processor_jobs SET crash_count = 32767",
    "UPDATE post_processor_jobs SET snooze_count = 32767",
    "UPDATE post_processor_jobs SET attempts = 3",
    "UPDATE operations SET arguments = '[]'",
    "UPDATE operations SET counts = '7'",
    "INSERT INTO blobs (sha256, size_bytes) VALUES (rpad('/etc/passwd/', 64, '/'), 1)",
]


@pytest.mark.parametrize("statement", REFUSED)
def test_a_row_that_no_worker_could_read_is_refused_by_the_schema(
    world: World, statement: str
) -> None:
    world.processor()
    world.add("word")
    an_operation(world, "reapply", "{}")
    with pytest.raises(StoreRefused):
        world.sql(statement)


def an_operation(world: World, kind: str, arguments: str) -> None:
    world.sql(
        "INSERT INTO operations (id, user_id, kind, arguments) "
        "VALUES (gen_random_uuid(), :user, :kind, CAST(:arguments AS jsonb))",
        user=world.user, kind=kind, arguments=arguments,
    )  # fmt: skip


@pytest.fixture
def loop(world: World) -> Iterator[Loop]:
    pool = RunnerPool()
    heartbeat = Heartbeat(lambda _: set(), lambda: None, lease_s=30)
    yield Loop(world.deps, pool, heartbeat, refresh=lambda: None, stopping=threading.Event())
    pool.close()


def drain(world: World, loop: Loop, processor: Any) -> int:
    """Turns until nothing is due."""
    turns = 1
    while loop.run_slice(processor.id, lambda: None):
        turns += 1
        assert turns < 200
    return turns


@pytest.mark.promise
def test_rows_that_nobody_can_work_on_end_at_once_and_alone(
    world: World, loop: Loop, promise: Keep, caplog: pytest.LogCaptureFixture
) -> None:
    processor = world.processor(runner="scripted_runners:EchoRunner", batch_size=100)
    for _ in range(10):
        world.add(*("word" for _ in range(100)))
    world.sql(
        "UPDATE post_processor_jobs SET version_id = gen_random_uuid() WHERE id IN "
        "(SELECT id FROM post_processor_jobs ORDER BY md5(id::text) LIMIT 10)"
    )
    an_operation(world, "from_the_future", '{"schema": 2}')
    for kind in STEPS:
        an_operation(world, kind, '{"schema": 2}')
    with caplog.at_level(logging.ERROR):
        drain(world, loop, processor)
        while operations.run(world.deps, STEPS) is not None:
            pass
    found = {
        (row.status, row.reason, row.attempts): row.n
        for row in world.sql(
            "SELECT status, reason, attempts, count(*) AS n FROM post_processor_jobs GROUP BY 1, 2, 3"
        )
    }
    long_work = world.sql("SELECT kind, status, reason, attempts FROM operations ORDER BY kind")
    # One looks for its dataset before its arguments.
    ends = {("failed", "invalid"), ("failed", "not_found")}
    refused = [row for row in long_work if (row.status, row.reason) in ends]
    unknown = [row for row in long_work if row.status == "pending" and not row.attempts]
    tries = sum(row.attempts for row in refused)
    promise(
        "F7",
        promise="A row that nobody can work on ends at once and alone, or waits for a version that "
        "knows it",
        fault="10 of 1,000 jobs name a version that does not exist; operations of every kind with "
        f"arguments of another version, and one of an unknown kind; {len(REFUSED)} unreadable "
        "values written by SQL",
        target="failed at once with reason invalid, no retry, no error in the log, other jobs "
        "unaffected; unknown kinds pending",
        figure=f"jobs: {found.get(('failed', 'invalid', 1), 0)} failed at once, "
        f"{found.get(('completed', '', 1), 0)} completed; operations: {len(refused)} of "
        f"{len(STEPS)} kinds failed after {tries} attempts, {len(unknown)} unknown waits; "
        f"{len(caplog.records)} errors logged; the {len(REFUSED)} unreadable values are refused by "
        "the schema",
        passed=found == {("failed", "invalid", 1): 10, ("completed", "", 1): 990}
        and len(refused) == len(STEPS) == tries
        and [row.kind for row in unknown] == ["from_the_future"]
        and not caplog.records,
    )


def test_a_type_of_model_that_is_not_known_here_waits_for_who_knows_it(
    world: World, loop: Loop
) -> None:
    processor = world.processor(runner="scripted_runners:EchoRunner")
    world.add("one")
    world.sql("UPDATE post_processors SET model_type = 'telepathy'")
    assert not loop.run_slice(processor.id, lambda: None)
    (job,) = world.jobs()
    assert (job.status, job.attempts) == ("pending", 0)


def test_an_answer_that_the_program_stumbles_over_fails_alone(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    processor = world.processor(max_attempts=2)
    items = world.add(*(f"word {n}" for n in range(20)))
    original = answers.map_inferences

    def stumbling(*arguments: Any) -> Any:
        if any(each.inference.predictions[0].label == "13" for each in arguments[2]):
            raise KeyError("nobody thought of this")
        return original(*arguments)

    monkeypatch.setattr(answers, "map_inferences", stumbling)
    said = lambda given: classes((given.text or "").split()[1])  # noqa: E731
    report = world.run(processor, said)
    assert (report.completed, report.again) == (19, 1)
    world.make_due()
    assert world.run(processor, said).failed == 1
    (job,) = world.jobs(status="failed")
    assert (job.reason, job.item_id) == ("program_error", items[13])
    assert "nobody thought of this" in job.error
    world.check()


def test_a_file_that_is_missing_is_no_models_fault(world: World, loop: Loop) -> None:
    """A folder that is not mounted on one worker must not pause a model that works."""
    processor = world.processor(runner="magika", reads="file")
    world.add(*("word" for _ in range(12)))
    blob = "a" * 64
    world.sql("INSERT INTO blobs (sha256, size_bytes) VALUES (:blob, 1)", blob=blob)
    world.sql("UPDATE dataset_items SET content_sha256 = :blob, size_bytes = 1", blob=blob)
    list(operate.backfill(world.deps, processor, [world.train]))
    drain(world, loop, processor)
    assert {(job.status, job.reason) for job in world.jobs()} == {("pending", "file_missing")}
    assert world.sql("SELECT 1 FROM post_processor_circuits") == []


def test_a_schema_that_changed_under_a_running_worker_damages_nothing(
    world: World, loop: Loop
) -> None:
    """Its statements fail as wholes; nothing is blamed on a job, and a program that fits goes on."""
    processor = world.processor(runner="scripted_runners:EchoRunner")
    world.add("one", "two")
    world.sql("ALTER TABLE job_results RENAME COLUMN refused TO refused_values")
    with pytest.raises(Exception, match="refused"):
        loop.run_slice(processor.id, lambda: None)
    assert {(job.status, job.attempts) for job in world.jobs()} == {
        ("processing", 1), ("pending", 0),
    }  # fmt: skip
    world.sql("ALTER TABLE job_results RENAME COLUMN refused_values TO refused")
    world.expire()
    rescue.rescue(world.deps)
    world.make_due()
    drain(world, loop, processor)
    assert world.statuses() == ["completed", "completed"]
    world.check()
