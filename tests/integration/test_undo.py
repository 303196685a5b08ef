"""What people did against what models do: by every order of edits, re-runs and undos."""

import itertools
import json
import os
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from api_server import Api, served_api
from factories import World, classes
from ppworker.domain.edit import Verdict
from ppworker.domain.post_processor import PostProcessor
from ppworker.errors import Conflict, NotFound
from ppworker.pipeline.control import operations, reapply
from ppworker.pipeline.control.operation_steps import STEPS
from ppworker.pipeline.deps import Deps
from ppworker.pipeline.edits import annotations, reviews, undo
from ppworker.pipeline.inferences import inferences
from ppworker.pipeline.runs import refresh
from ppworker.pipeline.setup import processor_changes
from ppworker.pipeline.uploads import ingest
from ppworker.store import labels as label_store
from ppworker.store import operations as operation_store
from ppworker.store.ids import new_id
from ppworker.store.operations import Operation
from ppworker.store.results import Scope
from ppworker.store.suggestions import Suggestions


@pytest.fixture
def world(module_deps: Deps) -> World:
    """A world of this test's own in the module's database."""
    return World(module_deps)


@pytest.fixture
def worlds(module_deps: Deps) -> Callable[..., World]:
    """Makes further ones."""
    return lambda **options: World(module_deps, **options)


@pytest.fixture(scope="module")
def server(module_deps: Deps) -> Iterator[Api]:
    """One server for the tests of this module."""
    with served_api(module_deps, World(module_deps)) as served:
        yield served


@pytest.fixture
def api(server: Api, world: World) -> Iterator[Api]:
    """The API with a world of this test's own."""
    found = Api(server.deps, world, server.address, server.stopping)
    yield found
    found.close()


def run(world: World, operation_id: UUID) -> Operation:
    done = operations.run(world.deps, STEPS, operation_id=operation_id)
    assert done is not None
    assert (done.status, done.error) == ("completed", "")
    return done


def begin(world: World, processor: PostProcessor) -> UUID:
    dataset = world.dataset
    return undo.begin(world.deps, dataset.id, world.user, dataset.version_id, processor.id)


def undone(world: World, processor: PostProcessor) -> Counter[str]:
    """Counts of a whole undo."""
    done = run(world, begin(world, processor))
    world.check()
    return Counter(done.counts)


def reapplied(world: World, processor: PostProcessor) -> Counter[str]:
    scope = Scope(post_processor_id=processor.id, dataset_id=world.dataset.id)
    return Counter(run(world, reapply.begin(world.deps, processor, scope, world.user)).counts)


def rerun(world: World, processor: PostProcessor, item: UUID, answer: Any) -> None:
    """Have a post-processor answer for an item once more."""
    world.again(item, processor=processor)
    assert world.run(processor, answer).completed == 1


def rows(world: World, item: UUID) -> list[Any]:
    """Every annotation of an item, tombstones too."""
    return world.sql(
        "SELECT a.id, l.name AS label, a.coordinates, a.source, a.review, a.post_processor_id, "
        "a.fingerprint, a.score, a.model_version, a.deleted_at IS NOT NULL AS deleted "
        "FROM annotations a JOIN labels l ON l.id = a.label_id WHERE a.item_id = :item "
        "ORDER BY a.id",
        item=item,
    )


def live(world: World, item: UUID) -> list[Any]:
    return [row for row in rows(world, item) if not row.deleted]


def named(world: World, item: UUID, name: str) -> UUID:
    return UUID(str(next(row.id for row in live(world, item) if row.label == name)))


def label(world: World, name: str) -> UUID:
    with world.deps.db.begin() as tx:
        ids, _ = label_store.ensure_labels(
            tx, world.dataset.version_id, world.user, [name], post_processor_id=None, cap=None
        )
    return ids[name]


def annotate(world: World, item: UUID, name: str) -> UUID:
    new = annotations.New(label_id=label(world, name))
    made = annotations.annotate(world.deps, world.dataset.version_id, world.user, item, new)
    return made.row.id


def change(world: World, id_: UUID, name: str) -> None:
    wanted = annotations.Changed(label_id=label(world, name))
    annotations.change(world.deps, world.dataset.version_id, id_, wanted)


