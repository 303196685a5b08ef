"""Label Studio's tasks: what they hold comes back, what they cannot is said, damage is refused."""

import json
from dataclasses import replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from format_archives import (
    about,
    content,
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
from ppworker.formats.base import Mark, Record
from ppworker.formats.label_studio import LOSSES, LabelStudio

STUDIO = LabelStudio()


def box(*sides, label="cat", **values):
    return Mark(label=label, kind="bbox", geometry={"box": list(sides)}, **values)


def span(start, end, label="cat", **values):
    return Mark(label=label, kind="span", geometry={"start": start, "end": end}, **values)


def sound(number=1, **values):
    said = {"media_type": "audio/wav", "extension": "wav", "name": f"{number}.wav"}
    return picture(number, **said | {"width": None, "height": None, "duration_s": 10.0} | values)


def task(data=None, results=(), **more):
    said = {
        "data": {"image": "a.jpg"} if data is None else data,
        "annotations": [{"result": list(results)}],
    }
    return said | more


def result(type_, value, **more):
    return {"id": "r", "from_name": "x", "to_name": "y", "type": type_, "value": value} | more


def tasks(*values, **members):
    return {"tasks.json": json.dumps(values), "a.jpg": "picture"} | members


def test_a_task_has_what_the_tool_asks_for():
    marks = (
        box(10, 5, 30, 25, score=0.5, text="hi"), Mark(label="cat", kind="class"), Mark(label="dog", kind="class"),
        box(0, 0, 100, 50, label="dog", review="suggested", model_version="v2", score=0.25),
    )  # fmt: skip
    members, report = written(STUDIO, [picture(1, name="a é.jpg", marks=marks, text="read")])
    assert members["files/a é.jpg"] == content(picture(1))
    (made,) = json.loads(members["tasks.json"])
    assert made["data"] == {
        "image": "/data/local-files/?d=files/a%20%C3%A9.jpg", "name": "a é.jpg", "splits": ["train"],
    }  # fmt: skip
    text, region, said, classes = made["annotations"][0]["result"]
    assert (text["type"], text["value"]) == ("textarea", {"text": ["read"]})
    assert region == {
        "id": region["id"], "from_name": "image_box", "to_name": "image", "type": "rectanglelabels",
        "value": {"x": 10, "y": 10, "width": 20, "height": 40, "rotation": 0, "rectanglelabels": ["cat"]},
        "original_width": 100, "original_height": 50, "image_rotation": 0, "score": 0.5,
    }  # fmt: skip
    assert (said["id"], said["value"]["text"]) == (region["id"], ["hi"])
    assert classes["value"] == {"choices": ["cat", "dog"]}
    (prediction,) = made["predictions"]
    assert prediction["model_version"] == "v2"
    assert prediction["result"][0]["score"] == 0.25
    assert not report.losses
    config = members["label_config.xml"].decode()
    assert '<Image name="image" value="$image"/>' in config
    assert '<RectangleLabels name="image_box" toName="image">' in config
    assert '<Label value="cat" background="#0000ff"/>' in config


def test_an_export_of_the_tool_is_read():
    results = [
        result("rectanglelabels", {"x": 50, "y": 50, "width": 25, "height": 50, "rotation": 0, "rectanglelabels": ["cat", "dog"]}),
        result("polygonlabels", {"points": [[0, 0], [100, 0], [100, 100]], "polygonlabels": ["dog"]}, id="p"),
        result("keypointlabels", {"x": 10, "y": 20, "width": 1, "keypointlabels": ["cat"]}, id="k"),
        result("choices", {"choices": ["cat"]}, id="c"),
        result("textarea", {"text": ["one", "two"]}, id="t"),
    ]  # fmt: skip
    image = "https://host.example/data/upload/3/1a2b3c4d-a%20b.jpg?x=1"
    members = tasks(task({"image": image, "split": "train", "id": 7}, results)) | {
        "images/a b.jpg": "p"
    }
    _, (record,), report = read(STUDIO, members)
    assert (record.member, record.name, record.splits) == ("images/a b.jpg", "a b.jpg", ("train",))
    assert record.text == "one\ntwo"
    assert [(p.label, p.kind, p.geometry, p.review) for p in placed(record, picture())] == [
        ("cat", "bbox", {"box": [50, 25, 75, 50]}, "accepted"),
        ("dog", "bbox", {"box": [50, 25, 75, 50]}, "accepted"),
        ("dog", "polygon", {"points": [[0, 0], [100, 0], [100, 50]]}, "accepted"),
        ("cat", "keypoints", {"points": [[10, 10, 2]]}, "accepted"),
        ("cat", "class", None, "accepted"),
    ]
    assert not report.skipped


def test_a_region_whose_labels_and_text_are_results_of_their_own_is_one_annotation():
    place = {"x": 0, "y": 0, "width": 10, "height": 10, "rotation": 0}
    results = [
        result("rectangle", place), result("textarea", place | {"text": ["hi"]}),
        result("labels", place | {"labels": ["cat"]}),
    ]  # fmt: skip
    _, (record,), report = read(STUDIO, tasks(task(None, results)))
    (found,) = placed(record, picture())
    assert (found.label, found.kind, found.geometry, found.text) == (
        "cat",
        "bbox",
        {"box": [0, 0, 10, 5]},
        "hi",
    )
    assert record.text is None
    assert not report.skipped


@pytest.mark.parametrize(
    ("start", "end", "quoted", "expected"),
    [
        (4, 9, "Ann B", (4, 9)),  # code points
        (5, 10, "Ann B", (4, 9)),  # UTF-16 units, as before 2021
        (4, 9, None, (4, 9)),
        (0, 2, "Ann", "span_mismatch"),
    ],
)
def test_spans_are_code_points_unless_the_quoted_text_tells_otherwise(start, end, quoted, expected):
    text = "🚀 x Ann B"
    value = {"start": start, "end": end, "labels": ["cat"]} | (
        {} if quoted is None else {"text": quoted}
    )
    _, (record,), report = read(STUDIO, tasks(task({"text": text}, [result("labels", value)])))
    if isinstance(expected, tuple):
        (found,) = placed(record, text_item(text))
        assert (found.geometry["start"], found.geometry["end"]) == expected
    else:
        assert not record.marks
        assert report.skipped == {"annotation_span_mismatch": 1}


def test_a_turned_box_becomes_the_polygon_of_its_corners():
    value = {
        "x": 50,
        "y": 40,
        "width": 20,
        "height": 20,
        "rotation": 90,
        "rectanglelabels": ["cat"],
    }
    known = result("rectanglelabels", value, original_width=100, original_height=50)
    _, (record,), report = read(
        STUDIO, tasks(task(None, [known, result("rectanglelabels", value)]))
    )
    (found,) = placed(record, picture())
    assert found.kind == "polygon"
    assert found.geometry["points"] == [[50, 20], [50, 40], [40, 40], [40, 20]]
    assert report.skipped == {"annotation_turned": 1}


def test_segments_of_a_recording_are_seconds():
    value = {"start": 0.5, "end": 2, "channel": 0, "labels": ["cat"]}
    members = tasks(task({"audio": "/data/upload/a.wav"}, [result("labels", value)])) | {
        "a.wav": "x"
    }
    _, (record,), _ = read(STUDIO, members)
    (found,) = placed(record, sound())
    assert (found.kind, found.geometry) == ("segment", {"start": 0.5, "end": 2})


def test_predictions_are_suggestions_and_what_was_accepted_is_none():
    def boxes(x, **more):
        value = {"x": x, "y": 0, "width": 5, "height": 10, "rectanglelabels": ["cat"]}
        return result("rectanglelabels", value, **more)

    predictions = [
        {"model_version": "v1", "score": 0.75, "result": [boxes(0), boxes(50, score=0.5)]},
        17,
    ]
    cancelled = {"was_cancelled": True, "result": [boxes(90)]}
    said = task(None, [boxes(0)], predictions=predictions)
    said["annotations"].append(cancelled)
    _, (record,), report = read(STUDIO, tasks(said))
    found = [
        (p.review, p.score, p.model_version, p.geometry["box"][0])
        for p in placed(record, picture())
    ]
    assert found == [("accepted", None, "", 0), ("suggested", 0.5, "v1", 50)]
    assert report.skipped == {"annotation_duplicate": 1, "cancelled": 1}


def test_what_cannot_be_taken_is_skipped_and_counted():
    results = [
        result("brushlabels", {"rle": [1]}), {"type": "relation", "from_id": "a"},
        result("rectanglelabels", {"rectanglelabels": []}),
        result("rectanglelabels", {"x": 1, "y": 1, "width": 0, "height": 1, "rectanglelabels": ["cat"]}),
        result("labels", {"start": "/div[1]", "end": "/p", "labels": ["cat"]}),
        result("choices", {"choices": ["cat"], "x": 1}),
        result("choices", {"choices": ["cat"]}, score=7),
    ]  # fmt: skip
    given = [task(None, results), task({"image": "gone.jpg"}), task({"n": 1})]
    _, (record,), report = read(STUDIO, tasks(*given))
    assert [mark.kind for mark in record.marks] == ["class"]
    assert report.skipped == {
        "annotation_unsupported": 3, "annotation_bad_label": 1, "annotation_zero_area": 1, "annotation_bad_geometry": 1,
        "bad_score": 1, "missing_file": 1, "empty": 1,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "tasks.json"),
        ("{}", None),
        ('{"data": {}}', "is no list of tasks"),
        ("[1]", "tasks.json: [0]: is no task"),
        ('[{"image": "x", "label": []}]', "not JSON-MIN"),
        ('[{"data": {"text": "a"}, "annotations": {}}]', "[0].annotations"),
        ('[{"data": {"text": "a"}, "annotations": ["x"]}]', "[0].annotations[0]"),
        ('[{"data": {"text": "a"}, "annotations": [{"result": [null]}]}]', "[0].annotations[0].result[0]"),
        (json.dumps([task({"text": "a"}, [result("choices", 1)])]), "result[0].value"),
        (json.dumps([task({"text": "a"}, [result("choices", {"choices": [" "]})])]), "value.choices"),
        ('[{"data": {"text": "a"}}', "the file ends where ','"),
    ],
)  # fmt: skip
def test_what_is_broken_is_refused_by_member_and_place(text, said):
    if said is None:
        assert read(STUDIO, {"tasks.json": text})[1] == []
        return
    with pytest.raises(Invalid) as refused:
        read(STUDIO, {"tasks.json": text})
    assert said in str(refused.value)
    assert refused.value.field == "file"


