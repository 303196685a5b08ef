"""What an answer becomes."""

import math
import sys
from collections import Counter
from dataclasses import replace
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ppworker.domain.apply import Target, apply
from ppworker.domain.drop import add_counts
from ppworker.domain.inference import Inference, Prediction
from ppworker.domain.labels import MAX_NAME, normalise_label
from ppworker.domain.post_processor import PostProcessor

CAT, DOG = UUID(int=1), UUID(int=2)
LABELS = {"cat": CAT, "Dog": DOG}
IMAGE = Target(width=100, height=50)
PROCESSOR = PostProcessor(
    id=UUID(int=9), dataset_id=UUID(int=8), name="p", model_type="classification", runner="r"
)

names = st.sampled_from(
    ["cat", " CAT", "dog", "new", "New ", "other", "nothing", "", "x" * 300, "a\x00", "\ud800"]
)
coordinates = st.sampled_from(
    [-500, -1, 0, 0.004, 1, 10, 49.999, 50, 51, 100, 500, 1e300, math.nan, "x"]
)
geometries = st.one_of(
    st.none(),
    st.fixed_dictionaries({"box": st.lists(coordinates, min_size=3, max_size=4)}),
    st.fixed_dictionaries({"points": st.lists(st.tuples(coordinates, coordinates), max_size=5)}),
    st.fixed_dictionaries({"start": coordinates, "end": coordinates}),
)
predictions = st.builds(
    Prediction,
    kind=st.sampled_from(["class", "bbox", "polygon", "keypoints", "span", "segment"]),
    label=st.none() | names,
    score=st.none() | st.sampled_from([0.0, 0.3, 0.5, 0.9, 1.0, math.nan, 2.0]),
    geometry=geometries,
    text=st.none() | st.sampled_from(["h", "hello", "\x00"]),
    page=st.none() | st.integers(-1, 3),
)
inferences = st.builds(
    Inference,
    text=st.none() | st.sampled_from(["", "hello", "h\x00ello"]),
    predictions=st.lists(predictions, max_size=10).map(tuple),
)
processors = st.builds(
    replace,
    st.just(PROCESSOR),
    output_target=st.sampled_from(["text", "annotations", "both"]),
    auto_create_labels=st.booleans(),
    max_new_labels=st.integers(0, 3),
    confidence_threshold=st.sampled_from([0.0, 0.5]),
    keep_unscored=st.booleans(),
    label_mapping=st.sampled_from([{}, {"other": "cat", "nothing": None, "NEW": str(DOG)}]),
    label_prefix=st.sampled_from(["", "auto:"]),
)
targets = st.builds(
    Target,
    multi_label=st.booleans(),
    text=st.none() | st.just("hello"),
    width=st.none() | st.just(100),
    height=st.none() | st.just(50),
    page_count=st.none() | st.just(2),
    duration_s=st.none() | st.just(20.0),
)


@given(inferences, processors, targets)
def test_every_prediction_becomes_a_draft_or_is_counted(inference, processor, target):
    applied = apply(inference, processor, LABELS, target)
    assert len(inference.predictions) == len(applied.drafts) + sum(applied.dropped.values())


@given(inferences, processors, targets)
def test_applying_again_gives_the_same_once_the_labels_exist(inference, processor, target):
    first = apply(inference, processor, LABELS, target)
    known = {**LABELS, **{name: UUID(int=100 + n) for n, name in enumerate(first.new_labels)}}
    rest = replace(processor, max_new_labels=processor.max_new_labels - len(first.new_labels))
    assert apply(inference, rest, known, target) == replace(first, new_labels=())


@given(inferences, processors, targets)
def test_drafts_can_be_stored(inference, processor, target):
    applied = apply(inference, processor, LABELS, target)
    forms = [normalise_label(name) for name in (*LABELS, *applied.new_labels)]
    assert len(forms) == len(set(forms))
    assert len(applied.new_labels) <= processor.max_new_labels
    assert {d.label for d in applied.drafts} - LABELS.keys() == set(applied.new_labels)
    assert len({d.fingerprint for d in applied.drafts}) == len(applied.drafts)
    for draft in applied.drafts:
        f"{draft.label}{draft.text}{draft.coordinates}".encode()
        assert draft.score is None or 0 <= draft.score <= 1
        assert all(0 <= side <= 1 for side in map(float, draft.coordinates.split())) or (
            draft.kind in {"span", "segment"}
        )
    if not target.multi_label:
        assert sum(draft.kind == "class" for draft in applied.drafts) <= 1


