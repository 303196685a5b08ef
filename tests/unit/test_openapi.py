"""The published schema says what the API does: nothing is unnamed, and every example keeps it."""

import json
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest

from api_cases import CASES, bare
from api_shapes import Raw
from ppworker.api.app import PREFIX, routes, schema
from ppworker.api.errors import Problem

SCHEMA = schema()


def operations() -> Iterator[tuple[str, dict[str, Any]]]:
    for path, methods in SCHEMA["paths"].items():
        for method, operation in methods.items():
            yield f"{method.upper()} {path}", operation


OPERATIONS = dict(operations())


def every(check: Any) -> list[str]:
    """Names of the operations that do not pass a check."""
    return [name for name, operation in OPERATIONS.items() if not check(name, operation)]


def test_every_operation_has_a_summary_in_words_and_a_tag_that_is_described():
    described = {tag["name"] for tag in SCHEMA["tags"] if tag["description"]}
    assert every(lambda _, o: " " in o.get("summary", "")) == []
    assert every(lambda _, o: o.get("description")) == []
    assert every(lambda _, o: o.get("tags") and set(o["tags"]) <= described) == []
    ids = [operation["operationId"] for operation in OPERATIONS.values()]
    assert len(ids) == len(set(ids))


def test_every_error_has_the_shape_of_a_problem():
    for name, operation in OPERATIONS.items():
        for status, answer in operation["responses"].items():
            if int(status) >= 400:
                (content,) = answer["content"].items()
                assert content[0] == "application/json", name
                shape = resolved(content[1]["schema"])
                assert set(Problem.model_fields) <= set(shape["properties"]), (name, status)
    assert "HTTPValidationError" not in SCHEMA["components"]["schemas"]


def test_every_operation_tells_the_errors_that_it_can_give():
    def told(name: str, operation: dict[str, Any]) -> bool:
        method, path = name.split(" ")
        wanted = {"503"}
        if operation.get("security"):
            wanted |= {"401", "403"}
        if "{" in path:
            wanted |= {"404"}
        has_body = "requestBody" in operation
        if has_body:
            wanted |= {"400", "413", "422"}
        if any(p["in"] == "query" and choosy(p["schema"]) for p in operation.get("parameters", [])):
            wanted |= {"400"}
        assert not has_body or method in {"POST", "PUT"}
        return wanted <= set(operation["responses"])

    assert every(told) == []


def choosy(schema: dict[str, Any]) -> bool:
    kinds = [schema, *schema.get("anyOf", [])]
    return any(kind.get("type") in {"integer", "number", "boolean"} for kind in kinds)


def test_who_asks_is_described_in_both_forms():
    schemes = SCHEMA["components"]["securitySchemes"]
    assert schemes["key"]["scheme"] == "bearer"
    assert schemes["older"]["name"] == "Authorization"
    assert "USERNAME:KEY" in schemes["older"]["description"]
    is_open = {bare(case.name) for case in CASES if case.is_open}
    for name, operation in OPERATIONS.items():
        if bare(name.replace(PREFIX, "")) in is_open:
            assert not operation.get("security")
        else:
            assert operation["security"] == [{"key": []}, {"older": []}], name
            assert "WWW-Authenticate" in operation["responses"]["401"]["headers"], name
        assert "Retry-After" in operation["responses"]["503"]["headers"], name


def test_long_work_is_described_with_its_operation_and_where_it_is():
    later = [name for name, operation in OPERATIONS.items() if "202" in operation["responses"]]
    assert any(name.endswith("/add_inferences") for name in later)
    assert any(name.endswith("/upload/{format}") for name in later)
    assert any(name.endswith("/download") for name in later)
    assert any(name.endswith("/new") for name in later)
    for name in later:
        answer = OPERATIONS[name]["responses"]["202"]
        shape = resolved(answer["content"]["application/json"]["schema"])
        within = shape["properties"].get("operation")
        shape = resolved(within) if within else shape
        assert {"id", "kind", "status", "done", "total"} <= set(shape["properties"]), name
        assert "Location" in answer["headers"], name


def test_files_are_described_by_their_media_types():
    binary = {bare(case.name) for case in CASES if isinstance(case.shape, Raw)}
    assert binary
    for name, operation in OPERATIONS.items():
        if bare(name.replace(PREFIX, "")) in binary:
            content = operation["responses"]["200"]["content"]
            assert content, name
            assert "application/json" not in content, name
    files = {bare(case.name) for case in CASES if case.file is not None}
    for name, operation in OPERATIONS.items():
        if bare(name.replace(PREFIX, "")) in files:
            form = operation["requestBody"]["content"]["multipart/form-data"]["schema"]
            assert form["properties"]["file"]["format"] == "binary", name


def contents(operation: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for kind, about in operation.get("requestBody", {}).get("content", {}).items():
        yield f"body, {kind}", about
    for status, answer in operation["responses"].items():
        for kind, about in answer.get("content", {}).items():
            yield f"{status}, {kind}", about


@pytest.mark.parametrize("name", OPERATIONS)
def test_its_bodies_and_answers_have_examples_that_keep_the_schema(name: str) -> None:
    for where, about in contents(OPERATIONS[name]):
        if not where.endswith("application/json"):
            continue
        assert "example" in about or about["examples"], where
        named = [each["$ref"].rpartition("/")[2] for each in about.get("examples", {}).values()]
        shown = SCHEMA["components"]["examples"][named[0]]["value"] if named else about["example"]
        validator = jsonschema.Draft202012Validator(
            about["schema"] | {"components": SCHEMA["components"]}
        )
        errors = [error.message for error in validator.iter_errors(shown)]
        assert errors == [], (where, json.dumps(shown))


def test_an_answer_without_a_body_is_described_without_one():
    for case in CASES:
        if case.shape is None:
            method, path = bare(case.name).split(" ")
            (found,) = [o for n, o in OPERATIONS.items() if bare(n) == f"{method} {PREFIX}{path}"]
            assert set(found["responses"]) >= {"204"}
            assert "content" not in found["responses"]["204"]


def test_the_schema_names_every_route():
    assert set(OPERATIONS) == {f"{route.method} {route.path}" for route in routes()}


def resolved(schema: dict[str, Any]) -> dict[str, Any]:
    """A shape itself, where the schema only refers to it."""
    if "$ref" in schema:
        found: dict[str, Any] = SCHEMA["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
        return found
    return schema