def delete(world: World, id_: UUID) -> None:
    annotations.delete(world.deps, world.dataset.version_id, id_)


def review(world: World, action: Any, *ids: UUID) -> Counter[str]:
    return reviews.review(world.deps, world.dataset.version_id, ids, action)


def infer(world: World, item: UUID, name: str) -> None:
    """A prediction made elsewhere, added to an item."""
    sent = {
        "id": uuid4().hex,
        "dataset_item_id": str(item),
        "inference_items": [{"prediction": name, "confidence": 0.5, "coordinates": ""}],
    }
    accepted = inferences.add(world.deps, world.train, [sent], keep_annotations=True)
    run(world, accepted.operation_id)


def bring_in(world: World, item: UUID, name: str) -> UUID:
    """An annotation as an archive brings it."""
    id_ = annotate(world, item, name)
    world.sql("UPDATE annotations SET source = 'import' WHERE id = :id", id=id_)
    return id_


def test_an_undo_takes_what_nobody_looked_at_and_a_reapply_brings_it_back(world: World) -> None:
    mine, other = world.processor(), world.processor()
    (item,) = world.add("x")
    world.run(mine, classes("loose", "accepted", "before", "rejected"))
    world.run(other, classes("other's"))
    annotate(world, item, "human")
    infer(world, item, "inferred")
    bring_in(world, item, "imported")
    review(world, "accept", named(world, item, "accepted"))
    review(world, "reject", named(world, item, "rejected"))
    change(world, named(world, item, "before"), "edited")
    kept = {row.id for row in live(world, item)} - {named(world, item, "loose")}
    assert undone(world, mine) == {"annotations_removed": 1, "items_changed": 1}
    assert {row.id for row in live(world, item)} == kept
    assert undone(world, mine) == {}
    counts = reapplied(world, mine)
    assert (counts["annotations_added"], counts["dropped_deleted_by_person"]) == (1, 1)
    told = sorted(row.label for row in live(world, item))
    assert told == ["accepted", "edited", "human", "imported", "inferred", "loose", "other's"]
    world.check()


def test_an_edited_suggestion_keeps_where_it_came_from(world: World) -> None:
    processor = world.processor()
    (item,) = world.add("x")
    world.run(processor, classes("cat", score=0.75))
    (before,) = live(world, item)
    change(world, before.id, "dog")
    (after,) = live(world, item)
    assert (after.label, after.review, after.id) == ("dog", "edited", before.id)
    said = ("source", "score", "model_version", "post_processor_id", "fingerprint")
    assert [getattr(after, name) for name in said] == [getattr(before, name) for name in said]
    rerun(world, processor, item, classes("cat"))
    assert live(world, item) == [after]
    delete(world, after.id)
    rerun(world, processor, item, classes("cat"))
    assert live(world, item) == []
    world.check()


def test_an_undo_leaves_the_text_that_was_written(world: World) -> None:
    processor = world.processor(output_target="both", model_type="stt")
    (item,) = world.add("old")
    raw = {"text": "new words", "segments": [{"text": "new", "start": 0, "end": 1}]}
    world.run(processor, raw)
    undone(world, processor)
    assert world.sql("SELECT text FROM dataset_items WHERE id = :id", id=item) == [("new words",)]


def test_an_undo_waits_for_no_job_and_says_so(world: World) -> None:
    processor = world.processor()
    done, waiting = world.add("x", "y")
    world.run(processor, limit=1)
    with pytest.raises(Conflict, match="1 jobs of"):
        begin(world, processor)
    world.run(processor)
    id_ = begin(world, processor)
    # A job that is planned once it began: its end would write again whatever is removed now.
    world.again(waiting)
    counts = run(world, id_).counts
    assert counts == {"annotations_removed": 1, "items_changed": 1, "skipped_live_job": 1}
    assert [len(live(world, item)) for item in (done, waiting)] == [0, 1]
    world.check()