def test_an_archive_without_tasks_is_refused_with_the_remedy():
    with pytest.raises(Invalid, match="export the project as JSON"):
        read(STUDIO, {"a.jpg": "x"})


def test_every_loss_is_counted():
    given_about = about(("cat", "a  b"), ("train", "none"), config="{}", multi_label=False)
    marks = (
        box(0, 0, 1, 1, review="edited", source="human"), Mark(label="cat", kind="class", text="t"),
        Mark(label="cat", kind="class", coordinates="odd"), span(0, 1), box(0, 0, 1, 1, page=2),
        Mark(label="cat", kind="segment", geometry={"start": 0, "end": 1}),
        Mark(label="cat", kind="keypoints", geometry={"points": [[0, 0, 1]]}),
    )  # fmt: skip
    records = [
        picture(1, name="a/b", marks=marks), text_item("t", 2, marks=(box(0, 0, 1, 1),)),
        text_item("t", 3, content_sha256="b" * 64, media_type="text/plain"), Record(id="id-4"),
        picture(5, name="e.pdf", media_type="application/pdf", extension="pdf", marks=(box(0, 0, 1, 1),)),
    ]  # fmt: skip
    _, report = written(STUDIO, records, given_about)
    assert report.losses == {
        "no_content": 1, "text_files": 1, "file_names": 1, "edited": 1, "origins": 1, "class_texts": 1,
        "places": 1, "spans": 1, "segments": 1, "pages": 2, "keypoints": 1, "shapes": 1,
        "label_names": 1, "settings": 1, "multi_label": 1, "empty_splits": 1,
    }  # fmt: skip
    assert report.losses.keys() <= LOSSES.keys()


