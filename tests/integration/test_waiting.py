"""Jobs that wait for nothing are found among many that wait rightly, a few looked at in each sweep."""

from dataclasses import replace
from uuid import UUID

import pytest
import sqlalchemy as sa

from factories import World
from ppworker.domain.post_processor import PostProcessor
from ppworker.pipeline.runs.rescue import BATCH, Repair
from ppworker.store import post_processors, waiting
from ppworker.store.db import Database

ITEMS = 10 * BATCH


@pytest.fixture
def later(world: World) -> PostProcessor:
    """Whose jobs all wait, one of each of many items, for a job of another that lives."""
    first, later = world.processor(), world.processor(order=1)
    with world.deps.db.begin() as tx:
        # Foreign keys are not what these tests are about.
        tx.execute(sa.text("SET LOCAL session_replication_role = replica"))
        for processor, ready in ((first, True), (later, False)):
            tx.execute(
                sa.text(
                    "INSERT INTO post_processor_jobs (id, post_processor_id, item_id, version_id, "
                    'user_id, ready, "order", max_attempts, status) '
                    "SELECT gen_random_uuid(), :p, CAST(lpad(to_hex(n), 32, '0') AS uuid), "
                    ":version, :user, :ready, :order, 3, 'pending' FROM generate_series(1, :n) n"
                ),
                {
                    "p": processor.id, "version": world.train.version_id, "user": world.user,
                    "ready": ready, "order": processor.order, "n": ITEMS,
                },
            )  # fmt: skip
            tx.execute(
                sa.text(
                    "INSERT INTO dataset_items (id, dataset_id, user_id, name, text, text_sha256) "
                    "SELECT item_id, :dataset, :user, 'i', 't', repeat('0', 64) "
                    "FROM post_processor_jobs ON CONFLICT DO NOTHING"
                ),
                {"dataset": world.dataset.id, "user": world.user},
            )
    return later


def free(world: World, item: int) -> None:
    """Take away what an item's job waits for, as if a step had been missed."""
    world.sql("DELETE FROM post_processor_jobs WHERE item_id = :i AND ready", i=UUID(int=item))


def ready(world: World, processor: PostProcessor) -> list[int]:
    """Items whose job is ready."""
    found = world.sql(
        "SELECT item_id FROM post_processor_jobs WHERE ready AND post_processor_id = :p",
        p=processor.id,
    )
    return sorted(row.item_id.int for row in found)


def test_sweep_by_sweep_every_waiting_job_is_looked_at_again_and_again(
    world: World, later: PostProcessor
) -> None:
    repair = Repair(world.deps, budget_s=0)
    free(world, ITEMS)
    for _ in range(ITEMS // BATCH - 1):
        assert repair.sweep() == 0
    assert ready(world, later) == []
    assert repair.sweep() == 1
    assert ready(world, later) == [ITEMS]
    free(world, 1)
    assert sum(repair.sweep() for _ in range(ITEMS // BATCH + 1)) == 1
    assert ready(world, later) == [1, ITEMS]


def test_with_time_enough_one_sweep_looks_at_all(world: World, later: PostProcessor) -> None:
    items = [1, BATCH, BATCH + 1, ITEMS]
    for item in items:
        free(world, item)
    assert Repair(world.deps).sweep() == 1
    assert ready(world, later) == items


def test_of_all_processes_one_walks_at_a_time(world: World, later: PostProcessor) -> None:
    free(world, 1)
    repair = Repair(world.deps)
    with world.deps.db.begin() as tx:
        assert waiting.try_lock(tx)
        assert repair.sweep() == 0
    assert ready(world, later) == []
    assert repair.sweep() == 1
    assert ready(world, later) == [1]


def test_an_item_that_somebody_holds_has_its_turn_later(world: World, later: PostProcessor) -> None:
    free(world, 1)
    repair = Repair(world.deps)
    with world.deps.db.begin() as tx:
        tx.execute(sa.text("SELECT FROM dataset_items ORDER BY id LIMIT 1 FOR UPDATE"))
        assert repair.sweep() == 0
    assert repair.sweep() == 1
    assert ready(world, later) == [1]


def rows_read(world: World) -> int:
    """Rows and index entries of jobs that were read so far."""
    world.sql("SELECT pg_stat_force_next_flush()")
    return int(
        world.sql(
            "SELECT t.seq_tup_read + (SELECT sum(i.idx_tup_read) FROM pg_stat_user_indexes i "
            "WHERE i.relname = t.relname) FROM pg_stat_user_tables t "
            "WHERE t.relname = 'post_processor_jobs'"
        )[0][0]
    )


@pytest.mark.parametrize("is_steady", [True, False])
def test_a_sweep_reads_no_more_where_more_jobs_wait(
    world: World, later: PostProcessor, is_steady: bool
) -> None:
    """A worker's one plan for all parameters, and a command's."""
    world.sql("ANALYZE post_processor_jobs")
    url = world.deps.db.engine.url.render_as_string(hide_password=False)
    db = Database(url, connections=1, steady_plans=is_steady)
    repair = Repair(replace(world.deps, db=db), budget_s=0)
    before = rows_read(world)
    for _ in range(3):
        assert repair.sweep() == 0
    with db.begin() as tx:
        tx.execute(sa.text("SELECT pg_stat_force_next_flush()"))
    read = (rows_read(world) - before) / 3
    db.close()
    assert BATCH <= read < 5 * BATCH


def test_the_look_for_what_a_deletion_left_reads_a_row_of_each(
    world: World, later: PostProcessor
) -> None:
    """However many jobs live, and however many post-processors were ever deleted."""
    world.sql("ANALYZE post_processor_jobs")
    world.sql("UPDATE post_processors SET deleted_at = now() WHERE id = :id", id=later.id)
    gone = [world.processor() for _ in range(20)]
    world.sql(
        "UPDATE post_processors SET deleted_at = now() WHERE id = ANY(:ids)",
        ids=[each.id for each in gone],
    )
    url = world.deps.db.engine.url.render_as_string(hide_password=False)
    db = Database(url, connections=1, steady_plans=True)
    before = rows_read(world)
    with db.begin() as tx:
        assert post_processors.find_deleted_with_jobs(tx) == [later.id]
        tx.execute(sa.text("SELECT pg_stat_force_next_flush()"))
    read = rows_read(world) - before
    db.close()
    assert 1 <= read < 50
