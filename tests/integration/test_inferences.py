"""Inferences made elsewhere: what they add, what they leave alone, and that twice is once."""

import hashlib
import io
import json
import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple
from uuid import UUID, uuid4

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from factories import World, classes
from ppworker.domain.events import JobMoved, LabelsCreated, OperationMoved
from ppworker.domain.given import Standing
from ppworker.errors import Conflict, Invalid, NotFound
from ppworker.pipeline.control import operations, pace
from ppworker.pipeline.control.operation_steps import STEPS
from ppworker.pipeline.inferences import apply_inferences, inferences
from ppworker.pipeline.uploads import ingest, sources
from ppworker.store import datasets, items
from ppworker.store import inferences as store
from ppworker.store import operations as operation_store
from ppworker.store.operations import Operation

CAT = {"inference_items": [{"prediction": "cat", "confidence": 0.8}]}


def added(
    world: World,
    *lines: Mapping[str, Any],
    split: datasets.Split | None = None,
    keep: bool = True,
    key: str | None = None,
) -> Operation:
    """Add inferences and see to the end of it."""
    accepted = inferences.add(
        world.deps, split or world.train, lines, keep_annotations=keep, key=key
    )
    return operations.follow(world.deps, STEPS, world.user, accepted.operation_id)


def said(world: World, item_id: UUID) -> list[tuple[str, str]]:
    """Labels of an item with who set them."""
    return sorted((row.label, row.source) for row in world.annotations(item_id))


def item_ids(world: World, split: datasets.Split | None = None) -> list[UUID]:
    rows = world.sql(
        "SELECT item_id FROM item_splits WHERE split_id = :split ORDER BY item_id",
        split=(split or world.train).id,
    )
    return [row.item_id for row in rows]


HUMAN_CAT, HUMAN_DOG = ("cat", "human"), ("dog", "human")
GIVEN_CAT = ("cat", "inference")


class Row(NamedTuple):
    """A row of the table of outcomes."""

    keep: bool
    target: str
    person: str | None
    """Label that a person has set on the linked item."""
    multi_label: bool
    stands: list[tuple[str, str]]
    """What stands afterwards."""
    counted: dict[str, int]


TABLE = [
    Row(True, "new", None, True, [GIVEN_CAT], {"items_created": 1, "annotations_added": 1}),
    Row(True, "new", None, False, [GIVEN_CAT], {"items_created": 1, "annotations_added": 1}),
    Row(False, "new", None, True, [], {"items_created": 1, "not_kept": 1}),
    Row(False, "new", None, False, [], {"items_created": 1, "not_kept": 1}),
    Row(True, "linked", None, True, [GIVEN_CAT], {"items_linked": 1, "annotations_added": 1}),
    Row(True, "linked", None, False, [GIVEN_CAT], {"items_linked": 1, "annotations_added": 1}),
    Row(False, "linked", None, True, [], {"items_linked": 1, "not_kept": 1}),
    Row(False, "linked", None, False, [], {"items_linked": 1, "not_kept": 1}),
    Row(True, "linked", "cat", True, [HUMAN_CAT], {"items_linked": 1, "already_there": 1}),
    Row(True, "linked", "cat", False, [HUMAN_CAT], {"items_linked": 1, "already_there": 1}),
    Row(True, "linked", "dog", True, [GIVEN_CAT, HUMAN_DOG], {"items_linked": 1, "annotations_added": 1}),
    Row(True, "linked", "dog", False, [HUMAN_DOG], {"items_linked": 1, "dropped_outranked": 1}),
    Row(False, "linked", "cat", True, [HUMAN_CAT], {"items_linked": 1, "not_kept": 1}),
    Row(False, "linked", "cat", False, [HUMAN_CAT], {"items_linked": 1, "not_kept": 1}),
    Row(False, "linked", "dog", True, [HUMAN_DOG], {"items_linked": 1, "not_kept": 1}),
    Row(False, "linked", "dog", False, [HUMAN_DOG], {"items_linked": 1, "not_kept": 1}),
]  # fmt: skip


