"""Thousands of items in one request: all of them or none, and an error names its line."""

import json
import os
from typing import Any

import pytest

from api_server import Api, new_user, served_api
from factories import World
from live_workers import wait_for
from ppworker.store import datasets

LINES = {"Content-Type": "application/x-ndjson"}


@pytest.fixture(scope="module")
def api(module_deps):
    with served_api(module_deps, World(module_deps)) as api:
        yield api


def fresh(api: Api, **options: Any) -> str:
    with api.deps.db.begin() as tx:
        made = datasets.create_dataset(tx, api.world.user, os.urandom(6).hex(), **options)
    return f"/datasets/{made.id}/versions/{made.version_id}"


def post(api: Api, path: str, *lines: Any, **headers: str) -> Any:
    body = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    return api.me.post(f"{path}/items/bulk", content=body.encode(), headers=LINES | headers)


def nothing_is_left(api: Api) -> None:
    """What a request sent is thrown away once its answer has gone out."""
    incoming = api.deps.blobs.root / "incoming"
    wait_for(lambda: not list(incoming.iterdir()), seconds=10, what="an empty folder")


def count(api: Api) -> int:
    return int(api.world.sql("SELECT count(*) FROM dataset_items")[0][0])


def test_lines_become_items_with_all_they_say(api: Api) -> None:
    path = fresh(api, content_type="text")
    splits = {split["name"]: split["id"] for split in api.me.get(f"{path}/splits").json()}
    label = api.me.post(f"{path}/labels", json={"name": "old", "version_id": ""})
    assert label.status_code == 200
    answer = post(
        api,
        path,
        {"name": "one", "text": "hello world", "splits": [splits["valid"], "new", {"id": splits["test"]}],
         "metadata": {"a": [1]}, "description": "d",
         "annotations": [{"label_id": label.json()["id"]}, {"label": "word", "coordinates": "0 5", "confidence": 0.5}]},
        "",
        {"text": "no more than a text", "name": None},
        {"name": "waits for its file", "extension": ".PNG"},
    )  # fmt: skip
    assert answer.status_code == 200
    made = answer.json()
    assert (made["items"], made["items_created"], made["annotations_created"]) == (3, 3, 2)
    assert made["operation"]["status"] == "completed"
    one, text, waiting = api.me.get(f"{path}/items", params={"pageSize": 10}).json()
    assert {split["name"] for split in one["splits"]} == {"valid", "new", "test"}
    assert (one["name"], one["description"], one["text"]) == ("one", "d", "hello world")
    marks = [
        (mark["coordinates"], mark["confidence"], mark["source"]) for mark in one["annotations"]
    ]
    assert marks == [("", None, "import"), ("0 5", 0.5, "import")]
    assert (text["text"], [split["name"] for split in text["splits"]]) == (
        "no more than a text",
        ["train"],
    )
    assert (waiting["extension"], waiting["text"]) == ("png", "")
    assert api.world.sql("SELECT metadata FROM dataset_items WHERE name = 'one'") == [
        ('{"a": [1]}',)
    ]
    api.world.check()


@pytest.mark.parametrize(
    ("line", "field"),
    [
        ("{", "line 17"),
        ("[]", "line 17"),
        ({"text": 7}, "line 17: text"),
        ({"name": "x" * 10_001}, "line 17: name"),
        ({"splits": ["0190b2c0-0000-7000-8000-000000000001"]}, "line 17: splits[0]"),
        ({"splits": [" "]}, "line 17: splits[0]"),
        ({"splits": [{"id": 1}]}, "line 17: splits[0]"),
        ({"metadata": {"a": [[]] * 600_000}}, "line 17"),
        ({"splits": "train"}, "line 17: splits"),
        ({"annotations": [{}]}, "line 17: annotations[0].label"),
        ({"annotations": [{"label": "a"}, {"label_id": "b"}]}, "line 17: annotations[1].label_id"),
        ({"annotations": [{"label": "a", "confidence": 2}]}, "line 17: annotations[0].confidence"),
        (
            {"annotations": [{"label": "a", "coordinates": 5}]},
            "line 17: annotations[0].coordinates",
        ),
        ({"extension": "../x"}, "line 17: extension"),
        ({"text": "x" * (4 * 1024 * 1024 + 1)}, "line 17: text"),
        ('{"text": "\\ud800"}', "line 17"),
        ('{"metadata": NaN}', "line 17: metadata"),
    ],
)
def test_one_bad_line_is_named_and_none_is_made(api: Api, line: Any, field: str) -> None:
    before = count(api)
    answer = post(api, api.version, *[{"text": "good"}] * 16, line, {"text": "good"})
    assert answer.status_code in {400, 413, 422}
    assert answer.json()["field"] == field
    assert count(api) == before
    nothing_is_left(api)


