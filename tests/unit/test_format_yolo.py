"""YOLO archives: what they hold comes back, what they cannot is said, what is broken is refused."""

import json
import time

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
from ppworker.formats.base import Mark
from ppworker.formats.yolo import LOSSES, Yolo

YOLO = Yolo()


def box(*sides, label="cat", **values):
    return Mark(label=label, kind="bbox", geometry={"box": list(sides)}, **values)


def test_it_is_laid_out_as_the_contract_says():
    members, report = written(
        YOLO,
        [picture(1, marks=(box(10, 10, 30, 20), box(0, 0, 100, 50, label="dog"))), picture(2)],
        about(splits=("train", "valid")),
    )
    assert members.pop("0190b2c0-0000-7000-8000-000000000001.names") == b"cat\ndog\n"
    assert json.loads(members.pop("config.json")) == {
        "colors": {"cat": "#0000ff", "dog": "#0001ff"}
    }
    assert members.pop("train.txt") == b"1.jpg\n2.jpg\n"
    assert members.pop("valid.txt") == b""
    assert members.pop("1.txt") == b"0 0.2 0.3 0.2 0.2\n1 0.5 0.5 1 1\n"
    assert members.pop("2.txt") == b""
    assert set(members) == {"1.jpg", "2.jpg", "obj.data"}
    assert b"train = train.txt\nvalid = valid.txt\n" in members["obj.data"]
    assert not report.losses


@pytest.mark.parametrize(
    "names",
    [
        {"a.names": "cat\ndog\n"},
        {"obj.data": "classes=2\ntrain = data/train.txt\nnames = data/obj.names\n", "obj.names": "cat\ndog"},
        {"classes.txt": "\ufeffcat\r\ndog\r\n\r\n"},
    ],
)  # fmt: skip
def test_lists_of_darknet_are_read(names):
    members = names | {
        "train.txt": "data/obj/1.png\n\n./obj/2.png\nobj/gone.png\n",
        "obj/1.png": "x", "obj/2.png": "y", "obj/1.txt": "1 .5 .5 .2 1e-1 \n\n0 0.5 0.5 1 1 0.25\n",
    }  # fmt: skip
    header, records, report = read(YOLO, members)
    assert [label.name for label in header.labels] == ["cat", "dog"]
    assert [(r.name, r.splits) for r in records] == [("1.png", ("train",)), ("2.png", ("train",))]
    found = placed(records[0], picture(width=100, height=100))
    assert [(p.label, p.geometry["box"], p.score) for p in found] == [
        ("dog", [40, 45, 60, 55], None), ("cat", [0, 0, 100, 100], 0.25),
    ]  # fmt: skip
    assert report.skipped == {"missing_file": 1}
    assert report.examples["missing_file"] == ["train.txt: line 4"]


@pytest.mark.parametrize(
    "yaml",
    [
        "path: ../data\ntrain: images/train\nval: images/val # none\nnc: 2\nnames: ['cat', \"dog\"]\n",
        "train: images/train\nval:\n  - ./images/val\nnames:\n  0: cat\n  1: dog # wau\n",
        "val: images/val\ntrain: [images/train]\nnames:\n- cat\n- dog\n",
        "names: [\n  cat,\n  dog ]\n",
        "names: {0: cat, 1: dog}",
    ],
)
def test_the_layout_of_data_yaml_is_read(yaml):
    members = {
        "data.yaml": yaml, "images/train/a.jpg": "1", "labels/train/a.txt": "1 0.5 0.5 0.5 0.5",
        "images/val/a.jpg": "2", "labels/val/a.txt": "0 0 0 0.5 0 0.5 0.5",
    }  # fmt: skip
    header, records, report = read(YOLO, members)
    assert [label.name for label in header.labels] == ["cat", "dog"]
    assert [(r.member, r.splits) for r in records] == [
        ("images/train/a.jpg", ("train",)), ("images/val/a.jpg", ("val",)),
    ]  # fmt: skip
    assert [mark.kind for record in records for mark in record.marks] == ["bbox", "polygon"]
    polygon = placed(records[1], picture())[0]
    assert polygon.geometry == {"points": [[0, 0], [50, 0], [50, 25]]}
    assert not report.skipped


