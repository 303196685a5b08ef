# ruff: noqa: INP001  a part of generate.py, not of a package
"""What is published of messages, made from their models: an AsyncAPI document, and tables."""

from typing import Any

import yaml
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from ppworker.pipeline.inferences import inference_lines
from ppworker.worker import hints, messages
from ppworker.worker.command_link import QUEUE

PATH = "reference/asyncapi.yaml"
HEAD = "# Written by docs/generate.py from src/ppworker/worker/messages.py; edit that.\n"

_ID = "01912d68-783e-7a03-8467-5661c1243ad4"
_JOB = "01912d68-9a10-7c55-b1f0-0d7a5a3f21c8"
_PROCESSOR = "01912d67-4b2a-7f5e-9a51-2f0c6f1d9e77"
_BLOB = "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03"  # of "hello\n"

EXAMPLES: dict[str, dict[str, dict[str, Any]]] = {
    messages.TAKE_UPLOAD: {
        "text": {
            "schema_version": 1,
            "key": "letter-2026-07-14",
            "user": "local",
            "split": "mine/train",
            "items": [{"name": "letter.txt", "text": "Robie House, 5757 South Woodlawn Avenue"}],
        },
        "files": {
            "schema_version": 1,
            "key": "scans-0001",
            "user": "local",
            "split": "mine/train",
            "items": [
                {"name": "page-1.txt", "path": "scans/page-1.txt", "metadata": '{"box": 12}'},
                {"name": "hello.txt", "blob": _BLOB},
            ],
            "priority": "bulk",
        },
    },
    messages.APPLY_INFERENCES: {
        "inline": {
            "schema_version": 1,
            "key": "night-run-7",
            "user": "local",
            "split": "mine/train",
            "inferences": [
                {
                    "id": "7-1",
                    "name": "Visited the Robie House in Chicago.",
                    "inference_items": [
                        {"prediction": "place", "confidence": 0.93, "coordinates": "12 23"}
                    ],
                }
            ],
        },
        "file": {
            "schema_version": 1,
            "key": "night-run-8",
            "user": "local",
            "split": "mine/train",
            "keep_annotations": False,
            "path": "inferences/night-run-8.jsonl",
        },
    },
    messages.RETRY_JOB: {
        "job": {
            "schema_version": 1,
            "key": "retry-after-the-model-came-back-1",
            "user": "local",
            "job": _JOB,
        },
    },
    hints.RUN_JOBS: {"processor": {"post_processor_id": _PROCESSOR}},
    hints.REFRESH_LABEL_STATS: {"all": {}},
}
"""Fields of each message by actor and by the example's name; a test sends all of them."""

_INFO = f"""\
Messages that ppworker takes from redis, in the layout of dramatiq's RedisBroker with the \
namespace `{hints.NAMESPACE}`: any dramatiq program can send them, with a stub of the actor.

Commands ask for something, and are acknowledged after it is committed. The same `key` lets the \
same command happen once. One that cannot be followed becomes a dead letter. Hints only say \
"look"; they may be lost.

Unknown fields are passed over. Leave optional fields out rather than sending null.
"""
_LAYOUT = """\
A list of ids, with a hash `{address}.msgs` of bodies beside it. `{actor}.send(...)` of dramatiq \
writes both; without it, HSET the hash and then RPUSH the list, with the same new id.
"""


def text() -> str:
    """The document as YAML."""
    return HEAD + yaml.dump(
        document(), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100
    )


class _Dumper(yaml.SafeDumper):
    """Writes texts of several lines as lines."""


def _text(dumper: _Dumper, value: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, "|" if "\n" in value else None)


_Dumper.add_representer(str, _text)


def document() -> dict[str, Any]:
    """The document."""
    commands = {"actors": messages.COMMANDS, "queue": QUEUE}
    looks = {"actors": messages.HINTS, "queue": hints.QUEUE}
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "ppworker messages",
            "version": f"{messages.SCHEMA_VERSION}.0.0",
            "description": _INFO,
            "license": {"name": "Apache-2.0"},
        },
        "defaultContentType": "application/json",
        "servers": {
            "redis": {
                "host": "localhost:6379",
                "protocol": "redis",
                "description": "The one that PPWORKER_REDIS_URL names.",
            }
        },
        "channels": {
            "commands": _channel(title="Commands", **commands),
            "hints": _channel(title="Hints", **looks),
        },
        "operations": {
            "followCommands": _operation("commands", messages.COMMANDS),
            "followHints": _operation("hints", messages.HINTS),
        },
        "components": {
            "messages": {
                _name(model): _message(actor, model, queue)
                for actors, queue in (
                    (messages.COMMANDS, QUEUE),
                    (messages.HINTS, hints.QUEUE),
                )
                for actor, model in actors.items()
            },
            "schemas": _schemas(),
        },
    }