@given(st.text(max_size=8))
def test_normalising_a_label_twice_changes_nothing(name):
    assert normalise_label(normalise_label(name)) == normalise_label(name)


def test_normalising_is_stable_for_code_points_of_every_block():
    for code in range(0, sys.maxunicode + 1, 7):  # every one was tried; blocks are far wider
        name = chr(code)
        if name.isascii() or name == name.casefold():
            continue
        assert normalise_label(normalise_label(name)) == normalise_label(name), hex(code)


def classes(*scored):
    return Inference(
        predictions=tuple(Prediction(kind="class", label=name, score=s) for name, s in scored)
    )


def shaped(kind, geometry, **values):
    prediction = Prediction(kind=kind, label="cat", geometry=geometry, **values)
    return Inference(predictions=(prediction,))


def run(inference, target=IMAGE, labels=LABELS, **settings):
    return apply(inference, replace(PROCESSOR, **settings), labels, target)


def labels_of(applied):
    return [draft.label for draft in applied.drafts]


# Threshold


def test_the_threshold_is_inclusive():
    applied = run(classes(("cat", 0.5), ("dog", 0.49)), confidence_threshold=0.5)
    assert (labels_of(applied), applied.dropped) == (["cat"], {"below_threshold": 1})


@pytest.mark.parametrize(
    ("threshold", "keep", "kept"), [(0.5, True, 1), (0.5, False, 0), (0.0, False, 1)]
)
def test_an_unscored_prediction_passes_by_setting_or_without_threshold(threshold, keep, kept):
    applied = run(classes(("cat", None)), confidence_threshold=threshold, keep_unscored=keep)
    assert len(applied.drafts) == kept
    assert applied.dropped == ({} if kept else {"unscored": 1})


# One label per item


def test_a_single_label_dataset_takes_the_first_best_class():
    applied = run(classes(("dog", 0.4), ("cat", 0.6), ("new", 0.6)), Target(multi_label=False))
    assert (labels_of(applied), applied.dropped) == (["cat"], {"not_top": 2})


def test_an_unusable_best_class_does_not_promote_the_second():
    settings = {"label_mapping": {"background": None}}
    inference = classes(("background", 0.9), ("cat", 0.1))
    applied = run(inference, Target(multi_label=False), **settings)
    assert applied.drafts == ()
    assert applied.dropped == {"mapped_to_nothing": 1, "not_top": 1}


def test_a_multi_label_dataset_takes_every_class():
    assert labels_of(run(classes(("cat", 0.9), ("dog", 0.1)))) == ["cat", "Dog"]


# Labels


@pytest.mark.parametrize("said", ["cat", "CAT", " cat ", "\uff43\uff41\uff54", "c\x00at"])
def test_labels_are_found_exactly_and_then_in_normal_form(said):
    applied = run(classes((said, None)), auto_create_labels=False)
    assert (labels_of(applied), applied.new_labels) == (["cat"], ())


def test_the_exact_label_goes_before_its_normal_form():
    applied = run(classes(("CAT", None)), labels={"cat": CAT, "CAT": DOG})
    assert labels_of(applied) == ["CAT"]


@pytest.mark.parametrize("wanted", ["Dog", "dog", str(DOG)])
def test_the_mapping_is_many_to_one_by_name_or_id(wanted):
    mapping = {"hound": wanted, "puppy": wanted}
    applied = run(
        Inference(
            predictions=tuple(
                Prediction(kind="span", label=name, geometry={"start": n, "end": n + 1})
                for n, name in enumerate(["hound", " PUPPY", "cat"])
            )
        ),
        Target(text="abc"),
        label_mapping=mapping,
    )
    assert labels_of(applied) == ["Dog", "Dog", "cat"]


def test_the_exact_mapping_goes_before_its_normal_form():
    mapping = {"HOUND": "cat", "hound": "Dog"}
    assert labels_of(run(classes(("hound", None)), label_mapping=mapping)) == ["Dog"]


def test_the_id_of_a_label_that_is_gone_makes_no_label():
    applied = run(classes(("a", None)), label_mapping={"a": str(UUID(int=77))})
    assert (applied.new_labels, applied.dropped) == ((), {"unknown_label": 1})


