"""What is deleted is gone at once, and removed exactly, whoever works or dies meanwhile."""

import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from factories import World, classes
from ppworker.cli import program
from ppworker.cli.session import USER
from ppworker.errors import Conflict, NotFound, Unauthenticated
from ppworker.pipeline.control import operations
from ppworker.pipeline.control.operation_steps import STEPS
from ppworker.pipeline.deps import Deps
from ppworker.pipeline.setup import catalogue, closing
from ppworker.pipeline.transfer import delete, duplicate
from ppworker.pipeline.uploads import ingest
from ppworker.store import (
    blobs,
    datasets,
    deletions,
    labels,
    model_inferences,
    models,
    stats,
    versions,
)
from ppworker.store.datasets import Split
from ppworker.store.operations import Operation
from ppworker.store.versions import Version


@pytest.fixture
def statements(db: Any) -> Callable[[], Any]:
    """Statements that are sent while a block runs."""

    @contextmanager
    def told() -> Iterator[list[str]]:
        sent: list[str] = []

        def note(*args: Any) -> None:
            sent.append(args[2])

        sa.event.listen(db.engine, "before_cursor_execute", note)
        try:
            yield sent
        finally:
            sa.event.remove(db.engine, "before_cursor_execute", note)

    return told


def version_of(world: World, id_: UUID | None = None) -> Version:
    with world.deps.db.begin() as tx:
        found = versions.find_version(
            tx, world.user, world.dataset.id, id_ or world.dataset.version_id
        )
    assert found is not None
    return found


def label_of(world: World, name: str) -> labels.Label:
    with world.deps.db.begin() as tx:
        return next(
            each for each in labels.list_labels(tx, world.dataset.version_id) if each.name == name
        )


def finish(world: World, operation: Operation | UUID, **options: Any) -> Operation:
    id_ = operation if isinstance(operation, UUID) else operation.id
    return operations.follow(world.deps, STEPS, world.user, id_, **options)


def copied(world: World, source: Version | None = None) -> Version:
    """A copy of a version, whole."""
    done = finish(world, duplicate.begin(world.deps, source or version_of(world)))
    assert done.status == "completed", done.error
    return version_of(world, duplicate.copy_of(done))


def splits_of(world: World, version: Version) -> dict[str, Split]:
    with world.deps.db.begin() as tx:
        return {split.name: split for split in datasets.list_splits_of(tx, [version.id])}


def counted(world: World, split: Split) -> dict[str, tuple[int, int]]:
    """Stats of a split: annotations and items, by label name or bucket."""
    with world.deps.db.begin() as tx:
        names = {each.id: each.name for each in labels.list_labels(tx, split.version_id)}
        return {
            names.get(row.label_id, row.bucket) if row.label_id else row.bucket: (
                row.annotation_count,
                row.item_count,
            )
            for row in stats.read_stats(tx, [split.id])
            if row.annotation_count or row.item_count
        }


TABLES = (
    "dataset_items", "item_splits", "item_states", "annotations", "job_results", "job_attempts",
    "post_processor_jobs", "inferences", "labels", "dataset_splits", "dataset_versions",
    "label_stats", "label_stat_deltas",
)  # fmt: skip


def rows(world: World, *tables: str) -> dict[str, int]:
    """How many rows tables have; those without any are left out."""
    found = {table: world.sql(f"SELECT count(*) FROM {table}")[0][0] for table in tables or TABLES}
    return {table: count for table, count in found.items() if count}


def in_split(world: World, item_id: UUID, split: Split) -> None:
    """Put an item into one more split, with its deltas."""
    with world.deps.db.begin() as tx:
        from ppworker.store import items

        items.lock_items(tx, [item_id])
        items.insert_memberships(tx, [(split.id, item_id, split.version_id)])
        stats.append_members(tx, [item_id], [split.id], sign=1)


def rich(world: World, count: int = 6) -> list[UUID]:
    """Items with everything: a model's annotations, a person's, states, jobs and results."""
    done = world.processor("done")
    ids = world.add(*(f"text {i}" for i in range(count)))
    world.run(done, classes("cat", "dog"))
    waiting = world.processor("waiting")
    from ppworker.pipeline.control import operate

    for _ in operate.backfill(world.deps, waiting, [world.train]):
        pass
    for id_ in ids[::2]:
        world.annotate(id_, "bird")
    for id_ in ids:
        world.sql(
            "INSERT INTO item_states (version_id, item_id, id, user_id, state, version) "
            "VALUES (:version, :item, gen_random_uuid(), :user, 'reviewed', 3)",
            version=world.dataset.version_id,
            item=id_,
            user=world.user,
        )
    return ids