def test_folders_of_splits_around_images_are_read():
    members = {
        "README.txt": "hello", "data.yaml": "train: ../train/images\nval: ../valid/images\nnames: [a]",
        "train/images/1.jpg": "", "train/labels/1.txt": "0 .5 .5 .5 .5", "valid/images/2.jpg": "",
    }  # fmt: skip
    _, records, report = read(YOLO, members)
    assert [r.splits for r in records] == [("train",), ("val",)]
    assert report.skipped == {"unused_file": 1}
    del members["data.yaml"]
    _, records, _ = read(YOLO, members | {"classes.txt": "a"})
    assert [r.splits for r in records] == [("train",), ("valid",)]
    assert len(records[0].marks) == 1


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ({"1.txt": "0 .5 .5 .5"}, "1.txt: line 1: has 4 numbers"),
        ({"1.txt": "\n2 .5 .5 .5 .5"}, "1.txt: line 2: there is no label 2"),
        ({"1.txt": "-1 .5 .5 .5 .5"}, "no index of a label"),
        ({"1.txt": "cat .5 .5 .5 .5"}, "no index of a label"),
        ({"1.txt": "0 .5 .5 .5 nan"}, "'nan' is no number"),
        ({"1.txt": "0 .5 .5 .5 1_0"}, "'1_0' is no number"),
        ({"1.txt": "0 0 0 0 0 0 0 0"}, "1.txt: line 1: has 8 numbers"),
        ({"1.txt": b"\xff 0 0 0 0"}, "1.txt"),
        ({"a.names": "cat\n\ndog"}, "a.names: line 2: is blank"),
        ({"a.names": "cat\n" + "x" * 201}, "a.names: line 2"),
        ({"a.names": b"\xff\xfe"}, "a.names"),
        ({"data.yaml": "names: [a, 'b]"}, "data.yaml"),
        ({"data.yaml": "names:\n  - a\n  b: c"}, "data.yaml: line 3"),
        ({"data.yaml": "names: {9999999: a}"}, "data.yaml: line 1"),
        ({"data.yaml": "names:\n  20000: a"}, "data.yaml: line 2"),
        ({"config.json": "[]"}, "config.json"),
    ],
)
def test_what_is_broken_is_refused_by_member_and_line(members, said):
    whole = {"a.names": "cat\n", "1.jpg": "x", "1.txt": "0 .5 .5 .5 .5\n"}
    with pytest.raises(Invalid) as refused:
        read(YOLO, whole | members)
    assert said in str(refused.value)
    assert refused.value.field == "file"


@pytest.mark.parametrize(
    "names",
    [
        pytest.param("a" + " " * 300_000 + "{b", id="spaces before what is no list"),
        pytest.param("a," * 400_000, id="many names"),
    ],
)
def test_no_list_of_names_takes_longer_than_its_length(names):
    begun = time.process_time()
    with pytest.raises(Invalid, match=r"data\.yaml: line 1: "):
        read(YOLO, {"data.yaml": f"names: [{names}]", "1.png": b""})
    assert time.process_time() - begun < 5  # before, minutes: each part was weighed anew


def test_settings_longer_than_any_are_refused():
    with pytest.raises(Invalid, match=r"data\.yaml: has more than 4194304 bytes"):
        read(YOLO, {"data.yaml": "names: [a]\n" + "# \n" * 1_500_000, "1.png": b""})


def test_files_of_something_else_refuse_nothing():
    members: dict[str, bytes | str] = {
        "a.names": "cat",
        "1.jpg": "x",
        "ci.yaml": "names: [",
        "x.data": b"\xff",
        "a.txt": b"\xff",
    }
    _, records, report = read(YOLO, members | {"long.txt": "x" * 100_000})
    assert len(records) == 1
    assert report.skipped == {"unused_file": 2}