def test_an_unknown_label_is_created_with_the_prefix():
    applied = run(classes(("new", 0.5)), label_prefix="auto:")
    assert (labels_of(applied), applied.new_labels) == (["auto:new"], ("auto:new",))


def test_a_label_that_exists_with_the_prefix_is_found():
    applied = run(
        classes(("NEW", 0.5)),
        labels={"auto:new": CAT},
        label_prefix="auto:",
        auto_create_labels=False,
    )
    assert (labels_of(applied), applied.new_labels) == (["auto:new"], ())


def test_an_unknown_label_is_dropped_where_none_may_be_created():
    applied = run(classes(("new", 0.5)), auto_create_labels=False)
    assert (applied.drafts, applied.dropped) == ((), {"unknown_label": 1})


@pytest.mark.parametrize("said", [None, "", " \n", "\x00", "x" * (MAX_NAME + 1)])
def test_a_label_without_a_usable_name_is_dropped(said):
    assert run(classes((said, 0.5))).dropped == {"bad_label": 1}


def test_the_prefix_counts_for_the_longest_name():
    assert run(classes(("x" * MAX_NAME, 0.5)), label_prefix="a").dropped == {"bad_label": 1}


def test_spellings_of_a_new_label_are_one_label_named_by_the_best():
    inference = Inference(
        predictions=tuple(
            Prediction(kind="span", label=name, score=score, geometry={"start": n, "end": n + 1})
            for n, (name, score) in enumerate([("NEW", 0.2), ("New", 0.8)])
        )
    )
    applied = run(inference, Target(text="ab"), max_new_labels=1)
    assert (labels_of(applied), applied.new_labels) == (["New", "New"], ("New",))


def test_the_cap_of_new_labels_keeps_the_best_scores():
    applied = run(classes(("a", 0.1), ("cat", 0.2), ("b", 0.9)), max_new_labels=1)
    assert (labels_of(applied), applied.new_labels) == (["cat", "b"], ("b",))
    assert applied.dropped == {"label_cap": 1}


def test_dropped_predictions_use_up_no_new_label():
    outside = Prediction(kind="bbox", label="a", score=1, geometry={"box": [500, 0, 600, 9]})
    inference = Inference(predictions=(outside, *classes(("b", 0.1)).predictions))
    assert run(inference, max_new_labels=1).new_labels == ("b",)


# Targets


def test_the_target_text_writes_text_only():
    inference = replace(classes(("cat", 1)), text="he\x00llo")
    applied = run(inference, output_target="text")
    assert (applied.text, applied.drafts, applied.dropped) == ("hello", (), {"not_asked": 1})
    assert applied.cleaned == 1


def test_the_target_annotations_leaves_the_text_alone():
    applied = run(replace(classes(("cat", 1)), text="hello"))
    assert (applied.text, labels_of(applied)) == (None, ["cat"])


def test_the_target_both_writes_both_and_spans_refer_to_the_new_text():
    inference = replace(shaped("span", {"start": 4, "end": 7}, text="new"), text="the new")
    applied = run(inference, Target(text="old"), output_target="both")
    assert applied.text == "the new"
    assert [d.coordinates for d in applied.drafts] == ["4 7"]


def test_spans_move_with_what_is_taken_out_of_the_new_text():
    inference = replace(
        shaped("span", {"start": 5, "end": 8}, text="n\x00w"), text="t\x00he n\x00w"
    )
    (draft,) = run(replace(inference, text="t\x00he n\x00w"), output_target="both").drafts
    assert (draft.geometry, draft.text) == ({"start": 4, "end": 6}, "nw")


def test_a_span_of_nothing_but_refused_characters_is_empty():
    inference = replace(shaped("span", {"start": 1, "end": 2}), text="t\x00he")
    assert run(inference, output_target="both").dropped == {"empty": 1}


# Places


@pytest.mark.parametrize(
    ("box", "fitted"),
    [
        ([10, 10, 30, 20], [10, 10, 30, 20]),
        ([-2, -2, 102, 52], [0, 0, 100, 50]),
        ([-2.1, 0, 10, 10], "outside"),
        ([0, 0, 10, 52.1], "outside"),
        ([5, 5, 5, 9], "zero_area"),
        ([100, 0, 101, 9], "zero_area"),
        ([9, 9, 5, 5], "bad_geometry"),
    ],
)
def test_boxes_are_clamped_within_the_tolerance(box, fitted):
    applied = run(shaped("bbox", {"box": box}))
    if isinstance(fitted, str):
        assert applied.dropped == {fitted: 1}
    else:
        assert applied.drafts[0].geometry == {"box": fitted}


