"""Figures add up to what the database says, whatever happened; its gauges cost the live alone."""

import random
from collections import Counter, defaultdict
from dataclasses import replace
from typing import Any
from uuid import uuid4

import pytest
import sqlalchemy as sa
from prometheus_client import CollectorRegistry

from factories import World, classes
from ppworker.domain.job import MAX_CRASHES
from ppworker.errors import (
    Conflict,
    RunnerCrashed,
    RunnerOverloaded,
    RunnerTimeout,
    StoreRefused,
    StoreUnavailable,
    UnreadableInput,
)
from ppworker.metrics import _OUTCOMES, Metrics
from ppworker.monitoring.scrape import Scrape
from ppworker.pipeline.control import operate
from ppworker.pipeline.deps import Deps
from ppworker.pipeline.runs import finish, rescue
from ppworker.store import gauges
from ppworker.store.db import Database, Tx

ROUNDS = 25


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def metered(deps: Deps, registry: CollectorRegistry) -> World:
    """A world whose facts are counted."""
    return World(replace(deps, emit=Metrics(registry).observe))


def figures(registry: CollectorRegistry) -> dict[str, Counter[tuple[str, ...]]]:
    """Samples by name; labels in the order of their names, buckets left out."""
    found: dict[str, Counter[tuple[str, ...]]] = defaultdict(Counter)
    for family in registry.collect():
        for sample in family.samples:
            if not sample.name.endswith(("_bucket", "_created")):
                labels = tuple(value for _, value in sorted(sample.labels.items()))
                found[sample.name.removeprefix("ppworker_")][labels] += int(sample.value)
    return found


def rows(world: World, statement: str) -> Counter[tuple[str, ...]]:
    """Counts of a statement whose last column is one, by the columns before it."""
    found: Counter[tuple[str, ...]] = Counter()
    for *key, n in world.sql(statement):
        found[tuple(key)] += n
    return found


def anything(rng: random.Random) -> Any:
    """What a model says that does everything a model may do."""
    said = [
        classes("cat"),
        classes(*rng.sample(["cat", "dog", "cow"], k=rng.randint(0, 3))),
        RunnerTimeout("too slow"),
        RunnerOverloaded("busy", retry_after_s=0.0),
        RunnerCrashed("dead"),
        UnreadableInput("broken"),
    ]
    return lambda _: rng.choice(said)


def run_all(world, processor, said):
    """Whatever is pending, batch by batch: a job that killed its model runs alone."""
    world.make_due()
    while (batch := world.claim(processor)).jobs:
        world.run(processor, said, batch=batch)


def one_of_everything(world: World, rng: random.Random) -> None:
    """A load in which each edge of a job is taken, several times."""
    early = world.processor("early", max_attempts=3)
    late = world.processor("late", order=1, max_attempts=2)
    strict = world.processor("strict", on_failure="stop", max_attempts=1)
    for _ in range(ROUNDS):
        world.add(*(f"text {rng.random()}" for _ in range(rng.randint(1, 4))))
        for processor in (early, strict, late):
            batch = world.claim(processor, limit=rng.randint(1, 6))
            names, held = {processor.id: processor.name}, {
                job.id: (job.item_id, job.lease_token) for job in batch.jobs
            }  # fmt: skip
            fate = rng.random()
            if fate < 0.15:
                world.expire()
                rescue.rescue(world.deps)
                world.run(processor, anything(rng), batch=batch)  # too late: refused
            elif fate < 0.25:
                finish.release(world.deps, names, held)
            elif fate < 0.35 and batch.jobs:
                operate.cancel(world.deps, world.user, batch.jobs[0].id)
                world.run(processor, anything(rng), batch=batch)
            else:
                world.run(processor, anything(rng), batch=batch)
        if rng.random() < 0.3:
            operate.retry_failed(world.deps, world.user, successors=rng.random() < 0.5)
        for job in world.jobs(status="pending")[:1]:
            if rng.random() < 0.3:
                operate.cancel(world.deps, world.user, job.id)
        world.make_due()
    for processor, said in ((early, UnreadableInput("broken")), (late, classes("cat"))):
        run_all(world, processor, said)
    operate.retry_failed(world.deps, world.user, successors=True)
    for processor in (early, strict, late):
        run_all(world, processor, classes("cat"))
    further = world.processor("further")
    list(operate.backfill(world.deps, further, [world.train]))
    world.run(further, anything(rng))


