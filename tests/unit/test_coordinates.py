"""Where strings of coordinates point."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ppworker.domain.coordinates import MAX_QUOTE, About, Place, family, locate, nuls_in
from ppworker.domain.drop import Reason

IMAGE = About(family="image", width=200, height=100)
TEXT = About(text="one 🚀 two")
SOUND = About(family="audio", duration_s=10.0)


@pytest.mark.parametrize(
    ("coordinates", "about", "kind", "geometry", "written"),
    [
        ("", TEXT, "class", None, ""),
        ("0.5 0.5 0.5 1", IMAGE, "bbox", {"box": [50, 0, 150, 100]}, "0.500000 0.500000 0.500000 1.000000"),
        # sticks out by what rounding does: clamped, and the string says what was kept
        ("0.25 0.5 0.51 1", IMAGE, "bbox", {"box": [0, 0, 101, 100]}, "0.252500 0.500000 0.505000 1.000000"),
        ("0.5 0.5 0.5 1", About(family="image"), "bbox", None, "0.5 0.5 0.5 1"),
        ("0 3", TEXT, "span", {"start": 0, "end": 3}, "0 3"),
        ("4 5", TEXT, "span", {"start": 4, "end": 5}, "4 5"),
        ("1.5 2", SOUND, "segment", {"start": 1.5, "end": 2.0}, "1.500 2.000"),
        ("9 12", SOUND, "segment", {"start": 9.0, "end": 10.0}, "9.000 10.000"),
        ("9 12", About(family="audio"), "segment", {"start": 9.0, "end": 12.0}, "9.000 12.000"),
        ("0 3", About(family="image", text="words read in it"), "span", {"start": 0, "end": 3}, "0 3"),
    ],
)  # fmt: skip
def test_a_place_that_has_a_meaning_on_the_item(coordinates, about, kind, geometry, written):
    place = locate(coordinates, about)
    assert isinstance(place, Place)
    assert (place.kind, place.geometry, place.coordinates) == (kind, geometry, written)


@pytest.mark.parametrize(
    ("coordinates", "about"),
    [
        ("10 20 30 40", IMAGE),  # pixels are no shares
        ("0.5 0.5 0.2", IMAGE),
        ("0.5 0.5 0.2 0.2 0.9", IMAGE),
        ("nan 0.5 0.2 0.2", IMAGE),
        ("1_0 0.5 0.2 0.2", IMAGE),
        ("0.5 0.5 0.2 0.2", TEXT),
        ("0.5 1", TEXT),
        ("-1 3", TEXT),
        ("0 3", About()),  # no text to count in
        ("[[1, 2], [3, 4]]", IMAGE),
        ("\u0661 \u0662", TEXT),  # digits, but not ours
        ("anything at all", SOUND),
    ],
)
def test_any_other_string_is_kept_as_it_is_and_has_no_geometry(coordinates, about):
    assert locate(coordinates, about) == Place(kind="class", coordinates=coordinates)


@pytest.mark.parametrize(
    ("coordinates", "about", "reason"),
    [
        ("0.5 0.5 0 0.2", IMAGE, Reason.ZERO_AREA),
        ("0.9 0.5 0.5 0.2", IMAGE, Reason.OUTSIDE),
        ("3 3", TEXT, Reason.EMPTY),
        ("3 2", TEXT, Reason.EMPTY),
        ("3 99", TEXT, Reason.OUTSIDE),
        ("11 12", SOUND, Reason.OUTSIDE),
        ("2 1", SOUND, Reason.EMPTY),
    ],
)
def test_a_place_that_is_none_is_dropped_with_its_reason(coordinates, about, reason):
    assert locate(coordinates, about) == reason


def test_spans_move_by_what_is_taken_out_of_the_text_before_them():
    text = "\0one \0two"
    about = About(text=text, nuls=nuls_in(text))
    place = locate("5 9", about)
    assert isinstance(place, Place)
    assert (place.coordinates, place.text) == ("4 7", "two")
    assert locate("5 6", about) == Reason.EMPTY


def test_the_text_of_a_span_is_stored_up_to_a_length():
    about = About(text="x" * (MAX_QUOTE + 1))
    whole, longer = locate(f"0 {MAX_QUOTE}", about), locate(f"0 {MAX_QUOTE + 1}", about)
    assert isinstance(whole, Place)
    assert whole.text == "x" * MAX_QUOTE
    assert isinstance(longer, Place)
    assert longer.text is None
    assert longer.geometry == {"start": 0, "end": MAX_QUOTE + 1}


@pytest.mark.parametrize(
    ("media_type", "extension", "expected"),
    [
        ("image/png", "", "image"),
        ("application/pdf", "", "image"),
        ("audio/wav", "png", "audio"),
        ("video/mp4", "", "audio"),
        ("text/plain", "wav", "text"),
        ("", "jpg", "image"),
        ("", "mp3", "audio"),
        ("", "", "text"),
    ],
)
def test_content_decides_what_places_count_and_else_the_name(media_type, extension, expected):
    assert family(media_type, extension) == expected


@given(
    st.text(max_size=40) | st.lists(st.floats().map(str) | st.integers().map(str)).map(" ".join),
    st.sampled_from([IMAGE, TEXT, SOUND, About(), About(family="image")]),
)
def test_whatever_the_string_it_is_placed_kept_or_dropped(coordinates, about):
    place = locate(coordinates, about)
    if isinstance(place, Place) and place.geometry is None:
        assert place.coordinates == coordinates or not coordinates.strip()