def tables() -> str:
    """Every command with its fields, for the page that people read."""
    schemas = _schemas()
    lines: list[str] = []
    for actor, model in messages.COMMANDS.items():
        lines += [f"### {actor}", "", f"{model.__doc__}", "", *_fields(schemas[_name(model)]), ""]
    item = _name(messages.UploadItem)
    lines += ["### An item of take_upload", "", *_fields(schemas[item])]
    return "\n".join(lines)


def _fields(schema: dict[str, Any]) -> list[str]:
    lines = ["| field | holds | |", "| --- | --- | --- |"]
    for name, about in schema["properties"].items():
        needed = "Required. " if name in schema["required"] else ""
        default = about.get("default")
        if default not in {None, ""}:
            shown = default if isinstance(default, str) else str(default).lower()
            needed = f"Default: `{shown}`. "
        said = (needed + about.get("description", "")).strip()
        lines.append(f"| `{name}` | {_holds(about)} | {said} |".replace("  ", " "))
    return lines


def _holds(about: dict[str, Any]) -> str:
    if "const" in about:
        return f"`{about['const']}`"
    if "enum" in about:
        return " or ".join(f"`{word}`" for word in about["enum"])
    forms = {
        "minItems": "list of {minItems} to {maxItems}",
        "pattern": "64 hexadecimal digits",
        "maxLength": "text of {minLength} to {maxLength} characters",
    }
    for key, form in forms.items():
        if key in about:
            return form.format(**about)
    words = {"uuid": "UUID", "string": "text", "password": "text", "boolean": "true or false"}
    return words[about.get("format", about["type"])]


def envelope(actor: str, queue: str, fields: dict[str, Any]) -> dict[str, Any]:
    """A message as it lies in redis."""
    return {
        "queue_name": queue,
        "actor_name": actor,
        "args": [],
        "kwargs": fields,
        "options": {"redis_message_id": _ID},
        "message_id": _ID,
        "message_timestamp": 1_784_000_000_000,
    }


def _channel(*, title: str, actors: dict[str, Any], queue: str) -> dict[str, Any]:
    address = f"{hints.NAMESPACE}:{queue}"
    return {
        "address": address,
        "title": title,
        "description": _LAYOUT.format(address=address, actor=next(iter(actors))),
        "messages": {
            _name(model): {"$ref": f"#/components/messages/{_name(model)}"}
            for model in actors.values()
        },
    }


def _operation(channel: str, actors: dict[str, Any]) -> dict[str, Any]:
    return {
        "action": "receive",
        "channel": {"$ref": f"#/channels/{channel}"},
        "messages": [
            {"$ref": f"#/channels/{channel}/messages/{_name(model)}"} for model in actors.values()
        ],
    }


def _message(actor: str, model: type[BaseModel], queue: str) -> dict[str, Any]:
    return {
        "name": actor,
        "title": (model.__doc__ or "").rstrip("."),
        "contentType": "application/json",
        "payload": {
            "allOf": [
                {"$ref": "#/components/schemas/Envelope"},
                {
                    "properties": {
                        "queue_name": {"const": queue},
                        "actor_name": {"const": actor},
                        "kwargs": {"$ref": f"#/components/schemas/{_name(model)}"},
                    }
                },
            ]
        },
        "examples": [
            {"name": name, "payload": envelope(actor, queue, fields)}
            for name, fields in EXAMPLES[actor].items()
        ],
    }


def _schemas() -> dict[str, Any]:
    models: list[type[BaseModel]] = [
        *messages.COMMANDS.values(),
        *messages.HINTS.values(),
        inference_lines.Inference,
    ]
    _, made = models_json_schema(
        [(model, "validation") for model in models],
        ref_template="#/components/schemas/{model}",
    )
    return {"Envelope": _envelope_schema()} | {
        name: _simplified(schema) for name, schema in made["$defs"].items()
    }


def _envelope_schema() -> dict[str, Any]:
    schema: dict[str, Any] = _simplified(messages.Envelope.model_json_schema())
    schema["description"] = "A message of dramatiq, as JSON."
    schema["properties"] |= {
        "queue_name": {"type": "string"},
        "message_timestamp": {"type": "integer", "description": "Milliseconds since 1970."},
        "options": {
            "type": "object",
            "description": "What dramatiq keeps for itself; there are no delays and no retries.",
            "properties": {"redis_message_id": {"type": "string"}},
        },
    }
    schema["required"] = ["queue_name", *schema["required"], "options", "message_timestamp"]
    return schema


def _simplified(schema: Any) -> Any:
    """A schema without the titles that repeat names, and without null where leaving out will do."""
    if isinstance(schema, list):
        return [_simplified(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    options = [each for each in schema.get("anyOf", ()) if each != {"type": "null"}]
    if len(options) == 1 and schema.get("default", "") is None:
        rest = {k: v for k, v in schema.items() if k not in {"anyOf", "default"}}
        schema = options[0] | rest
    is_properties = "type" not in schema or isinstance(schema["type"], dict)
    return {
        name: _simplified(value)
        for name, value in schema.items()
        if is_properties or name != "title"
    }


def _name(model: type[BaseModel]) -> str:
    return model.__name__
