"""The published schema: what the framework finds out by itself, put right and made readable."""

from collections.abc import Iterator, Mapping
from typing import Any

from fastapi import FastAPI

_KEY = "key"
_OLDER = "older"
_METHODS = frozenset({"get", "put", "post", "delete", "patch"})
_INTERNAL = ("HTTPValidationError", "ValidationError")
"""Shapes of the framework's own errors, which are never sent."""

_ABOUT = """\
The HTTP API of ppworker: datasets, items, labels, annotations, post-processors and their jobs.

Send a key as `Authorization: Bearer KEY`; the older form `Authorization: USERNAME:KEY` works too.
Bodies are JSON, with or without a content type; files come as `multipart/form-data` with one part
named `file`. Null in a body means that a field is not given. What is somebody else's is not there.
"""

_SCHEMES = {
    _KEY: {
        "type": "http",
        "scheme": "bearer",
        "description": "A key: `Authorization: Bearer KEY`.",
    },
    _OLDER: {
        "type": "apiKey",
        "in": "header",
        "name": "Authorization",
        "description": "The form of older clients: `Authorization: USERNAME:KEY`.",
    },
}

_HEADERS: Mapping[str, Mapping[str, Any]] = {
    "401": {"WWW-Authenticate": "How to say who you are: `Bearer`."},
    "503": {"Retry-After": "Seconds until it is worth asking again."},
    "429": {"Retry-After": "Seconds until it is worth asking again."},
    "202": {"Location": "Path of the operation that goes on."},
}

_TAGS: Mapping[str, str] = {
    "accounts": "Who you are, and your keys.",
    "datasets": "Datasets; each is made with a first version.",
    "versions": "Versions of a dataset, with their labels and splits.",
    "splits": "Parts of a version.",
    "labels": "Labels of a version, and how much each is used.",
    "items": "What is looked at: texts and files.",
    "annotations": "What somebody or some model said about an item.",
    "post-processors": "Models that run on whatever comes into a dataset.",
    "jobs": "One post-processor's work on one item.",
    "inferences": "Predictions that were made elsewhere.",
    "models": "Models of yours, and what is built in.",
    "archives": "Whole versions as one file, both ways.",
    "operations": "Long work that goes on behind a request.",
    "blobs": "Files that are stored by themselves.",
}


class Published(FastAPI):
    """An application whose schema says what it does, no less and no more."""

    def openapi(self) -> dict[str, Any]:
        """The schema; made once."""
        if self.openapi_schema is None:
            self.openapi_schema = _mended(super().openapi())
        return self.openapi_schema


def _mended(schema: dict[str, Any]) -> dict[str, Any]:
    schema["info"]["description"] = _ABOUT
    schema["info"]["license"] = {"name": "Apache-2.0", "identifier": "Apache-2.0"}
    components = schema.setdefault("components", {})
    shapes = components.setdefault("schemas", {})
    for operation in _operations(schema):
        _drop_validation_error(operation)
        _bound_parts(operation)
        _allow_empty(operation)
        _name(operation)
        _secure(operation)
        _show_headers(operation)
        _show_examples(operation, components)
    for name in _INTERNAL:
        shapes.pop(name, None)
    components["securitySchemes"] = _SCHEMES
    used = {tag for operation in _operations(schema) for tag in operation.get("tags", [])}
    schema["tags"] = [
        {"name": tag, "description": text} for tag, text in _TAGS.items() if tag in used
    ]
    return schema


