"""Archives in and out, over HTTP and through the pipeline: exact, whole, and nothing left behind."""

import io
import json
import os
import zipfile
from collections.abc import Iterator  # noqa: TC003
from contextlib import suppress
from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from api_server import Api, new_user, served_api
from factories import World
from live_workers import wait_for
from ppworker.domain.events import OperationAdvanced
from ppworker.formats.base import Mark, Record
from ppworker.pipeline.control import operations
from ppworker.pipeline.control.operation_steps import STEPS
from ppworker.pipeline.transfer import export, import_items, shelf, stage
from ppworker.pipeline.transfer.arrivals import Arrivals
from ppworker.store import datasets
from ppworker.store import operations as store


def packed(members: dict[str, Any]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return out.getvalue()


def picture(seed: int, size: tuple[int, int] = (20, 10)) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", size, (seed % 256, seed // 256, 7)).save(out, "PNG")
    return out.getvalue()


def members(content: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        assert archive.testzip() is None
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.fixture(scope="module")
def api(module_deps):
    with served_api(module_deps, World(module_deps)) as api:
        yield api


def fresh(api: Api, *, owner: UUID | None = None, **options: Any) -> str:
    """Path of the first version of a new dataset."""
    with api.deps.db.begin() as tx:
        made = datasets.create_dataset(tx, owner or api.world.user, os.urandom(6).hex(), **options)
    return f"/datasets/{made.id}/versions/{made.version_id}"


def upload(api: Api, path: str, content: bytes, *, word: str = "", client: Any = None) -> Any:
    file = ("a.zip", content, "application/x-zip-compressed")
    route = f"{path}/upload/{word}" if word else f"{path}/upload"
    return (client or api.me).post(route, files={"file": file})


def items(api: Api, path: str) -> list[dict[str, Any]]:
    answer = api.me.get(f"{path}/items", params={"pageSize": 1000})
    assert answer.status_code == 200
    return list(answer.json())


def everything(api: Api) -> tuple[Any, ...]:
    """Rows and files that a refused archive must not add to."""
    incoming = api.deps.blobs.root / "incoming"
    # What a request sent is thrown away once its answer has gone out.
    wait_for(lambda: not list(incoming.glob("*")), seconds=10, what="an empty folder")
    tables = ("operations", "dataset_items", "blobs", "labels", "dataset_splits", "annotations")
    files = sorted(str(path) for path in api.deps.blobs.root.rglob("*") if path.is_file())
    counts = [api.world.sql(f"SELECT count(*) FROM {table}")[0][0] for table in tables]
    return counts, files


def test_folders_become_items_with_labels_splits_and_jobs(api: Api) -> None:
    processor = api.world.processor(file_types=("png",), name="reads pictures")
    content = packed({
        "train/cat/a.png": picture(1), "train/b.txt": "hello", "new/dog/c.png": picture(2),
        "__MACOSX/x": "", "new/dog/deep/d.txt": "",
    })  # fmt: skip
    answer = upload(api, api.version, content)
    assert answer.status_code == 200
    version = answer.json()
    assert version["id"] == str(api.world.dataset.version_id)
    assert {label["name"] for label in version["labels"]} >= {"cat", "dog"}
    assert "new" in {split["name"] for split in version["splits"]}
    found = {item["name"]: item for item in items(api, api.version)}
    assert [split["name"] for split in found["c.png"]["splits"]] == ["new"]
    assert (found["b"]["text"], found["b"]["annotations"]) == ("hello", [])
    assert (found["a.png"]["width"], found["a.png"]["extension"]) == (20, "png")
    assert found["a.png"]["job_status"]["pending"] == 1
    assert found["b"]["job_status"]["total"] == 0
    operation = api.me.get("/operations").json()[0]
    assert operation["counts"] == {"items_created": 3, "annotations_created": 2, "jobs_planned": 2}
    assert operation["result"]["skipped"] == {"too_deep": 1}
    assert operation["result"]["examples"] == {"too_deep": ["new/dog/deep/d.txt"]}
    assert api.world.statuses(processor) == ["pending"] * 2
    assert api.world.sql("SELECT DISTINCT priority FROM post_processor_jobs") == [(1,)]
    assert not list(shelf.root(api.deps).iterdir())
    api.world.check()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (packed({"../up.txt": ""}), "../up.txt"),
        (packed({"a.txt": "1", "A.txt": "2"}), "A.txt"),
        (packed({"train/a.txt": "x" * 5000})[:-40], "not a whole one"),
        (packed({"train/bomb.txt": b"\0" * 80_000_000}), "train/bomb.txt"),
        (b"name,label", "no zip archive"),
        (packed({}), "holds nothing"),
        (packed({"ppworker.json": '{"format": "ppworker", "format_version": 1}',
                 "items.jsonl": '{"name": "good"}\n{"name": 7}'}), "items.jsonl: line 2: name"),
    ],
)  # fmt: skip
def test_a_bad_archive_is_refused_by_name_and_leaves_nothing(
    api: Api, content: bytes, said: str
) -> None:
    before = everything(api)
    answer = upload(api, api.version, content)
    assert answer.status_code in {413, 422}
    assert answer.json()["field"] == "file"
    assert said in answer.json()["message"]
    assert everything(api) == before


