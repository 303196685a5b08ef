"""How new output replaces old output."""

from dataclasses import replace as changed
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ppworker.domain.apply import Draft
from ppworker.domain.replace import Changes, Existing, label_counts, label_counts_after, replace

OWN, OTHER = UUID(int=5), UUID(int=6)
CAT, DOG = UUID(int=101), UUID(int=102)


def draft(fingerprint="f", label=CAT, kind="class", score=0.5):
    return (
        Draft(
            label="cat",
            kind=kind,
            geometry=None,
            coordinates="",
            text=None,
            score=score,
            page=None,
            fingerprint=fingerprint,
        ),
        label,
    )


def row(number=1, processor=OWN, fingerprint="f", **values):
    defaults = {"label_id": CAT, "kind": "class", "source": "model", "score": 0.5}
    if processor is None:
        defaults["source"] = "human"
        fingerprint = None
    return Existing(
        id=UUID(int=number),
        post_processor_id=processor,
        fingerprint=fingerprint,
        **{**defaults, **values},
    )


def run(existing, drafts, *, order=1, multi_label=True):
    return replace(existing, drafts, processor_id=OWN, order=order, multi_label=multi_label)


def store(existing, changes, *, order):
    """The rows as they stand once the changes are written."""
    updates = {change.id: change for change in changes.update}
    rows = []
    for old in existing:
        if old.id in changes.delete:
            continue
        if old.id in updates:
            new = updates[old.id]
            rows.append(
                changed(
                    old,
                    label_id=new.label_id,
                    score=new.draft.score,
                    geometry=new.draft.geometry,
                    coordinates=new.draft.coordinates,
                )
            )
        else:
            rows.append(old)
    for number, (new_draft, label_id) in enumerate(changes.insert):
        rows.append(
            row(
                1000 + number,
                fingerprint=new_draft.fingerprint,
                label_id=label_id,
                kind=new_draft.kind,
                score=new_draft.score,
                order=order,
            )
        )
    return rows


# A fingerprint covers the kind, so one fingerprint is always of one kind.
prints = st.sampled_from(
    [
        {"fingerprint": fingerprint, "kind": kind}
        for kind, some in [("class", "abc"), ("bbox", "de")]
        for fingerprint in some
    ]
)
kinds = st.sampled_from(["class", "bbox"])


def printed(build, said, **values):
    return build(**said, **values)


drafts_of_answers = st.lists(
    st.builds(
        printed,
        st.just(draft),
        prints,
        label=st.sampled_from([CAT, DOG]),
        score=st.none() | st.sampled_from([0.1, 0.5]),
    ),
    max_size=4,
)
rows_of_items = st.lists(
    st.builds(
        printed,
        st.just(row),
        prints,
        number=st.integers(1, 50),
        processor=st.sampled_from([None, OWN, OTHER]),
        label_id=st.sampled_from([CAT, DOG, None]),
        order=st.integers(0, 2),
        reviewed=st.booleans(),
        deleted=st.booleans(),
    )
    | st.builds(
        row,
        number=st.integers(1, 50),
        processor=st.none(),
        kind=kinds,
        source=st.sampled_from(["human", "import", "inference"]),
        deleted=st.booleans(),
    ),
    max_size=6,
    unique_by=(
        lambda r: r.id,
        lambda r: (r.post_processor_id, r.fingerprint or r.id),
    ),
)
cases = given(rows_of_items, drafts_of_answers, st.integers(0, 2), st.booleans())


@cases
def test_people_and_others_are_never_touched(existing, drafts, order, multi_label):
    changes = run(existing, drafts, order=order, multi_label=multi_label)
    touched = {*changes.delete, *(change.id for change in changes.update)}
    for old in existing:
        if old.source != "model" or old.reviewed or old.deleted:
            assert old.id not in touched
        elif old.post_processor_id != OWN:
            assert old.id not in touched or (not multi_label and old.kind == "class")


@cases
def test_every_draft_is_accounted_for(existing, drafts, order, multi_label):
    changes = run(existing, drafts, order=order, multi_label=multi_label)
    assert len(drafts) == (
        len(changes.insert)
        + len(changes.update)
        + changes.unchanged
        + sum(changes.dropped.values())
    )


@cases
def test_a_second_run_changes_nothing(existing, drafts, order, multi_label):
    first = run(existing, drafts, order=order, multi_label=multi_label)
    stored = store(existing, first, order=order)
    again = run(stored, drafts, order=order, multi_label=multi_label)
    assert (again.insert, again.update, again.delete) == ((), (), ())


@cases
def test_the_counts_after_are_those_of_the_stored_rows(existing, drafts, order, multi_label):
    changes = run(existing, drafts, order=order, multi_label=multi_label)
    assert label_counts_after(existing, changes) == label_counts(
        store(existing, changes, order=order)
    )