def test_the_same_key_makes_them_once_and_another_body_is_refused(api: Api) -> None:
    key = {"Idempotency-Key": os.urandom(4).hex()}
    before = count(api)
    first = post(api, api.version, {"text": "a"}, {"text": "b"}, **key).json()
    again = post(api, api.version, {"text": "a"}, {"text": "b"}, **key)
    assert again.status_code == 200
    assert (first["repeated"], again.json()["repeated"]) == (False, True)
    assert again.json()["operation"]["id"] == first["operation"]["id"]
    assert count(api) == before + 2
    other = post(api, api.version, {"text": "c"}, **key)
    assert (other.status_code, other.json()["field"]) == (409, "Idempotency-Key")
    assert (
        post(api, api.version, {"text": "c"}, **{"Idempotency-Key": "x" * 201}).status_code == 400
    )
    assert count(api) == before + 2


def test_many_files_of_one_form_become_items(api: Api) -> None:
    path = fresh(api, content_type="documents")
    contents = {f"f{number % 3}.bin": os.urandom(40) for number in range(3)}
    files = [("file", (name, contents[name])) for _ in range(2) for name in contents]
    large = os.urandom(1_500_000)
    answer = api.me.post(
        f"{path}/items/bulk",
        files=[*files, ("file", ("big.bin", large))],
        data={"split_id": "valid"},
    )
    assert answer.status_code == 200
    assert answer.json()["items_created"] == 7
    found = api.me.get(f"{path}/items", params={"pageSize": 10}).json()
    assert sorted(item["name"] for item in found) == sorted([*contents, *contents, "big.bin"])
    assert {split["name"] for item in found for split in item["splits"]} == {"valid"}
    big = next(item for item in found if item["name"] == "big.bin")
    assert api.me.get(f"{path}/items/{big['id']}/download").content == large
    nothing_is_left(api)
    api.world.check()


@pytest.mark.parametrize(
    ("sent", "status", "field"),
    [
        ({"content": b"{}", "headers": {"Content-Type": "text/csv"}}, 400, "Content-Type"),
        ({"content": b"", "headers": LINES}, 422, "body"),
        ({"data": {"split_id": "train"}, "files": [("other", b"x")]}, 422, "file"),
        ({"data": {"split_id": "x" * 500}, "files": [("file", b"x")]}, 422, "split_id"),
        ({"data": {"split_id": "0190b2c0-0000-7000-8000-000000000001"}, "files": [("file", b"x")]}, 422, "split_id"),
        ({"content": b"--x\r\nnope", "headers": {"Content-Type": "multipart/form-data; boundary=x"}}, 400, "file"),
    ],
)  # fmt: skip
def test_a_body_of_another_kind_is_refused(api: Api, sent: Any, status: int, field: str) -> None:
    before = count(api)
    answer = api.me.post(f"{api.version}/items/bulk", **sent)
    assert (answer.status_code, answer.json()["field"]) == (status, field)
    assert count(api) == before


def test_limits_hold_and_name_their_setting(api: Api) -> None:
    settings = api.deps.settings
    object.__setattr__(api.deps, "settings", settings.model_copy(update={"max_bulk_items": 3}))
    try:
        lines = post(api, api.version, *[{"text": "a"}] * 4)
        files = api.me.post(f"{api.version}/items/bulk", files=[("file", ("a", b"x"))] * 4)
    finally:
        object.__setattr__(api.deps, "settings", settings)
    for answer in (lines, files):
        assert answer.status_code == 413
        assert "PPWORKER_MAX_BULK_ITEMS" in answer.json()["message"]


def test_somebody_elses_version_is_not_there(api: Api) -> None:
    stranger = api.client(new_user(api.deps, f"stranger-{os.urandom(3).hex()}"))
    path = f"{api.version}/items/bulk"
    assert stranger.post(path, content=b"{}", headers=LINES).status_code == 404
    assert api.with_header(None).post(path, content=b"{}", headers=LINES).status_code == 401