def test_an_archive_without_names_is_refused_with_the_remedy():
    with pytest.raises(Invalid, match=r"labels\.names"):
        read(YOLO, {"1.jpg": "x", "1.txt": "0 .5 .5 .5 .5"})


def test_places_that_cannot_be_are_skipped_and_counted():
    lines = "0 .5 .5 0 .5\n0 5 .5 .1 .1\n0 .5 .5 .5 .5 3\n0 .5 .5 .5 -.1\n"
    _, records, report = read(YOLO, {"a.names": "cat", "1.jpg": "x", "1.txt": lines})
    assert len(records[0].marks) == 1
    assert report.skipped == {"annotation_zero_area": 2, "annotation_outside": 1, "bad_score": 1}


def test_every_loss_is_counted():
    given = about(("cat", "a  b"), ("train", "a/b"), config="{}", multi_label=False)
    odd = picture(
        3, name="a/b", description="d", metadata="{}", state="done", text="read", splits=("a/b",),
        marks=(
            box(0, 0, 1, 1, score=0.5, review="suggested", source="model", text="t"),
            Mark(label="cat", kind="polygon", geometry={"points": [[0, 0], [9, 0], [9, 9]]}),
            Mark(label="cat", kind="class"), Mark(label="cat", kind="class", coordinates="odd"),
            Mark(label="cat", kind="span", geometry={"start": 0, "end": 1}),
            Mark(label="cat", kind="segment", geometry={"start": 0, "end": 1}),
            Mark(label="cat", kind="keypoints", geometry={"points": [[0, 0, 2]]}), box(0, 0, 1, 1, page=2),
        ),
    )  # fmt: skip
    members, report = written(YOLO, [odd, text_item("t", 4)], given)
    assert members["a_b-2.txt"].count(b"\n") == 2
    assert report.losses == {
        "no_pictures": 1, "descriptions": 1, "metadata": 1, "states": 1, "item_texts": 1,
        "file_names": 1, "scores": 1, "reviews": 1, "origins": 1, "mark_texts": 1, "polygons": 1,
        "classes": 1, "places": 1, "spans": 1, "segments": 1, "keypoints": 1, "pages": 1,
        "label_names": 1, "split_names": 1, "settings": 1, "multi_label": 1,
    }  # fmt: skip
    assert report.losses.keys() <= LOSSES.keys()


def test_a_picture_of_unknown_size_keeps_the_shares_it_has():
    shares = Mark(label="cat", kind="bbox", coordinates="0.5 0.5 0.25 1")
    members, report = written(YOLO, [picture(width=None, height=None, marks=(shares,))])
    assert members["1.txt"] == b"0 0.5 0.5 0.25 1\n"
    unknown = picture(width=None, height=None, marks=(box(0, 0, 1, 1),))
    _, report = written(YOLO, [unknown])
    assert report.losses == {"places": 1}


def test_names_that_meet_are_told_apart():
    records = [
        picture(n, name=name) for n, name in enumerate(["train.jpg", "a.jpg", "A.png", "a"], 1)
    ]
    members, report = written(
        YOLO, [*records[:2], picture(3, name="A", extension="png"), records[3]]
    )
    pictures = [name for name in members if name.endswith(("jpg", "png"))]
    assert all(name.rpartition(".")[0] + ".txt" in members for name in pictures)
    assert pictures == ["train-2.jpg", "a.jpg", "A-2.png", "a-2.jpg"] or len(set(pictures)) == 4
    assert report.losses == {"file_names": 3}
    _, found, _ = read(YOLO, members)
    assert len(found) == 4


def test_an_export_that_goes_on_in_another_process_is_the_same():
    records = [picture(n, marks=(box(0, 0, n, n),)) for n in range(1, 5)]
    assert written(YOLO, records) == written(YOLO, records, breaks=True)


SIDES = st.integers(1, 20_000)
NAMES = st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=12)