def test_only_those_who_may_write_bring_archives_and_strangers_see_none(api: Api) -> None:
    stranger = api.client(new_user(api.deps, f"stranger-{os.urandom(3).hex()}"))
    content = packed({"train/a.txt": "x"})
    before = everything(api)
    assert upload(api, api.version, content, client=stranger).status_code == 404
    assert upload(api, api.version, content, client=api.with_header(None)).status_code == 401
    assert stranger.get(f"{api.version}/download").status_code == 404
    assert upload(api, api.version, content, word="tar").status_code == 422
    assert everything(api) == before


def test_a_download_is_an_attachment_that_says_its_format_and_its_losses(api: Api) -> None:
    path = fresh(api, content_type="images")
    upload(api, path, packed({"train/cat/a.png": picture(3), "valid/b.png": picture(4)}))
    answer = api.me.get(f"{path}/download", params={"format": "unheard of"})
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/zip"
    assert answer.headers["content-disposition"].startswith("attachment")
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["x-format"] == "folders"
    assert answer.headers["x-losses"] == "1", "the colour of a label"
    assert members(answer.content) == {
        "train/cat/a.png": picture(3), "valid/b.png": picture(4)
    }  # fmt: skip
    splits = {split["name"]: split["id"] for split in api.me.get(f"{path}/splits").json()}
    one = api.me.get(f"{path}/download/{splits['valid']}")
    assert list(members(one.content)) == ["valid/b.png"]
    wait_for(lambda: not list(shelf.root(api.deps).iterdir()), seconds=10, what="the file to go")


def test_what_takes_longer_is_answered_by_the_operation_and_fetched_later(api: Api) -> None:
    path = fresh(api, content_type="text")
    content = packed({"train/cat/a.txt": "hello"})
    patient = api.deps.settings
    object.__setattr__(api.deps, "settings", patient.model_copy(update={"operation_wait_s": 0.0}))
    try:
        taken = upload(api, path, content)
        asked = api.me.get(f"{path}/download")
    finally:
        object.__setattr__(api.deps, "settings", patient)
    for answer in (taken, asked):
        assert answer.status_code == 202
        assert answer.headers["location"] == f"/api/v1/operations/{answer.json()['id']}"
    file = f"/operations/{asked.json()['id']}/download"
    assert api.me.get(file).status_code == 409, "not completed"
    for answer in (taken, asked):
        done = operations.follow(api.deps, STEPS, api.world.user, UUID(answer.json()["id"]))
        assert done.status == "completed"
    assert list(members(api.me.get(file).content)) == ["train/cat/a.txt"]
    assert api.me.get(file).status_code == 200, "as often as one likes"
    stranger = api.client(new_user(api.deps, f"stranger-{os.urandom(3).hex()}"))
    assert stranger.get(file).status_code == 404
    assert api.me.get(f"/operations/{taken.json()['id']}/download").status_code == 409
    shelf.drop(api.deps, UUID(asked.json()["id"]))
    assert api.me.get(file).status_code == 404


