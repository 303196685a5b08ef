"""COCO archives: what they hold comes back, what they cannot is said, what is broken is refused."""

import io
import json

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from format_archives import (
    about,
    opened,
    picture,
    placed,
    read,
    round_trip,
    survive,
    text_item,
    written,
)
from ppworker.errors import Invalid
from ppworker.formats import json_stream
from ppworker.formats.base import Mark
from ppworker.formats.coco import LOSSES, Coco

COCO = Coco()


def box(*sides, label="cat", **values):
    return Mark(label=label, kind="bbox", geometry={"box": list(sides)}, **values)


def polygon(*points, label="cat", **values):
    return Mark(
        label=label, kind="polygon", geometry={"points": [list(p) for p in points]}, **values
    )


def file(images=None, annotations=None, categories=None, **more):
    """Text of a file of annotations."""
    return json.dumps(
        {
            "images": [{"id": 1, "file_name": "a.jpg"}] if images is None else images,
            "annotations": annotations or [],
            "categories": [{"id": 7, "name": "cat"}] if categories is None else categories,
        } | more
    )  # fmt: skip


def annotation(**values):
    return {"id": 1, "image_id": 1, "category_id": 7, "bbox": [1, 2, 3, 4]} | values


def test_a_file_of_annotations_has_what_the_format_asks_for():
    marks = (box(10, 5, 30, 25, score=0.5), polygon((0, 0), (10, 0), (10, 10), label="dog"))
    members, report = written(
        COCO, [picture(1, marks=marks), picture(2, width=None, splits=("valid",))],
        about(splits=("train", "valid"), name="zoo"),
    )  # fmt: skip
    assert set(members) == {
        "annotations/instances_train.json", "annotations/instances_valid.json", "config.json",
        "images/1.jpg", "images/2.jpg",
    }  # fmt: skip
    train = json.loads(members["annotations/instances_train.json"])
    assert train["images"] == [{"id": 1, "file_name": "1.jpg", "width": 100, "height": 50}]
    assert train["categories"] == [
        {"id": 1, "name": "cat", "supercategory": ""}, {"id": 2, "name": "dog", "supercategory": ""},
    ]  # fmt: skip
    assert train["annotations"] == [
        {"id": 1, "image_id": 1, "category_id": 1, "bbox": [10, 5, 20, 20], "area": 400,
         "segmentation": [], "iscrowd": 0, "score": 0.5},
        {"id": 2, "image_id": 1, "category_id": 2, "bbox": [0, 0, 10, 10], "area": 50,
         "segmentation": [[0, 0, 10, 0, 10, 10]], "iscrowd": 0},
    ]  # fmt: skip
    valid = json.loads(members["annotations/instances_valid.json"])
    assert valid["images"] == [{"id": 2, "file_name": "2.jpg"}]
    assert valid["annotations"] == []
    assert not report.losses


def test_annotations_may_stand_before_their_pictures_and_categories():
    text = json.dumps(
        {
            "annotations": [annotation(image_id="b"), annotation(image_id=1, bbox=[0, 0, 5, 5])],
            "images": [{"id": 1, "file_name": "a.jpg"}, {"id": "b", "file_name": "b.jpg"}],
            "categories": [{"id": 7, "name": " big   cat "}], "info": {}, "more": [1, [2]],
        }
    )  # fmt: skip
    header, records, report = read(
        COCO, {"annotations/instances_val.json": text, "images/a.jpg": "", "images/b.jpg": ""}
    )
    assert [label.name for label in header.labels] == ["big cat"]
    assert [(r.name, r.splits, placed(r, picture())[0].geometry["box"]) for r in records] == [
        ("a.jpg", ("val",), [0, 0, 5, 5]), ("b.jpg", ("val",), [1, 2, 4, 6]),
    ]  # fmt: skip
    assert not report.skipped


@pytest.mark.parametrize(
    ("member", "picture_member", "split"),
    [
        ("train/_annotations.coco.json", "train/a.jpg", ("train",)),
        ("annotations/instances_train2017.json", "train2017/a.jpg", ("train2017",)),
        ("data/annotations/person_keypoints_x.json", "data/images/x/a.jpg", ("x",)),
        ("result.json", "images/a.jpg", ()),
        ("valid.json", "a.jpg", ("valid",)),
        ("annotations/instances.json", "images/a.jpg", ()),
    ],
)
def test_common_layouts_are_understood(member, picture_member, split):
    members = {member: file(annotations=[annotation()]), picture_member: "x", "other/a.jpg": "y"}
    _, records, _ = read(COCO, members)
    assert [(r.member, r.splits, len(r.marks)) for r in records] == [(picture_member, split, 1)]


def test_a_picture_of_two_splits_is_one_item_and_its_annotations_count_once():
    twice = [annotation(), annotation(id=2)]
    members = {
        "annotations/instances_a.json": file(annotations=twice),
        "annotations/instances_b.json": file(annotations=[*twice, annotation(bbox=[9, 9, 1, 1])]),
        "images/a.jpg": "",
    }  # fmt: skip
    _, (record,), _ = read(COCO, members)
    assert record.splits == ("a", "b")
    assert [found.geometry["box"] for found in placed(record, picture())] == [
        [1, 2, 4, 6], [1, 2, 4, 6], [9, 9, 10, 10],
    ]  # fmt: skip


