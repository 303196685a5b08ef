"""Our own format loses nothing; folders and tables lose what they say, and nothing else."""

import csv
import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from format_archives import about, opened, picture, read, round_trip, text_item, written
from ppworker.errors import Invalid
from ppworker.formats import json_stream, registry
from ppworker.formats.base import Mark, Record
from ppworker.formats.csv_table import LOSSES as CSV_LOSSES
from ppworker.formats.csv_table import CsvTable
from ppworker.formats.folders import LOSSES as FOLDER_LOSSES
from ppworker.formats.folders import Folders
from ppworker.formats.own import Own

OWN, CSV, FOLDERS = Own(), CsvTable(), Folders()

# What PostgreSQL can hold: no NUL, no half characters.
texts = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=12)
names = st.sampled_from(["cat", "dog", "ünïcode", "a, b", 'qu"ote', "x\ty"])
geometries = {
    "class": st.none(),
    "bbox": st.just({"box": [1.5, 2.25, 30.125, 20.0]}),
    "polygon": st.just({"points": [[0.1, 0.2], [3.0, 4.0], [5.5, 0.0]]}),
    "keypoints": st.just({"points": [[1.0, 2.0, 2], [0.0, 0.0, 0]]}),
    "span": st.just({"start": 1, "end": 3}),
    "segment": st.just({"start": 0.25, "end": 1.75}),
}


@st.composite
def marks(draw):
    kind = draw(st.sampled_from(sorted(geometries)))
    source = draw(st.sampled_from(["human", "model", "inference", "import"]))
    return Mark(
        label=draw(names),
        kind=kind,
        coordinates=draw(texts),
        geometry=draw(geometries[kind]),
        text=draw(st.none() | texts.filter(bool)),
        page=draw(st.none() | st.integers(0, 9)),
        score=draw(st.none() | st.floats(0, 1)),
        source=source,
        post_processor=draw(texts) if source == "model" else "",
        model_version=draw(texts),
        review=draw(st.sampled_from(["suggested", "accepted", "edited"])),
    )


def plain(record: Record) -> tuple[object, ...]:
    """What of a record must come back."""
    said = [getattr(record, name) for name in
            ("name", "splits", "text", "extension", "media_type", "description", "metadata", "state")]  # fmt: skip
    unmarked = ("label", "kind", "coordinates", "geometry", "text", "page", "score", "source",
                "post_processor", "model_version", "review")  # fmt: skip
    return (*said, *(tuple(getattr(m, n) for n in unmarked) for m in record.marks))


@given(
    st.lists(st.tuples(st.lists(marks(), max_size=4), texts, st.booleans()), max_size=4),
)
def test_our_own_format_loses_nothing(given_items):
    records = [
        (picture if is_file else text_item)(
            **({"text": text} if not is_file else {}), number=at, marks=tuple(said), name=text,
            description=text, metadata=text, state=text, splits=("train", "valid"),
        )
        for at, (said, text, is_file) in enumerate(given_items)
    ]  # fmt: skip
    version = about(splits=("train", "valid"), default_split="valid", config='{"a": 1}')
    header, found, lost, skipped = round_trip(OWN, records, version)
    assert [plain(record) for record in found] == [plain(record) for record in records]
    assert all(mark.is_exact for record in found for mark in record.marks)
    assert list(header.labels) == list(version.labels)
    assert list(header.splits) == list(version.splits)
    assert (header.config, header.default_split, header.multi_label) == ('{"a": 1}', "valid", True)
    assert not lost.losses
    assert not skipped.skipped


def test_equal_files_are_written_once_and_a_missing_one_is_skipped():
    one, other = picture(1, name="a.jpg"), picture(1, name="b.jpg")
    members, _ = written(OWN, [one, other], breaks=True)
    files = [name for name in members if name.startswith("files/")]
    assert files == [f"files/{one.content_sha256}"]
    del members[files[0]]
    _, found, report = read(OWN, members)
    assert (found, report.skipped) == ([], {"missing_file": 2})