def test_the_tolerance_grows_with_the_image():
    large = Target(width=1000, height=1000)
    assert run(shaped("bbox", {"box": [-10, 0, 9, 9]}), large).drafts
    assert run(shaped("bbox", {"box": [-11, 0, 9, 9]}), large).dropped == {"outside": 1}


@pytest.mark.parametrize(
    ("points", "reason"),
    [
        ([[0, 0], [10, 0]], "bad_geometry"),
        ([[0, 0], [5, 5], [10, 10]], "zero_area"),
        ([[0, 0], [500, 0], [10, 10]], "outside"),
    ],
)
def test_bad_polygons_are_dropped(points, reason):
    assert run(shaped("polygon", {"points": points})).dropped == {reason: 1}


def test_a_figure_of_eight_is_a_polygon():
    points = [[0, 0], [10, 10], [10, 0], [0, 10]]
    assert run(shaped("polygon", {"points": points})).drafts


def test_coordinates_of_shapes_are_relative_with_the_centre():
    (box,) = run(shaped("bbox", {"box": [10, 10, 30, 20]})).drafts
    (polygon,) = run(shaped("polygon", {"points": [[10, 10], [30, 10], [30, 20]]})).drafts
    assert box.coordinates == polygon.coordinates == "0.200000 0.300000 0.200000 0.200000"


def test_shapes_of_unknown_size_have_no_coordinates():
    (draft,) = run(shaped("bbox", {"box": [10, 10, 30, 20]}), Target()).drafts
    assert draft.coordinates == ""


def test_the_size_of_the_item_is_that_of_its_first_page():
    target = Target(width=100, height=50, page_count=2)
    (draft,) = run(shaped("bbox", {"box": [0, 0, 300, 20]}, page=1), target).drafts
    assert (draft.coordinates, draft.page) == ("", 1)
    assert run(shaped("bbox", {"box": [0, 0, 9, 9]}, page=2), target).dropped == {"outside": 1}


@pytest.mark.parametrize(
    ("start", "end", "quoted", "reason"),
    [
        (0, 9, None, "outside"),
        (-1, 2, None, "outside"),
        (3, 3, None, "empty"),
        (0, 2, "no", "span_mismatch"),
        (0, None, None, "bad_geometry"),
    ],
)
def test_spans_must_fit_the_text_and_their_quote(start, end, quoted, reason):
    applied = run(
        shaped("span", {"start": start, "end": end}, text=quoted), Target(text="ok 🚀 go")
    )
    assert applied.dropped == {reason: 1}


def test_spans_count_code_points_and_quote_the_item():
    (draft,) = run(shaped("span", {"start": 5, "end": 7}), Target(text="ok 🚀 go")).drafts
    assert (draft.text, draft.coordinates) == ("go", "5 7")


def test_a_span_of_an_item_without_text_is_outside():
    assert run(shaped("span", {"start": 0, "end": 1}), Target()).dropped == {"outside": 1}


@pytest.mark.parametrize(
    ("start", "end", "coordinates"),
    [(1, 2.5, "1.000 2.500"), (-0.1, 30, "0.000 20.000"), (20, 21, None), (-2, -1, None)],
)
def test_segments_are_clamped_into_the_recording(start, end, coordinates):
    applied = run(shaped("segment", {"start": start, "end": end}), Target(duration_s=20))
    assert [d.coordinates for d in applied.drafts] == ([coordinates] if coordinates else [])
    assert applied.dropped == ({} if coordinates else {"outside": 1})


def test_segments_of_unknown_duration_keep_their_end():
    (draft,) = run(shaped("segment", {"start": 1, "end": 99}), Target()).drafts
    assert draft.geometry == {"start": 1.0, "end": 99.0}
    assert run(shaped("segment", {"start": 1, "end": 1}), Target()).dropped == {"empty": 1}


@pytest.mark.parametrize("start", [None, "0", True])
def test_segments_without_numbers_are_dropped(start):
    applied = run(shaped("segment", {"start": start, "end": 1}), Target())
    assert applied.dropped == {"bad_geometry": 1}


