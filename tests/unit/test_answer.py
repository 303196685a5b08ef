"""Reading of raw answers."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ppworker.domain.answer import parse
from ppworker.domain.inference import TASKS
from ppworker.errors import BadResponse

KEYS = [
    "text", "predictions", "pages", "segments", "lines", "label", "score", "confidence",
    "bbox", "polygon", "start", "end", "page", "speaker",
]  # fmt: skip
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-2, 3)
    | st.sampled_from([10**400, math.nan, math.inf, 0.5, "", "a", "\ud800"])
)
answers = st.dictionaries(
    st.sampled_from(KEYS),
    st.recursive(
        scalars,
        lambda inner: (
            st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=5)
        ),
        max_leaves=12,
    ),
    max_size=4,
)


@given(st.sampled_from(TASKS), answers)
def test_no_answer_raises_anything_but_bad_response(task, raw):
    try:
        inference = parse(task, raw)
    except BadResponse:
        return
    assert all(count > 0 for count in inference.dropped.values())
    assert all(p.score is None or 0 <= p.score <= 1 for p in inference.predictions)


def only(task, raw):
    (prediction,) = parse(task, raw).predictions
    return prediction


@pytest.mark.parametrize("key", ["score", "confidence"])
def test_classification_reads_labels_and_scores(key):
    prediction = only("classification", {"predictions": [{"label": "cat", key: 0.9}]})
    assert (prediction.kind, prediction.label, prediction.score) == ("class", "cat", 0.9)
    assert prediction.geometry is None


def test_no_predictions_is_an_answer():
    inference = parse("classification", {"predictions": []})
    assert (inference.text, inference.predictions, inference.dropped) == (None, (), {})


def test_detection_reads_boxes():
    raw = {"predictions": [{"label": "cat", "score": 1, "bbox": [1, 2, 3.5, 4], "page": 2}]}
    prediction = only("detection", raw)
    assert (prediction.kind, prediction.page) == ("bbox", 2)
    assert prediction.geometry == {"box": [1.0, 2.0, 3.5, 4.0]}


def test_detection_prefers_the_polygon_to_the_box():
    raw = {"label": "cat", "bbox": [0, 0, 1, 1], "polygon": [[0, 0], [1, 0], [1, 1]]}
    prediction = only("detection", {"predictions": [raw]})
    assert prediction.geometry == {"points": [[0.0, 0.0], [1.0, 0.0], [1.0, 1.0]]}


def test_ner_reads_spans():
    raw = {"label": "city", "score": 0.5, "start": 3, "end": 8.0, "text": "Ghent"}
    prediction = only("ner", {"predictions": [raw]})
    assert (prediction.kind, prediction.text) == ("span", "Ghent")
    assert prediction.geometry == {"start": 3, "end": 8}


def test_ocr_reads_lines_of_pages_as_polygons():
    line = {"text": "one", "score": 0.8, "polygon": [[0, 0], [9, 0], [9, 5], [0, 5]]}
    inference = parse("ocr", {"text": "all", "pages": [{"page": 4, "lines": [line]}]})
    (prediction,) = inference.predictions
    assert inference.text == "all"
    assert (prediction.kind, prediction.label, prediction.text, prediction.page) == (
        "polygon",
        "text",
        "one",
        4,
    )


def test_ocr_makes_the_text_of_its_lines_where_it_gives_none():
    pages = [{"lines": [{"text": "a"}, {"text": "b"}]}, {"lines": [{"text": "c"}]}]
    inference = parse("ocr", {"pages": pages})
    assert inference.text == "a\nb\n\nc"
    assert inference.dropped == {"bad_geometry": 3}


def test_an_empty_page_has_an_empty_text():
    assert parse("ocr", {"pages": [{"lines": []}]}).text == ""
    assert parse("stt", {"segments": []}).text == ""


def test_ocr_may_give_boxes_as_predictions():
    prediction = only("ocr", {"predictions": [{"bbox": [0, 0, 5, 5], "text": "hi"}]})
    assert (prediction.kind, prediction.label) == ("bbox", "text")


def test_stt_reads_segments_and_makes_the_text_of_them():
    segments = [{"start": 0, "end": 1.5, "text": " Hello ", "confidence": 0.9, "speaker": "A"}]
    inference = parse("stt", {"segments": segments})
    (prediction,) = inference.predictions
    assert inference.text == "Hello"
    assert (prediction.kind, prediction.label, prediction.score) == ("segment", "speech", 0.9)
    assert prediction.geometry == {"start": 0.0, "end": 1.5}


def test_diarization_labels_segments_by_speaker():
    segments = [
        {"start": 0, "end": 1, "text": "Hi.", "speaker": "A"},
        {"start": 1, "end": 2, "text": "Well?"},
    ]
    inference = parse("stt-diarization", {"segments": segments})
    assert [p.label for p in inference.predictions] == ["A", "speech"]
    assert inference.text == "A: Hi.\nWell?"


def test_numbered_speakers_get_names():
    segments = [{"start": 0, "end": 1, "text": "Hi.", "speaker": 0}]
    assert parse("stt-diarization", {"segments": segments}).predictions[0].label == "SPEAKER_00"


def test_segments_without_words_make_no_text():
    assert parse("stt-diarization", {"segments": [{"start": 0, "end": 1}]}).text is None


def test_llm_reads_text_and_predictions_of_any_kind():
    predictions = [
        {"label": "good"},
        {"label": "city", "start": 0, "end": 2},
        {"label": "cat", "bbox": [0, 0, 1, 1]},
    ]
    inference = parse("llm", {"text": "fine", "predictions": predictions})
    assert inference.text == "fine"
    assert [p.kind for p in inference.predictions] == ["class", "span", "bbox"]


def test_text_of_a_task_that_writes_none_is_left_out():
    assert parse("ner", {"text": "echo", "predictions": []}).text is None


@pytest.mark.parametrize("score", [math.nan, math.inf, -0.1, 1.1, 10**400, "0.9", True, []])
def test_a_bad_score_drops_its_element_only(score):
    raw = {"predictions": [{"label": "a", "score": score}, {"label": "b", "score": 0.5}]}
    inference = parse("classification", raw)
    assert [p.label for p in inference.predictions] == ["b"]
    assert inference.dropped == {"bad_score": 1}


def test_a_score_off_by_the_rounding_of_32_bits_is_clamped():
    raw = {"predictions": [{"label": "a", "score": 1.0000001}]}
    assert only("classification", raw).score == 1.0


@pytest.mark.parametrize(
    "place",
    [
        {},
        {"bbox": [1, 2, 3]},
        {"bbox": [1, 2, 3, math.nan]},
        {"bbox": [5, 0, 1, 1]},
        {"bbox": "1234"},
        {"bbox": [1, 2, 3, True]},
        {"polygon": [[0, 0], [1, 1]]},
        {"polygon": [[0, 0], [1, 1], [2]]},
        {"polygon": [[0, 0], [1, 1], [2, None]]},
        {"polygon": [0, 0, 1, 1, 2, 2]},
        {"bbox": [0, 0, 1, 1], "page": -1},
        {"bbox": [0, 0, 1, 1], "page": 0.5},
    ],
)
def test_a_bad_shape_is_dropped(place):
    inference = parse("detection", {"predictions": [{"label": "a", **place}]})
    assert (inference.predictions, inference.dropped) == ((), {"bad_geometry": 1})


@pytest.mark.parametrize(
    "place", [{}, {"start": 1}, {"start": 2, "end": 2}, {"start": 3, "end": 1}]
)
@pytest.mark.parametrize("task", ["ner", "stt"])
def test_a_bad_span_or_segment_is_dropped(task, place):
    key = {"ner": "predictions", "stt": "segments"}[task]
    inference = parse(task, {key: [{"label": "a", **place}]})
    assert (inference.predictions, inference.dropped) == ((), {"bad_geometry": 1})


@pytest.mark.parametrize("place", [{"start": 0.5, "end": 2}, {"start": -1, "end": 2}])
def test_a_span_counts_whole_code_points_from_the_start(place):
    assert parse("ner", {"predictions": [{"label": "a", **place}]}).dropped == {"bad_geometry": 1}


@pytest.mark.parametrize("broken", [7, None, {}, {"label": 3}, {"label": "a", "text": 3}])
def test_a_malformed_element_is_dropped_beside_a_good_one(broken):
    inference = parse("classification", {"predictions": [broken, {"label": "b"}]})
    assert [p.label for p in inference.predictions] == ["b"]
    assert inference.dropped == {"malformed": 1}


def test_malformed_pages_are_counted_beside_the_text():
    inference = parse("ocr", {"text": "x", "pages": [3, {"lines": 5}]})
    assert (inference.text, inference.dropped) == ("x", {"malformed": 2})


@pytest.mark.parametrize("raw", [None, [], "text", 7])
@pytest.mark.parametrize("task", TASKS)
def test_an_answer_that_is_no_object_is_a_bad_response(task, raw):
    with pytest.raises(BadResponse, match="no JSON object"):
        parse(task, raw)


@pytest.mark.parametrize(
    ("task", "missing"),
    [
        ("classification", "lacks 'predictions'"),
        ("detection", "lacks 'predictions'"),
        ("ner", "lacks 'predictions'"),
        ("ocr", "neither 'text' nor 'pages'"),
        ("stt", "neither 'text' nor 'segments'"),
        ("stt-diarization", "neither 'text' nor 'segments'"),
        ("llm", "neither 'text' nor 'predictions'"),
    ],
)
def test_a_bad_response_names_what_is_missing(task, missing):
    with pytest.raises(BadResponse, match=missing):
        parse(task, {"result": 1})


@pytest.mark.parametrize(
    ("task", "raw", "fault"),
    [
        ("classification", {"predictions": [{"class": "cat"}]}, "'label' is missing"),
        ("classification", {"predictions": "cat"}, "'predictions' is no list"),
        ("llm", {"text": 5}, "'text' is no string"),
    ],
)
def test_an_answer_of_another_shape_is_a_bad_response(task, raw, fault):
    with pytest.raises(BadResponse, match=fault):
        parse(task, raw)
