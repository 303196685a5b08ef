"""Datasets, versions, splits and labels over HTTP: what is kept, what is refused, what is gone."""

import io
import struct
from dataclasses import replace
from typing import Any
from uuid import uuid4
from zlib import crc32

import httpx2
import pytest
from PIL import Image

from api_server import Api, new_user, served_api
from factories import classes
from ppworker.pipeline.control import operations
from ppworker.pipeline.control.operation_steps import STEPS
from ppworker.pipeline.setup import logos


def ok(response: httpx2.Response, status: int = 200) -> Any:
    assert response.status_code == status, response.text
    return response.json()


def refused(response: httpx2.Response, status: int, field: str) -> None:
    assert (response.status_code, response.json()["field"]) == (status, field), response.text
    assert response.json()["message"]


def clean_up(api: Api) -> None:
    while operations.run(api.deps, STEPS) is not None:
        pass
    api.world.check()


def picture(kind: str, size: tuple[int, int] = (8, 4)) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", size, "red").save(out, kind)
    return out.getvalue()


def bomb(side: int) -> bytes:
    """The head of a PNG that says it has so many pixels a side."""
    head = b"IHDR" + struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + head + struct.pack(">I", crc32(head))


def test_a_dataset_is_made_with_a_version_and_its_splits(api):
    body = {"name": "signs", "content_type": "images", "id": None, "versions": None, "notes": None}
    made = ok(api.me.post("/datasets", json=body))
    assert (made["multi_label"], made["default_splits"]) == (False, True)
    assert [split["name"] for split in made["versions"][0]["splits"]] == ["train", "valid", "test"]
    assert (made["has_logo"], made["logo"], made["description"]) == (False, "", "")
    bare = ok(api.me.post("/datasets", json=body | {"name": "bare", "default_splits": False}))
    assert (bare["default_splits"], bare["versions"][0]["splits"]) == (False, [])
    odd = ok(api.me.post("/datasets", json=body | {"name": "odd", "content_type": "point clouds"}))
    assert odd["content_type"] == "point clouds"
    listed = ok(api.me.get("/datasets"))
    assert [each["name"] for each in listed[:3]] == ["odd", "bare", "signs"]
    assert ok(api.me.get(f"/datasets/{made['id']}")) == made
    for change, status, field in (
        ({"name": "signs"}, 409, "name"),
        ({"name": None}, 422, "name"),
        ({"name": "a/b"}, 422, "name"),
        ({"name": "x" * 201}, 422, "name"),
        ({"name": "new", "content_type": None}, 422, "content_type"),
        ({"name": "new", "content_type": "a\nb"}, 422, "content_type"),
        ({"name": "new", "multi_label": "yes"}, 422, "multi_label"),
        ({"name": "new", "notes": "x" * 100_001}, 422, "notes"),
        ({"name": 7}, 422, "name"),
    ):
        refused(api.me.post("/datasets", json=body | change), status, field)


def test_put_changes_what_is_given_and_leaves_null_and_nested_lists_alone(api):
    made = ok(api.me.get(api.dataset))
    changed = ok(
        api.me.put(
            api.dataset,
            json=made
            | {"name": "other", "notes": "n", "description": None, "versions": [], "id": "x"},
        )
    )
    same = ("id", "description", "multi_label", "content_type", "user_id", "created_at")
    assert {name: changed[name] for name in same} == {name: made[name] for name in same}
    assert (changed["name"], changed["notes"]) == ("other", "n")
    assert changed["versions"] == made["versions"]
    assert ok(api.me.put(api.dataset, json={"notes": ""}))["notes"] == ""
    ok(api.me.post("/datasets", json={"name": "taken", "content_type": "text"}))
    refused(api.me.put(api.dataset, json={"name": "taken"}), 409, "name")
    refused(api.me.put(api.dataset, json={"name": ""}), 422, "name")
    # Without any annotation the dataset may become one of single labels; with one it may not.
    assert not ok(api.me.put(api.dataset, json={"multi_label": False}))["multi_label"]
    assert ok(api.me.put(api.dataset, json={"multi_label": True}))["multi_label"]
    (item_id,) = api.world.add("text")
    api.world.annotate(item_id, "cat")
    refused(api.me.put(api.dataset, json={"multi_label": False}), 409, "multi_label")