def test_unbelievable_figures_are_outside_where_the_item_says_nothing():
    said = [
        Prediction(kind="segment", label="cat", geometry={"start": 1e300, "end": 2e300}),
        Prediction(kind="bbox", label="cat", geometry={"box": [0, 0, 1, 1]}, page=2**40),
        Prediction(kind="bbox", label="cat", geometry={"box": [0, 0, 1e300, 1]}),
    ]
    assert run(Inference(predictions=tuple(said)), Target()).dropped == {"outside": 3}


def test_counts_of_drops_add_up():
    assert add_counts({"b": 1, "a": 2}, {"b": 3}, {}) == {"a": 2, "b": 4}


def test_kinds_that_cannot_be_stored_are_counted():
    assert run(shaped("keypoints", {"points": [[1, 1, 2]]})).dropped == {"unsupported": 1}


# Duplicates and fingerprints


def test_of_equal_predictions_the_best_stays():
    applied = run(classes(("cat", 0.3), ("cat", 0.8)))
    assert [d.score for d in applied.drafts] == [0.8]
    assert applied.dropped == {"duplicate": 1}


def test_predictions_that_map_to_one_annotation_are_duplicates():
    applied = run(classes(("tabby", 0.3), ("cat", 0.8)), label_mapping={"tabby": "cat"})
    assert ([d.score for d in applied.drafts], applied.dropped) == ([0.8], {"duplicate": 1})


def test_the_fingerprint_survives_score_mapping_and_noise():
    before = run(shaped("bbox", {"box": [1, 1, 9, 9]}, score=0.5)).drafts[0]
    after = run(
        shaped("bbox", {"box": [1.001, 1, 9, 9]}, score=0.9), label_mapping={"cat": "Dog"}
    ).drafts[0]
    assert after.label == "Dog"
    assert before.fingerprint == after.fingerprint


def test_the_fingerprint_tells_predictions_apart():
    box = {"box": [1, 1, 9, 9]}
    said = [
        shaped("bbox", box),
        shaped("bbox", {"box": [1.1, 1, 9, 9]}),
        shaped("bbox", box, page=0),
        shaped("bbox", box, text="t"),
        replace(
            shaped("bbox", box),
            predictions=(replace(shaped("bbox", box).predictions[0], label="dog"),),
        ),
        classes(("cat", None)),
    ]
    found = Counter(run(inference).drafts[0].fingerprint for inference in said)
    assert set(found.values()) == {1}
    assert {len(fingerprint) for fingerprint in found} == {32}


# ---- texts that are too long ---------------------------------------------------------------------

WRITER = replace(PROCESSOR, model_type="llm", output_target="both")


@pytest.mark.parametrize(
    ("said", "most", "is_kept"),
    [("ab", 2, True), ("abc", 2, False), ("ää", 4, True), ("ää", 3, False), ("🚀" * 9, 36, True),
     ("🚀" * 9, 35, False), ("", 1, True), ("a" * 9, None, True)],
)  # fmt: skip
def test_a_new_text_is_kept_whole_or_not_at_all_by_its_bytes(said, most, is_kept):
    target = Target(text="before", max_text_bytes=most)
    applied = apply(Inference(text=said), WRITER, LABELS, target)
    assert applied.text == (said if is_kept else None)
    assert applied.dropped == ({} if is_kept else {"text_too_long": 1})


def test_places_in_a_text_that_is_not_kept_are_nowhere_and_other_predictions_stay():
    span = Prediction(kind="span", label="cat", geometry={"start": 0, "end": 2})
    whole = Prediction(kind="class", label="dog")
    applied = apply(
        Inference(text="abcd", predictions=(span, whole)),
        WRITER,
        LABELS,
        Target(text="before", max_text_bytes=3),
    )
    assert [draft.label for draft in applied.drafts] == ["Dog"]
    assert applied.dropped == {"text_too_long": 1, "outside": 1}


def test_a_writer_of_texts_alone_counts_one_that_is_too_long():
    applied = apply(
        Inference(text="abcd"),
        replace(WRITER, output_target="text"),
        LABELS,
        Target(max_text_bytes=3),
    )
    assert (applied.text, applied.dropped) == (None, {"text_too_long": 1})
