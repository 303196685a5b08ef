"""The models of messages, and what is kept of one that cannot be followed."""

import json
import re
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ppworker.errors import Invalid
from ppworker.pipeline.uploads import letters
from ppworker.worker import messages

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
GOOD = {
    "take_upload": {
        "schema_version": 1,
        "key": "k",
        "user": "u",
        "split": "d/train",
        "items": [{"name": "a.txt", "text": "x"}],
    },
    "apply_inferences": {
        "schema_version": 1,
        "key": "k",
        "user": "u",
        "split": "d/train",
        "inferences": [{"id": "1", "name": "x"}],
    },
    "retry_job": {"schema_version": 1, "key": "k", "user": "u", "job": str(uuid4())},
}
COMMANDS = st.sampled_from(sorted(GOOD))


def fields_of(model):
    return set(model.model_fields)


def field_at_fault(read, *arguments):
    """What an error names; None when there is none."""
    try:
        read(*arguments)
    except Invalid as error:
        return error.field
    return None


@pytest.mark.parametrize("actor", sorted(GOOD))
def test_good_ones_are_read(actor):
    assert isinstance(messages.read(actor, GOOD[actor]), messages.COMMANDS[actor])


@given(COMMANDS, st.dictionaries(st.text(min_size=1), JSON, max_size=3))
def test_unknown_fields_are_passed_over(actor, unknown):
    known = fields_of(messages.COMMANDS[actor])
    more = {name: value for name, value in unknown.items() if name not in known}
    assert messages.read(actor, {**more, **GOOD[actor]}) == messages.read(actor, GOOD[actor])


@given(COMMANDS, st.data())
def test_whatever_stands_in_a_field_is_read_or_refused_by_the_name_of_a_field(actor, data):
    known = fields_of(messages.COMMANDS[actor])
    name = data.draw(st.sampled_from(sorted(known)))
    field = field_at_fault(messages.read, actor, {**GOOD[actor], name: data.draw(JSON)})
    assert field is None or re.split(r"[.\[]", field)[0] in known


@given(JSON)
def test_whatever_lies_in_the_queue_is_an_envelope_or_refused_by_a_name(value):
    decoded = messages.decode(json.dumps(value).encode())
    assert field_at_fault(messages.open_envelope, decoded) != ""


@given(st.binary())
def test_bytes_that_are_no_json_are_refused(body):
    assert field_at_fault(messages.decode, body) in {None, "message"}


@pytest.mark.parametrize("body", [b"[" * 100_000, b"1" * 10_000, b'"\xff"', b"{", b""])
def test_what_breaks_a_reader_of_json_is_refused(body):
    with pytest.raises(Invalid, match="not JSON"):
        messages.decode(body)


def test_the_first_of_several_faults_is_named_and_the_rest_counted():
    with pytest.raises(Invalid, match=r"^version 9 is unknown here; 1 is known \(and 1 more\)$"):
        messages.read("retry_job", {**GOOD["retry_job"], "schema_version": 9, "job": 1})


@pytest.mark.parametrize("version", [True, 1.0, "1", None, 0, 2])
def test_only_the_integer_1_is_a_version(version):
    with pytest.raises(Invalid) as refused:
        messages.read("retry_job", {**GOOD["retry_job"], "schema_version": version})
    assert refused.value.field == "schema_version"


def test_a_text_of_exactly_the_limit_passes_counted_in_bytes():
    def text(value):
        return {**GOOD["take_upload"], "items": [{"name": "a", "text": value}]}

    messages.read("take_upload", text("é" * (messages.MAX_TEXT_BYTES // 2)))
    with pytest.raises(Invalid, match="65538 bytes"):
        messages.read("take_upload", text("é" * (messages.MAX_TEXT_BYTES // 2 + 1)))


@pytest.mark.parametrize("sources", [(), ("blob", "path"), ("inferences", "path")])
def test_inferences_come_in_exactly_one_way(sources):
    ways = {"blob": "0" * 64, "path": "a.jsonl", "inferences": [{"id": "1"}]}
    given = {**GOOD["apply_inferences"], "inferences": None}
    with pytest.raises(Invalid) as refused:
        messages.read("apply_inferences", given | {name: ways[name] for name in sources})
    assert refused.value.field == "inferences"


def test_a_key_is_in_no_error_and_no_representation():
    secret = "ppw_" + "s" * 43
    command = messages.read("retry_job", {**GOOD["retry_job"], "user": None, "api_key": secret})
    assert secret not in repr(command)
    with pytest.raises(Invalid) as refused:
        messages.read("retry_job", {**GOOD["retry_job"], "api_key": [secret]})
    assert secret not in str(refused.value)


# What is kept


@given(JSON)
def test_what_is_kept_is_ascii_json_of_bounded_length(value):
    text, _ = letters.shown(value)
    assert text.isascii()
    json.loads(text)


@pytest.mark.parametrize(
    ("value", "is_less"),
    [
        ({"api_key": "ppw_" + "s" * 43, "key": "k"}, False),
        ({"apiKey": "whatever"}, True),
        ({"items": [{"api_key": "secret"}]}, True),
        ({"items": [{"text": "my key is ppw_" + "s" * 43 + ", keep it"}]}, True),
        ({"ppw_" + "s" * 43: 1}, True),
    ],
)
def test_secrets_are_taken_out_wherever_they_stand(value, is_less):
    text, less = letters.shown(value)
    assert letters.REDACTED in text
    assert not any(secret in text for secret in ("ssss", "whatever", '"secret"'))
    assert less is is_less


@pytest.mark.parametrize(
    "said",
    [
        '"api_key": "ppw_' + "s" * 43 + '"',
        '"Password" :"ssss"',
        '"my-token": "a\\"ssss"',
        '"secret": "ssss',
    ],
)
@pytest.mark.parametrize("levels", [0, 5000])
def test_secrets_are_taken_out_of_what_is_no_json_or_nests_too_deep(said, levels):
    raw = ("[" * levels + "{" + said).encode()
    assert b"ssss" in raw
    message = deep(levels) if levels else raw.decode()  # the one a reader could read
    text, _ = letters.shown(message, raw)
    assert letters.REDACTED in text
    assert "ssss" not in text


def deep(levels):
    value: list[object] = []
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    "value",
    [
        {"items": [{"text": "x" * 2_000_000}]},
        {"items": [{"text": "x" * 1000}] * 5000},
        {f"field {n}": "\0" * 300 for n in range(5000)},
        deep(900),
        [[["x" * 400] * 60] * 60] * 60,
        "\ud800" * 3_000_000,
        float("nan"),
        {"a": [float("inf")]},
    ],
    ids=["text", "list", "fields", "deep", "wide", "surrogates", "nan", "infinity"],
)
def test_what_cannot_be_kept_whole_is_kept_in_part_and_says_so(value):
    raw = json.dumps(value).encode()
    text, is_less = letters.shown(value, raw)
    assert len(text) <= letters.MAX_BODY
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert is_less or text == json.dumps(value)