def test_versions_splits_and_labels_are_made_changed_and_listed_in_order(api):
    path = f"{api.dataset}/versions"
    second = ok(api.me.post(path, json={"dataset_id": str(api.world.dataset.id), "name": None}))
    third = ok(api.me.post(path, json={"name": "mine", "description": "d", "config": '{"a":1} \n'}))
    assert [each["name"] for each in ok(api.me.get(path))] == ["v1", "v2", "mine"]
    assert third["config"] == '{"a":1} \n'
    own = f"{path}/{second['id']}"
    assert ok(api.me.get(f"/datasetversions/{second['id']}")) == ok(api.me.get(own)) == second
    assert ok(api.me.get(f"/dataset-versions/{second['id']}/splits")) == second["splits"]
    splits = second["splits"]
    config = '{"column_names": "a,b",\t"csv_separator": ";"}  \u00e4\U0001f600'
    changed = ok(api.me.put(own, json={"config": config, "default_split": splits[1]["id"]}))
    assert (changed["config"], changed["default_split"]) == (config, splits[1]["id"])
    assert changed["name"] == "v2"
    assert ok(api.me.put(own, json=changed | {"default_split": ""}))["default_split"] == ""
    elsewhere = ok(api.me.get(api.version))["splits"][0]["id"]
    for wrong in (elsewhere, str(uuid4()), "no"):
        refused(api.me.put(own, json={"default_split": wrong}), 422, "default_split")
    refused(api.me.put(own, json={"config": "a\x00b"}), 422, "config")
    refused(api.me.put(own, json={"name": ""}), 422, "name")

    made = ok(api.me.post(f"{own}/splits", json={"name": "hard", "version_id": second["id"]}))
    assert ok(api.me.get(f"{own}/splits/{made['id']}")) == made
    named = ok(api.me.put(f"{own}/splits/{made['id']}", json={"name": "soft", "description": "d"}))
    assert (named["name"], named["description"]) == ("soft", "d")
    assert [each["name"] for each in ok(api.me.get(f"{own}/splits"))] == [
        "train", "valid", "test", "soft",
    ]  # fmt: skip
    refused(api.me.put(f"{own}/splits/{made['id']}", json={"name": "train"}), 409, "name")
    refused(api.me.post(f"{own}/splits", json={"name": "soft"}), 409, "name")
    refused(api.me.post(f"{own}/splits", json={}), 422, "name")

    sent = {"name": "Stop", "version_id": second["id"], "color": None, "index": 0, "shortcut": None}
    stop = ok(api.me.post(f"{own}/labels", json=sent))
    go = ok(
        api.me.post(f"{own}/labels", json=sent | {"name": "go", "color": "#AbC", "shortcut": "g"})
    )
    assert [(each["name"], each["index"]) for each in ok(api.me.get(f"{own}/labels"))] == [
        ("Stop", 0), ("go", 1),
    ]  # fmt: skip
    assert (go["color"], go["shortcut"], stop["color"][0]) == ("#AbC", "g", "#")
    again = ok(api.me.put(f"{own}/labels/{stop['id']}", json=stop | {"name": "STOP", "index": 9}))
    assert (again["name"], again["index"], again["color"]) == ("STOP", 0, stop["color"])
    assert ok(api.me.get(f"{own}/labels/{stop['id']}")) == again
    for change, status, field in (
        ({"name": "GO"}, 409, "name"),
        ({"name": " "}, 422, "name"),
        ({"name": "x" * 201}, 422, "name"),
        ({"color": "red"}, 422, "color"),
        ({"color": "#12345"}, 422, "color"),
        ({"shortcut": "x" * 51}, 422, "shortcut"),
    ):
        refused(api.me.put(f"{own}/labels/{stop['id']}", json=change), status, field)
    refused(api.me.post(f"{own}/labels", json={"name": "stop"}), 409, "name")
    refused(api.me.post(f"{own}/labels", json={"name": "red", "color": "#xyz"}), 422, "color")