def test_what_cannot_be_taken_is_skipped_and_counted():
    given = [
        annotation(iscrowd=1), annotation(category_id=None), annotation(image_id=99),
        annotation(image_id=2), annotation(bbox=[0, 0, 0, 4]), annotation(bbox=[0, 0, "x", 4]),
        annotation(segmentation={"counts": "abc", "size": [1, 2]}), annotation(score=3),
        annotation(segmentation=[[0, 0, 5, 0, 5, 5], [9, 9, 8, 8, 7, 8], [1, 2]]),
    ]  # fmt: skip
    images = [{"id": 1, "file_name": "a.jpg"}, {"id": 2, "file_name": "gone.jpg"}]
    members = {
        "annotations/instances_a.json": file(images, given), "images/a.jpg": "",
        "annotations/captions_a.json": "{}", "notes.json": '{"x": [1]}',
    }  # fmt: skip
    _, (record,), report = read(COCO, members)
    assert [mark.kind for mark in record.marks] == ["bbox", "bbox", "polygon", "polygon"]
    assert report.skipped == {
        "annotation_crowd": 1, "annotation_bad_label": 1, "annotation_of_unknown_image": 1, "annotation_of_missing_file": 1, "missing_file": 1, "annotation_zero_area": 1,
        "annotation_bad_geometry": 2, "mask": 1, "bad_score": 1, "parted": 1, "other_task": 1, "unused_file": 1,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "a.json: holds neither"),
        ("[]x", "goes on"),
        ('{"images": [', "a.json: images[0]"),
        ('{"images": [{"id": 1', "a.json: images[0]: is no JSON"),
        ('{"images": [{"id": NaN}]}', "NaN is not JSON"),
        ('{"images": {}}', "a.json: images: is no list"),
        ('{"images": [1]}', "a.json: images[0]: is no object"),
        (file([{"file_name": "a.jpg"}]), "images[0].id"),
        (file([{"id": 1}]), "images[0].file_name"),
        (file([{"id": 1, "file_name": "a.jpg"}] * 2), "images[1].id"),
        (file(annotations=[annotation(image_id=None)]), "annotations[0].image_id"),
        (file(annotations=[annotation(), annotation(category_id=8)]), "annotations[1].category_id"),
        (file(categories=[{"id": 1}]), "categories[0].name"),
        (file(categories=[{"id": 1, "name": "x"}] * 2), "categories[1].id"),
        ('{"images": ' + "[" * 100 + "]" * 100 + "}", "nests too deep"),
        ('{"images": ' + "[" * 100_000, "nests too deep"),
        ('{"images": [' + "9" * 5000 + "]}", "images[0]"),
        (b'{"images": ["\xff"]}', "is not UTF-8"),
        ('{"a": "' + "x" * 9_000_000 + '"}', "is longer than"),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_what_is_broken_is_refused_by_member_and_place(text, said):
    with pytest.raises(Invalid) as refused:
        read(COCO, {"a.json": text, "a.jpg": ""})
    assert said in str(refused.value)
    assert refused.value.field == "file"


def test_an_archive_without_annotations_is_refused_with_the_remedy():
    with pytest.raises(Invalid, match=r"instances_train\.json"):
        read(COCO, {"a.jpg": "x"})


def test_every_loss_is_counted():
    given = about(("cat", "a  b"), ("train", "a:b"), config="{}", default_split="train")
    odd = picture(
        3, name="a/b", description="d", metadata="{}", state="done", text="read",
        marks=(
            box(0, 0, 1, 1, review="suggested", source="model", text="t"),
            Mark(label="cat", kind="class"), Mark(label="cat", kind="class", coordinates="odd"),
            Mark(label="cat", kind="span", geometry={"start": 0, "end": 1}),
            Mark(label="cat", kind="segment", geometry={"start": 0, "end": 1}),
            box(0, 0, 1, 1, page=2), Mark(label="cat", kind="polygon"),
        ),
    )  # fmt: skip
    _, report = written(COCO, [odd, text_item("t", 4)], given)
    assert report.losses == {
        "no_pictures": 1, "descriptions": 1, "metadata": 1, "states": 1, "item_texts": 1,
        "file_names": 1, "reviews": 1, "origins": 1, "mark_texts": 1, "classes": 1, "places": 2,
        "spans": 1, "segments": 1, "pages": 1, "label_names": 1, "split_names": 1, "settings": 2,
    }  # fmt: skip
    assert report.losses.keys() <= LOSSES.keys()


def test_an_item_of_no_split_comes_back_without_one():
    _, (record,), lost, _ = round_trip(COCO, [picture(splits=())])
    assert record.splits == ()
    assert not lost.losses


