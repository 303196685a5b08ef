"""A copy of a version is whole or not there, and says what the source said of each item."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa

from factories import World, classes
from ppworker.errors import Invalid, NotFound
from ppworker.pipeline.control import operations, reapply
from ppworker.pipeline.control.operation_steps import STEPS
from ppworker.pipeline.deps import Deps
from ppworker.pipeline.setup import catalogue
from ppworker.pipeline.transfer import delete, duplicate
from ppworker.store import datasets, labels, results, stats, versions
from ppworker.store.db import Tx
from ppworker.store.ids import new_id
from ppworker.store.operations import Operation
from ppworker.store.versions import Version

CONTENT = """
SELECT i.name AS item, l.name AS label, s.name AS split, a.kind, a.geometry::text, a.coordinates,
  a.text, a.page, a.score, a.source, a.post_processor_id, a.job_id, a.inference_id,
  a.model_version, a.review, a.fingerprint, a.user_id, a.created_at, a.deleted_at
FROM annotations a JOIN dataset_items i ON i.id = a.item_id JOIN labels l ON l.id = a.label_id
LEFT JOIN dataset_splits s ON s.id = a.split_id WHERE a.version_id = :v ORDER BY a.item_id, a.id
"""
MEMBERS = """
SELECT m.item_id, s.name FROM item_splits m JOIN dataset_splits s ON s.id = m.split_id
WHERE m.version_id = :v ORDER BY 1, 2
"""
STATES = "SELECT item_id, user_id, state, version FROM item_states WHERE version_id = :v ORDER BY 1"
RESULTS = """
SELECT item_id, post_processor_id, job_id, raw::text, model_version, input_revision, text_sha256
FROM job_results WHERE version_id = :v ORDER BY 1, 2
"""
LABELS = """
SELECT name, normalised_name, description, color, "index", shortcut, user_id, created_at
FROM labels WHERE version_id = :v AND deleted_at IS NULL ORDER BY "index"
"""


def source_of(world: World) -> Version:
    with world.deps.db.begin() as tx:
        found = versions.find_version(tx, world.user, world.dataset.id, world.dataset.version_id)
    assert found is not None
    return found


def find(world: World, id_: UUID) -> Version | None:
    with world.deps.db.begin() as tx:
        return versions.find_version(tx, world.user, world.dataset.id, id_)


def finish(world: World, id_: UUID, **options: Any) -> Operation:
    return operations.follow(world.deps, STEPS, world.user, id_, **options)


def all_of(world: World, statement: str, version_id: UUID) -> list[tuple[Any, ...]]:
    return [tuple(row) for row in world.sql(statement, v=version_id)]


def counted(world: World, version_id: UUID) -> dict[tuple[str, str], tuple[int, int]]:
    with world.deps.db.begin() as tx:
        names = {each.id: each.name for each in labels.list_labels(tx, version_id)}
        splits = {each.id: each.name for each in datasets.list_splits_of(tx, [version_id])}
        found = stats.read_stats(tx, list(splits))
    return {
        (splits[row.split_id], names[row.label_id] if row.label_id else row.bucket): (
            row.annotation_count,
            row.item_count,
        )
        for row in found
        if row.annotation_count or row.item_count
    }


def same(world: World, one: UUID, other: UUID) -> None:
    """Both versions say the same of the same items."""
    for statement in (MEMBERS, CONTENT, STATES, RESULTS, LABELS):
        assert all_of(world, statement, one) == all_of(world, statement, other)
    assert counted(world, one) == counted(world, other)
    shared = world.sql(
        "SELECT id FROM annotations WHERE version_id = :a INTERSECT "
        "SELECT id FROM annotations WHERE version_id = :b", a=one, b=other,
    )  # fmt: skip
    assert shared == []


def fill(world: World, count: int) -> None:
    """Items with a model's and a person's annotations, tombstones, states and results, by set."""
    processor = world.processor()
    ids = world.add(*(f"text {i}" for i in range(min(count, 12))))
    world.run(processor, classes("cat", "Dog"))
    world.annotate(ids[0], "bird")
    catalogue.change_label(world.deps, label(world, "bird"), {"color": "#123456", "shortcut": "b"})
    world.sql(
        "UPDATE annotations SET deleted_at = now(), review = 'rejected' WHERE id = "
        "(SELECT id FROM annotations WHERE source = 'model' ORDER BY id LIMIT 1)"
    )
    world.sql(
        "INSERT INTO item_states (version_id, item_id, id, user_id, state, version) "
        "SELECT :v, id, gen_random_uuid(), user_id, 'reviewed', 3 FROM dataset_items",
        v=world.dataset.version_id,
    )
    if count > 12:  # the rest as a loader would, three annotations each
        world.sql(
            "WITH new AS (INSERT INTO dataset_items (id, dataset_id, user_id, name) SELECT "
            "gen_random_uuid(), :d, :u, 'bulk ' || g FROM generate_series(1, :n) g RETURNING id), "
            "member AS (INSERT INTO item_splits SELECT :s, id, :v FROM new) "
            "INSERT INTO annotations (id, version_id, item_id, label_id, user_id, kind, "
            "coordinates, source, review) SELECT gen_random_uuid(), :v, new.id, l.id, :u, 'class', "
            "'', 'import', 'accepted' FROM new CROSS JOIN labels l WHERE l.version_id = :v",
            d=world.dataset.id, u=world.user, v=world.dataset.version_id, s=world.valid.id,
            n=count - 12,
        )  # fmt: skip
    with world.deps.db.begin() as tx:  # one tombstone and the rest were written past the stats
        split_ids = stats.list_split_ids(tx)
        for row in stats.find_drift(tx, split_ids):
            tx.execute(
                sa.text(
                    "INSERT INTO label_stat_deltas (split_id, bucket, label_id, annotation_count, "
                    "item_count) VALUES (:s, :b, :l, :a, :i)"
                ),
                {
                    "s": row.split_id, "b": row.bucket, "l": row.label_id,
                    "a": row.annotation_count, "i": row.item_count,
                },
            )  # fmt: skip
    world.check()


def label(world: World, name: str) -> labels.Label:
    with world.deps.db.begin() as tx:
        found = labels.list_labels(tx, world.dataset.version_id)
    return next(each for each in found if each.name == name)


def test_a_copy_says_what_the_source_says_and_has_no_jobs(world):
    fill(world, 12)
    source = source_of(world)
    catalogue.change_version(
        world.deps, source, {"default_split": str(world.valid.id), "config": '{"a": 1}\n'}
    )
    source = source_of(world)
    done = finish(world, duplicate.begin(world.deps, source))
    copy = find(world, duplicate.copy_of(done))
    assert copy is not None
    assert copy.default_split is not None
    assert (done.status, done.done, done.total) == ("completed", 12, 12)
    assert done.result == {"version_id": str(copy.id)}
    assert (copy.name, copy.config) == ("v1 copy", '{"a": 1}\n')
    with world.deps.db.begin() as tx:
        default = datasets.find_split(tx, copy.id, copy.default_split)
    assert default is not None
    assert default.name == "valid"
    same(world, source.id, copy.id)
    assert {row.version_id for row in world.sql("SELECT version_id FROM post_processor_jobs")} == {
        source.id
    }
    ids = [str(row.id) for row in world.sql("SELECT id FROM annotations")]
    assert {id_[14] for id_ in ids} == {"7"}
    assert {id_[19] for id_ in ids} <= set("89ab")
    world.check()


def test_a_reapply_over_a_version_and_its_copy_gives_each_its_own_labels(world):
    processor = world.processor(order=1)
    items = world.add(*(f"word {n}" for n in range(5)))
    world.run(processor, classes("cat"))
    copy = duplicate.copy_of(finish(world, duplicate.begin(world.deps, source_of(world))))
    scope = results.Scope(post_processor_id=processor.id, dataset_id=world.dataset.id)
    for threshold in (0.95, 0.5):  # all of them away, and back again
        changed = world.change(processor, confidence_threshold=threshold)
        done = finish(world, reapply.begin(world.deps, changed, scope, world.user))
        assert (done.status, done.error) == ("completed", "")
        world.check()
    rows = world.sql(
        "SELECT a.version_id, l.name, count(*) FROM annotations a JOIN labels l "
        "ON l.id = a.label_id WHERE a.deleted_at IS NULL GROUP BY 1, 2"
    )
    versions_there = {world.dataset.version_id, copy}
    assert {tuple(row) for row in rows} == {(v, "cat", len(items)) for v in versions_there}


def test_what_changes_in_one_stays_out_of_the_other(world):
    fill(world, 4)
    source = source_of(world)
    copy = duplicate.copy_of(finish(world, duplicate.begin(world.deps, source)))
    before = [all_of(world, statement, source.id) for statement in (CONTENT, MEMBERS, STATES)]
    with world.deps.db.begin() as tx:
        split = next(each for each in datasets.list_splits_of(tx, [copy]) if each.name == "train")
        own = labels.list_labels(tx, copy)
    found = find(world, copy)
    assert found is not None
    finish(world, delete.label(world.deps, found, own[0]).id)
    item_id = world.sql("SELECT item_id FROM item_splits WHERE split_id = :s", s=split.id)[0][0]
    delete.item(world.deps, split, item_id)
    world.check()
    after = [all_of(world, statement, source.id) for statement in (CONTENT, MEMBERS, STATES)]
    assert after == before


def test_names_of_copies_are_given_or_made(world):
    source = source_of(world)
    named = finish(world, duplicate.begin(world.deps, source, name="mine", description="why"))
    found = find(world, duplicate.copy_of(named))
    assert found is not None
    assert (found.name, found.description) == ("mine", "why")
    long = replace(source, name="x" * 200)
    copy = find(world, duplicate.copy_of(finish(world, duplicate.begin(world.deps, long))))
    assert copy is not None
    assert copy.name == "x" * 195 + " copy"
    with pytest.raises(Invalid, match="control"):
        duplicate.begin(world.deps, source, name="a\nb")


class Killed(BaseException):
    """As if the process died here."""


@contextmanager
def dying() -> Iterator[None]:
    """Whoever dies gives nothing back."""
    real = operations._end_attempt
    operations._end_attempt = lambda *_: None  # type: ignore[assignment]
    try:
        yield
    finally:
        operations._end_attempt = real


def test_5000_items_killed_between_and_within_chunks_are_copied_once(world):
    fill(world, 5_000)
    source = source_of(world)
    id_ = duplicate.begin(world.deps, source)
    chunks = iter(range(1_000))
    deaths = {2, 3, 7, 11}

    def killed(deps: Deps, found: Operation) -> Any:
        write = duplicate.step(deps, replace(found, chunk=400))
        number = next(chunks)

        def work(tx: Tx) -> Any:
            chunk = write(tx)
            if number in deaths:
                raise Killed
            if number in {n + 2 for n in deaths}:
                return replace(chunk, after=die)
            return chunk

        return work

    def die() -> None:
        raise Killed

    died = 0
    while True:
        try:
            with dying():
                done = operations.run(world.deps, {duplicate.KIND: killed}, operation_id=id_)
        except Killed:
            died += 1
            world.sql("UPDATE operations SET lease_expires_at = now() - interval '1 s'")
            assert find(world, duplicate.copy_of(read(world, id_))) is None
            drift(world)
            continue
        assert done is not None
        break
    assert died >= 6
    assert (done.status, done.done, done.counts["items"]) == ("completed", 5_000, 5_000)
    same(world, source.id, duplicate.copy_of(done))
    drift(world)


def read(world: World, id_: UUID) -> Operation:
    from ppworker.store import operations as store

    with world.deps.db.begin() as tx:
        found = store.find_operation(tx, world.user, id_)
    assert found is not None
    return found


def drift(world: World) -> None:
    with world.deps.db.begin() as tx:
        assert stats.find_drift(tx, stats.list_split_ids(tx)) == []


def one_chunk(world: World, id_: UUID, *, size: int = 3) -> None:
    turns = iter([False, False, True])
    step = {duplicate.KIND: lambda deps, found: duplicate.step(deps, replace(found, chunk=size))}
    operations.run(world.deps, step, operation_id=id_, until=lambda: next(turns, True))


def test_items_that_come_later_are_left_out_and_those_that_leave_in_time_too(world):
    fill(world, 6)
    source = source_of(world)
    ids = [row[0] for row in world.sql("SELECT id FROM dataset_items ORDER BY id")]
    id_ = duplicate.begin(world.deps, source)
    one_chunk(world, id_)
    late = world.add("late")
    delete.item(world.deps, world.train, ids[0])  # copied before: stays in the copy
    delete.item(world.deps, world.train, ids[5])  # not copied yet: gone for good
    world.annotate(ids[1], "cat")  # copied before
    world.annotate(ids[4], "newer than the copy")
    world.annotate(ids[4], "cat")
    done = finish(world, id_)
    copy = duplicate.copy_of(done)
    members = {row[0] for row in all_of(world, MEMBERS, copy)}
    assert members == set(ids[:5])
    assert late[0] not in members
    assert done.counts["skipped_new_label"] == 1
    assert [
        row.id for row in world.sql("SELECT id FROM dataset_items WHERE id = :i", i=ids[5])
    ] == []
    humans = world.sql(
        "SELECT item_id FROM annotations WHERE version_id = :v AND source = 'human' ORDER BY 1",
        v=copy,
    )
    assert [row.item_id for row in humans] == [ids[0], ids[4]]
    world.check()


@pytest.mark.parametrize("what", ["source", "dataset"])
def test_a_copy_whose_source_goes_is_never_seen_and_removed(world, what):
    fill(world, 6)
    source = source_of(world)
    id_ = duplicate.begin(world.deps, source)
    one_chunk(world, id_)
    if what == "source":
        delete.version(world.deps, source)
    else:
        delete.dataset(world.deps, world.dataset)
    done = finish(world, id_)
    assert (done.status, done.reason) == ("failed", "not_found")
    while operations.run(world.deps, STEPS) is not None:
        pass
    world.check()
    for table in ("dataset_versions", "item_splits", "annotations", "dataset_items", "labels"):
        assert world.sql(f"SELECT 1 FROM {table}") == [], table
    with pytest.raises(NotFound):
        duplicate.begin(world.deps, source)


def test_items_are_copied_whole_while_workers_write_them(world):
    """Whatever a worker does, a copied item has both of its labels or none of them."""
    processor = world.processor()
    world.add(*(f"text {i}" for i in range(60)))
    source = source_of(world)
    stop = threading.Event()
    faults: list[BaseException] = []

    def work() -> None:
        try:
            while not stop.is_set():
                world.run(processor, classes("one", "two"), limit=5)
        except BaseException as error:  # noqa: BLE001  told below
            faults.append(error)

    world.run(processor, classes("one", "two"), limit=5)  # the labels are there
    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    copies = []
    for _ in range(4):
        id_ = duplicate.begin(world.deps, source)
        while (found := read(world, id_)).status != "completed":
            one_chunk(world, id_, size=7)
        copies.append(duplicate.copy_of(found))
    stop.set()
    for thread in threads:
        thread.join(60)
    assert faults == []
    sizes = world.sql("SELECT version_id, item_id, count(*) AS n FROM annotations GROUP BY 1, 2")
    assert {row.n for row in sizes} == {2}
    assert {row.version_id for row in sizes} >= set(copies)
    world.check()


def test_chunks_cost_the_same_statements_whatever_they_hold(world, db):
    fill(world, 12)
    sent: list[str] = []
    counts = set()
    for size in (1, 4, 12):
        id_ = duplicate.begin(world.deps, source_of(world))
        one_chunk(world, id_, size=1)

        def note(*args: Any) -> None:
            sent.append(args[2])

        sa.event.listen(db.engine, "before_cursor_execute", note)
        one_chunk(world, id_, size=size)
        sa.event.remove(db.engine, "before_cursor_execute", note)
        counts.add(len(sent))
        sent.clear()
    assert len(counts) == 1
    assert new_id().version == 7
