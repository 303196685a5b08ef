"""What inferences made elsewhere say, and what of it is missing."""

from uuid import UUID, uuid4

import pytest
from hypothesis import given as hypothesis_given
from hypothesis import strategies as st

from ppworker.domain import given
from ppworker.domain.coordinates import About
from ppworker.domain.drop import Reason
from ppworker.domain.given import Said
from ppworker.domain.replace import Existing

CAT, DOG = UUID(int=1), UUID(int=2)


def drafts(*said, multi_label=True, about=None):
    predictions = [Said(*(one if isinstance(one, tuple) else (one, None, ""))) for one in said]
    return given.drafts(predictions, about or About(text="one two"), multi_label=multi_label)


def wanted(*said, **options):
    ids = {"cat": CAT, "dog": DOG}
    made, _ = drafts(*said, **options)
    return [(draft, ids[draft.label]) for draft in made]


def standing(label_id=CAT, **values):
    return Existing(
        **{"id": uuid4(), "label_id": label_id, "kind": "class", "source": "human"} | values
    )


@pytest.mark.parametrize(
    ("raw", "is_file", "name", "text"),
    [
        ({"name": "some words"}, False, "", "some words"),
        ({"name": "some words", "result": "an answer"}, False, "", "some words"),
        ({"name": "", "result": "an answer"}, False, "", "an answer"),
        ({"name": "words.txt", "extension": "txt"}, True, "words.txt", None),
        ({"name": "some words", "extension": ".TXT"}, False, "", "some words"),
        ({"name": "a.jpg", "extension": ".JPG"}, True, "a.jpg", None),
        ({"name": "a.wav", "extension": "wav", "result": "said"}, True, "a.wav", "said"),
        ({"name": "a", "blob": "a" * 64}, True, "a", None),
    ],
)  # fmt: skip
def test_an_inference_is_about_a_text_or_a_file(raw, is_file, name, text):
    found = given.read(raw)
    assert (found.is_file, found.name, found.text) == (is_file, name, text)


def test_the_deprecated_pair_counts_where_there_is_no_list():
    old = {"prediction": " big  cat ", "confidence": 1}
    assert given.read(old).predictions == (Said("big cat", 1.0, ""),)
    both = old | {"inference_items": [{"prediction": "dog", "coordinates": " 0 1 "}]}
    assert given.read(both).predictions == (Said("dog", None, "0 1"),)
    assert given.read({"prediction": "", "inference_items": None}).predictions == ()


def test_an_inference_is_known_by_its_id_or_by_what_it_says():
    said = {"name": "x", "prediction": "cat", "confidence": 0.5}
    assert given.read(said | {"id": "a"}).external_id == "a"
    first = given.read(said).external_id
    assert given.read(said | {"created_at": "now", "inference_time": "3ms"}).external_id == first
    for change in ({"name": "y"}, {"confidence": 0.6}, {"dataset_item_id": "z"}, {"blob": "b"}):
        assert given.read(said | change).external_id != first


def test_an_unusable_label_is_dropped_and_counted():
    made, dropped = drafts("cat", "", "x" * 201)
    assert [draft.label for draft in made] == ["cat"]
    assert dropped == {Reason.BAD_LABEL: 2}


def test_one_label_per_item_is_the_best_and_an_unusable_best_promotes_none():
    made, dropped = drafts(("cat", 0.4, ""), ("dog", 0.6, ""), ("cow", None, ""), multi_label=False)
    assert [draft.label for draft in made] == ["dog"]
    assert dropped == {Reason.NOT_TOP: 2}
    made, dropped = drafts(("cat", 0.4, ""), ("", 0.6, ""), ("dog", 0.1, "0 3"), multi_label=False)
    assert [(draft.label, draft.kind) for draft in made] == [("dog", "span")]
    assert dropped == {Reason.NOT_TOP: 1, Reason.BAD_LABEL: 1}


def test_the_same_twice_in_one_inference_is_once_with_the_better_score():
    made, dropped = drafts(("Cat", 0.4, ""), ("cat", 0.6, ""), ("cat", None, "0 3"), "cat")
    assert [(draft.label, draft.score, draft.kind) for draft in made] == [
        ("cat", 0.6, "class"),
        ("cat", None, "span"),
    ]
    assert dropped == {Reason.DUPLICATE: 2}


def test_places_that_could_not_be_computed_are_told_apart_by_their_words():
    image = About(family="image")
    made, _ = drafts(
        ("cat", None, "0.5 0.5 0.1 0.1"), ("cat", None, "0.1 0.1 0.1 0.1"), about=image
    )
    assert len({draft.fingerprint for draft in made}) == 2
    made, _ = drafts(("cat", None, "some words"), ("cat", None, "other words"), "cat")
    assert len({draft.fingerprint for draft in made}) == 3


