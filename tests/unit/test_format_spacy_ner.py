"""Archives of texts and spans: what they hold comes back, what they cannot is said."""

import json

import pytest
from hypothesis import given
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
from ppworker.formats.spacy_ner import LOSSES, SpacyNer

NER = SpacyNer()
ABOUT = about(("PER", "ORG"), ("train", "valid"), content_type="ner")


def span(start, end, label="PER", **values):
    return Mark(label=label, kind="span", geometry={"start": start, "end": end}, **values)


def places(record):
    return [
        (p.label, p.geometry["start"], p.geometry["end"])
        for p in placed(record, text_item(record.text))
    ]


def test_each_split_is_a_list_of_texts_with_their_spans():
    record = text_item("Ann 🚀 Lee", name="a", marks=(span(6, 9), span(0, 3, "ORG")))
    members, report = written(NER, [record, text_item("x", 2, splits=("valid", "train"))], ABOUT)
    assert set(members) == {"train.json", "valid.json", "config.json"}
    assert json.loads(members["train.json"]) == [
        {"id": "id-1", "name": "a", "text": "Ann 🚀 Lee", "annotations": [
            {"start": 6, "end": 9, "label": "PER"}, {"start": 0, "end": 3, "label": "ORG"}]},
        {"id": "id-2", "name": "", "text": "x", "annotations": []},
    ]  # fmt: skip
    assert json.loads(members["valid.json"])[0]["id"] == "id-2"
    assert json.loads(members["config.json"]) == {"colors": {"PER": "#0000ff", "ORG": "#0001ff"}}
    assert not report.losses


@pytest.mark.parametrize(
    "value",
    [
        [["Ann Lee", {"entities": [[0, 3, "PER"], [4, 7, "ORG"]]}]],
        [{"text": "Ann Lee", "spans": [{"start": 0, "end": 3, "label": "PER"}, {"start": 4, "end": 7, "label": "ORG", "x": 1}]}],
        [{"text": "Ann Lee", "label": [[0, 3, "PER"], [4, 7, "ORG"]], "meta": {}}],
        {"classes": ["PER"], "annotations": [["Ann Lee", {"entities": [[0, 3, "PER"], [4, 7, "ORG"]]}], None]},
    ],
)  # fmt: skip
def test_what_other_tools_write_is_read(value):
    header, (record,), report = read(NER, {"train.json": json.dumps(value)}, ABOUT)
    assert record.splits == ("train",)
    assert places(record) == [("PER", 0, 3), ("ORG", 4, 7)]
    assert [label.name for label in header.labels] in (["PER"], [])
    assert report.skipped == ({"empty": 1} if isinstance(value, dict) else {})


def test_equal_texts_are_two_items_unless_one_id_says_otherwise():
    text = {"text": "a b", "annotations": [[0, 1, "PER"]]}
    members = {"a.json": json.dumps([text]), "b.json": json.dumps([text])}
    assert len(read(NER, members, ABOUT)[1]) == 2
    named = json.dumps([text | {"id": "1"}])
    (record,) = read(NER, {"a.json": named, "b.json": named}, ABOUT)[1]
    assert record.splits == ("a", "b")
    other = json.dumps([{"text": "c", "id": "1"}])
    assert len(read(NER, {"a.json": named, "b.json": other}, ABOUT)[1]) == 2


def test_what_cannot_be_stored_moves_the_spans_behind_it():
    value = [{"text": "a\0\ud800b c", "annotations": [[3, 4, "PER"], [5, 6, "ORG"]]}]
    (record,) = read(NER, {"train.json": json.dumps(value)}, ABOUT)[1]
    assert record.text == "ab c"
    assert places(record) == [("PER", 1, 2), ("ORG", 3, 4)]


def test_spans_that_overlap_are_written_and_said():
    marks = (span(0, 5), span(2, 3), span(4, 6), span(6, 7))
    members, report = written(NER, [text_item("0123456789", marks=marks)], ABOUT)
    assert len(json.loads(members["train.json"])[0]["annotations"]) == 4
    assert report.losses == {"overlaps": 2}