def test_an_item_in_no_split_any_more_goes_with_everything(world):
    ids = rich(world)
    delete.item(world.deps, world.train, ids[0])
    world.check()
    left = {
        table: world.sql(f"SELECT DISTINCT item_id FROM {table}")
        for table in (
            "item_splits",
            "item_states",
            "annotations",
            "job_results",
            "post_processor_jobs",
        )
    }
    for table, found in left.items():
        assert {row.item_id for row in found} == set(ids[1:]), table
    assert world.sql("SELECT count(*) FROM dataset_items")[0][0] == 5
    assert counted(world, world.train) == {
        "cat": (5, 5),
        "dog": (5, 5),
        "bird": (2, 2),
        "total": (12, 5),
    }
    with pytest.raises(NotFound, match="item"):
        delete.item(world.deps, world.train, ids[0])


def test_an_item_stays_where_it_still_is(world):
    (id_, other) = rich(world, 2)
    in_split(world, id_, world.valid)
    copy = copied(world)
    own = splits_of(world, copy)
    delete.item(world.deps, world.train, id_)
    world.check()
    assert len(world.annotations(id_)) == 6  # three in each version
    assert counted(world, world.valid)["total"] == (3, 1)
    delete.item(world.deps, world.valid, id_)
    world.check()
    # Gone from the version, with what it was there; the copy keeps its own.
    assert {
        row.version_id
        for row in world.sql(
            "SELECT version_id FROM annotations WHERE item_id = :i UNION SELECT version_id FROM "
            "job_results WHERE item_id = :i UNION SELECT version_id FROM item_states WHERE item_id = :i",
            i=id_,
        )
    } == {copy.id}
    assert world.sql("SELECT 1 FROM post_processor_jobs WHERE item_id = :i", i=id_) == []
    assert world.sql("SELECT 1 FROM dataset_items WHERE id = :i", i=id_) != []
    for split in (own["train"], own["valid"]):
        delete.item(world.deps, split, id_)
    world.check()
    assert world.sql("SELECT 1 FROM dataset_items WHERE id = :i", i=id_) == []
    assert other in {row.item_id for row in world.sql("SELECT item_id FROM item_splits")}


def test_a_model_that_runs_on_a_removed_item_is_refused(world):
    processor = world.processor()
    ids = world.add("one", "two")
    batch = world.claim(processor)
    report = world.run(
        processor, batch=batch, during=lambda: delete.item(world.deps, world.train, ids[0])
    )
    assert (report.completed, report.lost) == (1, 1)
    world.check()
    assert world.statuses(processor) == ["completed"]


@pytest.mark.parametrize("kind", ["dataset", "version", "split"])
def test_what_is_deleted_is_gone_at_once_and_removed_by_the_operation(world, worlds, kind):
    other = worlds()
    rich(other, 3)
    before = rows(other)
    rich(world)
    operation = start(world, kind)
    assert (operation.kind, operation.status, operation.total) == ("delete", "pending", 6)
    # At once: nothing is claimed but what is still seen, and nobody finds it.
    with world.deps.db.begin() as tx:
        assert datasets.find_split(tx, world.dataset.version_id, world.train.id) is None
        assert (kind == "split") == (
            versions.find_version(tx, world.user, world.dataset.id, world.dataset.version_id)
            is not None
        )
    world.check()
    done = finish(world, operation)
    assert (done.status, done.done) == ("completed", 6)
    assert (done.counts["items"], done.counts["jobs"]) == (6, 12)
    world.check()
    assert world.sql("SELECT 1 FROM dataset_items WHERE user_id = :u", u=world.user) == []
    if kind == "split":
        names = sorted(splits_of(world, version_of(world)))
        assert names == ["test", "valid"]
        catalogue.create_split(world.deps, world.dataset.version_id, world.user, "train")
    else:
        assert rows(other) == without_first_version(before)
    with pytest.raises(NotFound):
        start(world, kind)


def without_first_version(counts: dict[str, int]) -> dict[str, int]:
    """Counts of a database whose other world was empty, without that world."""
    return counts | {
        "dataset_versions": counts["dataset_versions"] - 1,
        "dataset_splits": counts["dataset_splits"] - 3,
    }


def start(world: World, kind: str) -> Operation:
    if kind == "dataset":
        return delete.dataset(world.deps, world.dataset)
    if kind == "version":
        return delete.version(world.deps, replace_version(world))
    return delete.split(world.deps, world.train)