def test_every_label_has_a_row_in_the_stats_also_at_zero(api):
    ids = api.world.add("a", "b", "c")
    for name in ("cat", "dog"):
        ok(api.me.post(f"{api.version}/labels", json={"name": name}))
    api.world.annotate(ids[0], "dog")
    api.world.annotate(ids[0], "dog")
    by_id = {each["id"]: each["name"] for each in ok(api.me.get(f"{api.version}/labels"))}
    stats = ok(api.me.get(f"{api.version}/labels/splits/{api.world.train.id}"))
    assert [
        (by_id.get(row["label_id"], ""), row["annotation_count"], row["item_count"], row["count"])
        for row in stats
    ] == [("cat", 0, 0, 0), ("dog", 2, 1, 1), ("", 0, 2, 2)]
    total = ok(api.me.get(f"{api.version}/labels/stats/splits/{api.world.train.id}"))
    assert (total["label_id"], total["item_count"], total["annotation_count"]) == ("", 3, 2)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_logo_is_looked_into_and_given_back(api, kind):
    assert api.me.get(f"{api.dataset}/logo").status_code == 404
    content = picture(kind)
    sent = {"file": ("whatever.exe", content, "image/jpg")}
    made = ok(api.me.post(f"{api.dataset}/upload", files=sent))
    assert made["has_logo"]
    assert made["logo"] == f"{made['id']}.{'png' if kind == 'PNG' else 'jpg'}"
    answer = api.me.get(f"{api.dataset}/logo")
    assert answer.content == content
    assert answer.headers["content-type"] == f"image/{kind.lower()}"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["content-disposition"].startswith("attachment")
    stranger = api.client(new_user(api.deps, f"stranger-{kind}"))
    assert stranger.get(f"{api.dataset}/logo").status_code == 404
    assert stranger.post(f"{api.dataset}/upload", files=sent).status_code == 404


def test_what_is_no_small_picture_is_no_logo(api):
    for content, status in (
        (b"hello", 422),
        (b"", 422),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", 422),
        (picture("GIF"), 422),
        (picture("PNG")[:20], 422),
        (picture("PNG", (logos.MAX_SIDE + 1, 1)), 422),
        (bomb(60_000), 422),
        (b"\x89PNG\r\n\x1a\n" + b"0" * logos.MAX_BYTES, 413),
        (b"0" * (3 * logos.MAX_BYTES), 413),
    ):
        sent = {"file": ("logo.png", content, "image/png")}
        refused(api.me.post(f"{api.dataset}/upload", files=sent), status, "file")
    refused(api.me.post(f"{api.dataset}/upload", files={"other": ("a", b"b")}), 422, "file")
    assert not ok(api.me.get(api.dataset))["has_logo"]
    assert api.world.sql("SELECT 1 FROM blobs") == []


def test_a_version_is_duplicated_by_one_request(api):
    processor = api.world.processor()
    api.world.add("a", "b")
    api.world.run(processor, classes("cat"))
    sent: dict[str, Any] = {"dataset_id": str(api.world.dataset.id), "name": None, "labels": []}
    copy = ok(api.me.post(f"{api.version}/new", json=sent))
    assert (copy["name"], [each["name"] for each in copy["labels"]]) == ("v1 copy", ["cat"])
    assert [each["name"] for each in copy["splits"]] == ["train", "valid", "test"]
    own = f"{api.dataset}/versions/{copy['id']}"
    shown = ok(api.me.get(f"{own}/items"))
    assert [len(each["annotations"]) for each in shown] == [1, 1]
    assert [each["job_status"]["total"] for each in shown] == [0, 0]
    items = ok(api.me.get(f"{api.version}/items"))
    assert [each["id"] for each in shown] == [each["id"] for each in items]
    assert ok(api.me.post(f"{api.version}/new"))["name"] == "v1 copy"
    assert ok(api.me.post(f"{api.version}/new", json={"name": "n"}))["name"] == "n"
    refused(api.me.post(f"{api.version}/new", json={"name": "a/b"}), 422, "name")
    api.world.check()