def test_an_export_that_goes_on_in_another_process_is_the_same():
    records = [picture(n, marks=(box(0, 0, n, n),)) for n in (1, 2, 3)] + [text_item("x", 4)]
    assert written(STUDIO, records) == written(STUDIO, records, breaks=True)


REVIEWS = st.sampled_from([{"review": "accepted"}, {"review": "suggested", "model_version": "v1"},
                           {"review": "suggested", "model_version": ""}])  # fmt: skip
LABELS = st.sampled_from(["cat", "dog"])
SCORES = st.none() | st.floats(0, 1)


@st.composite
def pictures(draw):
    width, height = draw(st.integers(2, 9000)), draw(st.integers(2, 9000))
    xs, ys = st.integers(0, width), st.integers(0, height)
    marks = []
    for kind in draw(
        st.lists(st.sampled_from(["bbox", "polygon", "keypoints", "class"]), max_size=5)
    ):
        points = draw(st.lists(st.tuples(xs, ys).map(list), min_size=3, max_size=5))
        values = {"label": draw(LABELS), "kind": kind, "score": draw(SCORES)} | draw(REVIEWS)
        (xa, ya), (xb, yb), (xc, yc) = points[:3]
        if kind == "bbox":
            assume(xa < xb and ya < yb)
            values |= {
                "geometry": {"box": [xa, ya, xb, yb]},
                "text": draw(st.sampled_from([None, "read"])),
            }
        elif kind == "polygon":
            assume((xb - xa) * (yc - ya) != (yb - ya) * (xc - xa))
            values["geometry"] = {"points": points}
        elif kind == "keypoints":
            values["geometry"] = {"points": [[xa, ya, 2]]}
        marks.append(Mark(**values))
    text = draw(st.sampled_from([None, "words in it"]))
    return picture(1, width=width, height=height, marks=unique(marks), text=text)