def replace_version(world: World) -> Version:
    row = world.sql(
        "SELECT id, dataset_id, user_id, name, description, default_split, config, created_at, "
        "updated_at FROM dataset_versions WHERE id = :id",
        id=world.dataset.version_id,
    )
    if not row:
        raise NotFound("gone", field="version")
    return Version(**row[0]._mapping)


def test_jobs_of_a_deleted_version_are_not_claimed_and_running_ones_do_not_write(world):
    processor = world.processor(output_target="both", model_type="llm")
    world.add("one", "two")
    batch = world.claim(processor, limit=1)
    operation = delete.version(world.deps, version_of(world))
    assert world.claim(processor).jobs == []
    report = world.run(processor, {"text": "changed"}, batch=batch)
    assert (report.completed, report.failed) == (0, 1)
    assert {row.text for row in world.sql("SELECT text FROM dataset_items")} == {"one", "two"}
    finish(world, operation)
    world.check()
    assert rows(world, "post_processor_jobs", "job_attempts", "dataset_items") == {}


def test_jobs_of_a_deleted_dataset_are_not_claimed(world):
    processor = world.processor()
    world.add("one")
    delete.dataset(world.deps, world.dataset)
    assert world.claim(processor).jobs == []


def test_items_that_another_version_shares_are_spared(world):
    ids = rich(world)
    copy = copied(world)
    was = counted(world, splits_of(world, copy)["train"])
    done = finish(world, delete.version(world.deps, version_of(world)))
    assert "items" not in done.counts
    world.check()
    assert counted(world, splits_of(world, copy)["train"]) == was
    assert {row.id for row in world.sql("SELECT id FROM dataset_items")} == set(ids)
    assert {row.version_id for row in world.sql("SELECT version_id FROM annotations")} == {copy.id}
    # Jobs were those of the version; the copy never had any.
    assert rows(world, "post_processor_jobs", "job_attempts") == {}
    finish(world, delete.version(world.deps, copy))
    world.check()
    assert rows(world) == {}


def test_a_label_goes_with_its_annotations_and_its_name_is_free(world):
    ids = rich(world)
    bird = label_of(world, "bird")
    cat = label_of(world, "cat")
    operation = delete.label(world.deps, version_of(world), cat)
    assert "cat" not in counted(world, world.train)
    again = catalogue.create_label(world.deps, world.dataset.version_id, world.user, "CAT")
    assert (again.id != cat.id, again.index) == (True, bird.index + 1)
    assert all(row.label != "cat" for id_ in ids for row in world.annotations(id_))
    world.check()
    done = finish(world, operation)
    assert done.counts == {"annotations": 6, "labels": 1}
    world.check()
    assert counted(world, world.train) == {"dog": (6, 6), "bird": (3, 3), "total": (9, 6)}
    finish(world, delete.label(world.deps, version_of(world), label_of(world, "dog")))
    assert counted(world, world.train) == {"bird": (3, 3), "unlabelled": (0, 3), "total": (3, 6)}
    world.check()
    for name in ("CAT", "bird"):
        finish(world, delete.label(world.deps, version_of(world), label_of(world, name)))
    assert rows(world, "labels", "annotations") == {}
    world.check()


def test_a_finish_with_the_id_of_a_deleted_label_drops_that_prediction_and_keeps_the_others(world):
    processor = world.processor()
    world.add("one", "two", "three")
    world.run(processor, classes("cat"), limit=1)  # the name is remembered from now on
    batch = world.claim(processor)

    def gone() -> None:
        finish(world, delete.label(world.deps, version_of(world), label_of(world, "cat")))

    said = iter([classes("cat", "dog"), classes("dog")])
    world.labels.get([world.dataset.version_id])
    report = world.run(processor, lambda _: next(said), batch=batch, during=gone)
    assert (report.completed, report.failed) == (2, 0)
    world.check()
    names = Counter(
        row.name
        for row in world.sql("SELECT l.name FROM annotations a JOIN labels l ON l.id = a.label_id")
    )
    dropped = [job.dropped for job in world.jobs(processor) if job.dropped]
    # Dropped and counted; or, where the names were read anew, made again.
    assert names["dog"] == 2
    assert (names["cat"], dropped) in [(0, [{"label_deleted": 1}]), (1, [])]