def test_every_loss_is_counted():
    given_about = about(("cat", "a  b"), ("items", "a/b"), config="{}", multi_label=False)
    odd = text_item(
        "0123456789", description="d", metadata="{}", state="done", splits=("a/b",), content_sha256="a" * 64,
        marks=(
            span(0, 1, score=0.5, review="suggested", source="model"), span(0, 1),
            Mark(label="cat", kind="class"), Mark(label="cat", kind="class", coordinates="odd"),
            Mark(label="cat", kind="bbox"), Mark(label="cat", kind="segment"),
        ),
    )  # fmt: skip
    _, report = written(NER, [odd, picture(3)], given_about)
    assert report.losses == {
        "no_texts": 1, "text_files": 1, "descriptions": 1, "metadata": 1, "states": 1, "scores": 1,
        "reviews": 1, "origins": 1, "classes": 1, "places": 1, "shapes": 1, "segments": 1,
        "overlaps": 1, "label_names": 1, "split_names": 2, "settings": 1, "multi_label": 1,
    }  # fmt: skip
    assert report.losses.keys() <= LOSSES.keys()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "train.json"),
        ("7", "train.json: holds neither"),
        ("[1]", "train.json: [0]: 1 is no text"),
        ('[["a"]]', "train.json: [0]: is no pair"),
        ('[{"text": 1}]', "train.json: [0]: its text is 1"),
        ('[{"text": "a"}, {"text": "a", "spans": 1}]', "train.json: [1]: its spans are 1"),
        ('[{"text": "a", "spans": [1]}]', "train.json: [0]: span 0"),
        ('[{"text": "a", "spans": [[0.5, 1, "x"]]}]', "write whole numbers"),
        ('[{"text": "a", "spans": [[0, 1, " "]]}]', "is no name of a label"),
        ('[{"text": "a"}', "train.json: [0]: the file ends where ','"),
    ],
)
def test_what_is_broken_is_refused_by_member_and_place(text, said):
    with pytest.raises(Invalid) as refused:
        read(NER, {"train.json": text}, ABOUT)
    assert said in str(refused.value)
    assert refused.value.field == "file"


def test_an_archive_without_lists_is_refused_with_the_remedy():
    with pytest.raises(Invalid, match=r"train\.json"):
        read(NER, {"a.txt": "x"}, ABOUT)


def test_what_cannot_be_taken_is_skipped_and_counted():
    value = [{"text": " "}, None, {"text": "ab", "spans": [[0, 1, None], [1, 9, "PER"]]}]
    _, (record,), report = read(NER, {"train.json": json.dumps(value), "notes.md": "x"}, ABOUT)
    assert report.skipped == {"empty": 2, "annotation_bad_label": 1, "unused_file": 1}
    assert placed(record, text_item("ab")) == ["outside"]


def test_an_export_that_goes_on_in_another_process_is_the_same():
    records = [text_item("abc", n, splits=("train", "valid")[: n % 3]) for n in range(1, 6)]
    assert written(NER, records, ABOUT) == written(NER, records, ABOUT, breaks=True)


TEXTS = st.text(
    st.characters(exclude_characters="\0", codec="utf-8"), min_size=1, max_size=20
).filter(str.strip)


@st.composite
def texts(draw):
    records = []
    for number in range(draw(st.integers(0, 5))):
        text = draw(TEXTS)
        pairs = st.lists(st.integers(0, len(text)), min_size=2, max_size=2, unique=True).map(sorted)
        marks = [
            span(start, end, draw(st.sampled_from(["PER", "ORG"])))
            for start, end in draw(st.lists(pairs, max_size=4))
        ]
        splits = draw(st.sampled_from([(), ("train",), ("valid",), ("train", "valid")]))
        values = {"name": draw(st.sampled_from(["", "a name"])), "splits": splits}
        records.append(text_item(text, number, marks=tuple(marks), **values))
    return records


@given(texts())
def test_all_that_the_format_holds_comes_back_equal(records):
    header, found, lost, skipped = round_trip(NER, records, ABOUT)
    assert {split.name for split in header.splits} == {"train", "valid"}
    assert lost.losses.keys() <= {"overlaps"}
    assert not skipped.skipped
    key = lambda record: (record.splits, record.text, record.name, repr(places(record)))  # noqa: E731
    assert sorted(map(key, found)) == sorted(map(key, records))


SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=5),
    st.sampled_from(["PER", 10**400, "\ud800", 0, 1]),
)  # fmt: skip
JSON = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["text", "id", "entities", "spans", "start", "end", "label"]), inner
        )
    ),
    max_leaves=10,
)


@given(JSON | st.lists(JSON), JSON)
def test_damaged_json_is_refused_and_never_crashes(one, other):
    survive(
        NER,
        {"a.json": json.dumps(one), "b.json": json.dumps(one), "config.json": json.dumps(other)},
    )


def test_it_is_recognised_by_json_alone_for_texts():
    with opened({"train.json": "[]", "config.json": "{}"}) as archive:
        assert NER.recognises(archive, ABOUT)
        assert not NER.recognises(archive, about())
    with opened({"train.json": "[]", "a.txt": ""}) as archive:
        assert not NER.recognises(archive, ABOUT)