@st.composite
def pictures(draw):
    """Pictures with boxes in their pixels, edges touched among them."""
    records = []
    for number in range(1, draw(st.integers(1, 4)) + 1):
        width, height = draw(SIDES), draw(SIDES)
        marks = []
        for _ in range(draw(st.integers(0, 4))):
            x1, x2 = sorted(draw(st.tuples(*[st.floats(0, width)] * 2)))
            y1, y2 = sorted(draw(st.tuples(*[st.floats(0, height)] * 2)))
            assume(x2 - x1 > 1e-3 and y2 - y1 > 1e-3)
            marks.append(box(x1, y1, x2, y2, label=draw(st.sampled_from(["cat", "dog"]))))
        records.append(
            picture(
                number,
                name=f"{number}{draw(NAMES)}.jpg",
                width=width,
                height=height,
                splits=draw(st.sampled_from([("train",), ("train", "valid"), ("valid",)])),
                marks=tuple(marks),
            )
        )
    return records


@given(pictures())
def test_boxes_come_back_to_a_thousandth_of_a_pixel(records):
    given_about = about(splits=("train", "valid"))
    header, found, lost, skipped = round_trip(YOLO, records, given_about)
    assert [(label.name, label.color) for label in header.labels] == [
        (label.name, label.color) for label in given_about.labels
    ]
    assert [split.name for split in header.splits] == ["train", "valid"]
    assert lost.losses.keys() <= {"file_names"}
    assert not skipped.skipped
    assert [r.splits for r in found] == [r.splits for r in records]
    for record, again in zip(records, found, strict=True):
        for mark, place in zip(record.marks, placed(again, record), strict=True):
            assert place.label == mark.label
            assert place.geometry["box"] == pytest.approx(mark.geometry["box"], abs=1e-3)


@given(
    st.lists(st.integers(0, 100), min_size=4, max_size=4).filter(
        lambda s: s[0] < s[2] and s[1] < s[3]
    )
)
def test_a_box_of_whole_pixels_comes_back_to_a_billionth(sides):
    record = picture(width=100, height=100, marks=(box(*sides),))
    _, found, _, _ = round_trip(YOLO, [record])
    again = placed(found[0], record)[0].geometry["box"]
    assert again == pytest.approx(sides, abs=1e-9)


WORDS = st.one_of(
    st.text("0123456789.eE+- naif", max_size=12), st.floats().map(repr), st.integers().map(str),
    st.sampled_from(["0", "1", "0.5", "1e999", "-0", "\0", "\u2028", "٣", "0x1"]),
)  # fmt: skip
LINES = st.lists(st.lists(WORDS, max_size=9).map(" ".join), max_size=6).map("\n".join)
YAML = st.lists(
    st.tuples(
        st.sampled_from(
            ["names:", "train:", "val: ", "  ", "- ", "nc: 1", "", "0: ", "kpt_shape: "]
        ),
        st.text("abc'\"[]{},:#-\\ 01", max_size=12),
    ).map("".join),
    max_size=6,
).map("\n".join)


@given(LINES, LINES, YAML, st.binary(max_size=20))
def test_damaged_files_are_refused_and_never_crash(lines, names, yaml, rest):
    members = {
        "1.jpg": "x", "1.txt": lines, "data.yaml": yaml, "train.txt": names, "obj.data": lines,
        "notes.txt": rest,
    }  # fmt: skip
    for more in ({"a.names": "cat\ndog"}, {"a.names": names}, {}):
        survive(YOLO, members | more)


def test_it_is_recognised_by_names_beside_pictures():
    for members in ({"a.names": "x", "1.jpg": ""}, {"data.yaml": "x", "images/1.PNG": ""}):
        with opened(members) as archive:
            assert YOLO.recognises(archive, about())
    for members in ({"a.names": "x"}, {"a.yaml": "x", "1.jpg": ""}, {"train/cat/1.jpg": ""}):
        with opened(members) as archive:
            assert not YOLO.recognises(archive, about())
