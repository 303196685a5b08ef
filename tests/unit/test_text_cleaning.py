"""What PostgreSQL refuses is taken out."""

import json
import math

from hypothesis import given
from hypothesis import strategies as st

from ppworker.domain.text import MAX_DEPTH, clean_json, clean_text

nasty_text = st.text(st.sampled_from(["a", "\x00", "\ud800", "\udfff", "🚀"]), max_size=6)
nasty_json = st.recursive(
    nasty_text | st.floats() | st.integers() | st.none() | st.booleans() | st.just(1 << 9999),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(nasty_text, inner, max_size=3),
    max_leaves=8,
)


@given(nasty_text)
def test_cleaned_text_can_be_stored_and_every_code_point_is_accounted_for(text):
    cleaned, count = clean_text(text)
    assert "\x00" not in cleaned.encode().decode()
    assert len(cleaned) + count == len(text)


@given(nasty_json)
def test_cleaned_json_can_be_stored(value):
    cleaned, _ = clean_json(value)
    written = json.dumps(cleaned, allow_nan=False)
    assert "\\u0000" not in written
    assert "\\ud8" not in written.replace("\\ud83d\\ude80", "")
    assert clean_json(cleaned) == (cleaned, 0)


def test_clean_values_stay_as_they_are():
    value = {"a": [1, 0.5, None, True, {"b": "🚀"}]}
    assert clean_json(value) == (value, 0)


def test_changes_are_counted_in_keys_and_values():
    assert clean_json({"a\x00": ["\ud800x", math.nan, {1}]}) == ({"a": ["x", None, None]}, 4)
    assert clean_json({1: (2,)}) == ({"1": [2]}, 1)


def test_too_deep_nesting_is_cut_without_exhausting_the_stack():
    value: list[object] = []
    for _ in range(10_000):
        value = [value]
    cleaned, changes = clean_json(value)
    assert changes == 1
    assert json.dumps(cleaned).count("[") == MAX_DEPTH