def test_the_operation_may_die_at_every_chunk(world, worlds):
    other = worlds()
    rich(other, 2)
    untouched = rows(other)
    rich(world, 9)
    copied(world)
    operation = delete.dataset(world.deps, world.dataset)
    small = in_chunks(2)
    deaths = 0
    for _ in range(100):
        died = kill_within_a_chunk(world, small, operation.id)
        world.check()
        deaths += died
        if not died:
            break
        expire_operations(world)
        # The one after it does one chunk, and gives the operation back.
        one_chunk(world, operation.id, size=2)
        world.check()
    assert deaths >= 3
    assert finish(world, operation).status == "completed"
    world.check()
    assert rows(other) == without_first_version(untouched)
    left = world.sql(
        "SELECT name, description, notes FROM datasets WHERE id = :d", d=world.dataset.id
    )
    assert [tuple(row) for row in left] == [("", "", "")]


def in_chunks(size: int) -> dict[str, operations.Step]:
    """The operation in chunks of that size."""

    def step(deps: Deps, found: Operation) -> operations.Write:
        return delete.step(deps, replace(found, chunk=size))

    return {delete.KIND: step}


def one_chunk(world: World, id_: UUID | None, *, size: int) -> None:
    """Do one chunk of an operation, or of any, and give it back."""
    turns = iter([False, False, True])
    operations.run(world.deps, in_chunks(size), operation_id=id_, until=lambda: next(turns, True))


class Killed(BaseException):
    """As if the process died here."""


def kill_within_a_chunk(world: World, steps: dict[str, Any], operation_id: UUID) -> bool:
    """Work on an operation until its first chunk has written all but its COMMIT."""

    def dying(deps: Deps, found: Operation):
        write = steps[found.kind](deps, found)

        def work(tx):
            write(tx)
            raise Killed

        return work

    real = operations._end_attempt
    operations._end_attempt = lambda *_: None  # type: ignore[assignment]  # who is dead gives nothing back
    try:
        operations.run(world.deps, {delete.KIND: dying}, operation_id=operation_id)
    except Killed:
        return True
    finally:
        operations._end_attempt = real
    return False


def expire_operations(world: World) -> None:
    world.sql(
        "UPDATE operations SET lease_expires_at = clock_timestamp() - interval '1 s' "
        "WHERE status = 'processing'"
    )
    world.sql("UPDATE operations SET run_at = now(), attempts = 0 WHERE status = 'pending'")


def test_deletions_of_everything_at_once_with_workers_uploads_and_annotators(world):
    """Threads upload, run jobs, annotate and delete splits, labels, items and versions; nothing
    fails but what names a thing that is gone, and stats are exact at the end."""
    processor = world.processor(auto_create_labels=True)
    for round_ in range(3):
        world.add(*(f"{round_} {i}" for i in range(20)))
    copies = [copied(world) for _ in range(2)]
    faults: list[BaseException] = []
    stop = threading.Event()

    def again(work: Callable[[int], object]) -> Callable[[], None]:
        def run() -> None:
            turn = 0
            while not stop.is_set():
                turn += 1
                try:
                    work(turn)
                except (NotFound, Conflict):
                    continue
                except BaseException as error:  # noqa: BLE001  told by the test
                    faults.append(error)
                    return

        return run

    def upload(turn: int) -> None:
        split = [world.train, world.valid, world.test][turn % 3]
        uploads = [ingest.Upload(name="n", text=f"upload {turn} {i}") for i in range(3)]
        ingest.take_upload(world.deps, split, uploads)

    def work(turn: int) -> None:
        world.run(processor, classes("cat", f"label {turn % 4}"), limit=7)

    def remove_label(turn: int) -> None:
        with world.deps.db.begin() as tx:
            found = labels.list_labels(tx, world.dataset.version_id)
        if found:
            parent = version_of(world)
            delete.label(world.deps, parent, found[turn % len(found)])

    def remove_item(turn: int) -> None:
        with world.deps.db.begin() as tx:
            found = deletions.members(tx, [world.train.id], limit=5)
        if found:
            delete.item(world.deps, world.train, found[turn % len(found)])

    def operate(turn: int) -> None:
        operations.run(world.deps, STEPS)

    jobs = [upload, work, work, remove_label, remove_item, operate, operate]
    threads = [threading.Thread(target=again(job)) for job in jobs]
    for thread in threads:
        thread.start()
    ended = [
        finish(world, delete.version(world.deps, copies[0])),
        finish(world, delete.split(world.deps, world.valid)),
        finish(world, delete.version(world.deps, copies[1])),
        finish(world, delete.split(world.deps, world.test)),
    ]
    stop.set()
    for thread in threads:
        thread.join(60)
    assert faults == []
    assert {each.status for each in ended} == {"completed"}
    while operations.run(world.deps, STEPS) is not None:
        pass
    world.sql("UPDATE operations SET run_at = now() WHERE status = 'pending'")
    while operations.run(world.deps, STEPS) is not None:
        pass
    world.check()
    assert world.sql("SELECT kind, status, error FROM operations WHERE status <> 'completed'") == []
    assert world.sql("SELECT 1 FROM labels WHERE deleted_at IS NOT NULL") == []
    finish(world, delete.dataset(world.deps, world.dataset))
    assert rows(world) == {}