def test_one_label_per_item_is_obeyed_and_what_does_not_fit_is_counted(api: Api) -> None:
    path = fresh(api, content_type="text", multi_label=False)
    lines = [
        {"name": "n", "text": "hello", "splits": ["train"], "annotations": [
            {"label": "a", "kind": "class"}, {"label": "b", "kind": "class"},
            {"label": "c", "kind": "span", "coordinates": "0 2", "geometry": {"start": 0, "end": 2}}]},
    ]  # fmt: skip
    own = {"ppworker.json": '{"format": "ppworker", "format_version": 1}'}
    assert upload(api, path, packed(own | {"items.jsonl": json.dumps(lines[0])})).status_code == 200
    (item,) = items(api, path)
    assert [mark["coordinates"] for mark in item["annotations"]] == ["", "0 2"]
    operation = api.me.get("/operations").json()[0]
    assert operation["result"]["skipped"] == {"annotation_not_top": 1}
    api.world.check()


_TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=8)
_GEOMETRIES = {
    "class": None, "bbox": {"box": [1.5, 2.25, 10.125, 9.0]}, "span": {"start": 1, "end": 3},
    "polygon": {"points": [[0.5, 0.25], [3.0, 4.0], [5.5, 0.0]]}, "segment": {"start": 0.5, "end": 2.0},
    "keypoints": {"points": [[1.0, 2.0, 2], [0.0, 0.0, 0]]},
}  # fmt: skip


@st.composite
def _marks(draw):
    kind = draw(st.sampled_from(sorted(_GEOMETRIES)))
    source = draw(st.sampled_from(["human", "model", "inference", "import"]))
    said = {
        "label": draw(st.sampled_from(["cat", "dog", "ünï"])), "kind": kind, "coordinates": draw(_TEXT),
        "geometry": _GEOMETRIES[kind], "text": draw(st.none() | _TEXT.filter(bool)),
        "page": draw(st.none() | st.integers(0, 3)), "score": draw(st.none() | st.floats(0, 1)),
        "source": source, "post_processor": "reader" if source == "model" else "",
        "model_version": draw(_TEXT), "review": draw(st.sampled_from(["suggested", "accepted", "edited"])),
    }  # fmt: skip
    return {name: value for name, value in said.items() if value not in (None, "")}


@settings(max_examples=5, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    said=st.lists(
        st.tuples(_TEXT, st.lists(_marks(), max_size=4), st.booleans(), _TEXT),
        max_size=4,
        min_size=1,
    )
)
def test_export_then_import_then_export_is_equal_with_every_kind_of_annotation(
    api: Api, said
) -> None:
    own: dict[str, Any] = {}
    lines = []
    for number, (text, marks, is_file, state) in enumerate(said):
        line = {"name": f"{number}", "splits": ["train", "odd"], "text": text, "state": state,
                "description": text, "metadata": text, "annotations": marks}  # fmt: skip
        if is_file:
            content = picture(number)
            line |= {"file": f"files/{number}", "extension": "png", "media_type": "image/png"}
            own[line["file"]] = content
        lines.append(line)
    labels = [
        {"name": "dog", "color": "#010203", "index": 7, "shortcut": "d", "description": "barks"},
        {"name": "cat", "color": "#040506", "index": 3, "shortcut": "", "description": ""},
        {"name": "ünï", "color": "#070809", "index": 9, "shortcut": "", "description": ""},
    ]  # fmt: skip
    own["ppworker.json"] = json.dumps({
        "format": "ppworker", "format_version": 1, "labels": labels,
        "version": {"config": '{"mine": true}', "default_split": "odd"},
        "splits": [{"name": "odd", "description": "strange"}],
    })  # fmt: skip
    own["items.jsonl"] = "\n".join(map(json.dumps, lines))
    exports = []
    content = packed(own)
    for _ in range(2):
        path = fresh(api)
        assert upload(api, path, content).status_code == 200
        content = api.me.get(f"{path}/download", params={"format": "ppworker"}).content
        exports.append(members(content))
    first, second = exports
    assert [json.loads(line) for line in first["items.jsonl"].splitlines()] == [
        {name: value for name, value in expected(line, own).items() if value or name == "text"}
        for line in lines
    ]
    about = json.loads(first["ppworker.json"])
    assert {label["name"]: label for label in about["labels"]} == {
        each["name"]: each for each in labels
    }
    assert about["version"]["config"] == '{"mine": true}'
    assert about["version"]["default_split"] == "odd"
    assert {"name": "odd", "description": "strange"} in about["splits"]
    assert {**first, "ppworker.json": ""} == {**second, "ppworker.json": ""}
    assert json.loads(second["ppworker.json"])["labels"] == about["labels"]