@pytest.mark.parametrize(
    ("name", "content", "where"),
    [
        ("ppworker.json", "{", "ppworker.json: "),
        ("ppworker.json", '{"format": "other", "format_version": 1}', "ppworker.json: is of format"),
        ("ppworker.json", '{"format": "ppworker", "format_version": 2}', "version 2"),
        ("items.jsonl", "{}\nnope", "items.jsonl: line 2: "),
        ("items.jsonl", '{"splits": [1]}', "items.jsonl: line 1: splits.0: "),
        ("items.jsonl", '{"annotations": [{"label": "a", "kind": "oval"}]}', "annotations.0.kind"),
        ("items.jsonl", '{"annotations": [{"label": "a", "kind": "class", "score": 2}]}', "score"),
        ("items.jsonl", '{"annotations": [{"label": "a", "kind": "class", "score": NaN}]}', "score"),
        ("items.jsonl", b"\xff", "items.jsonl: line 1 is no UTF-8"),
    ],
)  # fmt: skip
def test_a_broken_archive_of_our_own_is_refused_with_member_line_and_field(name, content, where):
    members = {"ppworker.json": '{"format": "ppworker", "format_version": 1}', "items.jsonl": "{}"}
    with pytest.raises(Invalid) as caught:
        read(OWN, members | {name: content})
    assert where in str(caught.value)


def test_folders_are_split_label_and_name():
    records = [
        picture(1, name="a.jpg", marks=(Mark(label="cat", kind="class", score=0.5),)),
        picture(2, name="b", splits=("train", "valid")),
        text_item("hello", 3, name="c", marks=(Mark(label="a/b", kind="class"),)),
        picture(4, name="", marks=(Mark(label="cat", kind="bbox", coordinates="0.5 0.5 1 1"),)),
    ]
    members, report = written(FOLDERS, records, about(labels=("cat", "a/b")), breaks=True)
    assert list(members) == [
        "train/cat/a.jpg", "train/b.jpg", "valid/b.jpg", "train/a_b/c.txt", "train/id-4.jpg",
    ]  # fmt: skip
    assert members["train/a_b/c.txt"] == b"hello"
    assert report.losses == {
        "label_colours": 2, "label_names": 1, "scores": 1, "further_splits": 1, "boxes": 1,
    }  # fmt: skip
    assert report.losses.keys() <= FOLDER_LOSSES.keys()


@pytest.mark.parametrize(
    ("member", "splits", "labels", "name"),
    [
        ("train/cat/a.jpg", ("train",), ["cat"], "a.jpg"),
        ("train/a.JPG", ("train",), [], "a.JPG"),
        ("a.jpg", (), [], "a.jpg"),
        ("train/cat/t.txt", ("train",), ["cat"], "t"),
    ],
)
def test_folders_are_read_by_their_depth(member, splits, labels, name):
    _, (record,), report = read(FOLDERS, {member: b"x"})
    assert (record.splits, record.name, record.member) == (splits, name, member)
    assert [mark.label for mark in record.marks] == labels
    assert not report.skipped


def test_a_folder_that_somebody_packed_whole_is_no_split():
    members = {"my set/train/cat/a.jpg": b"", "my set/valid/b.jpg": b""}
    _, found, _ = read(FOLDERS, members)
    assert [record.splits for record in found] == [("train",), ("valid",)]
    _, found, report = read(FOLDERS, {"train/cat/x/a.jpg": b"", "valid/b.jpg": b""})
    assert report.skipped == {"too_deep": 1}


cells = st.lists(texts.filter(lambda text: "\r" not in text), min_size=2, max_size=2)


@given(
    st.lists(
        st.tuples(cells, st.sampled_from(["train", "valid", ""]), st.sets(st.sampled_from("abc")))
    )
)
def test_a_table_comes_back_with_every_cell(rows):
    out = io.StringIO()
    writer = csv.writer(out, delimiter=";", lineterminator="\n")
    writer.writerow(["x", "labels", "y", "split"])
    writer.writerows([[x, " ".join(sorted(said)), y, split] for (x, y), split, said in rows])
    config = {"split_column": "split", "label_column": "labels", "label_separator": " ",
              "multi_label": True, "filename": "t.csv", "csv_separator": ";"}  # fmt: skip
    header, found, _ = read(CSV, {"t.csv": out.getvalue(), "config.json": json.dumps(config)})
    assert json.loads(header.config or "")["column_names"] == "x;y"
    version = about(config=header.config, content_type="tabular")
    members, report = written(CSV, found, version, breaks=True)
    again = members[f"{version.version_id}.csv"].decode()
    assert list(csv.reader(io.StringIO(again, newline=""), delimiter=";")) == list(
        csv.reader(io.StringIO(out.getvalue(), newline=""), delimiter=";")
    )
    assert report.losses.keys() <= {"label_colours"}
    told = json.loads(members["config.json"])
    assert told == config | {"filename": f"{version.version_id}.csv"}