def test_an_upload_to_a_split_that_is_deleted_meanwhile_is_told_so(world):
    split = world.train
    delete.split(world.deps, split)
    with pytest.raises(NotFound, match="split"):
        world.add("late", split=split)
    assert rows(world, "dataset_items", "item_splits") == {}


def test_chunks_cost_the_same_statements_whatever_their_size(world, statements):
    rich(world, 12)
    counts = set()
    operation = delete.split(world.deps, world.train)
    for size in (1, 4, 6):
        with statements() as told:
            one_chunk(world, operation.id, size=size)
        counts.add(len(told))
        expire_operations(world)
    assert len(counts) == 1


def test_the_user_of_a_deleted_account_leaves_nothing(world, worlds):
    other = worlds()
    rich(world, 3)
    with world.deps.db.begin() as tx:
        more = datasets.create_dataset(tx, world.user, "another")
        operation_id = delete.mark_user(tx, world.user)
    with world.deps.db.begin() as tx:
        assert datasets.list_datasets(tx, world.user) == []
    assert finish(world, operation_id).status == "completed"
    world.check()
    assert rows(world) == {"dataset_splits": 3, "dataset_versions": 1}
    assert more.name not in {row.name for row in world.sql("SELECT name FROM datasets")}
    assert other.dataset.id is not None


def test_a_deleted_account_leaves_no_model_no_question_and_no_stored_file(world, worlds):
    other = worlds()

    def own(user: UUID) -> None:
        with world.deps.db.begin() as tx:
            model = models.insert_model(tx, user, {"name": "m", "config": '{"token": "t"}'})
            found = models.find_model(tx, user, model)
            assert found is not None
            models.insert_version(tx, found, {"name": "one"})
            for text in ("who am I", "where do I live"):
                model_inferences.insert_inference(tx, user, {"model_id": model, "name": text})
            blobs.insert_blobs(tx, {"a" * 64: 1})
            blobs.own(tx, user, "a" * 64)

    def left(user: UUID) -> list[int]:
        tables = ("models", "model_versions", "model_inferences", "blob_owners")
        query = "SELECT count(*) FROM {} WHERE user_id = :user"
        return [world.sql(query.format(table), user=user)[0][0] for table in tables]

    own(world.user)
    own(other.user)
    there = left(other.user)
    assert left(world.user) == [1, 1, 2, 1]
    assert finish(world, closing.delete_user(world.deps, world.user)).status == "completed"
    assert left(world.user) == [0, 0, 0, 0]
    assert left(other.user) == there


def test_no_dataset_is_made_behind_the_end_of_an_account(world):
    """A request that was let in before the account ended, and writes after."""
    closing.delete_user(world.deps, world.user)
    with pytest.raises(Unauthenticated):
        catalogue.create_dataset(world.deps, world.user, "late")
    assert world.sql("SELECT count(*) FROM datasets WHERE deleted_at IS NULL") == [(0,)]