def test_what_takes_longer_is_answered_with_the_operation(deps, world):
    hasty = deps.settings.model_copy(update={"operation_wait_s": 0.0})
    with served_api(replace(deps, settings=hasty), world) as api:
        world.add("a")
        answer = api.me.post(f"{api.version}/new")
        begun = ok(answer, 202)
        assert answer.headers["location"] == f"/api/v1/operations/{begun['id']}"
        assert len(ok(api.me.get(f"{api.dataset}/versions"))) == 1
        clean_up(api)
        done = ok(api.me.get(f"/operations/{begun['id']}"))
        assert (done["status"], done["done"], done["total"]) == ("completed", 1, 1)
        copy = done["result"]["version_id"]
        assert [each["id"] for each in ok(api.me.get(f"{api.dataset}/versions"))][1] == copy


def test_what_is_deleted_is_gone_from_every_list_at_once(api):
    processor = api.world.processor()
    ids = api.world.add("a", "b", "c")
    api.world.run(processor, classes("cat", "dog"))
    train, other = api.world.train.id, api.world.valid.id
    labels = {each["name"]: each["id"] for each in ok(api.me.get(f"{api.version}/labels"))}

    item = ok(api.me.get(f"{api.version}/items/{ids[0]}"))
    refused(api.me.delete(f"{api.version}/splits/{other}/items/{ids[0]}"), 404, "item")
    assert ok(api.me.delete(f"{api.split}/items/{ids[0]}")) == item
    refused(api.me.delete(f"{api.split}/items/{ids[0]}"), 404, "item")
    refused(api.me.get(f"{api.version}/items/{ids[0]}"), 404, "item")

    begun = ok(api.me.delete(f"{api.version}/labels/{labels['cat']}"), 202)
    assert (begun["kind"], begun["status"]) == ("delete", "pending")
    assert [each["name"] for each in ok(api.me.get(f"{api.version}/labels"))] == ["dog"]
    refused(api.me.get(f"{api.version}/labels/{labels['cat']}"), 404, "label")
    refused(api.me.delete(f"{api.version}/labels/{labels['cat']}"), 404, "label")
    stats = ok(api.me.get(f"{api.version}/labels/splits/{train}"))
    assert [row["label_id"] for row in stats] == [labels["dog"], ""]
    shown = ok(api.me.get(f"{api.version}/items"))
    assert {each["label_id"] for item in shown for each in item["annotations"]} == {labels["dog"]}
    assert ok(api.me.get(f"{api.version}"))["labels"][0]["name"] == "dog"

    ok(api.me.delete(api.split), 202)
    assert {each["name"] for each in ok(api.me.get(f"{api.version}/splits"))} == {"valid", "test"}
    refused(api.me.get(api.split), 404, "split")
    assert ok(api.me.get(f"{api.version}/items")) == []
    refused(api.me.get(f"{api.version}/items/{ids[1]}"), 404, "item")
    refused(api.me.get(f"{api.version}/labels/splits/{train}"), 404, "split")
    assert ok(api.me.post(f"{api.version}/splits", json={"name": "train"}))["id"] != str(train)

    ok(api.me.delete(api.version), 202)
    for gone in (api.version, f"{api.version}/items", f"{api.version}/labels"):
        refused(api.me.get(gone), 404, "version")
    refused(api.me.get(f"/datasetversions/{api.world.dataset.version_id}"), 404, "version")
    refused(api.me.get(f"/dataset-versions/{api.world.dataset.version_id}/splits"), 404, "version")
    # A dataset without any version is still a dataset.
    assert ok(api.me.get(api.dataset))["versions"] == []
    assert str(api.world.dataset.id) in {each["id"] for each in ok(api.me.get("/datasets"))}
    again = ok(api.me.post(f"{api.dataset}/versions", json={}))
    assert again["name"] == "v2"

    name = ok(api.me.get(api.dataset))["name"]
    ok(api.me.delete(api.dataset), 202)
    refused(api.me.get(api.dataset), 404, "dataset")
    assert ok(api.me.get("/datasets")) == []
    refused(api.me.delete(api.dataset), 404, "dataset")
    ok(api.me.post("/datasets", json={"name": name, "content_type": "text"}))
    clean_up(api)
    for table in ("dataset_items", "annotations", "post_processor_jobs", "labels", "label_stats"):
        assert api.world.sql(f"SELECT 1 FROM {table}") == [], table
    done = ok(api.me.get("/operations"))
    assert {each["status"] for each in done} == {"completed"}
