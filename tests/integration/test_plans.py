"""The statements that every worker sends use their partial index among a million finished jobs."""

import re
from collections.abc import Callable, Iterator
from typing import Any
from uuid import UUID

import psycopg
import pytest
import sqlalchemy as sa
from psycopg import sql

from factories import World
from ppworker.pipeline.runs import rescue
from ppworker.store import claims, jobs
from ppworker.store.db import Database

FINISHED, PENDING, PROCESSORS = 1_000_000, 100_000, 50

LEASE = claims.Lease(worker_id=UUID(int=1), batch_id=UUID(int=2), lease_s=60, deadline_s=600)

Captured = list[tuple[str, Any]]


@pytest.fixture
def crowded(world: World) -> World:
    """A job table with a long history and a backlog, statistics taken."""
    for i in range(PROCESSORS):
        world.processor(f"processor {i:02}", concurrency_cap=100)
    items = FINISHED // PROCESSORS
    with world.deps.db.begin() as tx:
        # Foreign keys are not what this test is about, and checking them would take minutes.
        tx.execute(sa.text("SET LOCAL session_replication_role = replica"))
        tx.execute(
            sa.text(
                "INSERT INTO dataset_items (id, dataset_id, user_id, name, text, text_sha256) "
                "SELECT gen_random_uuid(), :dataset, :user, 'i' || n, 't', repeat('0', 64) "
                "FROM generate_series(1, :n) n"
            ),
            {"dataset": world.dataset.id, "user": world.user, "n": items},
        )
        shared = (
            "INSERT INTO post_processor_jobs (id, post_processor_id, item_id, version_id, user_id, "
            'ready, "order", max_attempts, status, attempts, completed_at, run_at) '
            "SELECT gen_random_uuid(), p.id, i.id, :version, :user, true, 0, 3, "
        )
        ids = {"version": world.train.version_id, "user": world.user}
        tx.execute(
            sa.text(
                shared + "'completed', 1, now(), now() - interval '1 day' "
                "FROM dataset_items i CROSS JOIN post_processors p"
            ),
            ids,
        )
        tx.execute(
            sa.text(
                shared + "'pending', 0, NULL, now() - random() * interval '1 hour' "
                "FROM (SELECT id FROM dataset_items LIMIT :n) i CROSS JOIN post_processors p"
            ),
            ids | {"n": PENDING // PROCESSORS},
        )
    with world.deps.db.engine.connect() as connection:
        connection.execution_options(isolation_level="AUTOCOMMIT")
        connection.execute(sa.text("VACUUM ANALYZE post_processor_jobs, dataset_items"))
    return world


@pytest.fixture
def sent(world: World) -> Iterator[Captured]:
    """Statements with their parameters, exactly as they go to the server."""
    captured: Captured = []

    def note(_c: object, _cursor: object, statement: str, parameters: Any, *_: object) -> None:
        captured.append((statement, parameters))

    sa.event.listen(world.deps.db.engine, "before_cursor_execute", note)
    yield captured
    sa.event.remove(world.deps.db.engine, "before_cursor_execute", note)


@pytest.mark.timeout(280)
def test_claim_rescue_and_inflight_use_their_partial_index(crowded: World, sent: Captured) -> None:
    processor_id = UUID(int=0)
    with crowded.deps.db.begin() as tx:
        processor_id = tx.execute(sa.text("SELECT id FROM post_processors LIMIT 1")).scalar_one()

    def claim(first: int = 0, behind: claims.Places | None = None) -> Callable[[], claims.Claim]:
        def run() -> claims.Claim:
            with crowded.deps.db.begin() as tx:
                return claims.claim(
                    tx, processor_id, LEASE, reads="any", limit=100, first=first, behind=behind
                )

        return run

    def suspects() -> list[claims.ClaimedJob]:
        with crowded.deps.db.begin() as tx:
            return claims.claim_suspects(tx, processor_id, LEASE, reads="any", limit=100)

    last = claim()().jobs[-1]
    places = {last.priority: (last.run_at, last.id)}
    for label, run, index, most_blocks in [
        ("claim", claim(), "post_processor_jobs_claim", 6_000),
        (
            "claim behind",
            claim(behind=places),
            "post_processor_jobs_claim",
            6_000,
        ),
        ("claim of bulk first", claim(first=1), "post_processor_jobs_claim", 6_000),
        ("claim of suspects", suspects, "post_processor_jobs_suspects", 50),
        ("rescue", lambda: rescue.rescue(crowded.deps), "post_processor_jobs_inflight", 500),
        (
            "in flight",
            lambda: _in_tx(crowded, lambda tx: claims.count_batches(tx, processor_id)),
            "post_processor_jobs_inflight",
            500,
        ),
        ("due", lambda: _in_tx(crowded, jobs.find_due), "post_processor_jobs_claim", 2_000),
    ]:
        sent.clear()
        run()
        statement, parameters = sent[0]
        plan = explain(crowded, statement, parameters)
        blocks = plan["Shared Hit Blocks"] + plan["Shared Read Blocks"]
        print(f"{label}: indexes {sorted(indexes(plan))}, {blocks} blocks")
        assert index in indexes(plan), label
        assert "post_processor_jobs" not in scanned(plan), f"{label} scans the table"
        assert blocks < most_blocks, label

    _as_workers_send_them(crowded, processor_id, places)


def _as_workers_send_them(world: World, processor_id: UUID, places: claims.Places) -> None:
    """Prepared, with one plan for all parameters: no scan of the table, few index entries read."""
    url = world.deps.db.engine.url.render_as_string(hide_password=False)
    steady = Database(url, connections=1, steady_plans=True)
    calls = 20

    def counted() -> Any:
        world.sql("SELECT pg_stat_force_next_flush()")
        return world.sql(
            "SELECT t.seq_scan, (SELECT sum(i.idx_tup_read) FROM pg_stat_user_indexes i "
            "WHERE i.relname = t.relname) AS entries FROM pg_stat_user_tables t "
            "WHERE t.relname = 'post_processor_jobs'"
        )[0]

    before = counted()
    for call in range(calls):
        with steady.begin() as tx:
            claimed = claims.claim(
                tx, processor_id, LEASE, reads="any", limit=50, first=call % 2, behind=places
            )
            assert len(claimed.jobs) == 50
            claims.claim_suspects(tx, processor_id, LEASE, reads="any", limit=50)
            claims.count_batches(tx, processor_id)
            jobs.find_expired(tx, limit=500)
            jobs.find_due(tx)
            tx.execute(sa.text("SELECT pg_stat_force_next_flush()"))
    steady.close()
    after = counted()
    entries = int(after.entries - before.entries) / calls
    print(f"as workers send them: {entries:.0f} index entries a round")
    assert after.seq_scan == before.seq_scan
    assert entries < 10_000, "a hundredth of the table"


BACKLOG = 20_000


def test_a_claim_costs_the_same_at_the_end_of_a_backlog_as_at_its_beginning(world: World) -> None:
    """Ids grow with time, so that a plan could join by their order: each claim would then read
    all that was claimed before it."""
    processor = world.processor(batch_size=1000)
    ids = {"version": world.train.version_id, "user": world.user, "dataset": world.dataset.id}
    with world.deps.db.begin() as tx:
        tx.execute(sa.text("SET LOCAL session_replication_role = replica"))
        tx.execute(
            sa.text(
                "INSERT INTO dataset_items (id, dataset_id, user_id, name, text, text_sha256) "
                "SELECT lpad(to_hex(n), 32, '0')::uuid, :dataset, :user, 'i' || n, 't', "
                "repeat('0', 64) FROM generate_series(1, :n) n"
            ),
            ids | {"n": BACKLOG},
        )
        tx.execute(
            sa.text(
                "INSERT INTO post_processor_jobs (id, post_processor_id, item_id, version_id, "
                'user_id, ready, "order", max_attempts, status, run_at) '
                "SELECT i.id, :processor, i.id, :version, :user, true, 0, 3, 'pending', "
                "now() - interval '1 hour' FROM dataset_items i"
            ),
            ids | {"processor": processor.id},
        )
    world.sql("ANALYZE post_processor_jobs, dataset_items")
    url = world.deps.db.engine.url.render_as_string(hide_password=False)
    steady = Database(url, connections=1, steady_plans=True)
    places: claims.Places = {}
    read = []
    for _ in range(BACKLOG // 1000):
        before = _entries_read(world)
        with steady.begin() as tx:
            claimed = claims.claim(
                tx, processor.id, LEASE, reads="any", limit=1000, behind=places
            ).jobs
        with steady.begin() as tx:
            tx.execute(sa.text("SELECT pg_stat_force_next_flush()"))
        read.append(_entries_read(world) - before)
        places = {claimed[-1].priority: (claimed[-1].run_at, claimed[-1].id)}
    steady.close()
    print(f"index entries of a claim of 1,000: {read[0]} at first, {read[-1]} at last")
    assert max(read) < 6_000


def _entries_read(world: World) -> int:
    world.sql("SELECT pg_stat_force_next_flush()")
    (row,) = world.sql(
        "SELECT sum(idx_tup_read) AS entries FROM pg_stat_user_indexes "
        "WHERE relname IN ('post_processor_jobs', 'dataset_items')"
    )
    return int(row.entries)


def _in_tx(world: World, work: Callable[[Any], object]) -> object:
    with world.deps.db.begin() as tx:
        return work(tx)


def explain(world: World, statement: str, parameters: Any) -> dict[str, Any]:
    """The plan of a statement as it ran, undone afterwards; one plan for all parameters, by an
    index, as workers have it."""
    names = list(dict.fromkeys(re.findall(r"%\((\w+)\)s", statement)))
    numbered = re.sub(r"%\((\w+)\)s", lambda found: f"${names.index(found[1]) + 1}", statement)
    values = sql.SQL(", ").join(sql.Literal(parameters[name]) for name in names)
    url = world.deps.db.engine.url.set(drivername="postgresql")
    with psycopg.connect(url.render_as_string(hide_password=False)) as connection:
        connection.execute("SET plan_cache_mode = force_generic_plan")
        connection.execute("SET enable_seqscan = off")
        connection.execute(f"PREPARE asked AS {numbered}".encode())
        asked = sql.SQL("EXECUTE asked ({})").format(values) if names else sql.SQL("EXECUTE asked")
        rows = connection.execute(
            sql.SQL("EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {}").format(asked)
        )
        plan: dict[str, Any] = rows.fetchall()[0][0][0]["Plan"]
        connection.rollback()
    return plan


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for child in plan.get("Plans", []):
        yield from nodes(child)


def indexes(plan: dict[str, Any]) -> set[str]:
    return {node["Index Name"] for node in nodes(plan) if "Index Name" in node}


def scanned(plan: dict[str, Any]) -> set[str]:
    return {node["Relation Name"] for node in nodes(plan) if node["Node Type"] == "Seq Scan"}
