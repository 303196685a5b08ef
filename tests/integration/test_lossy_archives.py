"""COCO, YOLO, Label Studio and spaCy over HTTP: in, out, and in again is the same dataset."""

import io
import json
import os
import zipfile
from typing import Any

import pytest
from PIL import Image

from api_server import Api, served_api
from factories import World
from ppworker.store import datasets


def packed(members: dict[str, Any]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return out.getvalue()


def picture(seed: int, *, turned: bool = False) -> bytes:
    """A picture of 40 by 20 as people see it; a turned one is stored as 20 by 40."""
    out, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6 if turned else 1
    Image.new("RGB", (20, 40) if turned else (40, 20), (seed, 0, 0)).save(out, "JPEG", exif=exif)
    return out.getvalue()


PICTURES = {"images/a.jpg": picture(1), "images/b é.jpg": picture(2, turned=True)}
BOXES = [("cat", [10, 5, 30, 15]), ("dog", [0, 0, 40, 20])]
COCO = packed(
    PICTURES | {
        "annotations/instances_train.json": json.dumps({
            "images": [{"id": 1, "file_name": "a.jpg"}, {"id": 2, "file_name": "b é.jpg"}],
            "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
            "annotations": [
                {"id": 1, "image_id": 2, "category_id": 1, "bbox": [10, 5, 20, 10]},
                {"id": 2, "image_id": 2, "category_id": 2, "bbox": [0, 0, 40, 20]},
            ],
        })
    }
)  # fmt: skip
YOLO = packed(
    {"images/train/a.jpg": PICTURES["images/a.jpg"], "images/train/b é.jpg": PICTURES["images/b é.jpg"],
     "data.yaml": "train: images/train\nnames: [cat, dog]",
     "labels/train/b é.txt": "0 0.5 0.5 0.5 0.5\n1 0.5 0.5 1 1\n"}
)  # fmt: skip
STUDIO = packed(
    PICTURES | {
        "export.json": json.dumps([
            {"data": {"image": "/data/upload/1/a.jpg", "split": "train"}, "annotations": []},
            {"data": {"image": "/data/upload/1/b%20%C3%A9.jpg", "split": "train"}, "annotations": [{"result": [
                {"id": "1", "type": "rectanglelabels", "value": {
                    "x": 25, "y": 25, "width": 50, "height": 50, "rectanglelabels": ["cat"]}},
                {"id": "2", "type": "rectanglelabels", "value": {
                    "x": 0, "y": 0, "width": 100, "height": 100, "rectanglelabels": ["dog"]}},
            ]}]},
        ])
    }
)  # fmt: skip
SPACY = packed({"train.json": json.dumps([
    ["Ann 🚀 Lee", {"entities": [[0, 3, "PER"], [6, 9, "PER"]]}], ["nothing", {"entities": []}],
])})  # fmt: skip


@pytest.fixture(scope="module")
def api(module_deps):
    with served_api(module_deps, World(module_deps)) as api:
        yield api


def fresh(api: Api, content_type: str) -> str:
    with api.deps.db.begin() as tx:
        made = datasets.create_dataset(
            tx, api.world.user, os.urandom(6).hex(), content_type=content_type
        )
    return f"/datasets/{made.id}/versions/{made.version_id}"


def brought(api: Api, path: str, content: bytes, route: str) -> list[Any]:
    """Upload an archive; what the version then holds."""
    file = ("a.zip", content, "application/x-zip-compressed")
    answer = api.me.post(f"{path}/{route}", files={"file": file})
    assert answer.status_code == 200, answer.text
    names = {label["id"]: label["name"] for label in answer.json()["labels"]}
    version = path.rpartition("/")[2]
    rows = api.world.sql(
        "SELECT i.name, i.text, a.label_id::text, a.kind, a.geometry::text FROM dataset_items i "
        "JOIN item_splits m ON m.item_id = i.id LEFT JOIN annotations a ON a.item_id = i.id "
        f"WHERE m.version_id = '{version}' ORDER BY 1, 2, 4, 5"
    )
    return [
        (name, text, names.get(label), kind, json.loads(geometry) if geometry else None)
        for name, text, label, kind, geometry in rows
    ]


@pytest.mark.parametrize(
    ("word", "content"), [("coco", COCO), ("yolo", YOLO), ("labelstudio", STUDIO)]
)
def test_boxes_of_pictures_go_in_out_and_in_again(api: Api, word: str, content: bytes) -> None:
    path = fresh(api, "images")
    first = brought(api, path, content, f"upload/{word}")
    assert [row[0] for row in first] == ["a.jpg", "b é.jpg", "b é.jpg"]
    assert sorted((row[2], row[4]["box"]) for row in first[1:]) == BOXES
    download = api.me.get(f"{path}/download", params={"format": word})
    assert download.status_code == 200
    again = brought(api, fresh(api, "images"), download.content, "upload")  # recognised by itself
    assert again == first


def test_spans_of_texts_go_in_out_and_in_again(api: Api) -> None:
    path = fresh(api, "ner")
    first = brought(api, path, SPACY, "upload/spacy-ner")
    assert [(row[1], row[4]) for row in first] == [
        ("Ann 🚀 Lee", {"start": 0, "end": 3}), ("Ann 🚀 Lee", {"start": 6, "end": 9}), ("nothing", None),
    ]  # fmt: skip
    download = api.me.get(f"{path}/download")
    assert brought(api, fresh(api, "ner"), download.content, "upload") == first
    studio = api.me.get(f"{path}/download", params={"format": "labelstudio"})
    assert brought(api, fresh(api, "ner"), studio.content, "upload") == first


def test_an_archive_whose_structure_is_broken_adds_nothing(api: Api) -> None:
    path = fresh(api, "images")
    broken = packed(PICTURES | {"a.names": "cat", "images/a.txt": "7 0 0 0 0"})
    answer = api.me.post(f"{path}/upload/yolo", files={"file": ("a.zip", broken)})
    assert answer.status_code == 422
    assert "images/a.txt: line 1" in answer.json()["message"]
    assert api.me.get(f"{path}/items").json() == []