@pytest.mark.parametrize("row", TABLE, ids=str)
def test_the_table_of_outcomes(worlds, row):
    """Sent once or twice in one call, then again, and again for another split: nothing changes."""
    for copies in (1, 2):
        world = worlds(multi_label=row.multi_label)
        line: dict[str, Any] = {"id": "the-inference", "name": "words", **CAT}
        counted = row.counted | {"predictions": 1}
        if row.target == "linked":
            (item,) = world.add("text", split=world.valid)
            line["dataset_item_id"] = str(item)
            counted["splits_joined"] = 1
            if row.person:
                world.annotate(item, row.person, split=world.valid)
        first = added(world, *[line] * copies, keep=row.keep)
        (item,) = item_ids(world)
        assert first.counts.get("repeated", 0) == copies - 1
        if copies == 1:
            assert first.counts == counted
        assert said(world, item) == row.stands
        world.check()
        rows = world.sql("SELECT id, updated_at FROM annotations ORDER BY id")

        second = added(world, line, keep=row.keep)
        assert second.counts["repeated"] == 1
        third = added(world, line, keep=row.keep, split=world.test)
        assert (third.counts["repeated"], third.counts["splits_joined"]) == (1, 1)
        for repetition in (second, third):
            assert not repetition.counts.keys() & {"items_created", "annotations_added"}
        assert item_ids(world) == item_ids(world, world.test) == [item]
        assert said(world, item) == row.stands
        assert world.sql("SELECT id, updated_at FROM annotations ORDER BY id") == rows
        assert len(world.sql("SELECT 1 FROM inferences")) == copies
        world.check()


def test_added_without_annotations_first_and_with_them_later(world):
    line = {"id": "a", "name": "words", **CAT}
    added(world, line, keep=False)
    added(world, line)
    (item,) = item_ids(world)
    assert said(world, item) == [GIVEN_CAT]
    (row,) = world.sql("SELECT * FROM annotations")
    (inference,) = world.sql("SELECT * FROM inferences")
    assert (row.inference_id, row.review, row.score) == (inference.id, "suggested", 0.8)
    assert inference.raw == line
    world.check()


def test_what_a_person_deleted_or_changed_stays_so(world):
    line = {
        "id": "a",
        "name": "words",
        "inference_items": [{"prediction": n} for n in ("cat", "dog")],
    }
    added(world, line)
    (item,) = item_ids(world)
    world.sql(
        "UPDATE annotations SET deleted_at = now(), review = 'rejected' WHERE label_id = "
        "(SELECT id FROM labels WHERE name = 'cat')"
    )
    world.annotate(item, "cow")
    world.sql(
        "UPDATE annotations SET label_id = (SELECT id FROM labels WHERE name = 'cow'), "
        "review = 'edited' WHERE label_id = (SELECT id FROM labels WHERE name = 'dog')"
    )
    rows = world.sql("SELECT * FROM annotations ORDER BY id")
    again = added(world, line)
    assert (again.counts["dropped_deleted_by_person"], again.counts["already_there"]) == (1, 1)
    assert world.sql("SELECT * FROM annotations ORDER BY id") == rows


@pytest.mark.parametrize("multi_label", [True, False])
def test_models_and_inferences_on_one_item(worlds, multi_label):
    """What a model said before stands; what it says later does not touch the inference's."""
    world = worlds(multi_label=multi_label)
    processor = world.processor()
    (item,) = world.add("text")
    world.run(processor, classes("dog"))
    linked = {"dataset_item_id": str(item), **CAT}
    counts = added(world, linked).counts
    if multi_label:
        assert said(world, item) == [GIVEN_CAT, ("dog", "model")]
    else:
        assert said(world, item) == [("dog", "model")]
        assert counts["dropped_outranked"] == 1
    assert len(world.jobs()) == 1, "an item that is linked triggers nothing"

    added(world, {"name": "words", **CAT})
    _, fresh = item_ids(world)
    world.run(processor, classes("dog"))
    stands = [GIVEN_CAT, ("dog", "model")] if multi_label else [GIVEN_CAT]
    assert said(world, fresh) == stands
    world.check()


@pytest.mark.parametrize("keep", [True, False])
def test_new_items_get_their_jobs_as_uploads_do_behind_interactive_ones(world, events, keep):
    first, second = world.processor(), world.processor(order=1)
    world.processor(splits=("valid",))
    world.processor(file_types=("pdf",))
    counts = added(world, {"name": "one", **CAT}, {"name": "two"}, keep=keep).counts
    assert counts["jobs_planned"] == 4
    rows = world.sql("SELECT post_processor_id, priority, ready FROM post_processor_jobs")
    assert sorted(rows) == sorted([(first.id, 1, True), (second.id, 1, False)] * 2)
    planned = [e for e in events if isinstance(e, JobMoved) and e.cause == "planned"]
    assert len(planned) == 4
    world.check()


def test_unknown_labels_are_created_once_and_known_ones_found_in_any_case(world, events):
    world.annotate(world.add("text")[0], "Big Cat")
    names = ["big  cat", "BIG CAT", "dog", "Dog", "d" * 201, "  "]
    done = added(world, *({"name": f"n{i}", "prediction": n} for i, n in enumerate(names)))
    assert [row.name for row in world.sql('SELECT name FROM labels ORDER BY "index"')] == [
        "Big Cat",
        "dog",
    ]
    assert done.counts["dropped_bad_label"] == 2
    assert [e.names for e in events if isinstance(e, LabelsCreated)] == [("dog",)]
    world.check()