def _operations(schema: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for methods in schema["paths"].values():
        for method, operation in methods.items():
            if method in _METHODS:
                yield operation


def _drop_validation_error(operation: dict[str, Any]) -> None:
    """Take out the answer that the framework describes and that we never give."""
    described = operation["responses"].get("422", {}).get("content", {})
    shape = described.get("application/json", {}).get("schema", {})
    if shape.get("$ref", "").endswith(f"/{_INTERNAL[0]}"):
        del operation["responses"]["422"]


def _bound_parts(operation: dict[str, Any]) -> None:
    """Say that no part of a path is empty: then it were another path."""
    for each in operation.get("parameters", []):
        if each["in"] == "path" and each["schema"].get("type") == "string":
            each["schema"].setdefault("minLength", 1)


def _allow_empty(operation: dict[str, Any]) -> None:
    """Say that an empty value in a query counts as absent, which JSON's null cannot be there."""
    for each in operation.get("parameters", []):
        options = each["schema"].get("anyOf", [])
        if each["in"] == "query" and {"type": "null"} in options:
            kept = [option for option in options if option != {"type": "null"}]
            if not any(option.get("type") == "string" and "enum" not in option for option in kept):
                kept.append({"type": "string", "maxLength": 0})
            each["schema"]["anyOf"] = kept


def _name(operation: dict[str, Any]) -> None:
    """Have the first sentence of the description as summary, instead of a function's name."""
    text = " ".join(operation.get("description", "").split("\n\n")[0].split())
    if text:
        operation["summary"] = text.removesuffix(".")


def _secure(operation: dict[str, Any]) -> None:
    if operation.get("security"):
        operation["security"] = [{_KEY: []}, {_OLDER: []}]


def _show_headers(operation: dict[str, Any]) -> None:
    for status, answer in operation["responses"].items():
        for name, text in _HEADERS.get(status, {}).items():
            answer.setdefault("headers", {})[name] = {
                "description": text,
                "schema": {"type": "string"},
            }


def _show_examples(operation: dict[str, Any], components: dict[str, Any]) -> None:
    """Give every body and answer an example; those of a shape stand once for all of its places."""
    contents = [operation.get("requestBody", {}).get("content", {})]
    contents += [answer.get("content", {}) for answer in operation["responses"].values()]
    for content in contents:
        about = content.get("application/json")
        if not about or "example" in about or "examples" in about:
            continue
        shown = example_of(about.get("schema", {}), components["schemas"])
        name = _shape_of(about.get("schema", {}))
        if name:
            components.setdefault("examples", {})[name] = {"value": shown}
            about["examples"] = {"usual": {"$ref": f"#/components/examples/{name}"}}
        else:
            about["example"] = shown


def _shape_of(schema: Mapping[str, Any]) -> str:
    """The name of a shape, or of a list of it; empty for what has none."""
    name: str = schema.get("$ref", "").rpartition("/")[2]
    inner: str = (schema.get("items") or {}).get("$ref", "").rpartition("/")[2]
    return name or (f"{inner}List" if inner else "")


_WORDS: Mapping[str, Any] = {
    "coordinates": "0.5 0.5 0.2 0.1",
    "color": "#4363d8",
    "content_type": "documents",
    "email": "anna@example.org",
    "username": "anna",
    "firstname": "Anna",
    "password": "correct horse battery staple",
    "message": "there is no dataset '0198c7a2-6f1e-7c3a-9b1d-2f4e5a6b7c8d' here",
    "severity": "error",
    "field": "dataset",
    "text": "500 Oak Avenue, Portland, OR 97201",
    "extension": "txt",
    "media_type": "text/plain",
    "config": "",
    "inference_time": "12.5ms",
    "name": "letters",
    "label": "street",
    "prediction": "street",
    "sha256": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    "key": "ppw_0123456789012345678901234567890123456789012",
    "key_prefix": "ppw_0123",
    "apikey": "ppw_0123456789012345678901234567890123456789012",
    "model_type": "ner",
    "output_target": "annotations",
    "runner": "usaddress",
    "confidence": 0.92,
    "confidence_threshold": 0.5,
}
"""What stands in examples, by the name of its field."""
_ID = "0198c7a2-6f1e-7c3a-9b1d-2f4e5a6b7c8d"
_DEPTH = 8


def example_of(schema: Mapping[str, Any], shapes: Mapping[str, Any], name: str = "") -> Any:
    """An example of a shape: the one it has, else one made of its fields."""
    return _example(schema, shapes, name, _DEPTH)


def _example(schema: Mapping[str, Any], shapes: Mapping[str, Any], name: str, depth: int) -> Any:
    if "$ref" in schema:
        return _example(shapes[schema["$ref"].rpartition("/")[2]], shapes, name, depth - 1)
    for word in ("example", "const"):
        if word in schema:
            return schema[word]
    for word in ("examples", "enum"):
        if schema.get(word):
            return schema[word][0]
    for word in ("anyOf", "oneOf", "allOf"):
        if schema.get(word):
            return _example(schema[word][0], shapes, name, depth)
    return _plain(schema, shapes, name, depth)


def _plain(schema: Mapping[str, Any], shapes: Mapping[str, Any], name: str, depth: int) -> Any:
    kind = schema.get("type")
    if kind == "object":
        return {
            field: _example(about, shapes, field, depth)
            for field, about in schema.get("properties", {}).items()
        }
    if kind == "array":
        return [_example(schema.get("items", {}), shapes, name, depth)] if depth > 0 else []
    if kind == "string":
        return _word(schema, name)
    if kind in {"integer", "number"}:
        found = _WORDS.get(name, schema.get("default", schema.get("minimum", 0)))
        return found if isinstance(found, int | float) else 0
    if kind == "boolean":
        return bool(schema.get("default", False))
    return {} if kind is None else None


def _word(schema: Mapping[str, Any], name: str) -> str:
    if schema.get("format") == "date-time":
        return "2026-03-05T12:00:00.000000Z"
    if schema.get("format") == "uuid" or name == "id" or name.endswith("_id"):
        return _ID
    found = _WORDS.get(name)
    if isinstance(found, str):
        return found
    default = schema.get("default")
    return default if isinstance(default, str) else ""