@pytest.mark.parametrize("seed", [1, 2])
def test_figures_add_up_to_the_database_whatever_happened(metered, registry, seed):
    world = metered
    one_of_everything(world, random.Random(seed))
    found = figures(registry)
    jobs = "FROM post_processor_jobs j JOIN post_processors p ON p.id = j.post_processor_id"

    enqueued: Counter[tuple[str, ...]] = Counter()
    for (processor, source), n in found["jobs_enqueued_total"].items():
        enqueued[(processor,) if source != "retry" else ("retry", processor)] += n
    planned = rows(world, f"SELECT p.name, count(*) {jobs} GROUP BY 1")
    assert {k: n for k, n in enqueued.items() if len(k) == 1} == planned
    assert set(dict(found["jobs_enqueued_total"])) >= {
        ("early", "upload"), ("late", "rerun"), ("early", "retry"), ("further", "backfill"),
    }  # fmt: skip

    now = rows(world, f"SELECT p.name, j.status, count(*) {jobs} GROUP BY 1, 2")
    for processor in ("early", "late", "strict", "further"):
        finished = found["jobs_finished_total"]
        assert finished[processor, "completed"] == now[processor, "completed"]
        again = enqueued["retry", processor]
        assert finished[processor, "failed"] == now[processor, "failed"] + again

    attempts: Counter[tuple[str, ...]] = Counter()
    rescued: Counter[tuple[str, ...]] = Counter()
    for name, cause, reason, n in world.sql(
        f"SELECT p.name, a.cause, a.reason, count(*) {jobs} "
        "JOIN job_attempts a ON a.job_id = j.id GROUP BY 1, 2, 3"
    ):
        is_rescue = reason == "lease_expired"
        attempts["lease_lost" if is_rescue else _OUTCOMES[cause], name] += n
        rescued[name, reason] += n if is_rescue else 0
    assert found["job_attempts_total"] == attempts
    assert found["jobs_rescued_total"] == +rescued
    assert {outcome for outcome, _ in attempts} == {
        "completed", "retry", "failed", "cancelled", "snoozed", "interrupted", "lease_lost",
    }  # fmt: skip
    assert found["job_attempt_duration_seconds_count"] == attempts
    assert found["job_end_to_end_seconds_count"] == found["jobs_finished_total"]

    claims = rows(world, f"SELECT p.name, sum(j.lease_token)::int {jobs} GROUP BY 1")
    assert found["job_queue_wait_seconds_count"] == +claims
    assert sum(attempts.values()) + sum(now[p, "processing"] for p, _ in now) == claims.total()

    quarantined = found["jobs_quarantined_total"]
    assert {reason for _, reason in quarantined} >= {"exhausted", "invalid"}
    assert found["stale_writes_rejected_total"].total() > 0

    live = rows(
        world,
        "SELECT p.name, count(*) FROM annotations a JOIN post_processors p "
        "ON p.id = a.post_processor_id GROUP BY 1",
    )
    written = found["annotations_written_total"]
    for processor in ("early", "late", "strict", "further"):
        assert written["inserted", processor] - written["deleted", processor] == live[processor,]
    assert written["deduplicated", "late"] > 0, "jobs that ran again"
    world.check()


def test_a_job_that_kills_its_model_is_quarantined_as_a_crash(metered, registry):
    processor = metered.processor("deadly", max_attempts=10)
    metered.add("poison")
    for _ in range(MAX_CRASHES):
        metered.make_due()
        metered.run(processor, RunnerCrashed("dead"))
    assert figures(registry)["jobs_quarantined_total"] == {("deadly", "crash"): 1}


def test_gauges_say_what_is(world, deps):
    due, idle = world.processor("due"), world.processor("idle", order=5)
    off = world.processor("off")
    operate.set_paused(deps, off, paused=True)
    world.add("one", "two", "three")
    with pytest.raises(Conflict):
        operate.retry(deps, world.user, world.jobs(due)[0].id)
    world.run(due, limit=1)
    world.run(due, UnreadableInput("broken"), limit=1)
    claimed = world.claim(due)
    world.sql(
        "UPDATE post_processor_jobs SET started_at = now() - interval '90 s' WHERE id = :id",
        id=claimed.jobs[0].id,
    )
    world.sql(
        "UPDATE post_processor_jobs SET run_at = now() - interval '50 s' "
        "WHERE post_processor_id = :id AND ready",
        id=off.id,
    )
    for status in ("pending", "failed"):
        world.sql(
            "INSERT INTO operations (id, user_id, kind, arguments, status, completed_at) "
            "VALUES (:id, :user, 'reapply', '{}', :status, CASE WHEN :status = 'failed' "
            "THEN now() END)",
            id=uuid4(), user=world.user, status=status,
        )  # fmt: skip
    world.sql(
        "INSERT INTO dead_letters (id, message_id, actor, field, error, body, body_sha256) "
        "VALUES (:id, 'm', 'take_upload', 'split', 'e', '{}', '')",
        id=uuid4(),
    )
    for ago_s, draining in ((1, False), (1, True), (100, True)):
        world.sql(
            "INSERT INTO workers (id, host, pid, version, slots, draining, seen_at) VALUES "
            "(:id, 'h', 1, '1', 2, :draining, now() - make_interval(secs => :ago))",
            id=uuid4(), draining=draining, ago=ago_s,
        )  # fmt: skip
    with deps.db.begin() as tx:
        readings = gauges.read(tx, timeout_s=5)
    scrape = Scrape(
        None, version="1", schema_version="2", database=lambda: readings, redis=lambda: True
    )
    found = {
        (sample.name.removeprefix("ppworker_"), *sample.labels.values()): sample.value
        for family in scrape.collect()
        for sample in family.samples
    }
    assert {key: found["jobs", *key] for key in [("due", "completed"), ("due", "failed")]} == {
        ("due", "completed"): 1, ("due", "failed"): 1,
    }  # fmt: skip
    assert found["jobs", "due", "processing"] == 1
    assert found["jobs", "idle", "pending"] == 3
    assert found["jobs_due", "idle"] == 0, "they wait for the others"
    assert found["jobs_due", "off"] == 3
    assert found["processor_paused", "off"] == 1
    assert found["processor_paused", "due"] == 0
    assert ("oldest_due_job_age_seconds", "off") not in found, "nobody is to run it"
    assert found["oldest_due_job_age_seconds", "due"] == 0
    assert 90 <= found["oldest_lease_age_seconds", "due"] < 120
    assert found["operations", "reapply", "pending"] == 1
    assert ("operations", "reapply", "failed") not in found
    assert found["dead_letters",] == 1
    assert [found["workers", state] for state in ("live", "draining", "lost")] == [1, 1, 1]
    assert found["stats_unfolded_deltas",] > 0
    assert 0 <= found["stats_staleness_seconds",] < 60
    assert found["database_up",] == found["redis_up",] == 1
    assert found["db_oldest_transaction_age_seconds",] >= 0
    assert idle.name == "idle"