def test_what_a_deleted_processor_left_can_be_undone(world: World) -> None:
    processor = world.processor()
    (item,) = world.add("x")
    world.run(processor)
    processor_changes.delete(world.deps, world.dataset, processor.id)
    assert undone(world, processor)["annotations_removed"] == 1
    assert live(world, item) == []


def test_an_undo_names_a_version_and_a_processor_of_the_dataset(api: Api, worlds: Any) -> None:
    world, other = api.world, worlds(username=f"other-{uuid4().hex[:6]}")
    processor = world.processor()
    world.add("x")
    path = f"{api.dataset}/post-processors/{processor.id}/undo"
    for version in ("x", str(other.dataset.version_id), str(uuid4())):
        refused = api.me.post(path, json={"version_id": version})
        assert (refused.status_code, refused.json()["field"]) == (422, "version_id")
    mine = {"version_id": str(world.dataset.version_id)}
    for id_ in (other.processor().id, uuid4(), "x"):
        answer = api.me.post(f"{api.dataset}/post-processors/{id_}/undo", json=mine)
        assert answer.status_code == 404
    assert api.client(other.user).post(path, json=mine).status_code == 404
    refused = api.me.post(path, json=mine)
    assert (refused.status_code, refused.json()["field"]) == (409, "version_id")
    assert "1 jobs" in refused.json()["message"]
    world.run(processor)
    done = api.me.post(path, json=mine)
    assert (done.status_code, done.json()["kind"], done.json()["status"]) == (
        200, "undo", "completed",
    )  # fmt: skip
    assert done.json()["counts"] == {"annotations_removed": 1, "items_changed": 1}
    world.check()