def test_an_export_that_goes_on_in_another_process_is_the_same():
    records = [picture(n, splits=("train", "valid"), marks=(box(0, 0, n, n),)) for n in (1, 2, 3)]
    given_about = about(splits=("train", "valid"))
    assert written(COCO, records, given_about) == written(COCO, records, given_about, breaks=True)


@st.composite
def pictures(draw):
    """Pictures with all that the format holds, their places anywhere inside."""
    records = []
    for number in range(1, draw(st.integers(1, 4)) + 1):
        width, height = draw(st.integers(2, 5000)), draw(st.integers(2, 5000))
        xs, ys = st.integers(0, width), st.integers(0, height)
        marks = []
        for _ in range(draw(st.integers(0, 4))):
            label, score = draw(st.sampled_from(["cat", "dog"])), draw(st.none() | st.floats(0, 1))
            points = draw(st.lists(st.tuples(xs, ys), min_size=3, max_size=6, unique=True))
            (x1, y1), (x2, y2) = points[:2]
            kind = draw(st.sampled_from(["bbox", "polygon", "keypoints"]))
            if kind == "polygon":
                (xa, ya), (xb, yb), (xc, yc) = points[:3]
                assume((xb - xa) * (yc - ya) != (yb - ya) * (xc - xa))
                marks.append(polygon(*points, label=label, score=score))
            elif kind == "keypoints":
                seen = [[x, y, 2] for x, y in points] + [[0, 0, 0]]
                marks.append(Mark(label=label, kind=kind, geometry={"points": seen}, score=score))
            elif x1 != x2 and y1 != y2:
                sides = (min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2))
                marks.append(box(*sides, label=label, score=score))
        splits = draw(st.sampled_from([("train",), ("train", "valid"), ("valid",)]))
        values = {"width": width, "height": height, "splits": splits, "marks": tuple(marks)}
        records.append(picture(number, name=f"{number} é.jpg", **values))
    return records


@given(pictures())
def test_all_that_the_format_holds_comes_back_equal(records):
    given_about = about(splits=("train", "valid"))
    header, found, lost, skipped = round_trip(COCO, records, given_about)
    assert [(label.name, label.color) for label in header.labels] == [
        (label.name, label.color) for label in given_about.labels
    ]
    assert {split.name for split in header.splits} == {"train", "valid"}
    assert not lost.losses
    assert not skipped.skipped
    again = {record.name: record for record in found}
    for record in records:
        same = again[record.name]
        assert same.splits == record.splits
        assert len(same.marks) == len(record.marks)
        for mark, place in zip(record.marks, placed(same, record), strict=True):
            assert (place.label, place.kind, place.score) == (mark.label, mark.kind, mark.score)
            assert place.geometry == mark.geometry


SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=5), st.sampled_from([1, 2, 7, "a.jpg", "", 10**400, -1, "\ud800", 1e308]),
)  # fmt: skip
JSON = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip
OBJECTS = st.dictionaries(
    st.sampled_from(["id", "file_name", "name", "image_id", "category_id", "bbox", "segmentation",
                     "keypoints", "iscrowd", "score"]), JSON,
)  # fmt: skip
ALMOST = st.builds(
    lambda base, more: annotation() | {"file_name": "a.jpg", "name": "cat"} | base | more,
    OBJECTS,
    OBJECTS,
)
FILES = st.dictionaries(
    st.sampled_from(["images", "annotations", "categories", "info"]),
    st.lists(OBJECTS | ALMOST | JSON, max_size=3) | JSON,
)  # fmt: skip


@given(FILES, st.data())
def test_damaged_json_is_refused_and_never_crashes(value, data):
    text = json.dumps(value)
    if data.draw(st.booleans()):
        at = data.draw(st.integers(0, len(text)))
        text = (
            text[:at]
            + data.draw(st.sampled_from(["", ",", "NaN", "-Infinity", "{", '"', "\0", "]" * 3]))
            + text[at + 1 :]
        )
    survive(COCO, {"annotations/instances_a.json": text, "images/a.jpg": ""})


@given(st.lists(JSON, max_size=6), st.integers(1, 40), st.booleans())
def test_a_list_is_read_alike_in_windows_of_any_size(values, size, is_spaced):
    text = json.dumps({"a": values, "b": 1}, indent=1 if is_spaced else None, ensure_ascii=False)
    encoded = text.encode("utf-8", "surrogatepass")
    if b"\xed" in encoded:
        encoded = json.dumps({"a": values, "b": 1}).encode()

    class Slow(io.BytesIO):
        at = 0

        def read(self, _=-1):
            self.at += size
            return encoded[self.at - size : self.at]

    found = list(json_stream.elements(Slow(), "x"))
    assert found == [("a", at, value) for at, value in enumerate(values)] + [("b", -1, 1)]


def test_it_is_recognised_by_its_keys():
    with opened({"x.json": file(), "a.jpg": ""}) as archive:
        assert COCO.recognises(archive, about())
    for members in ({"x.json": "[]", "a.jpg": ""}, {"x.json": file()}, {"a.jpg": ""}):
        with opened(members) as archive:
            assert not COCO.recognises(archive, about())
