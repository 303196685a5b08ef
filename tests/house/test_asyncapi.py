"""The AsyncAPI document is valid, says what the models say, and its examples are messages."""

import json
import re
import runpy
import warnings
from pathlib import Path

import pytest
import yaml

from ppworker.errors import Invalid
from ppworker.worker import hints, messages

DOCS = Path(__file__).parents[2] / "docs"
GENERATOR = runpy.run_path(str(DOCS / "asyncapi.py"), run_name="asyncapi")
TEXT = (DOCS / GENERATOR["PATH"]).read_text(encoding="utf-8")
DOCUMENT = yaml.safe_load(TEXT)
EXAMPLES = [
    pytest.param(name, example["payload"], id=f"{name}-{example['name']}")
    for name, message in DOCUMENT["components"]["messages"].items()
    for example in message["examples"]
]


@pytest.fixture(scope="module")
def model():
    """A reader of AsyncAPI 3 that refuses what the specification does not know."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its classes have fields that are called as methods are
        from asyncapi3 import AsyncAPI3
    return AsyncAPI3


@pytest.fixture(scope="module")
def validator():
    """Checks values by a JSON schema of the draft that AsyncAPI builds on."""
    from jsonschema import Draft7Validator

    return Draft7Validator


def pointers(value):
    """Every reference in a document."""
    if isinstance(value, dict):
        for name, each in value.items():
            if name == "$ref":
                yield each
            yield from pointers(each)
    elif isinstance(value, list):
        for each in value:
            yield from pointers(each)


def schema_of(message):
    """The schema of a message's payload, with everything that it refers to."""
    return {
        "allOf": [{"$ref": f"#/components/messages/{message}/payload"}],
        "components": DOCUMENT["components"],
    }


def test_it_is_what_the_models_say():
    assert GENERATOR["text"]() == TEXT, "run `make docs`"


def test_it_is_valid(model):
    assert model.model_validate(DOCUMENT).asyncapi == "3.0.0"


@pytest.mark.parametrize(
    "broken",
    [
        {"asyncapi": "2.6.0"},
        {"info": {"title": "no version"}},
        {"operations": {"x": {"action": "take", "channel": {"$ref": "#/channels/commands"}}}},
        {"queues": {}},
    ],
)
def test_the_validator_refuses_what_is_not(model, broken):
    with pytest.raises(ValueError, match="validation error"):
        model.model_validate(DOCUMENT | broken)


def test_its_schemas_are_valid_and_its_references_lead_somewhere(validator):
    for name in DOCUMENT["components"]["messages"]:
        validator.check_schema(schema_of(name))
    for schema in DOCUMENT["components"]["schemas"].values():
        validator.check_schema(schema)
    for pointer in pointers(DOCUMENT):
        found = DOCUMENT
        for part in pointer.removeprefix("#/").split("/"):
            found = found[part]
        assert found


def test_every_message_has_an_example_and_every_model_a_message():
    assert GENERATOR["EXAMPLES"].keys() == messages.COMMANDS.keys() | messages.HINTS.keys()
    named = {message["name"] for message in DOCUMENT["components"]["messages"].values()}
    assert named == GENERATOR["EXAMPLES"].keys()


@pytest.mark.parametrize(("message", "payload"), EXAMPLES)
def test_each_example_keeps_the_published_schema_and_is_read(validator, message, payload):
    validator(schema_of(message)).validate(payload)
    if payload["actor_name"] in messages.COMMANDS:
        envelope = messages.open_envelope(messages.decode(json.dumps(payload).encode()))
        command = messages.read(envelope.actor_name, envelope.kwargs)
        assert isinstance(command, messages.COMMANDS[payload["actor_name"]])
    else:
        hint = hints.read(hints.decode(json.dumps(payload).encode()))
        assert hint.actor_name == payload["actor_name"]


@pytest.mark.parametrize(
    ("message", "change"),
    [
        ("TakeUpload", {"schema_version": 2}),
        ("TakeUpload", {"key": ""}),
        ("TakeUpload", {"api_key": "beside a user"}),
        ("TakeUpload", {"items": []}),
        ("TakeUpload", {"items": [{"name": "a", "text": "x", "path": "b"}]}),
        ("ApplyInferences", {"blob": "0" * 64}),
        ("RetryJob", {"job": 1}),
    ],
)
def test_the_published_schema_refuses_what_the_models_refuse(validator, message, change):
    payload = DOCUMENT["components"]["messages"][message]["examples"][0]["payload"]
    fields = payload["kwargs"] | change
    with pytest.raises(Invalid):
        messages.read(payload["actor_name"], fields)
    assert not validator(schema_of(message)).is_valid(payload | {"kwargs": fields})


def test_the_page_names_every_limit_and_every_message():
    page = (DOCS / "reference" / "messages.md").read_text()
    for actor in GENERATOR["EXAMPLES"]:
        assert f"`{actor}`" in page
    limits = {
        "a message": f"{messages.MAX_MESSAGE_BYTES // 2**20} MiB",
        "`text` of an item, `metadata` of an item": f"{messages.MAX_TEXT_BYTES // 2**10} KiB",
        "items of an upload": str(messages.MAX_ITEMS),
        "inferences in a message": f"{messages.MAX_INFERENCES:,}",
    }
    for what, limit in limits.items():
        assert re.search(rf"\| {re.escape(what)} \| {limit}\b", page), what
