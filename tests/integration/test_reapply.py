"""Kept answers applied again with the settings of today: exact, fenced, and without a model."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from factories import World, classes
from ppworker.domain.post_processor import PostProcessor
from ppworker.errors import NotFound
from ppworker.pipeline.control import kept_answers, operations, reapply, reapply_preview
from ppworker.pipeline.control.operation_steps import STEPS
from ppworker.pipeline.deps import Deps
from ppworker.pipeline.runs import answers, rescue
from ppworker.store import items, jobs, post_processors, results
from ppworker.store import labels as label_store
from ppworker.store import operations as operation_store
from ppworker.store.blobs import text_sha256
from ppworker.store.db import Tx
from ppworker.store.ids import new_id
from ppworker.store.operations import Operation


def scope_of(world: World, processor: PostProcessor, **options: Any) -> results.Scope:
    return results.Scope(post_processor_id=processor.id, dataset_id=world.dataset.id, **options)


def run(
    world: World, processor: PostProcessor, *, successors: bool = False, **options: Any
) -> Operation:
    """A whole reapply."""
    scope = scope_of(world, processor, **options)
    id_ = reapply.begin(world.deps, processor, scope, world.user, successors=successors)
    done = operations.run(world.deps, STEPS, operation_id=id_)
    assert done is not None
    return done


def counts(world: World, processor: PostProcessor, **options: Any) -> Counter[str]:
    """Counts of a reapply that went well, those of drops left out; a preview foretold the same."""
    *_, (_, foretold) = reapply_preview.preview(
        world.deps,
        scope_of(world, processor, **{k: v for k, v in options.items() if k != "successors"}),
        world.user,
    )
    done = run(world, processor, **options)
    assert (done.status, done.reason) == ("completed", "")
    world.check()
    counted = dict(done.counts)
    planned = counted.pop("jobs_planned", None)
    assert counted == dict(foretold)
    found = Counter({k: v for k, v in counted.items() if not k.startswith("dropped_")})
    return found + Counter(jobs_planned=planned or 0)


def change(world: World, processor: PostProcessor, **values: Any) -> PostProcessor:
    """Other settings, as any door would write them."""
    for name, value in values.items():
        if name == "label_mapping":
            world.sql(
                "UPDATE post_processors SET label_mapping = CAST(:v AS jsonb) WHERE id = :id",
                v=json.dumps(value),
                id=processor.id,
            )
        else:
            world.change(processor, **{name: value})
    return today(world, processor)


def today(world: World, processor: PostProcessor) -> PostProcessor:
    """The post-processor as workers read it."""
    with world.deps.db.begin() as tx:
        found = post_processors.find_post_processor(tx, processor.id)
    assert found is not None
    return found


def labels(world: World, item: UUID) -> list[str]:
    return sorted(a.label for a in world.annotations(item))


def scored(**scores: float) -> dict[str, Any]:
    """A raw classification answer of labels with their scores."""
    return {"predictions": [{"label": k, "score": v} for k, v in scores.items()]}


JOBS = 4


def everything(world: World) -> list[Any]:
    """Every row that a reapply may write, with the transaction that wrote it last."""
    return [
        world.sql(f"SELECT xmin::text, t.* FROM {table} t ORDER BY 2, 3, 4")
        for table in (
            "annotations", "labels", "dataset_items", "job_results", "post_processor_jobs",
            "label_stat_deltas",
        )
    ]  # fmt: skip


def test_a_changed_threshold_takes_effect_both_ways_and_keeps_ids(world: World) -> None:
    processor = world.processor(confidence_threshold=0.5)
    (item,) = world.add("one")
    world.run(processor, scored(cat=0.9, dog=0.6, fox=0.3))
    before = {a.label: a.id for a in world.annotations(item)}
    change(world, processor, confidence_threshold=0.8)
    assert counts(world, processor) == {
        "answers": 1,
        "answers_changed": 1,
        "annotations_removed": 1,
        "annotations_unchanged": 1,
    }
    assert {a.label: a.id for a in world.annotations(item)} == {"cat": before["cat"]}
    assert world.jobs()[0].dropped == {"below_threshold": 2}
    change(world, processor, confidence_threshold=0.2)
    counted = counts(world, processor)
    assert (counted["annotations_added"], counted["annotations_unchanged"]) == (2, 1)
    after = {a.label: a.id for a in world.annotations(item)}
    assert after.keys() == {"cat", "dog", "fox"}
    assert after["cat"] == before["cat"]
    assert world.jobs()[0].dropped == {}


def test_a_changed_mapping_and_prefix_relabel_the_same_rows(world: World) -> None:
    processor = world.processor()
    (item,) = world.add("one")
    world.run(processor, classes("kitty", "noise"))
    before = {a.label: a.id for a in world.annotations(item)}
    change(world, processor, label_mapping={"kitty": "cat", "noise": None}, label_prefix="auto-")
    counted = counts(world, processor)
    assert (counted["annotations_updated"], counted["annotations_removed"]) == (1, 1)
    assert {a.label: a.id for a in world.annotations(item)} == {"auto-cat": before["kitty"]}


def test_labels_of_today_are_used_and_none_is_made_where_that_is_off(world: World) -> None:
    processor = world.processor(auto_create_labels=False)
    (item,) = world.add("one")
    world.run(processor, classes("cat", "dog"))
    assert labels(world, item) == []
    world.annotate(item, "Cat")
    assert counts(world, processor)["annotations_added"] == 1
    assert labels(world, item) == ["Cat", "Cat"]
    change(world, processor, auto_create_labels=True)
    assert counts(world, processor)["annotations_added"] == 1
    assert labels(world, item) == ["Cat", "Cat", "dog"]


def test_the_cap_of_new_labels_holds_and_a_preview_knows_it(world: World) -> None:
    processor = world.processor(max_new_labels=3)
    world.add(*(f"t{i}" for i in range(10)))
    world.run(processor, lambda given: classes(f"label of {given.text}"))
    assert world.sql("SELECT count(*) FROM labels")[0][0] == 3
    change(world, processor, max_new_labels=7)
    assert counts(world, processor)["annotations_added"] == 4
    assert world.sql("SELECT count(*) FROM labels")[0][0] == 7


def test_a_dataset_that_takes_one_label_now_keeps_the_best(world: World) -> None:
    processor = world.processor()
    (item,) = world.add("one")
    world.run(processor, scored(cat=0.6, dog=0.9))
    world.sql("UPDATE datasets SET multi_label = false")
    assert counts(world, processor)["annotations_removed"] == 1
    assert labels(world, item) == ["dog"]


def test_what_people_did_is_never_touched(world: World) -> None:
    processor, other = world.processor(), world.processor()
    (item,) = world.add("one")
    world.run(processor, scored(accepted=0.3, deleted=0.9, low=0.3, high=0.9))
    world.run(other, classes("other's"))
    world.annotate(item, "human")
    world.sql(
        "UPDATE annotations a SET review = 'accepted' FROM labels l WHERE l.id = a.label_id "
        "AND l.name = 'accepted'"
    )
    reject(world, "deleted")
    change(world, processor, confidence_threshold=0.5, label_prefix="auto-")
    counted = counts(world, processor)
    assert counted["annotations_removed"] == 1
    assert labels(world, item) == ["accepted", "high", "human", "other's"]
    assert world.jobs(processor)[0].dropped == {"below_threshold": 2, "deleted_by_person": 1}


def reject(world: World, label: str) -> None:
    """A person rejects a suggestion: a tombstone, with its deltas."""
    world.sql(
        "WITH gone AS (UPDATE annotations a SET deleted_at = now(), review = 'rejected' "
        "FROM labels l WHERE l.id = a.label_id AND l.name = :label RETURNING a.*) "
        "INSERT INTO label_stat_deltas (split_id, bucket, label_id, annotation_count, item_count) "
        "SELECT s.split_id, b.bucket, CASE b.bucket WHEN 'label' THEN g.label_id END, -1, "
        "CASE b.bucket WHEN 'label' THEN -1 ELSE 0 END FROM gone g "
        "JOIN item_splits s ON s.item_id = g.item_id, (VALUES ('label'), ('total')) b(bucket)",
        label=label,
    )


def test_a_split_or_an_item_limits_it(world: World) -> None:
    processor = world.processor()
    first, second = world.add("one", "two")
    (third,) = world.add("three", split=world.valid)
    world.run(processor, scored(cat=0.3))
    change(world, processor, confidence_threshold=0.5)
    assert counts(world, processor, item_id=first)["answers"] == 1
    assert [labels(world, i) for i in (first, second, third)] == [[], ["cat"], ["cat"]]
    assert counts(world, processor, split_id=world.valid.id)["answers"] == 1
    assert [labels(world, i) for i in (first, second, third)] == [[], ["cat"], []]
    assert counts(world, processor)["answers"] == 3


def test_it_works_when_the_jobs_are_pruned(world: World) -> None:
    processor = world.processor()
    (item,) = world.add("one")
    world.run(processor, scored(cat=0.9, dog=0.3))
    world.sql("DELETE FROM job_attempts")
    world.sql("DELETE FROM post_processor_jobs")
    change(world, processor, confidence_threshold=0.5)
    assert counts(world, processor)["annotations_removed"] == 1
    assert labels(world, item) == ["cat"]


def test_somebody_elses_item_or_one_without_an_answer_is_not_there(
    world: World, worlds: Callable[..., World]
) -> None:
    mine, theirs = world.processor(), worlds()
    (item,) = theirs.add("one")
    world.add("never run")
    assert run(world, mine, item_id=item).counts == {}
    assert run(world, mine).counts == {}


@pytest.mark.parametrize("gone", ["post_processors", "datasets"])
def test_a_post_processor_that_is_gone_ends_it_with_its_reason(world: World, gone: str) -> None:
    processor = world.processor()
    world.add("one")
    world.run(processor)
    scope = scope_of(world, processor)
    id_ = reapply.begin(world.deps, processor, scope, world.user)
    world.sql(f"UPDATE {gone} SET deleted_at = now()")
    done = operations.run(world.deps, STEPS, operation_id=id_)
    assert done is not None
    assert (done.status, done.reason) == ("failed", "not_found")
    with pytest.raises(NotFound):
        list(reapply_preview.preview(world.deps, scope, world.user))


# Texts


def read_text(text: str, *boxes: tuple[str, float]) -> dict[str, Any]:
    """A raw answer of a reader of pages."""
    lines = [
        {"text": said, "score": score, "bbox": [0, 0, 10, 10 + i]}
        for i, (said, score) in enumerate(boxes)
    ]
    return {"text": text, "pages": [{"lines": lines}]}


@pytest.fixture
def reader(world: World) -> PostProcessor:
    """Reads what it is given and, as its target says, writes no text yet."""
    return world.processor(model_type="ocr", order=1)


def give_file(world: World, item: UUID, sha256: str = "a" * 64, text: str | None = None) -> None:
    """Make a text item one with a file, which a reader of anything then reads."""
    world.sql(
        "INSERT INTO blobs (sha256, size_bytes) VALUES (:s, 1) ON CONFLICT DO NOTHING", s=sha256
    )
    write_text(world, item, text)
    world.sql(
        "UPDATE dataset_items SET content_sha256 = :s, size_bytes = 1 WHERE id = :id",
        s=sha256,
        id=item,
    )


def write_text(world: World, item: UUID, text: str | None) -> None:
    """As a person would."""
    world.sql(
        "UPDATE dataset_items SET text = :t, text_sha256 = :s WHERE id = :id",
        t=text,
        s=None if text is None else text_sha256(text),
        id=item,
    )


def text_of(world: World, item: UUID) -> str | None:
    found: str | None = world.sql("SELECT text FROM dataset_items WHERE id = :id", id=item)[0][0]
    return found


@pytest.mark.parametrize("text", [None, "what stood there when it ran"])
def test_a_changed_target_writes_the_text_that_was_read(
    world: World, reader: PostProcessor, text: str | None
) -> None:
    (item,) = world.add("one")
    give_file(world, item, text=text)
    world.run(reader, read_text("read", ("read", 0.9)))
    assert text_of(world, item) == text
    change(world, reader, output_target="text")
    counted = counts(world, reader)
    assert (counted["texts_written"], counted["annotations_removed"]) == (1, 1)
    assert text_of(world, item) == "read"
    counted = counts(world, reader)
    assert (counted["answers_changed"], counted["texts_written"]) == (0, 0)
    change(world, reader, output_target="annotations")
    assert counts(world, reader)["annotations_added"] == 1
    assert text_of(world, item) == "read", "a text is never taken away"


def test_a_text_that_somebody_changed_since_is_kept(world: World, reader: PostProcessor) -> None:
    change(world, reader, output_target="both")
    (item,) = world.add("one")
    give_file(world, item)
    world.run(today(world, reader), read_text("raed", ("raed", 0.9), ("low", 0.3)))
    assert text_of(world, item) == "raed"
    write_text(world, item, "read")
    change(world, reader, confidence_threshold=0.5)
    counted = counts(world, reader)
    assert (counted["texts_kept"], counted["texts_written"]) == (1, 0)
    assert counted["annotations_removed"] == 1, "boxes are none of the text's business"
    assert text_of(world, item) == "read"


def test_a_person_who_puts_the_old_text_back_is_heeded(world: World, reader: PostProcessor) -> None:
    (item,) = world.add("one")
    give_file(world, item, text="typed by hand")
    world.run(reader, read_text("read"))
    change(world, reader, output_target="text")
    assert counts(world, reader)["texts_written"] == 1
    write_text(world, item, "typed by hand")
    assert counts(world, reader)["texts_kept"] == 1
    assert text_of(world, item) == "typed by hand"


def test_an_answer_for_a_file_that_was_replaced_is_left_alone_though_its_text_stands(
    world: World, reader: PostProcessor
) -> None:
    change(world, reader, output_target="both")
    (item,) = world.add("one")
    give_file(world, item)
    world.run(today(world, reader), read_text("read", ("read", 0.4)))
    give_file(world, item, "b" * 64, "read")
    change(world, reader, confidence_threshold=0.5)
    assert counts(world, reader) == {"answers": 1, "skipped_input_changed": 1}


def test_a_text_that_a_later_post_processor_wrote_is_kept(
    world: World, reader: PostProcessor
) -> None:
    change(world, reader, output_target="both")
    corrector = world.processor(model_type="llm", output_target="text", order=2, reads="text")
    (item,) = world.add("one")
    give_file(world, item)
    world.run(today(world, reader), read_text("raed"))
    assert world.run(corrector, {"text": "read"}).completed == 1
    assert counts(world, reader)["texts_kept"] == 1
    assert text_of(world, item) == "read"
    assert counts(world, corrector)["answers_changed"] == 0
    assert counts(world, corrector).get("skipped_input_changed") is None, "it replaced its input"


def test_an_answer_for_another_file_or_text_is_left_alone(
    world: World, reader: PostProcessor
) -> None:
    tagger = world.processor(model_type="ner", reads="text")
    with_text, with_file = world.add("John", "Jack")
    give_file(world, with_file, text="Jack")
    span = {"predictions": [{"label": "name", "start": 0, "end": 4, "score": 0.4}]}
    world.run(tagger, span)
    world.run(reader, read_text("x", ("x", 0.4)))
    for processor in (tagger, reader):
        change(world, processor, confidence_threshold=0.5)
    write_text(world, with_text, "Joan")
    write_text(world, with_file, "Jane")
    give_file(world, with_file, "b" * 64, "Jane")
    assert counts(world, tagger) == {"answers": 2, "skipped_input_changed": 2}
    assert counts(world, reader) == {"answers": 2, "skipped_input_changed": 2}
    assert labels(world, with_text) == ["name", "text"]


def test_spans_in_a_text_that_is_gone_are_left_alone(world: World) -> None:
    writer = world.processor(model_type="llm", output_target="both", confidence_threshold=0.5)
    (item,) = world.add("one")
    give_file(world, item)
    raw = {
        "text": "John met Jack",
        "predictions": [
            {"label": "name", "start": 0, "end": 4, "score": 0.9},
            {"label": "name", "start": 9, "end": 13, "score": 0.4},
        ],
    }
    world.run(writer, raw)
    change(world, writer, confidence_threshold=0.1)
    assert counts(world, writer)["annotations_added"] == 1
    write_text(world, item, "Jim met Jack")
    change(world, writer, confidence_threshold=0.5)
    assert counts(world, writer) == {"answers": 1, "skipped_text_changed": 1}
    assert len(world.annotations(item)) == 2


def test_a_reader_that_replaced_its_own_input_is_applied_again(world: World) -> None:
    writer = world.processor(model_type="llm", output_target="both", reads="text")
    (item,) = world.add("john met jack")
    raw = {
        "text": "John met Jack",
        "predictions": [{"label": "name", "start": 9, "end": 13, "score": 0.4}],
    }
    world.run(writer, raw)
    assert text_of(world, item) == "John met Jack"
    for target in ("both", "annotations"):
        change(world, writer, output_target=target, label_prefix="")
        assert counts(world, writer)["annotations_unchanged"] == 1
    change(world, writer, label_prefix="auto-", label_mapping={"name": "person"})
    assert counts(world, writer)["annotations_updated"] == 1
    assert [(a.label, a.text) for a in world.annotations(item)] == [("auto-person", "Jack")]


def test_later_readers_of_a_changed_text_run_again_only_if_asked(
    world: World, reader: PostProcessor
) -> None:
    change(world, reader, output_target="text")
    tagger = world.processor(model_type="ner", reads="text", order=2)
    by_file = world.processor(order=2)
    first, second = world.add("x", "y")
    for item in (first, second):
        give_file(world, item)
    world.run(today(world, reader), read_text("John"))
    span = {"predictions": [{"label": "name", "start": 0, "end": 4}]}
    assert world.run(tagger, span).completed == 2
    world.run(by_file)
    # Answers of another day: as if a newer release read them otherwise.
    world.sql(
        'UPDATE job_results SET raw = \'{"text": "Jane"}\' WHERE post_processor_id = :p',
        p=reader.id,
    )
    assert counts(world, reader, item_id=first)["texts_written"] == 1
    assert set(world.statuses()) == {"completed"}
    counted = counts(world, reader, successors=True)
    assert (counted["texts_written"], counted["jobs_planned"]) == (1, 1)
    assert sorted(world.statuses(tagger)) == ["completed", "completed", "pending"]
    assert set(world.statuses(by_file)) == {"completed"}
    assert world.run(tagger, span).completed == 1
    assert [a.text for a in world.annotations(second) if a.label == "name"] == ["Jane"]
    world.check()


def test_a_job_that_found_no_text_runs_once_there_is_one(
    world: World, reader: PostProcessor
) -> None:
    tagger = world.processor(model_type="ner", reads="text", order=2)
    (item,) = world.add("x")
    give_file(world, item)
    world.run(reader, read_text("John"))
    world.run(tagger)
    assert world.jobs(tagger)[0].reason == "no_input"
    change(world, reader, output_target="text")
    assert counts(world, reader, successors=True)["jobs_planned"] == 1
    assert world.run(tagger, {"predictions": []}).completed == 1
    world.check()


# What was kept only in part, or cannot be read


@pytest.mark.parametrize("label", ["a\x00b", "a\ud800b"])
def test_an_answer_of_which_postgresql_refused_something_is_left_alone(
    world: World, label: str
) -> None:
    processor = world.processor()
    (item,) = world.add("one")
    world.run(processor, {"predictions": [{"label": label, "score": 0.3}]})
    change(world, processor, confidence_threshold=0.5)
    assert counts(world, processor) == {"answers": 1, "skipped_refused_values": 1}
    assert labels(world, item) == ["ab"]


def test_an_answer_that_the_task_of_today_cannot_read_is_left_alone(world: World) -> None:
    processor = world.processor()
    (item,) = world.add("one")
    world.run(processor)
    change(world, processor, model_type="stt")
    assert counts(world, processor) == {"answers": 1, "skipped_unreadable": 1}
    assert labels(world, item) == ["cat"]


def test_a_deleted_item_is_left_alone(world: World) -> None:
    processor = world.processor()
    world.add("one")
    world.run(processor)
    world.sql("UPDATE dataset_items SET deleted_at = now()")
    assert counts(world, processor) == {"answers": 1, "skipped_item_deleted": 1}


# Beside live jobs


def plan_again(world: World, processor: PostProcessor) -> None:
    """A new job for every item that has one."""
    rows = world.sql(
        "SELECT DISTINCT item_id, version_id FROM post_processor_jobs "
        "WHERE post_processor_id = :p AND status = 'completed' ORDER BY item_id",
        p=processor.id,
    )
    with world.deps.db.begin() as tx:
        jobs.insert_jobs(
            tx,
            [
                jobs.NewJob(
                    id=new_id(),
                    post_processor_id=processor.id,
                    item_id=row.item_id,
                    version_id=row.version_id,
                    user_id=world.user,
                    order=processor.order,
                    ready=True,
                    max_attempts=3,
                )
                for row in rows
            ],
        )


@pytest.mark.parametrize("state", ["pending", "processing"])
def test_a_live_job_is_left_to_its_end_which_brings_the_settings_of_today(
    world: World, state: str
) -> None:
    processor = today(world, world.processor())
    (item,) = world.add("one")
    world.run(processor, scored(cat=0.3))
    plan_again(world, processor)
    batch = world.claim(processor) if state == "processing" else None
    change(world, processor, confidence_threshold=0.5)
    assert counts(world, processor) == {"answers": 1, "skipped_live_job": 1}
    assert labels(world, item) == ["cat"]
    # With the settings that its worker read before they were changed.
    assert world.run(processor, scored(cat=0.3), batch=batch).completed == 1
    assert labels(world, item) == []
    world.check()


def test_a_finish_maps_again_with_settings_that_changed_while_the_model_ran(world: World) -> None:
    processor = today(world, world.processor())
    (item,) = world.add("one")

    def during() -> None:
        change(world, processor, label_prefix="auto-", label_mapping={"cat": "feline"})

    assert world.run(processor, during=during).completed == 1
    assert labels(world, item) == ["auto-feline"]
    world.check()


def test_a_finish_of_a_post_processor_deleted_meanwhile_uses_the_settings_it_has(
    world: World,
) -> None:
    processor = today(world, world.processor())
    (item,) = world.add("one")

    def during() -> None:
        world.sql("UPDATE post_processors SET deleted_at = now()")

    assert world.run(processor, during=during).completed == 1
    assert labels(world, item) == ["cat"]


class Gate:
    """Holds a thread at a place until it is let through."""

    def __init__(self) -> None:
        self.reached, self.open = threading.Event(), threading.Event()

    def __call__(self) -> None:
        self.reached.set()
        assert self.open.wait(20)


def in_thread(act: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=act, daemon=True)
    thread.start()
    return thread


def ends(thread: threading.Thread) -> None:
    thread.join(20)
    assert not thread.is_alive()


def test_a_finish_that_holds_the_item_first_is_seen_by_the_reapply(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reapply mapped the answer before, waits for the lock, and must begin anew."""
    processor = today(world, world.processor())
    (item,) = world.add("one")
    world.run(processor, scored(old=0.9))
    plan_again(world, processor)
    gate, original = Gate(), results.write_results

    def hold(tx: Tx, rows: Any) -> None:
        original(tx, rows)
        gate()

    monkeypatch.setattr(results, "write_results", hold)
    finishing = in_thread(lambda: world.run(processor, scored(new=0.9, low=0.3)))
    assert gate.reached.wait(20)
    # After the finish has looked at the settings: it writes by the old ones.
    change(world, processor, confidence_threshold=0.5)
    reapplying = in_thread(lambda: run(world, processor))
    until_blocked(world)
    gate.open.set()
    ends(finishing)
    ends(reapplying)
    assert labels(world, item) == ["new"]
    world.check()