def test_the_command_undoes_and_names_what_is_wrong(
    deps: Deps, database_url: str, tmp_path: Path
) -> None:
    world = World(deps, username="local")
    tagger = world.processor("tagger")
    (item,) = world.add("x")
    name = f"{world.dataset.name}/tagger"

    def command(*more: str) -> tuple[int, str, str]:
        done = subprocess.run(
            [sys.executable, "-m", "ppworker", "processors", "undo", name, *more, "--json"],
            env={
                "PATH": os.environ["PATH"],
                "PPWORKER_DATABASE_URL": database_url,
                "PPWORKER_DATA_DIR": str(tmp_path / "data"),
            },
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        return done.returncode, done.stdout, done.stderr

    code, _, said = command()
    assert code == 2
    assert "1 jobs of 'tagger' are pending or processing" in said
    world.run(tagger)
    code, _, said = command("--version", "v7")
    assert code == 2
    assert "no version 'v7'" in said
    code, told, _ = command("--version", "v1")
    assert (code, json.loads(told)["counts"]["annotations_removed"]) == (0, 1)
    assert live(world, item) == []
    world.check()


def test_it_goes_on_where_it_was_stopped_and_ends_with_its_version(world: World) -> None:
    processor = world.processor()
    world.add(*(f"text {n}" for n in range(300)))
    world.run(processor, limit=1000)
    looks = iter([False, False, True])
    id_ = begin(world, processor)
    stopped = operations.run(world.deps, STEPS, operation_id=id_, until=lambda: next(looks))
    assert stopped is not None
    assert stopped.status == "pending"
    assert 0 < stopped.done < 300
    world.check()
    done = run(world, id_)
    assert (done.done, done.total, done.counts["annotations_removed"]) == (300, 300, 300)
    world.check()
    gone = begin(world, processor)
    version = world.dataset.version_id
    world.sql("UPDATE dataset_versions SET deleted_at = now() WHERE id = :id", id=version)
    failed = operations.run(world.deps, STEPS, operation_id=gone)
    assert failed is not None
    assert (failed.status, failed.reason) == ("failed", "not_found")


def test_items_that_were_made_in_one_moment_are_never_parted(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    processor = world.processor()
    numbers = itertools.count()
    moment = new_id().int >> 64 << 64
    monkeypatch.setattr(ingest, "new_id", lambda: UUID(int=moment + next(numbers)))
    world.add(*(f"text {n}" for n in range(operation_store.FIRST_CHUNK + 3)))
    monkeypatch.undo()
    world.run(processor, limit=1000)
    assert undone(world, processor)["annotations_removed"] == operation_store.FIRST_CHUNK + 3


def test_a_review_by_what_it_is_passes_every_item_once(world: World) -> None:
    processor = world.processor()
    world.add(*(f"text {n}" for n in range(150)))
    world.add(*(f"text {n}" for n in range(150)), split=world.valid)
    world.run(processor, lambda _: {"predictions": [
        {"label": "sure", "score": 0.9}, {"label": "unsure", "score": 0.4},
    ]}, limit=1000)  # fmt: skip
    version = world.dataset.version_id
    low = Suggestions(version_id=version, max_score=0.5)
    rejected = run(world, reviews.begin(world.deps, world.dataset.id, world.user, low, "reject"))
    assert rejected.counts == {"annotations_rejected": 300, "items_changed": 300}
    world.check()
    rest = Suggestions(version_id=version)
    accepted = run(world, reviews.begin(world.deps, world.dataset.id, world.user, rest, "accept"))
    assert accepted.counts == {"annotations_accepted": 300, "items_changed": 300}
    assert undone(world, processor) == {}


def test_accepting_against_a_rerun_is_all_or_nothing(world: World) -> None:
    """A row that was accepted stays; one that the run took away first is missing, never half."""
    processor = world.processor()
    ids = world.add(*(f"text {n}" for n in range(30)))
    world.run(processor, classes("cat", "dog"))
    found = [row.id for item in ids for row in live(world, item) if row.label == "cat"]
    world.again(*ids, processor=processor)
    batch = world.claim(processor)
    barrier = threading.Barrier(3)
    counted: Counter[str] = Counter()

    def accept(chosen: list[UUID]) -> None:
        barrier.wait()
        for id_ in chosen:
            counted.update(review(world, "accept", id_))

    # The model says dog only, so that each cat that nobody accepted goes.
    threads = [
        threading.Thread(target=accept, args=(found[:15],)),
        threading.Thread(target=accept, args=(found[15:],)),
        threading.Thread(
            target=lambda: world.run(processor, classes("dog"), batch=batch, during=barrier.wait)
        ),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    cats = [row for item in ids for row in live(world, item) if row.label == "cat"]
    assert {row.review for row in cats} <= {"accepted"}
    assert len(cats) == counted[Verdict.CHANGED]
    assert counted[Verdict.CHANGED] + counted[reviews.MISSING] == 30
    assert all(len(live(world, item)) >= 1 for item in ids)
    world.check()


def test_an_undo_against_finishes_reviews_and_edits_is_exact(world: World) -> None:
    processor, other = world.processor(), world.processor()
    ids = world.add(*(f"text {n}" for n in range(60)))
    world.run(processor, classes("cat", "dog"))
    batch = world.claim(other)
    cats = [row.id for item in ids for row in live(world, item) if row.label == "cat"]
    operation = begin(world, processor)
    barrier = threading.Barrier(4)
    failures: list[BaseException] = []

    def guarded(work: Any) -> None:
        barrier.wait()
        try:
            work()
        except BaseException as error:  # noqa: BLE001  told by the test
            failures.append(error)

    accepted: Counter[str] = Counter()
    works = [
        lambda: run(world, operation),
        lambda: world.run(other, classes("fox"), batch=batch),
        lambda: accepted.update(review(world, "accept", *cats)),
        lambda: [annotate(world, item, "mine") for item in ids],
    ]
    threads = [threading.Thread(target=guarded, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    told = Counter(row.label for item in ids for row in live(world, item))
    assert (told["mine"], told["fox"], told["dog"]) == (60, 60, 0)
    assert told["cat"] == accepted[Verdict.CHANGED]
    world.check()


NAMES = st.sampled_from(["cat", "dog", "fox"])
STEPS_OF_PEOPLE = st.lists(
    st.one_of(
        st.tuples(st.just("run"), st.integers(0, 1), st.sets(NAMES)),
        st.tuples(st.sampled_from(["undo", "reapply"]), st.integers(0, 1)),
        st.tuples(st.sampled_from(["annotate", "infer", "import"]), NAMES),
        st.tuples(st.just("edit"), st.integers(0, 9), NAMES),
        st.tuples(st.sampled_from(["delete", "accept", "reject"]), st.integers(0, 9)),
    ),
    min_size=3,
    max_size=8,
)


class Laws:
    """One item, two post-processors, and what must hold after each step."""

    def __init__(self, world: World, processors: list[PostProcessor]) -> None:
        self.world = world
        self.processors = processors
        (self.item,) = world.add("x")
        for processor in processors:
            world.run(processor, classes("cat"))

    def step(self, word: str, *given: Any) -> None:
        before = rows(self.world, self.item)
        getattr(self, f"do_{word}", self.by_row(word))(*given)
        after = rows(self.world, self.item)
        if word in {"run", "undo", "reapply", "infer"}:
            # What a person said or decided is as it was, to the last column.
            protected = [row for row in before if row.review != "suggested"]
            assert [row for row in protected if row not in after] == []
        buried = {(row.post_processor_id, row.fingerprint) for row in before if row.deleted}
        risen = [
            row
            for row in after
            if not row.deleted and (row.post_processor_id, row.fingerprint) in buried
        ]
        assert [row for row in risen if row.fingerprint] == []

    def by_row(self, word: str) -> Any:
        """Do it to one of the annotations there are."""

        def work(position: int, *more: Any) -> None:
            standing = live(self.world, self.item)
            if not standing:
                return
            row = standing[position % len(standing)]
            {
                "edit": lambda: change(self.world, row.id, *more),
                "delete": lambda: delete(self.world, row.id),
                "accept": lambda: review(self.world, "accept", row.id),
                "reject": lambda: review(self.world, "reject", row.id),
            }[word]()
            now = {each.id: each for each in rows(self.world, self.item)}.get(row.id)
            self.check_row(word, row, now, *more)

        return work

    def check_row(self, word: str, was: Any, now: Any, *more: Any) -> None:
        is_predicted = was.source in {"model", "inference"}
        if word == "delete":
            assert now.deleted if is_predicted else now is None
        elif word == "edit" and more[0] != was.label:
            assert now.label == more[0]
            assert now.review == ("accepted" if was.source == "human" else "edited")
            assert (now.source, now.fingerprint) == (was.source, was.fingerprint)
        elif word == "edit":
            assert now == was
        elif was.review == "suggested":
            assert now.review == ("accepted" if word == "accept" else "rejected")
            assert now.deleted is (word == "reject")
        else:
            assert now == was

    def do_run(self, which: int, names: set[str]) -> None:
        processor = self.processors[which]
        rerun(self.world, processor, self.item, classes(*sorted(names)))
        assert {row.label for row in self.own(processor)} <= names

    def do_undo(self, which: int) -> None:
        run(self.world, begin(self.world, self.processors[which]))
        assert self.own(self.processors[which]) == []

    def do_reapply(self, which: int) -> None:
        reapplied(self.world, self.processors[which])

    def do_annotate(self, name: str) -> None:
        annotate(self.world, self.item, name)

    def do_infer(self, name: str) -> None:
        infer(self.world, self.item, name)

    def do_import(self, name: str) -> None:
        bring_in(self.world, self.item, name)

    def own(self, processor: PostProcessor) -> list[Any]:
        """A post-processor's annotations that nobody looked at."""
        return [
            row
            for row in live(self.world, self.item)
            if row.post_processor_id == processor.id and row.review == "suggested"
        ]


@hypothesis_settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
@pytest.mark.parametrize("multi_label", [True, False])
def test_the_laws_hold_in_whatever_order(worlds: Any, data: Any, *, multi_label: bool) -> None:
    world = worlds(multi_label=multi_label)
    laws = Laws(world, [world.processor(order=n) for n in range(2)])
    for step in data.draw(STEPS_OF_PEOPLE):
        laws.step(*step)
    splits = [split.id for split in (world.train, world.valid, world.test)]
    assert refresh.verify(world.deps, splits) == []


def test_what_is_not_there_cannot_be_changed(world: World) -> None:
    world.check()  # of all that the orders above left behind, too
    for work in (delete, lambda w, id_: change(w, id_, "cat")):
        with pytest.raises(NotFound):
            work(world, uuid4())