def expected(line: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """An item as it must come back: its file by its hash, unset things left out."""
    from hashlib import sha256

    file = line.get("file")
    return line | {
        "file": f"files/{sha256(own[file]).hexdigest()}" if file else "",
        "annotations": [{"source": "import", "review": "accepted"} | mark for mark in line["annotations"]],
    }  # fmt: skip


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        operations, "Pace", lambda *_: type("P", (), {"units": 3, "learn": lambda *_: None})()
    )


def take(world: World, content: bytes, tmp_path: Any) -> UUID:
    path = tmp_path / "a.zip"
    path.write_bytes(content)
    return stage.take_archive(world.deps, world.user, world.dataset.version_id, path).operation_id


def follow(world: World, id_: UUID) -> store.Operation:
    return operations.follow(world.deps, STEPS, world.user, id_)


class Stopped(BaseException):
    """The process dies."""


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("when", ["prepared", "written"])
def test_an_import_that_dies_in_any_chunk_goes_on_exactly(
    world: World, tmp_path: Any, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    id_ = take(world, packed({f"train/l{n % 3}/{n}.png": picture(n) for n in range(14)}), tmp_path)
    deaths = iter([False, True, False, True, True])
    where, name = (Arrivals, "write") if when == "written" else (import_items, "_arrivals")
    original = getattr(where, name)

    def dies(*args: Any) -> Any:
        made = original(*args)
        if next(deaths, False):
            raise Stopped
        return made

    monkeypatch.setattr(where, name, dies)
    for _ in range(4):
        with suppress(Stopped):
            follow(world, id_)
    done = follow(world, id_)
    assert (done.status, done.done, done.total) == ("completed", 14, 14)
    assert done.counts == {"items_created": 14, "annotations_created": 14}
    assert world.sql("SELECT count(*), count(DISTINCT name) FROM dataset_items") == [(14, 14)]
    assert not list(shelf.root(world.deps).iterdir())
    world.check()


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("format_name", ["ppworker", "coco", "csv"])
def test_an_export_that_dies_in_any_chunk_is_the_same_file(
    world: World, tmp_path: Any, monkeypatch: pytest.MonkeyPatch, format_name: str
) -> None:
    follow(
        world,
        take(world, packed({f"train/l{n % 3}/{n}.png": picture(n) for n in range(14)}), tmp_path),
    )
    files, ids = [], []
    deaths: Iterator[bool] = iter(())
    original = export._note

    def dies(*args: Any) -> None:
        if next(deaths, False):
            raise Stopped
        original(*args)
        if next(deaths, False):
            raise Stopped

    monkeypatch.setattr(export, "_note", dies)
    for plan in ([], [False, False, True, False, True, True, False, False, True]):
        deaths = iter(plan)
        asked = export.begin(
            world.deps, world.user, world.dataset.version_id, format_name=format_name
        )
        for _ in range(5):
            with suppress(Stopped):
                follow(world, asked.operation_id)
        done = follow(world, asked.operation_id)
        assert (done.status, done.counts) == ("completed", {"items": 14})
        ids.append(asked.operation_id)
        files.append((export.archive(world.deps, done).read_bytes(), done.result["losses"]))
    assert files[0] == files[1]
    folder = shelf.folder(world.deps, ids[-1])
    assert {path.name for path in folder.iterdir()} == {shelf.ARCHIVE, shelf.LOCK}


@pytest.mark.usefixtures("small_chunks")
def test_an_export_whose_files_are_lost_begins_anew(
    world: World, tmp_path: Any, events: list[Any]
) -> None:
    follow(world, take(world, packed({f"train/{n}.txt": "x" for n in range(10)}), tmp_path))
    asked = export.begin(world.deps, world.user, world.dataset.version_id)
    operations.run(
        world.deps, STEPS, operation_id=asked.operation_id,
        until=lambda: len([e for e in events if isinstance(e, OperationAdvanced) and e.kind == "export"]) >= 2,
    )  # fmt: skip
    shelf.drop(world.deps, asked.operation_id)
    done = follow(world, asked.operation_id)
    assert (done.done, done.counts) == (10, {"items": 10, "restarts": 1})
    assert len(members(export.archive(world.deps, done).read_bytes())) == 10


def test_a_file_that_the_store_has_lost_spoils_no_export(world: World, tmp_path: Any) -> None:
    follow(world, take(world, packed({f"train/{n}.png": picture(n) for n in range(3)}), tmp_path))
    ((sha256,),) = world.sql("SELECT content_sha256 FROM dataset_items WHERE name = '1.png'")
    world.deps.blobs.path(sha256).unlink()
    asked = export.begin(world.deps, world.user, world.dataset.version_id, format_name="ppworker")
    done = follow(world, asked.operation_id)
    assert (done.status, done.result["losses"]) == ("completed", {"missing_files": 1})
    assert done.result["examples"] == {"missing_files": ["1.png"]}
    found = members(export.archive(world.deps, done).read_bytes())
    assert len([name for name in found if name.startswith("files/")]) == 2
    assert len(found["items.jsonl"].splitlines()) == 3


def test_files_that_take_long_come_in_several_chunks(
    world: World, tmp_path: Any, monkeypatch: pytest.MonkeyPatch, events: list[Any]
) -> None:
    monkeypatch.setattr(import_items, "_FILES_S", 0.0)
    monkeypatch.setattr(export, "_FILES_S", 0.0)
    follow(world, take(world, packed({f"train/{n}.png": picture(n) for n in range(5)}), tmp_path))
    asked = export.begin(world.deps, world.user, world.dataset.version_id)
    done = follow(world, asked.operation_id)
    assert len(members(export.archive(world.deps, done).read_bytes())) == 5
    chunks = [event for event in events if isinstance(event, OperationAdvanced)]
    assert [event.done for event in chunks if event.kind == "import_items"] == [1] * 5
    assert [event.done for event in chunks if event.kind == "export"] == [1] * 5 + [0]


def test_old_files_are_thrown_away(world: World, tmp_path: Any) -> None:
    follow(world, take(world, packed({"train/a.txt": "x"}), tmp_path))
    asked = export.begin(world.deps, world.user, world.dataset.version_id)
    follow(world, asked.operation_id)
    folder = shelf.folder(world.deps, asked.operation_id)
    assert shelf.prune(world.deps) == 0
    for path in (*folder.iterdir(), folder):
        os.utime(path, (1, 1))
    assert shelf.prune(world.deps) == 1
    assert not folder.exists()


def test_an_import_into_a_deleted_version_fails_says_so_and_leaves_nothing(
    world: World, tmp_path: Any
) -> None:
    id_ = take(world, packed({"train/a.txt": "x"}), tmp_path)
    with world.deps.db.begin() as tx:
        import sqlalchemy as sa

        tx.execute(sa.text("UPDATE dataset_versions SET deleted_at = now()"))
    done = follow(world, id_)
    assert (done.status, done.reason) == ("failed", "not_found")
    assert world.sql("SELECT count(*) FROM dataset_items") == [(0,)]
    assert not shelf.folder(world.deps, id_).exists()


def test_records_of_other_formats_are_fitted_into_their_items() -> None:
    from ppworker.domain.coordinates import About
    from ppworker.domain.drop import Reason
    from ppworker.pipeline.transfer.placing import Placed, place

    about = About(family="image", width=100, height=50)
    box = Mark(
        label=" a  b ", kind="bbox", geometry={"box": [0.1, 0.2, 0.5, 0.6]}, is_relative=True
    )
    placed = place(box, about, None)
    assert isinstance(placed, Placed)
    assert (placed.label, placed.coordinates) == ("a b", "0.300000 0.400000 0.400000 0.400000")
    assert json.loads(placed.geometry or "") == {"box": [10.0, 10.0, 50.0, 30.0]}
    blind = place(box, About(family="image"), None)
    assert isinstance(blind, Placed)
    assert (blind.geometry, blind.coordinates) == (None, placed.coordinates)
    faults = {
        Reason.OUTSIDE: replace(box, geometry={"box": [2, 2, 3, 3]}),
        Reason.ZERO_AREA: replace(box, geometry={"box": [0, 0, 0, 1]}),
        Reason.BAD_GEOMETRY: replace(box, geometry={"box": "x"}),
        Reason.BAD_SCORE: replace(box, score=7.0),
        Reason.BAD_LABEL: replace(box, label=" "),
        Reason.MALFORMED: replace(box, source="rumour"),
    }
    assert {reason: place(mark, about, None) for reason, mark in faults.items()} == {
        reason: reason for reason in faults
    }
    assert Record(name="a", extension="jpg", content_sha256="x").file_name == "a.jpg"