@st.composite
def texts(draw):
    text = draw(
        st.text(
            st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=12
        ).filter(str.strip)
    )
    pairs = st.lists(st.integers(0, len(text)), min_size=2, max_size=2, unique=True).map(sorted)
    marks = [
        span(start, end, draw(LABELS), text=text[start:end], score=draw(SCORES), **draw(REVIEWS))
        for start, end in draw(st.lists(pairs, max_size=4))
    ]
    return text_item(
        text, 2, name="t", marks=unique(marks), description=draw(st.sampled_from(["", "d"]))
    )


@st.composite
def sounds(draw):
    seconds = st.floats(0, 10, allow_subnormal=False)
    marks = []
    for _ in range(draw(st.integers(0, 3))):
        start, end = sorted((draw(seconds), draw(seconds)))
        assume(end - start > 1e-3 and (start == 0 or start > 1e-6))
        place = {"start": start, "end": end}
        marks.append(
            Mark(
                label=draw(LABELS),
                kind="segment",
                geometry=place,
                text=draw(st.sampled_from([None, "said"])),
            )
        )
    return sound(3, marks=unique(marks), state=draw(st.sampled_from(["", "done"])))


def unique(marks):
    """The same said twice of one place is one annotation here."""
    return tuple({repr((mark.label, mark.kind, mark.geometry)): mark for mark in marks}.values())


@given(st.tuples(pictures(), texts(), sounds()))
def test_all_that_the_format_holds_comes_back_equal(records):
    _, found, lost, skipped = round_trip(STUDIO, records)
    assert not lost.losses
    assert not skipped.skipped
    for record, again in zip(records, found, strict=True):
        for name in ("name", "splits", "text", "description", "metadata", "state"):
            assert getattr(again, name) == getattr(record, name)
        said = [
            (m.label, m.kind, m.geometry, m.text, m.score, m.review, m.model_version)
            for m in record.marks
        ]
        back = [
            (p.label, p.kind, _bare(p), p.text, p.score, p.review, p.model_version)
            for p in placed(again, record)
        ]
        assert sorted(said, key=repr) == sorted(back, key=repr)


def _bare(found):
    return found.geometry


SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=5),
    st.sampled_from(["cat", 10**400, "\ud800", "choices", "a.jpg", "rectanglelabels", "labels", 0, 5]),
)  # fmt: skip
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(
        st.sampled_from(
            ["data", "image", "text", "annotations", "predictions", "result", "type", "value", "x", "y",
             "width", "height", "points", "start", "end", "labels", "choices", "score", "id", "rotation"]
        ), inner,
    ),
    max_leaves=12,
)  # fmt: skip
RESULTS = st.builds(
    lambda kind, value, more: result(kind, {kind: ["cat"]} | value) | more,
    st.sampled_from(["choices", "labels", "rectanglelabels", "polygonlabels", "keypointlabels", "textarea"]),
    st.dictionaries(st.sampled_from(["x", "y", "width", "height", "points", "start", "end", "rotation", "text"]), JSON),
    st.dictionaries(st.sampled_from(["original_width", "original_height", "score", "id", "value"]), JSON),
)  # fmt: skip
TASKS = st.builds(
    lambda data, results, more: task(data, results) | more,
    st.sampled_from([{"image": "a.jpg"}, {"text": "some 🚀 words"}, {"audio": "b.wav"}]),
    st.lists(RESULTS, max_size=4),
    st.dictionaries(st.sampled_from(["data", "annotations", "predictions", "completions"]), JSON),
)


@given(st.lists(TASKS | JSON, max_size=3) | JSON)
def test_damaged_json_is_refused_and_never_crashes(value):
    survive(STUDIO, {"tasks.json": json.dumps(value), "a.jpg": "x", "b.wav": "y"})


def test_it_is_recognised_by_lists_of_tasks():
    with opened(tasks(task())) as archive:
        assert STUDIO.recognises(archive, about())
    for members in ({"x.json": "[]"}, {"x.json": '{"data": 1, "annotations": 2}'}, {"a.jpg": ""}):
        with opened(members) as archive:
            assert not STUDIO.recognises(archive, about())


def test_the_version_of_a_model_of_an_accepted_annotation_is_a_loss():
    mark = box(0, 0, 9, 9, model_version="v1")
    _, report = written(STUDIO, [picture(1, marks=(mark, replace(mark, review="suggested")))])
    assert report.losses == {"origins": 1}