def test_the_command_line_deletes_and_duplicates(worlds, monkeypatch, capsys, database_url):
    world = worlds(username=USER)
    monkeypatch.setenv("PPWORKER_DATABASE_URL", database_url)
    monkeypatch.setenv("PPWORKER_DATA_DIR", str(world.deps.settings.data_dir))

    def run(*words: str) -> Any:
        assert program._run([*words, "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    rich(world, 3)
    about = world.dataset.name
    copy = run("versions", "duplicate", about, "v1", "--name", "mine")
    assert (copy["status"], copy["counts"]["items"]) == ("completed", 3)
    assert [each["name"] for each in run("versions", "list", about)] == ["v1", "mine"]
    assert run("labels", "delete", about, "CAT")["counts"] == {"annotations": 3, "labels": 1}
    assert run("splits", "delete", f"{about}/train")["done"] == 3
    assert run("versions", "delete", about, "mine")["status"] == "completed"
    assert run("datasets", "delete", about, "--no-wait")["status"] == "pending"
    assert run("datasets", "list") == []
    while operations.run(world.deps, STEPS) is not None:
        pass
    assert rows(world) == {}


STEP = st.one_of(
    st.tuples(st.just("join"), st.integers(0, 3), st.integers(0, 5)),
    st.tuples(st.just("annotate"), st.integers(0, 3), st.integers(0, 2)),
    st.tuples(st.just("leave"), st.integers(0, 3), st.integers(0, 5)),
    st.tuples(st.just("label"), st.integers(0, 2), st.just(0)),
    st.tuples(st.just("split"), st.integers(0, 5), st.just(0)),
    st.tuples(st.just("chunk"), st.integers(1, 3), st.just(0)),
)


class Shared:
    """Four items in two versions of three splits each, and what a plain model says of them."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.items = world.add("a", "b", "c", "d")
        self.copy = copied(world)
        own, copy = splits_of(world, version_of(world)), splits_of(world, self.copy)
        names = ("train", "valid", "test")
        self.splits = [own[name] for name in names] + [copy[name] for name in names]
        self.member = {(i, j) for i in range(4) for j in (0, 3)}
        self.gone_splits: set[int] = set()
        self.annotated: Counter[tuple[int, int, str]] = Counter()  # item, version, label

    def in_version(self, item: int, version: int) -> bool:
        return any((item, j) in self.member for j in range(version * 3, version * 3 + 3))

    def do(self, word: str, first: int, second: int) -> None:
        getattr(self, f"do_{word}")(first, second)

    def do_join(self, item: int, split: int) -> None:
        there = any((item, j) in self.member for j in range(6))
        if there and split not in self.gone_splits and (item, split) not in self.member:
            in_split(self.world, self.items[item], self.splits[split])
            self.member.add((item, split))

    def do_annotate(self, item: int, label: int) -> None:
        if self.in_version(item, 0):
            self.world.annotate(self.items[item], f"label {label}", split=self.splits[0])
            self.annotated[item, 0, f"label {label}"] += 1

    def do_leave(self, item: int, split: int) -> None:
        if (item, split) not in self.member:
            return
        delete.item(self.world.deps, self.splits[split], self.items[item])
        self.member.discard((item, split))
        self.forget()

    def do_label(self, label: int, _: int) -> None:
        name = f"label {label}"
        with self.world.deps.db.begin() as tx:
            found = labels.list_labels(tx, self.world.dataset.version_id)
        for each in found:
            if each.name == name:
                delete.label(self.world.deps, version_of(self.world), each)
                for key in [key for key in self.annotated if key[2] == name]:
                    del self.annotated[key]

    def do_split(self, split: int, _: int) -> None:
        if split in self.gone_splits:
            return
        delete.split(self.world.deps, self.splits[split])
        self.gone_splits.add(split)
        self.member = {(i, j) for i, j in self.member if j != split}
        self.forget()

    def do_chunk(self, size: int, _: int) -> None:
        expire_operations(self.world)
        one_chunk(self.world, None, size=size)

    def forget(self) -> None:
        for item, version, label in list(self.annotated):
            if not self.in_version(item, version):
                del self.annotated[item, version, label]

    def check_end(self) -> None:
        expire_operations(self.world)
        while operations.run(self.world.deps, STEPS) is not None:
            expire_operations(self.world)
        self.world.check()
        where = {each.id: j for j, each in enumerate(self.splits)}
        number = {id_: i for i, id_ in enumerate(self.items)}
        found = self.world.sql("SELECT item_id, split_id FROM item_splits")
        assert {(number[row.item_id], where[row.split_id]) for row in found} == self.member
        found = self.world.sql("SELECT id FROM dataset_items")
        assert {number[row.id] for row in found} == {i for i, _ in self.member}
        found = self.world.sql(
            "SELECT a.item_id, l.name, count(*) AS n FROM annotations a "
            "JOIN labels l ON l.id = a.label_id GROUP BY 1, 2"
        )
        assert {(number[row.item_id], 0, row.name): row.n for row in found} == dict(self.annotated)


@settings(
    max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(steps=st.lists(STEP, max_size=14))
def test_items_shared_by_versions_and_splits_end_as_a_plain_model_says(worlds, steps):
    world = worlds()
    shared = Shared(world)
    for step in steps:
        shared.do(*step)
        world.check()
    shared.check_end()
    finish(world, delete.dataset(world.deps, world.dataset))
    assert rows(world) == {}