def test_no_more_labels_are_created_than_a_version_may_hold(world, monkeypatch):
    monkeypatch.setattr(apply_inferences, "MOST_LABELS", 3)
    lines = [{"name": f"n{i}", "prediction": f"label {i % 5}"} for i in range(10)]
    done = added(world, *lines)
    assert len(world.sql("SELECT 1 FROM labels")) == 3
    assert (done.counts["annotations_added"], done.counts["dropped_label_cap"]) == (6, 4)
    again = added(world, *lines)
    assert (again.counts["already_there"], again.counts["dropped_label_cap"]) == (6, 4)
    world.check()


def test_the_limit_of_labels_holds_for_two_who_counted_them_at_once(world, monkeypatch):
    monkeypatch.setattr(apply_inferences, "MOST_LABELS", 3)
    count = store.count_labels
    both_counted = threading.Barrier(2, timeout=30)

    def count_together(*arguments):
        found = count(*arguments)
        both_counted.wait()
        return found

    monkeypatch.setattr(store, "count_labels", count_together)
    threads = [
        threading.Thread(
            target=added,
            args=(world, *({"name": f"{t}{i}", "prediction": f"{t}{i}"} for i in (1, 2))),
        )
        for t in "ab"
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(world.sql("SELECT 1 FROM labels")) == 3
    assert len(world.sql("SELECT 1 FROM annotations")) == 3
    world.check()


def test_a_label_that_vanishes_after_it_was_looked_up_is_counted(world, monkeypatch):
    ensure = apply_inferences._ensure_labels

    def ensure_then_lose(*arguments):
        found = ensure(*arguments)
        world.sql("DELETE FROM labels WHERE name = 'cat'")
        return found

    monkeypatch.setattr(apply_inferences, "_ensure_labels", ensure_then_lose)
    done = added(
        world, {"name": "words", "inference_items": [{"prediction": n} for n in ("cat", "dog")]}
    )
    assert (done.counts["annotations_added"], done.counts["dropped_label_deleted"]) == (1, 1)
    world.check()


def test_items_of_others_and_items_that_are_gone_are_skipped_and_counted(world, worlds):
    ((name,),) = world.sql("SELECT username FROM users WHERE id = :id", id=world.user)
    stranger, sibling = worlds(), worlds(username=name)
    (theirs,), (elsewhere,) = stranger.add("secret"), sibling.add("mine, but of another dataset")
    gone, here = world.add("gone", "here", split=world.valid)
    world.sql("UPDATE dataset_items SET deleted_at = now() WHERE id = :id", id=gone)
    named = [str(theirs), str(elsewhere), str(uuid4()), "no id", str(gone), str(here)]
    done = added(
        world, *({"id": f"i{n}", "dataset_item_id": id_, **CAT} for n, id_ in enumerate(named))
    )
    assert done.counts == {
        "skipped_unknown_item": 4,
        "skipped_deleted_item": 1,
        "items_linked": 1,
        "splits_joined": 1,
        "predictions": 1,
        "annotations_added": 1,
    }
    assert item_ids(world) == [here]
    assert said(stranger, theirs) == said(sibling, elsewhere) == []
    other = added(world, {"id": "i5", "dataset_item_id": str(gone), **CAT})
    assert other.counts == {"skipped_other_item": 1}
    world.check()


def test_an_inference_whose_item_was_deleted_does_not_bring_it_back(world):
    line = {"id": "a", "name": "words", **CAT}
    added(world, line)
    world.sql("UPDATE dataset_items SET deleted_at = now()")
    assert added(world, line).counts == {"skipped_deleted_item": 1}
    assert len(world.sql("SELECT 1 FROM dataset_items")) == 1


def test_a_text_keeps_its_spans_right_whatever_letters_it_holds(world):
    text = "\0ok 🚀 \0rocket"
    spans = [
        {"prediction": "what", "coordinates": "7 13"},
        {"prediction": "out", "coordinates": "9 99"},
    ]
    done = added(world, {"name": text, "inference_items": spans})
    (row,) = world.sql(
        "SELECT a.*, i.text AS item_text FROM annotations a JOIN dataset_items i ON i.id = a.item_id"
    )
    assert row.item_text == "ok 🚀 rocket"
    assert (row.coordinates, row.text, row.kind) == ("5 11", "rocket", "span")
    assert row.item_text[slice(*map(int, row.coordinates.split()))] == row.text
    assert done.counts["dropped_outside"] == 1
    assert done.counts["refused_values"] == 2
    linked = {
        "dataset_item_id": str(row.item_id),
        "inference_items": [{"prediction": "what", "coordinates": "5 11"}],
    }
    assert added(world, linked).counts["already_there"] == 1
    world.check()


def test_json_that_postgresql_refuses_is_kept_without_what_it_refuses(world):
    line = (
        b'{"name": "words", "odd": NaN, "huge": 1e999999, "deep": {"nul": "a\\u0000b"}, '
        b'"smile": "\\ud83d\\ude00", "more": [1, 2]}'
    )
    path = world.deps.settings.data_dir.parent / "odd.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + line + b"\r\n\n")
    accepted = inferences.add_file(world.deps, world.train, path)
    done = operations.run(world.deps, STEPS)
    assert done is not None
    assert (accepted.total, done.status, done.counts["refused_values"]) == (1, "completed", 3)
    ((raw,),) = world.sql("SELECT raw FROM inferences")
    assert raw == {
        "name": "words", "odd": None, "huge": None, "deep": {"nul": "ab"}, "smile": "😀",
        "more": [1, 2],
    }  # fmt: skip


def image_of(world, tmp_path, size=(40, 20)) -> str:
    path = tmp_path / "image.png"
    Image.new("RGB", size).save(path)
    return sources.keep_file(world.deps, world.user, path)


def test_a_file_inference_takes_the_users_stored_file(world, worlds, tmp_path):
    sha256 = image_of(world, tmp_path)
    stranger = worlds()
    theirs = image_of(stranger, tmp_path, (1, 1))
    processor = world.processor(reads="file", media_types=("image/*",))
    boxes = [{"prediction": "cat", "coordinates": "0.5 0.5 0.5 1"}]
    done = added(
        world,
        {"id": "a", "name": "folder/a.png", "blob": sha256.upper(), "inference_items": boxes},
        {"id": "b", "name": "b", "extension": "png", "blob": theirs, "inference_items": boxes},
        {"id": "c", "name": "c", "extension": ".PNG", "blob": sha256},
        {"id": "d", "name": "d", "blob": "0" * 64},
    )
    assert done.counts == {
        "items_created": 2,
        "predictions": 1,
        "annotations_added": 1,
        "jobs_planned": 2,
        "skipped_unknown_blob": 2,
    }
    rows = world.sql(
        "SELECT * FROM dataset_items WHERE user_id = :user ORDER BY id", user=world.user
    )
    assert [(r.name, r.extension, r.media_type, r.width, r.height) for r in rows] == [
        ("a.png", "png", "image/png", 40, 20),
        ("c.png", "png", "image/png", 40, 20),
    ]
    (row,) = world.sql("SELECT kind, geometry, coordinates FROM annotations")
    assert row == ("bbox", {"box": [10, 0, 30, 20]}, "0.500000 0.500000 0.500000 1.000000")
    assert {job.post_processor_id for job in world.jobs()} == {processor.id}
    world.check()


def test_files_that_there_is_no_time_for_come_in_the_next_chunk(world, tmp_path, monkeypatch):
    monkeypatch.setattr(apply_inferences, "_FILES_S", 0.0)
    shas = [image_of(world, tmp_path, (n, n)) for n in (1, 2, 3)]
    done = added(world, *({"name": f"{n}.png", "blob": sha} for n, sha in enumerate(shas)))
    assert done.counts == {"items_created": 3}
    world.check()


@pytest.mark.parametrize("chunk", [1, 10])
def test_of_one_id_the_first_file_that_can_be_used_counts(world, tmp_path, monkeypatch, chunk):
    """Wherever chunks end: each prediction stands on the file that it was made from."""
    monkeypatch.setattr("ppworker.store.operations.FIRST_CHUNK", chunk)
    small, large = image_of(world, tmp_path, (10, 10)), image_of(world, tmp_path, (90, 90))
    done = added(
        world,
        {"id": "a", "name": "none.png", "blob": "0" * 64},
        {"id": "a", "name": "small.png", "blob": small, **CAT},
        {"id": "a", "name": "large.png", "blob": large},
    )
    assert (done.counts["skipped_unknown_blob"], done.counts["repeated"]) == (1, 1)
    (row,) = world.sql(
        "SELECT i.name, i.width, n.raw->>'blob' AS blob FROM inferences n "
        "JOIN dataset_items i ON i.id = n.item_id"
    )
    assert row == ("small.png", 10, small)
    world.check()


def test_many_inferences_of_one_item_do_not_read_its_annotations_for_each(world, monkeypatch):
    looks: list[int] = []
    monkeypatch.setattr("ppworker.domain.given.Standing.__init__", _counted(looks))
    (item,) = world.add("some text")
    world.annotate(item, "dog")
    lines = [
        {"id": str(n), "dataset_item_id": str(item), "inference_items": [{"prediction": f"l{n}"}]}
        for n in range(100)
    ]
    done = added(world, *lines)
    assert done.counts["annotations_added"] == 100
    assert looks == [1], "once for the chunk"
    world.check()


def _counted(looks):
    init = Standing.__init__

    def counted(self, existing):
        looks.append(len(existing))
        init(self, existing)

    return counted


def test_the_file_of_an_item_is_its_users_until_the_item_is_deleted(world, worlds, tmp_path):
    def uploaded(by: World, content: str) -> tuple[UUID, str]:
        path = tmp_path / "file.txt"
        path.write_text(content)
        upload = [ingest.Upload(name="file.txt", path=path)]
        taken = ingest.take_upload(by.deps, by.valid, upload)
        return taken.item_ids[0], hashlib.sha256(path.read_bytes()).hexdigest()

    (_, mine), (gone, deleted) = uploaded(world, "mine"), uploaded(world, "gone")
    _, theirs = uploaded(worlds(), "theirs")
    world.sql("UPDATE dataset_items SET deleted_at = now() WHERE id = :id", id=gone)
    done = added(
        world, *({"name": f"{n}.txt", "blob": b} for n, b in enumerate([mine, deleted, theirs]))
    )
    assert done.counts == {"items_created": 1, "skipped_unknown_blob": 2}
    ((name, sha256),) = world.sql(
        "SELECT i.name, i.content_sha256 FROM dataset_items i JOIN item_splits s "
        "ON s.item_id = i.id WHERE s.split_id = :split",
        split=world.train.id,
    )
    assert (name, sha256) == ("0.txt", mine)


def test_a_file_inference_without_its_file_becomes_the_items_place(world):
    world.processor(reads="file")
    read = world.processor(reads="text")
    done = added(
        world,
        {
            "name": "in/cat.jpg",
            "extension": "jpg",
            "inference_items": [{"prediction": "cat", "coordinates": "0.5 0.5 0.1 0.1"}],
        },
        {
            "name": "speech.mp3",
            "extension": "mp3",
            "result": "hello",
            "inference_items": [{"prediction": "who", "coordinates": "1 2.5"}],
        },
    )
    assert done.counts["items_without_file"] == 2
    rows = world.sql("SELECT name, extension, text, content_sha256 FROM dataset_items ORDER BY id")
    assert rows == [("cat.jpg", "jpg", None, None), ("speech.mp3", "mp3", "hello", None)]
    kinds = world.sql("SELECT kind, geometry, coordinates FROM annotations ORDER BY id")
    assert kinds == [
        ("bbox", None, "0.5 0.5 0.1 0.1"),
        ("segment", {"start": 1.0, "end": 2.5}, "1.000 2.500"),
    ]
    assert {job.post_processor_id for job in world.jobs()} == {read.id}, (
        "its file will trigger the rest"
    )
    world.check()


def test_texts_of_linked_items_are_read_in_portions(world, monkeypatch):
    monkeypatch.setattr(apply_inferences, "_TEXT_BYTES", 25)
    ids = world.add(*(f"ten bytes {i}" for i in range(7)))
    span = {"inference_items": [{"prediction": "number", "coordinates": "10 11"}]}
    chunks = []
    accepted = inferences.add(
        world.deps, world.valid, [{"dataset_item_id": str(id_), **span} for id_ in ids]
    )
    operations.run(world.deps, STEPS, watch=lambda o: chunks.append(o.done))
    assert chunks == [2, 4, 6, 7]
    found = inferences.find_items(
        world.deps, world.train, [{"dataset_item_id": str(ids[0]), **span}]
    )
    assert found == [ids[0]]
    assert [r.text for r in world.sql("SELECT text FROM annotations ORDER BY id")] == list(
        "0123456"
    )
    assert accepted.total == 7


def test_texts_are_read_in_portions_also_where_another_line_marks_places_in_them(
    world, monkeypatch
):
    monkeypatch.setattr(apply_inferences, "_TEXT_BYTES", 25)
    ids = world.add(*(f"ten bytes {i}" for i in range(7)))
    span = {"inference_items": [{"prediction": "number", "coordinates": "10 11"}]}
    chunks = []
    lines = [
        line
        for id_ in ids
        for line in (
            {"id": str(id_), "dataset_item_id": str(id_)},
            {"id": str(id_), "name": "x", **span},
        )
    ]
    inferences.add(world.deps, world.valid, lines)
    operations.run(world.deps, STEPS, watch=lambda o: chunks.append(o.done))
    assert chunks == [4, 8, 12, 14]
    rows = world.sql("SELECT text FROM annotations ORDER BY id")
    assert [row.text for row in rows] == list("0123456")


BAD: list[tuple[Any, str, str]] = [
    ({"name": 1}, "name", "string"),
    ([1], "", "must be an object"),
    ({"inference_items": [{"prediction": "x", "confidence": 1.5}], "name": "x"}, "inference_items[0].confidence", "0 to 1"),
    ({"inference_items": [{}, {"confidence": "1"}], "name": "x"}, "inference_items[1].confidence", "0 to 1"),
    ({"inference_items": {}, "name": "x"}, "inference_items", "array"),
    ({"inference_items": [3], "name": "x"}, "inference_items[0]", "must be an object"),
    ({"confidence": float("nan"), "prediction": "x", "name": "x"}, "confidence", "0 to 1"),
    ({"prediction": "cat"}, "name", "dataset_item_id"),
    ({"name": "", "result": ""}, "name", "dataset_item_id"),
    ({"name": "x" * 30}, "name", "30 bytes"),
    ({"name": "é" * 15}, "name", "30 bytes"),
    ({"name": "x", "id": "x" * 201}, "id", "200"),
    ({"name": "x", "blob": "abc"}, "blob", "SHA-256"),
    ({"name": "x\ud800"}, "", "surrogate"),
    ({"name": "x", "when": object()}, "", "JSON"),
]  # fmt: skip


def test_one_bad_inference_refuses_the_call_and_names_what_is_wrong(world):
    small = replace(
        world.deps, settings=world.deps.settings.model_copy(update={"max_text_bytes": 29})
    )
    for line, field, words in BAD:
        with pytest.raises(Invalid, match=words) as refused:
            inferences.add(small, world.train, [{"name": "good"}, line])
        assert refused.value.field == f"inferences[1]{'.' if field else ''}{field}", line
    assert world.sql("SELECT 1 FROM operations") == []
    assert not any(path.is_file() for path in world.deps.blobs.root.rglob("*"))


BAD_LINES = [
    (b'{"name": "x"', "no JSON"),
    (b'{"name": "x", "n": ' + b"9" * 5000 + b"}", "out of range"),
    (b'{"name": "\\ud800"}', "no JSON"),
    (b'{"name": "\xff"}', "no JSON"),
    (b'{"name": "x", "d": ' + b"[" * 9999 + b"]" * 9999 + b"}", "no JSON"),
    (b"[]", "must be an object"),
    (b'{"name": "' + b"x" * 2_000_000 + b'"}', "bytes"),
]


def test_a_bad_line_of_a_file_is_named_by_its_number(world, tmp_path):
    path = tmp_path / "bad.jsonl"
    small = replace(
        world.deps, settings=world.deps.settings.model_copy(update={"max_text_bytes": 1000})
    )
    for line, words in BAD_LINES:
        path.write_bytes(b'{"name": "good"}\n\n' + line + b"\n")
        with pytest.raises(Invalid, match=words) as refused:
            inferences.add_file(small, world.train, path)
        assert refused.value.field.startswith("line 3"), line[:80]
    assert world.sql("SELECT 1 FROM operations") == []


def test_a_key_names_the_first_operation(world):
    first = inferences.add(world.deps, world.train, [{"name": "x"}], key="k")
    again = inferences.add(world.deps, world.train, [{"name": "x"}], key="k")
    assert (again.operation_id, again.total, again.repeated) == (first.operation_id, 1, True)
    for split, lines, keep in (
        (world.valid, [{"name": "x"}], True),
        (world.train, [{"name": "y"}], True),
        (world.train, [{"name": "x"}], False),
    ):
        with pytest.raises(Conflict) as refused:
            inferences.add(world.deps, split, lines, keep_annotations=keep, key="k")
        assert refused.value.field == "key"
    assert len(world.sql("SELECT 1 FROM operations")) == 1


def test_nothing_given_is_nothing_done(world):
    done = added(world)
    assert (done.status, done.total, done.counts) == ("completed", 0, {})


def test_a_split_that_goes_away_ends_the_operation_with_its_reason(world, monkeypatch):
    monkeypatch.setattr(pace, "MOST_UNITS", 128)
    lines = [{"name": f"n{i}", **CAT} for i in range(300)]
    accepted = inferences.add(world.deps, world.test, lines)
    done: list[int] = []

    def lose(operation):
        if not done:
            world.sql("DELETE FROM item_splits WHERE split_id = :id", id=world.test.id)
            world.sql("DELETE FROM dataset_splits WHERE id = :id", id=world.test.id)
        done.append(operation.done)

    end = operations.run(world.deps, STEPS, operation_id=accepted.operation_id, watch=lose)
    assert end is not None
    assert (end.status, end.reason, end.done) == ("failed", "not_found", 128)
    assert "split" in end.error


def test_a_dataset_that_is_deleted_while_a_chunk_is_prepared_gets_none_of_it(world):
    accepted = inferences.add(world.deps, world.train, [{"name": "words", **CAT}])
    with world.deps.db.look() as tx:
        operation = operation_store.find_operation(tx, world.user, accepted.operation_id)
    assert operation is not None
    write = apply_inferences.step(world.deps, operation)
    world.sql("UPDATE datasets SET deleted_at = now()")
    with pytest.raises(NotFound), world.deps.db.begin() as tx:
        write(tx)


SPAN = {"inference_items": [{"prediction": "cat", "coordinates": "0 3"}]}


@pytest.mark.parametrize("chunk", [1, 10])
@pytest.mark.parametrize("spans", [0, 1])
def test_an_id_in_several_lines_is_about_the_item_of_the_first(world, monkeypatch, chunk, spans):
    """Wherever chunks end, and whichever of the lines marks a place in the item's text."""
    monkeypatch.setattr("ppworker.store.operations.FIRST_CHUNK", chunk)
    first, second = world.add("one two", "three", split=world.valid)
    said_by = [SPAN, {}] if spans == 0 else [{}, SPAN]
    done = added(
        world,
        {"id": "a", "dataset_item_id": str(first), **said_by[0]},
        {"id": "a", "name": "another text", **said_by[1]},
        {"id": "a", "dataset_item_id": str(second), **SPAN},
    )
    assert done.counts == {
        "items_linked": 1,
        "splits_joined": 1,
        "repeated": 1,
        "predictions": 1,
        "annotations_added": 1,
        "skipped_other_item": 1,
    }
    assert item_ids(world) == [first]
    assert [tuple(row) for row in world.sql("SELECT item_id, kind, text FROM annotations")] == [
        (first, "span", "one")
    ]
    world.check()


def test_items_deleted_between_chunks_do_not_stop_the_rest(world, monkeypatch):
    monkeypatch.setattr(pace, "MOST_UNITS", 128)
    ids = world.add(*(f"t{i}" for i in range(200)), split=world.valid)
    accepted = inferences.add(
        world.deps, world.train, [{"dataset_item_id": str(id_), **CAT} for id_ in ids]
    )

    def lose(operation):
        if operation.done == 128:
            world.sql(
                "UPDATE dataset_items SET deleted_at = now() WHERE id = ANY(:ids)", ids=ids[120:140]
            )

    end = operations.run(world.deps, STEPS, operation_id=accepted.operation_id, watch=lose)
    assert end is not None
    assert (end.status, end.counts["skipped_deleted_item"]) == ("completed", 12)
    assert end.counts["items_linked"] == 188


def test_operations_that_bring_the_same_inferences_at_once_make_each_item_once(world, events):
    world.processor()
    lines = [{"id": f"i{i}", "name": f"n{i}", **CAT} for i in range(400)]
    accepted = [
        inferences.add(world.deps, world.train, chosen)
        for chosen in (lines, lines[::-1], lines[100:])
    ]
    ends: list[Operation] = []

    def follow(operation_id):
        ends.append(operations.follow(world.deps, STEPS, world.user, operation_id))

    threads = [threading.Thread(target=follow, args=(a.operation_id,)) for a in accepted]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [end.status for end in ends] == ["completed"] * 3
    assert sum(end.counts.get("items_created", 0) for end in ends) == 400
    assert sum(end.counts.get("annotations_added", 0) for end in ends) == 400
    assert sum(end.counts.get("repeated", 0) for end in ends) == 700
    assert len(item_ids(world)) == len(world.jobs()) == 400
    causes = {e.cause for e in events if isinstance(e, OperationMoved)}
    assert causes == {"planned", "claimed", "finished"}, "none stumbled over another"
    world.check()


def test_it_waits_for_whoever_is_changing_the_item_and_then_sees_the_change(world):
    """What it decides on is read after the item's lock was won, or a label would stand twice."""
    (item,) = world.add("text")
    world.annotate(item, "dog")
    linked = {"dataset_item_id": str(item), "prediction": "dog"}
    accepted = inferences.add(world.deps, world.valid, [linked])
    ends: list[Operation | None] = []
    thread = threading.Thread(target=lambda: ends.append(operations.run(world.deps, STEPS)))
    world.sql("UPDATE annotations SET label_id = label_id, deleted_at = now(), review = 'rejected'")
    with world.deps.db.begin() as tx:
        items.lock_items(tx, [item])
        tx.execute(sa.text("UPDATE annotations SET deleted_at = NULL, review = 'accepted'"))
        thread.start()
        until = time.monotonic() + 20
        waiting = "SELECT 1 FROM pg_locks WHERE NOT granted"
        while not world.sql(waiting) and thread.is_alive():
            assert time.monotonic() < until
            time.sleep(0.01)
    thread.join(20)
    (end,) = ends
    assert end is not None
    assert end.id == accepted.operation_id
    assert end.counts == {
        "items_linked": 1,
        "splits_joined": 1,
        "predictions": 1,
        "already_there": 1,
    }
    world.check()


def test_inferences_and_finishes_of_the_same_items_do_not_stand_in_each_others_way(world):
    processor = world.processor(max_attempts=20)
    ids = world.add(*(f"t{i}" for i in range(300)))
    accepted = inferences.add(
        world.deps, world.valid, [{"dataset_item_id": str(id_), **CAT} for id_ in reversed(ids)]
    )

    def work():
        while (
            world.claim(processor, limit=0).jobs
            or world.run(processor, classes("dog"), limit=20).completed
        ):
            pass

    thread = threading.Thread(target=work)
    thread.start()
    end = operations.follow(world.deps, STEPS, world.user, accepted.operation_id)
    thread.join(60)
    assert end.counts["annotations_added"] == 300
    assert set(world.statuses()) == {"completed"}
    assert len(world.sql("SELECT 1 FROM annotations")) == 600
    world.check()


_LINES = st.lists(
    st.fixed_dictionaries(
        {"prediction": st.sampled_from(["cat", "dog", "Cat", ""])},
        optional={
            "id": st.sampled_from(["a", "b", "c"]),
            "name": st.sampled_from(["one two", "three four"]),
            "dataset_item_id": st.sampled_from([0, 1, 2]),
            "inference_items": st.lists(
                st.fixed_dictionaries(
                    {
                        "prediction": st.sampled_from(["cat", "dog", "cow"]),
                        "confidence": st.sampled_from([None, 0.1, 0.9]),
                        "coordinates": st.sampled_from(["", "0 3", "4 99", "odd"]),
                    }
                ),
                max_size=4,
            ),
        },
    ).filter(lambda line: "name" in line or "dataset_item_id" in line),
    max_size=8,
)


@settings(
    max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)
@given(
    calls=st.lists(st.tuples(_LINES, st.booleans(), st.booleans()), min_size=1, max_size=3),
    multi_label=st.booleans(),
    chunk=st.sampled_from([1, 3, 100]),
)
def test_repetition_changes_nothing_and_everything_is_accounted_for(
    worlds, calls, multi_label, chunk
):
    world = worlds(multi_label=multi_label)
    first, second = world.add("one two", "three four", split=world.test)
    named = [str(first), str(second), str(uuid4())]

    def send() -> None:
        for lines, keep, is_train in calls:
            filled = [
                line | {"dataset_item_id": named[line["dataset_item_id"]]}
                if "dataset_item_id" in line
                else line
                for line in lines
            ]
            split = world.train if is_train else world.valid
            accepted = inferences.add(world.deps, split, filled, keep_annotations=keep)
            end = step_by_step(world, accepted.operation_id, chunk)
            assert (end.status, end.done) == ("completed", len(lines))
            account(end)
            world.check()

    send()
    before = state(world)
    send()
    assert state(world) == before


def step_by_step(world: World, operation_id: UUID, chunk: int) -> Operation:
    """Run an operation in chunks of a size."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pace, "MOST_UNITS", chunk)
        patch.setattr("ppworker.store.operations.FIRST_CHUNK", chunk)
        end = operations.run(world.deps, STEPS, operation_id=operation_id)
    assert end is not None
    return end


def account(end: Operation) -> None:
    """Every inference and every prediction of those not skipped is in exactly one count."""
    counts = end.counts
    skipped = sum(n for word, n in counts.items() if word.startswith("skipped_"))
    kinds = ("items_created", "items_linked", "repeated")
    assert sum(counts.get(kind, 0) for kind in kinds) + skipped == end.done
    dropped = sum(n for word, n in counts.items() if word.startswith("dropped_"))
    ends = ("annotations_added", "already_there", "not_kept")
    assert sum(counts.get(kind, 0) for kind in ends) + dropped == counts.get("predictions", 0)


def state(world: World) -> Any:
    return (
        world.sql("SELECT id, item_id, label_id, score, updated_at FROM annotations ORDER BY id"),
        world.sql("SELECT split_id, item_id FROM item_splits ORDER BY 1, 2"),
        world.sql("SELECT id, version FROM dataset_items ORDER BY id"),
        world.sql("SELECT id, external_id, item_id FROM inferences ORDER BY id"),
        world.sql("SELECT id FROM labels ORDER BY id"),
    )


@pytest.mark.parametrize("chunk", [7, 1000])
def test_the_outcome_does_not_depend_on_where_chunks_end(world, chunk):
    lines = [
        {
            "id": f"i{i % 40}",
            "name": f"text {i % 40}",
            "inference_items": [{"prediction": f"l{i % 3}"}],
        }
        for i in range(60)
    ]
    accepted = inferences.add(world.deps, world.train, lines)
    end = step_by_step(world, accepted.operation_id, chunk)
    assert end.counts == {
        "items_created": 40,
        "repeated": 20,
        "predictions": 60,
        "annotations_added": 60,
    }
    world.check()


def test_what_is_staged_is_what_was_given(world):
    lines: list[dict[str, Any]] = [{"name": "é", "n": [1]}, {"name": "b"}]
    inferences.add(world.deps, world.train, lines)
    ((arguments, total),) = world.sql("SELECT arguments, total FROM operations")
    content = world.deps.blobs.path(arguments["blob"]).read_bytes()
    assert hashlib.sha256(content).hexdigest() == arguments["blob"]
    assert [json.loads(line) for line in io.BytesIO(content)] == lines
    assert total == 2