def test_a_table_of_items_that_are_none_has_one_column_of_text():
    members, report = written(
        CSV, [text_item("a, b\nc", name="n"), picture(2)], about(content_type="text")
    )
    assert members[f"{about().version_id}.csv"] == b'text,split,labels\n"a, b\nc",train,\n,train,\n'
    assert report.losses == {"names": 2, "files": 1, "label_colours": 2}
    assert report.losses.keys() <= CSV_LOSSES.keys()


def test_there_may_be_more_rows_than_one_may_be_long():
    _, found, _ = read(CSV, {"a.csv": "x,y\n" + ('"' + "a\n" * 50 + "a" * 20_000 + '",c\n') * 500})
    assert sum(1 for _ in found) == 500


@pytest.mark.parametrize(
    ("line", "is_taken"),
    [
        ({"x": [0] * 600_000}, False),
        ({"x": [[]] * 600_000}, False),
        ({"text": 'a,"\\' * 600_000}, True),
    ],
)
def test_a_line_holds_no_more_values_than_memory_is_meant_to(line, is_taken):
    assert json_stream.has_too_many_values(json.dumps(line).encode()) is not is_taken
    manifest = {"format": "ppworker", "format_version": 1}
    members = {"ppworker.json": json.dumps(manifest), "items.jsonl": "{}\n" + json.dumps(line)}
    if is_taken:
        assert len(list(read(OWN, members)[1])) == 2
    else:
        with pytest.raises(Invalid, match=r"items\.jsonl: line 2: holds more than 500000 values"):
            list(read(OWN, members)[1])


@pytest.mark.parametrize(
    ("members", "where"),
    [
        ({"config.json": "{}"}, "one table"),
        ({"config.json": '{"filename": "gone.csv"}'}, "gone.csv: is missing"),
        ({"config.json": "[", "a.csv": "x\n1"}, "config.json"),
        ({"config.json": '{"csv_separator": ";;"}', "a.csv": "x\n1"}, "csv_separator"),
        ({"a.csv": ""}, "a.csv: line 1"),
        ({"a.csv": "x,x\n1,2"}, "two columns of one name"),
        ({"a.csv": b"x\n\xff"}, "a.csv: line 2 is no UTF-8"),
        ({"a.csv": 'x\n"open'}, "a.csv: line 2"),
        ({"a.csv": "x,labels\n1," + "a" * 300}, "a.csv: row 2"),
        ({"a.csv": "x\n" + "a" * 9_000_000}, "a.csv: line 2: the row has more than 8388608 bytes"),
        ({"a.csv": 'x\n"' + ("a" * 1_000 + "\n") * 9_000}, "the row has more than 8388608 bytes"),
        ({"a.csv": "," * 600_000}, "a.csv: line 1: the row has more than 500000 separators"),
    ],
)
def test_a_broken_table_is_refused_with_its_line(members, where):
    with pytest.raises(Invalid) as caught:
        read(CSV, members)
    assert where in str(caught.value)


def test_other_columns_than_the_versions_are_refused():
    config = json.dumps({"column_names": "a,b", "csv_separator": ","})
    with pytest.raises(Invalid, match="other columns"):
        read(CSV, {"t.csv": "a,c,split\n1,2,train"}, about(config=config))
    header, found, report = read(CSV, {"t.csv": "a,b,split\n1,2,train\n3"}, about(config=config))
    assert (header.config, len(found), report.skipped) == (None, 1, {"other_number_of_cells": 1})


@pytest.mark.parametrize(
    ("members", "format_"),
    [
        ({"ppworker.json": "{}", "items.jsonl": ""}, "ppworker"),
        ({"config.json": "{}", "a.csv": "x"}, "csv"),
        ({"a.csv": "x"}, "csv"),
        ({"train/cat/a.jpg": ""}, "folders"),
        ({"train.txt": "a.jpg", "a.jpg": "", "a.txt": "", "v.names": "cat"}, "yolo"),
    ],
)
def test_the_format_of_an_archive_is_found_out(members, format_):
    with opened(members) as archive:
        assert registry.detect(archive, about()).name == format_


def test_each_content_type_has_its_usual_format():
    usual = {kind: registry.usual(kind, has_boxes=False).name for kind in
             ("images", "text", "tabular", "ner", "documents", "anything")}  # fmt: skip
    assert usual == {"images": "folders", "text": "folders", "tabular": "csv", "ner": "spacy-ner",
                     "documents": "folders", "anything": "folders"}  # fmt: skip
    assert registry.usual("images", has_boxes=True).name == "yolo"