def test_a_reapply_that_holds_the_item_first_is_followed_by_the_finish(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    processor = today(world, world.processor())
    (item,) = world.add("one")
    world.run(processor, scored(old=0.9))
    plan_again(world, processor)
    batch = world.claim(processor)
    change(world, processor, confidence_threshold=0.5)
    gate, original = Gate(), results.read_states

    def hold(*arguments: Any) -> Any:
        found = original(*arguments)
        gate()
        return found

    monkeypatch.setattr(results, "read_states", hold)
    counted: list[Operation] = []
    reapplying = in_thread(lambda: counted.append(run(world, processor)))
    assert gate.reached.wait(20)
    finishing = in_thread(lambda: world.run(processor, scored(new=0.9, low=0.3), batch=batch))
    until_blocked(world)
    gate.open.set()
    ends(reapplying)
    ends(finishing)
    assert counted[0].counts["skipped_live_job"] == 1
    assert labels(world, item) == ["new"]
    world.check()


def until_blocked(world: World) -> None:
    """Until a session waits for a lock that another one holds."""
    waited = threading.Event()
    for _ in range(2000):
        if world.sql(
            "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() "
            "AND cardinality(pg_blocking_pids(pid)) > 0"
        ):
            return
        waited.wait(0.01)
    raise AssertionError("nobody waits")


def test_settings_that_change_between_mapping_and_writing_are_the_ones_that_count(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    processor = world.processor()
    (item,) = world.add("one")
    world.run(processor, scored(cat=0.9, dog=0.4))
    change(world, processor, confidence_threshold=0.95)
    original = items.lock_items
    times: list[int] = []

    def then_change(tx: Tx, ids: Any, **options: Any) -> Any:
        if not times:
            times.append(1)
            change(world, processor, confidence_threshold=0.5)
        return original(tx, ids, **options)

    monkeypatch.setattr(items, "lock_items", then_change)
    done = run(world, processor)
    assert (done.status, done.done, done.counts["answers"]) == ("completed", 1, 1)
    assert labels(world, item) == ["cat"]
    world.check()


def test_a_chunk_ends_before_an_item_that_changed_and_the_next_begins_with_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    processor = world.processor(model_type="ner", reads="text")
    found = world.add("John", "Jack", "Jill")
    world.run(processor, {"predictions": [{"label": "name", "start": 0, "end": 4, "score": 0.4}]})
    change(world, processor, confidence_threshold=0.5)
    original = items.lock_items
    times: list[int] = []

    def then_write(tx: Tx, ids: Any, **options: Any) -> Any:
        if not times:
            times.append(1)
            write_text(world, found[1], "Joan")
        return original(tx, ids, **options)

    monkeypatch.setattr(items, "lock_items", then_write)
    done = run(world, processor)
    assert (done.done, done.counts["answers"], done.counts["skipped_input_changed"]) == (3, 3, 1)
    assert [labels(world, item) for item in found] == [[], ["name"], []]
    world.check()


def test_reapplies_finishes_and_rescues_at_once_leave_exact_stats_and_the_settings_of_the_end(
    world: World,
) -> None:
    processor = today(world, world.processor(confidence_threshold=0.1))
    found = world.add(*(f"t{i}" for i in range(60)))
    raw = scored(a=0.9, b=0.6, c=0.3)
    assert world.run(processor, raw).completed == 60
    errors: list[BaseException] = []
    ended = threading.Event()

    def guarded(act: Callable[[], object]) -> Callable[[], None]:
        def forever() -> None:
            try:
                while not ended.is_set():
                    act()
            except BaseException as error:  # noqa: BLE001  shown below
                errors.append(error)

        return forever

    def work() -> None:
        plan_some(world, processor)
        world.run(today(world, processor), raw, limit=7)

    threads = [
        in_thread(guarded(act))
        for act in (work, work, lambda: run(world, processor), lambda: rescue.rescue(world.deps))
    ]
    for threshold in (0.5, 0.8, 0.2, 0.7):
        change(world, processor, confidence_threshold=threshold)
        ended.wait(0.4)
    run(world, processor)
    ended.set()
    for thread in threads:
        ends(thread)
    assert errors == []
    while world.run(today(world, processor), raw).completed:
        pass
    assert {tuple(labels(world, item)) for item in found} == {("a",)}
    world.check()


def plan_some(world: World, processor: PostProcessor) -> None:
    """New jobs for a few items that have no live one, planned under the items' locks."""
    world.sql(
        "WITH locked AS MATERIALIZED (SELECT i.id FROM dataset_items i WHERE NOT EXISTS ("
        "SELECT 1 FROM post_processor_jobs j WHERE j.item_id = i.id "
        "AND j.status IN ('pending', 'processing')) ORDER BY random() LIMIT 5 "
        "FOR UPDATE SKIP LOCKED) "
        "INSERT INTO post_processor_jobs (id, post_processor_id, item_id, version_id, user_id, "
        'ready, "order", max_attempts) SELECT gen_random_uuid(), :p, id, :v, :u, true, 0, 3 '
        "FROM locked ON CONFLICT DO NOTHING",
        p=processor.id,
        v=world.train.version_id,
        u=world.user,
    )


# Resuming


def test_items_that_share_a_cursor_are_never_parted(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cursor is half an id; items made in the same part of a millisecond share it."""
    processor = world.processor()
    groups = []
    for number, size in enumerate((1, 7, 3, 1)):
        with monkeypatch.context() as at:
            at.setattr(time, "time_ns", lambda n=number: 1_800_000_000_000_000_000 + n * 10_000_000)
            groups.append(world.add(*(["x"] * size)))
    world.run(processor, scored(cat=0.3))
    change(world, processor, confidence_threshold=0.5)
    for limit in (1, 2, 3, 4, 5, 8, 20):
        cursor, seen, is_last = 0, [], False
        while not is_last:
            prepared = kept_answers.prepare(
                world.deps,
                answers.CreatedNames(world.deps, world.labels),
                scope_of(world, processor),
                world.user,
                cursor=cursor,
                limit=limit,
            )
            assert prepared.walked
            cursor, is_last = kept_answers.cursor_of(prepared.walked[-1]), prepared.is_last
            seen += prepared.walked
        assert seen == sorted(item for group in groups for item in group), limit


@pytest.mark.parametrize(
    "noise",
    [random.Random(1).randbytes(5000).hex(), "x" * 10_000],
    ids=["stored as large as it is", "stored in a hundredth of its size"],
)
def test_large_answers_make_small_chunks(
    world: World, monkeypatch: pytest.MonkeyPatch, noise: str
) -> None:
    processor = world.processor()
    world.add(*(f"t{i}" for i in range(6)))
    world.run(
        processor,
        # Enough keys that the rest of it is not all that there is to its stored size.
        {**scored(cat=0.3), "noise": noise, "ids": list(range(100, 200))},
    )
    change(world, processor, confidence_threshold=0.5)
    monkeypatch.setattr(kept_answers, "_MOST_BYTES", 25_000)
    chunks: list[int] = []
    with monkeypatch.context() as watched:
        watched.setattr(
            reapply, "prepare", lambda *a, **o: noted(chunks, kept_answers.prepare(*a, **o))
        )
        assert counts(world, processor)["annotations_removed"] == 6
    assert chunks == [2, 2, 2]


def noted(chunks: list[int], prepared: kept_answers.Prepared) -> kept_answers.Prepared:
    chunks.append(len(prepared.walked))
    return prepared


KILLED = """
import os, signal, sys
from uuid import UUID
from ppworker import settings, wiring
from ppworker.pipeline.control import operations, pace, reapply
from ppworker.pipeline.control.operation_steps import STEPS
from ppworker.store import operations as store
from ppworker.store.db import Database

store.FIRST_CHUNK = 3
pace.MOST_UNITS = 3
original, chunks = reapply.outputs.write, []

def write(tx, plan):
    original(tx, plan)
    chunks.append(1)
    if len(chunks) == 3:
        os.kill(os.getpid(), signal.SIGKILL)

reapply.outputs.write = write
given = settings.load(database_url=sys.argv[1], data_dir=sys.argv[2])
deps = wiring.build_deps(given, Database(sys.argv[1], connections=2), emit=lambda events: None)
operations.run(deps, STEPS, operation_id=UUID(sys.argv[3]))
"""


def test_a_reapply_killed_in_the_middle_of_a_chunk_goes_on_behind_the_last_whole_one(
    world: World, database_url: str, tmp_path: Path
) -> None:
    processor = world.processor()
    found = world.add(*(f"t{i}" for i in range(12)))
    world.run(processor, scored(cat=0.9, low=0.3))
    change(world, processor, confidence_threshold=0.5)
    id_ = reapply.begin(world.deps, processor, scope_of(world, processor), world.user)
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, database_url, str(tmp_path), str(id_)],
        check=False,
        timeout=60,
    )
    assert killed.returncode == -signal.SIGKILL
    left = operation(world, id_)
    assert (left.status, left.done, left.total) == ("processing", 6, 12)
    assert [len(labels(world, item)) for item in found] == [1] * 6 + [2] * 6
    world.check()
    assert operations.run(world.deps, STEPS, operation_id=id_) is None, "its lease still holds"
    expire_operation(world)
    done = operations.run(world.deps, STEPS, operation_id=id_)
    assert done is not None
    assert (done.status, done.done) == ("completed", 12)
    assert done.counts["annotations_removed"] == 12, "none is counted twice"
    assert [len(labels(world, item)) for item in found] == [1] * 12
    world.check()


def operation(world: World, id_: UUID) -> Operation:
    with world.deps.db.begin() as tx:
        found = operation_store.find_operation(tx, world.user, id_)
    assert found is not None
    return found


def expire_operation(world: World) -> None:
    world.sql(
        "UPDATE operations SET lease_expires_at = clock_timestamp() - interval '1 s' "
        "WHERE status = 'processing'"
    )


def test_who_lost_the_lease_of_a_reapply_writes_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    processor = world.processor()
    (item,) = world.add("one")
    world.run(processor, scored(cat=0.9, low=0.3))
    change(world, processor, confidence_threshold=0.5)
    id_ = reapply.begin(world.deps, processor, scope_of(world, processor), world.user)
    gate = Gate()

    def late(deps: Deps, given: Operation) -> operations.Write:
        write = reapply.step(deps, given)
        gate()
        return write

    said: list[Operation | None] = []
    slow = in_thread(
        lambda: said.append(operations.run(world.deps, {reapply.KIND: late}, operation_id=id_))
    )
    assert gate.reached.wait(20)
    expire_operation(world)
    done = operations.run(world.deps, STEPS, operation_id=id_)
    assert done is not None
    assert done.status == "completed"
    before = everything(world)
    gate.open.set()
    ends(slow)
    assert everything(world) == before
    assert operation(world, id_).counts["annotations_removed"] == 1
    assert labels(world, item) == ["cat"]


# Against a run of the model


names = st.sampled_from(["cat", "dog", "Cat ", "fox", "noise", "", "a\u00df"])
scores = st.sampled_from([None, 0.0, 0.2, 0.5, 0.500001, 0.9, 1.0])
predictions = st.lists(
    st.one_of(
        st.fixed_dictionaries({"label": names, "score": scores}),
        st.fixed_dictionaries(
            {
                "label": names,
                "score": scores,
                "start": st.integers(0, 14),
                "end": st.integers(0, 16),
            }
        ),
        st.fixed_dictionaries(
            {
                "label": names,
                "score": scores,
                "bbox": st.lists(st.integers(0, 30), min_size=4, max_size=4),
            }
        ),
    ),
    max_size=6,
)
raws = st.builds(
    lambda text, found: {"text": text, "predictions": found},
    st.sampled_from([None, "", "John met Jack", "\u00c5 dog & a cat"]),
    predictions,
)
chosen = st.fixed_dictionaries(
    {
        "confidence_threshold": st.sampled_from([0.0, 0.3, 0.5]),
        "keep_unscored": st.booleans(),
        "label_mapping": st.sampled_from([{}, {"noise": None, "fox": "dog"}, {"CAT": "Katze"}]),
        "label_prefix": st.sampled_from(["", "auto-"]),
        "output_target": st.sampled_from(["text", "annotations", "both"]),
        "auto_create_labels": st.booleans(),
        "max_new_labels": st.sampled_from([2, 100]),
        "order": st.sampled_from([0, 5]),
    }
)
some = hypothesis_settings(
    max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


class Case:
    """A dataset where two post-processors answered, the second of which is looked at."""

    def __init__(self, world: World, given: Mapping[str, Any], answers_of: list[Any]) -> None:
        self.world = world
        with world.deps.db.begin() as tx:  # whoever runs first finds the same labels
            label_store.create_label(tx, world.train.version_id, world.user, "dog")
        rival = self.world.processor(model_type="llm", order=1)
        self.processor = self.world.processor(model_type="llm", **given)
        self.items = self.world.add(*(f"what John {i} saw" for i in range(len(answers_of))))
        self.answers = dict(zip(self.items, answers_of, strict=True))
        self.world.run(rival, classes("dog"))
        self.run()
        self.world.run(rival, classes("dog"))

    def run(self) -> None:
        """Let the model answer for every item, as it always does."""
        world, processor = self.world, today(self.world, self.processor)
        batch = world.claim(processor)
        by_job = {str(job.id): self.answers[job.item_id] for job in batch.jobs}
        world.run(processor, lambda given: by_job[given.key], batch=batch)

    def shown(self) -> list[Any]:
        """What people see, without ids."""
        return [
            (
                text_of(self.world, item),
                sorted(
                    (a.post_processor, a.label, a.kind, a.coordinates, a.text or "", a.score or -1)
                    for a in self.world.annotations(item)
                ),
            )
            for item in self.items
        ]

    def dropped(self) -> list[Any]:
        """Counts of what the last job of each item dropped."""
        last = {job.item_id: job.dropped for job in self.world.jobs(self.processor)}
        return [last[item] for item in self.items]

    def named(self) -> list[Any]:
        """The same with names of post-processors that two cases share."""
        mine = self.processor.name
        return [
            (text, sorted((name == mine, *rest) for name, *rest in found))
            for text, found in self.shown()
        ]


@some
@given(given=chosen, raw=st.lists(raws, min_size=1, max_size=3), multi_label=st.booleans())
def test_a_reapply_with_the_same_settings_changes_no_row(
    worlds: Callable[..., World], given: Mapping[str, Any], raw: list[Any], multi_label: bool
) -> None:
    case = Case(worlds(multi_label=multi_label), given, raw)
    before = everything(case.world)
    assert run(case.world, case.processor).status == "completed"
    # Where an item takes one label, a later rival may have won: the loser's drops say so now.
    settled = everything(case.world) if not multi_label else before
    assert [rows for rows in settled if rows not in before] in ([], [settled[JOBS]])
    assert run(case.world, case.processor).status == "completed"
    assert everything(case.world) == settled


@some
@given(
    first=chosen,
    second=chosen,
    raw=st.lists(raws, min_size=1, max_size=3),
    multi_label=st.booleans(),
)
def test_a_reapply_with_other_settings_equals_a_run_of_the_model_with_them(
    worlds: Callable[..., World],
    first: Mapping[str, Any],
    second: Mapping[str, Any],
    raw: list[Any],
    multi_label: bool,
) -> None:
    reapplied, run_again = (Case(worlds(multi_label=multi_label), first, raw) for _ in range(2))
    for case in (reapplied, run_again):
        change(case.world, case.processor, **second)
    foretold = list(
        reapply_preview.preview(
            reapplied.world.deps,
            scope_of(reapplied.world, reapplied.processor),
            reapplied.world.user,
        )
    )[-1][1]
    done = run(reapplied.world, reapplied.processor)
    assert dict(done.counts) == dict(foretold)
    plan_again(run_again.world, run_again.processor)
    run_again.run()
    assert reapplied.named() == run_again.named()
    assert reapplied.dropped() == run_again.dropped()
    reapplied.world.check()


# By the command line


def command(database_url: str, tmp_path: Path, *arguments: object) -> tuple[int, Any, str]:
    """Exit code, JSON answer and error line of a command."""
    done = subprocess.run(
        [sys.executable, "-m", "ppworker", *(str(each) for each in arguments), "--json"],
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
    return done.returncode, json.loads(done.stdout) if done.stdout else None, done.stderr


def test_the_commands_change_settings_foretell_and_apply_them(
    worlds: Callable[..., World], database_url: str, tmp_path: Path
) -> None:
    world = worlds(username="local")
    processor = world.processor("tagger", runner="usaddress", model_type="ner", reads="text")
    found = world.add("John", "Jack")
    span = {"predictions": [{"label": "name", "start": 0, "end": 4, "score": 0.4}]}
    world.run(processor, span)
    world.add("Jill")
    code, changed, _ = command(
        database_url, tmp_path, "processors", "change", f"{world.dataset.name}/tagger",
        "--map", "name=person", "--prefix", "auto-", "--threshold", "0.3",
    )  # fmt: skip
    assert code == 0
    assert (changed["label_mapping"], changed["confidence_threshold"]) == ({"name": "person"}, 0.3)
    reapplied = ["jobs", "reapply", world.dataset.name, "--processor", "tagger"]
    before = everything(world)
    code, foretold, _ = command(database_url, tmp_path, *reapplied, "--dry-run")
    assert (code, foretold["dry_run"], foretold["operation_id"]) == (0, True, None)
    assert everything(world) == before
    code, said, _ = command(database_url, tmp_path, *reapplied, "--split", "train")
    assert (code, said["status"], said["dry_run"]) == (0, "completed", False)
    assert said["annotations"] == {"added": 0, "updated": 2, "removed": 0, "unchanged": 0}
    told = ("answers", "changed", "annotations", "texts", "skipped", "dropped")
    assert [said[word] for word in told] == [foretold[word] for word in told]
    assert [labels(world, item) for item in found] == [["auto-person"]] * 2
    world.check()


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--processor", "nobody"], "no post-processor 'nobody'"),
        (["--processor", "tagger", "--split", "nowhere"], "split"),
        (["--processor", "tagger", "--item", "x"], "--item"),
        (["--processor", "tagger", "--item", str(UUID(int=7))], "no item"),
        (["--processor", "theirs"], "no post-processor 'theirs'"),
    ],
)
def test_what_is_not_there_is_named_and_nothing_is_begun(
    worlds: Callable[..., World],
    database_url: str,
    tmp_path: Path,
    options: list[str],
    named: str,
) -> None:
    world = worlds(username="local")
    world.processor("tagger")
    worlds().processor("theirs")
    code, _, error = command(
        database_url, tmp_path, "jobs", "reapply", world.dataset.name, *options
    )
    assert code == 2
    assert named in error
    assert len(error.splitlines()) == 1
    assert world.sql("SELECT count(*) FROM operations")[0][0] == 0