@pytest.mark.parametrize("multi_label", [True, False])
@pytest.mark.parametrize("source", ["human", "model", "inference", "import"])
def test_what_anybody_says_already_is_there(source, multi_label):
    added = given.missing(
        given.Standing([standing(source=source)]), wanted("cat"), multi_label=multi_label
    )
    assert (added.insert, added.already_there, added.dropped) == ([], 1, {})


@pytest.mark.parametrize("source", ["human", "model", "inference", "import"])
def test_another_class_stands_beside_it_or_outranks_it(source):
    rows = [standing(DOG, source=source)]
    assert len(given.missing(given.Standing(rows), wanted("cat"), multi_label=True).insert) == 1
    alone = given.missing(given.Standing(rows), wanted("cat"), multi_label=False)
    assert (alone.insert, alone.dropped) == ([], {Reason.OUTRANKED: 1})
    places = given.missing(given.Standing(rows), wanted(("cat", None, "0 3")), multi_label=False)
    assert len(places.insert) == 1, "one label per item concerns whole items"


def test_what_a_person_deleted_does_not_come_back_by_its_words_or_by_its_origin():
    deleted = standing(source="model", deleted=True)
    assert given.missing(given.Standing([deleted]), wanted("cat"), multi_label=True).dropped == {
        Reason.DELETED_BY_PERSON: 1
    }
    (draft, _), = wanted("cat")  # fmt: skip
    relabelled = standing(DOG, source="inference", deleted=True, fingerprint=draft.fingerprint)
    assert given.missing(given.Standing([relabelled]), wanted("cat"), multi_label=True).dropped == {
        Reason.DELETED_BY_PERSON: 1
    }
    again = [deleted, standing()]  # deleted, and then set by hand
    assert given.missing(given.Standing(again), wanted("cat"), multi_label=True).already_there == 1


def test_a_suggestion_that_a_person_changed_is_there_in_its_new_form():
    (draft, _), = wanted("cat")  # fmt: skip
    edited = standing(DOG, source="inference", reviewed=True, fingerprint=draft.fingerprint)
    assert (
        given.missing(given.Standing([edited]), wanted("cat"), multi_label=True).already_there == 1
    )


def test_a_place_is_the_same_whoever_wrote_it():
    by_model = standing(
        kind="span", source="model", geometry={"start": 0.0, "end": 3}, coordinates="0 3"
    )
    assert (
        given.missing(
            given.Standing([by_model]), wanted(("cat", 0.9, "0 3")), multi_label=True
        ).already_there
        == 1
    )
    assert (
        len(
            given.missing(
                given.Standing([by_model]), wanted(("cat", 0.9, "0 2")), multi_label=True
            ).insert
        )
        == 1
    )
    by_hand = standing(kind="class", coordinates=" odd ")
    assert (
        given.missing(
            given.Standing([by_hand]), wanted(("cat", 0.9, "odd")), multi_label=True
        ).already_there
        == 1
    )


def test_a_row_is_looked_at_once_however_often_more_is_added(monkeypatch):
    looked = 0

    def counted(row, place=given._where):
        nonlocal looked
        looked += 1
        return place(row)

    monkeypatch.setattr(given, "_where", counted)
    stands = given.Standing([standing(kind="span", coordinates=f"{n} {n + 1}") for n in range(100)])
    for n in range(100):
        more = wanted(("cat", None, f"place {n}"))
        assert len(given.missing(stands, more, multi_label=True).insert) == 1
        assert given.missing(stands, more, multi_label=True).already_there == 1
    assert looked <= 100 + 100 * 10, "not each of the rows for each of the questions"


_SAID = st.tuples(
    st.sampled_from(["cat", "Cat", "dog", "", "x" * 300]),
    st.none() | st.floats(0, 1),
    st.sampled_from(["", "0 3", "1 99", "any", "0.5 0.5 0.1 0.1"]),
)


@hypothesis_given(st.lists(_SAID), st.booleans(), st.booleans())
def test_every_prediction_is_added_there_already_or_dropped_and_twice_adds_nothing(
    said, multi_label, is_image
):
    about = About(family="image" if is_image else "text", text="one two")
    made, dropped = drafts(*said, multi_label=multi_label, about=about)
    assert len(made) + dropped.total() == len(said)
    pairs = [(draft, CAT if draft.label.lower() == "cat" else DOG) for draft in made]
    first = given.missing(given.Standing([]), pairs, multi_label=multi_label)
    rows = [
        standing(
            label_id, kind=draft.kind, source="inference", fingerprint=draft.fingerprint,
            geometry=draft.geometry, coordinates=draft.coordinates,
        )
        for draft, label_id in first.insert
    ]  # fmt: skip
    second = given.missing(given.Standing(rows), pairs, multi_label=multi_label)
    assert (second.insert, second.already_there) == ([], len(pairs))
    names = given.labels_of([Said(*each) for each in said], multi_label=multi_label)
    assert {draft.label for draft in made} <= set(names)
    if not multi_label:
        assert sum(draft.kind == "class" for draft, _ in first.insert) <= 1