def test_post_processors_of_one_name_are_one(worlds, deps):
    for processor_world in (worlds(), worlds()):
        processor_world.processor("kind")
        processor_world.add("one", "two")
    with deps.db.begin() as tx:
        readings = gauges.read(tx, timeout_s=5)
    scrape = Scrape(
        None, version="", schema_version="", database=lambda: readings, redis=lambda: None
    )
    (due,) = [f for f in scrape.collect() if f.name == "ppworker_jobs_due"]
    assert [(sample.labels, sample.value) for sample in due.samples] == [({"processor": "kind"}, 4)]


def test_gauges_read_the_live_and_never_the_history(world, deps):
    """Each statement goes through a partial index, or looks at a sample of bounded size."""
    processor = world.processor("kind")
    (item,) = world.add("one")
    world.sql(
        "INSERT INTO post_processor_jobs (id, post_processor_id, item_id, version_id, user_id, "
        'ready, "order", max_attempts, status, attempts, completed_at) '
        "SELECT gen_random_uuid(), :p, :i, :v, :u, true, 0, 3, 'completed', 1, now() "
        "FROM generate_series(1, 150000)",
        p=processor.id, i=item, v=world.train.version_id, u=world.user,
    )  # fmt: skip
    with deps.db.engine.connect() as connection:
        connection.execution_options(isolation_level="AUTOCOMMIT")
        connection.execute(sa.text("VACUUM ANALYZE post_processor_jobs"))
    plans: list[str] = []

    def explain(connection: Any, cursor: Any, statement: str, parameters: Any, *_: object) -> None:
        if "post_processor_jobs" in statement and not statement.startswith("EXPLAIN"):
            with connection.connection.cursor() as other:
                other.execute(f"EXPLAIN {statement}", parameters)
                plans.append("\n".join(row[0] for row in other.fetchall()))

    sa.event.listen(deps.db.engine, "before_cursor_execute", explain)
    with deps.db.begin() as tx:
        readings = gauges.read(tx, timeout_s=5)
    sa.event.remove(deps.db.engine, "before_cursor_execute", explain)
    assert len(plans) >= 5
    for plan in plans:
        assert "Seq Scan on post_processor_jobs" not in plan, plan
    (found,) = readings.processors
    assert found.due == 1
    assert 100_000 < found.completed < 200_000, "an estimate"


def test_a_statement_that_takes_too_long_is_given_up(world, deps):
    with deps.db.begin() as holder:
        holder.execute(sa.text("LOCK TABLE post_processor_jobs"))
        with pytest.raises(StoreUnavailable), deps.db.begin() as tx:
            gauges.read(tx, timeout_s=0.2)


def test_errors_of_the_database_and_its_return_are_told(database_url):
    told: list[Any] = []
    db = Database(
        database_url, connections=2, failed=lambda *what: told.append(what),
        came_back=lambda: told.append("back"),
    )  # fmt: skip

    def refuse(tx: Tx) -> None:
        tx.execute(sa.text("SELECT 1/0"))

    with pytest.raises(StoreRefused):
        db.transact(refuse)
    with pytest.raises(StoreUnavailable), db.begin() as tx:
        tx.execute(sa.text("SELECT pg_terminate_backend(pg_backend_pid())"))
    with pytest.raises(KeyError), db.begin():
        raise KeyError("the caller's own")
    with db.look() as tx:
        tx.execute(sa.text("SELECT 1"))
    assert told == [("transaction", "refused"), ("transaction", "unavailable"), "back"]
    db.close()