@cases
def test_fingerprints_stay_unique(existing, drafts, order, multi_label):
    stored = store(existing, run(existing, drafts, order=order, multi_label=multi_label), order=1)
    own = [r.fingerprint for r in stored if r.post_processor_id == OWN]
    assert len(own) == len(set(own))


@cases
def test_a_single_label_item_gains_no_second_class(existing, drafts, order, multi_label):
    changes = run(existing, drafts, order=order, multi_label=False)
    stored = store(existing, changes, order=order)
    untouchable = [r for r in existing if r.kind == "class" and not r.deleted and not r.is_models]
    rivals = {
        r.id
        for r in stored
        if r.kind == "class" and not r.deleted and r.is_models and r.post_processor_id != OWN
    }
    own = [
        r
        for r in stored
        if r.kind == "class" and r.is_models and not r.deleted and r.id not in rivals
    ]
    assert len(own) + bool(untouchable or rivals) <= 1


def test_a_new_prediction_is_inserted():
    assert run([], [draft()]) == Changes(insert=(draft(),))


def test_an_equal_prediction_keeps_its_row():
    assert run([row()], [draft()]) == Changes(unchanged=1)


@pytest.mark.parametrize(
    "new",
    [draft(label=DOG), draft(score=0.6), draft(score=None)],
    ids=["label", "score", "unscored"],
)
def test_a_changed_value_updates_the_same_row(new):
    (update,) = run([row()], [new]).update
    assert (update.id, update.draft, update.label_id) == (UUID(int=1), *new)


def test_rounding_of_stored_scores_is_no_change():
    assert run([row(score=0.5000001)], [draft()]).unchanged == 1


def test_a_vanished_prediction_goes():
    assert run([row()], []).delete == (UUID(int=1),)


def test_a_reviewed_row_stays_when_its_prediction_vanishes():
    assert run([row(reviewed=True)], []) == Changes()


def test_a_reviewed_row_stands_for_its_prediction():
    assert run([row(reviewed=True, label_id=DOG)], [draft()]) == Changes(unchanged=1)


def test_what_a_person_deleted_does_not_come_back():
    changes = run([row(deleted=True)], [draft(label=DOG)])
    assert changes == Changes(dropped={"deleted_by_person": 1})


def test_a_tombstone_of_another_post_processor_forbids_nothing():
    assert run([row(processor=OTHER, deleted=True)], [draft()]).insert


def test_a_prediction_said_twice_is_inserted_once():
    assert run([], [draft(), draft()]) == Changes(insert=(draft(),), dropped={"duplicate": 1})


# One label per item


@pytest.mark.parametrize(
    "standing",
    [
        row(2, None),
        row(2, None, source="import"),
        row(2, None, source="inference"),
        row(2, OTHER, reviewed=True),
        row(2, OTHER, order=2),
    ],
    ids=["human", "import", "inference", "reviewed", "higher order"],
)
def test_the_one_label_of_an_item_outranks_the_model(standing):
    changes = run([standing], [draft()], multi_label=False)
    assert changes == Changes(dropped={"outranked": 1})


def test_an_outranked_post_processor_takes_its_old_label_back():
    changes = run([row(), row(2, None)], [draft()], multi_label=False)
    assert changes == Changes(delete=(UUID(int=1),), dropped={"outranked": 1})


@pytest.mark.parametrize("order", [0, 1])
def test_the_higher_order_then_the_smaller_id_supersedes(order):
    changes = run([row(2, OTHER, order=order)], [draft()], multi_label=False)
    assert changes == Changes(insert=(draft(),), delete=(UUID(int=2),))


def test_the_smaller_id_stands_among_equal_orders():
    changes = run([row(2, UUID(int=4), order=1)], [draft()], multi_label=False)
    assert changes.dropped == {"outranked": 1}


def test_the_own_accepted_label_stands_for_its_prediction():
    changes = run([row(reviewed=True)], [draft()], multi_label=False)
    assert changes == Changes(unchanged=1)


def test_only_the_best_class_is_taken():
    changes = run([], [draft("a", score=None), draft("b", score=0.1)], multi_label=False)
    assert changes == Changes(insert=(draft("b", score=0.1),), dropped={"not_top": 1})


def test_boxes_of_a_single_label_item_are_no_rivals():
    box = draft("b", kind="bbox")
    changes = run([row(2, None)], [box], multi_label=False)
    assert changes == Changes(insert=(box,))


def test_a_deleted_suggestion_supersedes_nobody():
    existing = [row(deleted=True), row(2, OTHER, order=0)]
    changes = run(existing, [draft()], multi_label=False)
    assert changes == Changes(dropped={"deleted_by_person": 1})
