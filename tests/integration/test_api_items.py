"""Items by HTTP: made, given files, listed; what runs on them and what runs again."""

import contextlib
import http.client
import json
import os
import random
import threading
import time
from collections.abc import Callable
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa

from api_server import Api
from factories import classes
from ppworker import wiring
from ppworker.domain.post_processor import PostProcessor
from ppworker.errors import NotFound, RunnerTimeout
from ppworker.pipeline.control import operate
from ppworker.pipeline.runs import rescue
from ppworker.pipeline.setup import processor_changes
from ppworker.pipeline.uploads import item_files, media
from ppworker.runners.base import RunnerInput
from ppworker.store import datasets
from ppworker.store.db import Database

PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000020000000108020000007b40e8dd"
    "0000000f49444154789c63f8cfc0c0f01f00050001ff5d93b5ad0000000049454e44ae426082"
)


def make(api: Api, **body: Any) -> dict[str, Any]:
    response = api.me.post(f"{api.version}/items", json=body)
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


def upload(
    api: Api, item: dict[str, Any], content: bytes, name: str = "file.txt"
) -> dict[str, Any]:
    response = api.me.post(
        f"{api.version}/items/{item['id']}/upload", files={"file": (name, content, "image/jpg")}
    )
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


def jobs(api: Api, item: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = api.me.get(f"{api.version}/items/{item['id']}/jobs").json()
    return found


def test_an_item_without_text_waits_for_its_file(api: Api) -> None:
    processor = api.world.processor()
    item = make(api, name=None, text=None, extension=None, splits=None)
    assert item["job_status"]["total"] == 0
    assert (item["name"], item["text"], item["extension"]) == ("", "", "")
    given = upload(api, item, b"some text", "note.md")
    assert (given["name"], given["text"]) == ("note.md", "some text")
    assert (given["extension"], given["media_type"]) == ("md", "text/markdown")
    assert given["version"] == item["version"] + 1
    assert given["job_status"] == {
        "pending": 1, "processing": 0, "completed": 0, "failed": 0, "total": 1,
    }  # fmt: skip
    assert api.world.run(processor).completed == 1
    api.world.check()


def test_an_item_with_text_runs_at_once_and_one_by_one(api: Api) -> None:
    first, second = api.world.processor(), api.world.processor(order=1)
    item = make(api, name="a/b: “x”", text="hello")
    assert item["name"] == "a/b: “x”", "a name that people chose is no path"
    assert item["extension"] == "txt"
    assert [job["post_processor_id"] for job in jobs(api, item)] == [str(first.id), str(second.id)]
    assert len(api.world.claim(first).jobs) == 1
    assert api.world.claim(second).jobs == []
    api.world.check()


def test_an_item_goes_to_the_splits_it_names_else_to_the_default_one(api: Api) -> None:
    world = api.world
    only = world.processor("only", splits=("valid",))
    in_two = make(api, text="x", splits=[{"id": str(s.id)} for s in (world.train, world.valid)])
    assert [split["name"] for split in in_two["splits"]] == ["train", "valid"]
    assert [job["post_processor_name"] for job in jobs(api, in_two)] == [only.name]
    assert [s["name"] for s in make(api, text="x")["splits"]] == ["train"]
    world.sql("UPDATE dataset_versions SET default_split = :s", s=world.test.id)
    assert [s["name"] for s in make(api, text="x")["splits"]] == ["test"]
    for split, items in ((world.train, 2), (world.valid, 1), (world.test, 1)):
        stat = api.me.get(f"{api.version}/labels/stats/splits/{split.id}").json()
        assert (stat["item_count"], stat["label_id"]) == (items, "")
    world.check()


NO_ITEM = [
    ({"extension": "a/b"}, "extension"),
    ({"annotations": [{"label_id": "x"}]}, "annotations[0].label_id"),
    ({"splits": [{"name": "train"}]}, "splits[0].id"),
    ({"text": 7}, "text"),
    ({"description": "x" * 10_001}, "description"),
    ({"name": "\ud800"}, "name"),
]


def test_what_no_item_can_be_is_refused(api: Api) -> None:
    for body, field in NO_ITEM:
        response = api.me.post(f"{api.version}/items", content=json.dumps(body))
        assert (response.status_code, response.json()["field"]) == (422, field)
    assert api.me.get(f"{api.version}/items").json() == []


def test_a_text_that_is_too_long_is_too_large(api: Api) -> None:
    most = api.deps.settings.max_text_bytes
    response = api.me.post(f"{api.version}/items", json={"text": "x" * (most + 1)})
    assert (response.status_code, response.json()["field"]) == (413, "text")


def test_what_postgresql_refuses_in_a_text_is_taken_out(api: Api) -> None:
    assert make(api, text="a\0b", name="c\0d")["text"] == "ab"


def test_half_a_character_in_what_is_refused_can_be_answered(api: Api) -> None:
    response = api.me.post(f"{api.version}/items", content=b'{"splits": [{"id": "\\ud800x"}]}')
    assert response.status_code == 422, response.text
    assert response.json()["message"] == "the version has no split 'x'"


def test_another_file_runs_everything_again(api: Api) -> None:
    """What is over gets a new job; its old one stays."""
    processor = api.world.processor()
    item = make(api)
    upload(api, item, b"first")
    api.world.run(processor, classes("cat"))
    again = upload(api, item, b"second")
    assert again["text"] == "second"
    assert again["version"] == 2
    assert [job["status"] for job in jobs(api, item)] == ["completed", "pending"]
    assert [a["label_id"] for a in again["annotations"]], "until the new answer the old one stands"
    api.world.run(processor, classes("dog"))
    (annotation,) = api.me.get(f"{api.version}/items/{item['id']}").json()["annotations"]
    labels = {each["id"]: each["name"] for each in api.me.get(f"{api.version}/labels").json()}
    assert labels[annotation["label_id"]] == "dog"
    api.world.check()


def test_a_file_that_comes_while_the_model_runs_sends_the_job_back(api: Api) -> None:
    """The answer to the old file is dropped, and the budget of attempts is fresh."""
    processor = api.world.processor(max_attempts=1)
    item = make(api)
    upload(api, item, b"first")
    report = api.world.run(processor, classes("cat"), during=lambda: upload(api, item, b"second"))
    assert (report.completed, report.again) == (0, 1)
    (job,) = jobs(api, item)
    assert (job["status"], job["attempts"], job["reason"]) == ("pending", 0, "input_changed")
    assert api.world.run(processor, classes("dog")).completed == 1
    assert [job["status"] for job in jobs(api, item)] == ["completed"]
    api.world.check()


def test_a_reader_of_text_runs_again_too_though_the_text_stays(api: Api) -> None:
    """Its text may be about to change: what comes before it in order runs again."""
    writer = api.world.processor("writer", output_target="text", model_type="ocr", reads="file")
    reader = api.world.processor("reader", order=1, reads="text")
    item = make(api, text="by hand")
    upload(api, item, PNG, "a.png")
    api.world.run(writer, {"text": "one"})
    upload_during = lambda: upload(api, item, PNG + b"\0", "a.png")  # noqa: E731
    report = api.world.run(reader, classes("cat"), during=upload_during)
    assert report.again == 1
    states = {job["post_processor_name"]: job["status"] for job in jobs(api, item)}
    assert states == {"writer": "pending", "reader": "pending"}
    assert api.world.claim(reader).jobs == [], "the writer's new job comes first"
    api.world.check()


def test_a_pending_job_gets_a_fresh_budget_with_a_new_file(api: Api) -> None:
    processor = api.world.processor(max_attempts=2)
    item = make(api)
    upload(api, item, b"first")
    api.world.sql(
        "UPDATE post_processor_jobs SET attempts = 1, error = 'x', run_at = now() + interval '1 h'"
    )
    upload(api, item, b"second")
    (job,) = jobs(api, item)
    assert (job["attempts"], job["error"]) == (0, None)
    assert len(api.world.claim(processor).jobs) == 1


def test_a_job_that_cannot_read_the_new_file_is_cancelled(api: Api) -> None:
    images = api.world.processor("images", media_types=("image/*",), reads="file")
    later = api.world.processor("later", order=1)
    item = make(api)
    upload(api, item, PNG, "a.png")
    assert [job["post_processor_name"] for job in jobs(api, item)] == ["images", "later"]
    upload(api, item, b"text now")
    states = {job["post_processor_name"]: (job["status"], job["reason"]) for job in jobs(api, item)}
    assert states == {"images": ("failed", "cancelled"), "later": ("pending", "")}
    assert api.world.claim(images).jobs == []
    assert len(api.world.claim(later).jobs) == 1
    api.world.check()


def test_the_text_of_a_text_file_goes_with_the_file_and_other_text_stays(api: Api) -> None:
    by_hand = make(api, text="typed", name="kept")
    assert upload(api, by_hand, PNG, "a.png")["text"] == "typed"
    item = make(api)
    upload(api, item, b"of the file")
    replaced = upload(api, item, PNG, "b.png")
    assert (replaced["text"], replaced["name"]) == ("", "file.txt")
    assert (replaced["width"], replaced["height"]) == (2, 1)


def test_many_files_for_one_item_at_once_leave_one_and_one_live_job(api: Api) -> None:
    api.world.processor()
    item = make(api)
    contents = [f"content {n}".encode() for n in range(6)]
    threads = [threading.Thread(target=upload, args=(api, item, each)) for each in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = api.me.get(f"{api.version}/items/{item['id']}").json()
    assert found["version"] == len(contents)
    assert found["text"].encode() in contents
    assert found["job_status"]["total"] == 1
    api.world.check()


def test_an_item_that_was_deleted_meanwhile_takes_no_file(api: Api, tmp_path) -> None:
    (item,) = api.world.add("x")
    path = tmp_path / "file"
    path.write_bytes(b"y")
    api.world.sql("DELETE FROM item_splits")
    with pytest.raises(NotFound):
        item_files.put_file(api.deps, api.world.train.version_id, item, path, name="x.txt")


# Lists.


def test_a_job_of_a_disabled_processor_waits_whatever_file_comes(api: Api) -> None:
    processor = api.world.processor(reads="file", media_types=("image/*",))
    item = make(api)
    upload(api, item, PNG, "a.png")
    api.world.change(processor, enabled=False)
    upload(api, item, b"now text", "a.txt")
    assert [job["status"] for job in jobs(api, item)] == ["pending"]
    api.world.check()


def test_what_was_deleted_is_not_there_though_its_row_is(api: Api, tmp_path) -> None:
    kept, gone = make(api, text="kept"), make(api, text="gone")
    for item in (kept, gone):
        api.world.annotate(UUID(item["id"]), "cat")
    api.world.sql("UPDATE annotations SET deleted_at = now(), review = 'rejected'")
    api.world.sql("UPDATE dataset_items SET deleted_at = now() WHERE id = :id", id=gone["id"])
    (listed,) = api.me.get(f"{api.version}/items").json()
    assert (listed["id"], listed["annotations"]) == (kept["id"], [])
    assert api.me.get(f"{api.version}/items/{gone['id']}").status_code == 404
    path = tmp_path / "file"
    path.write_bytes(b"new")
    with pytest.raises(NotFound):  # as when it is deleted behind the look at the path
        item_files.put_file(
            api.deps, api.world.train.version_id, UUID(gone["id"]), path, name="new.txt"
        )


def test_pages_hold_every_item_once_in_the_order_of_their_making(api: Api) -> None:
    made = [str(id_) for id_ in api.world.add(*(f"text {n}" for n in range(25)))]
    items = f"{api.version}/items"
    assert [row["id"] for row in api.me.get(items).json()] == made[:10], "ten unless asked"
    pages = [api.me.get(items, params={"pageSize": 7, "pageCount": n}).json() for n in range(5)]
    assert [row["id"] for page in pages for row in page] == made
    assert [len(page) for page in pages] == [7, 7, 7, 4, 0]
    # As the contract's client sends what is not asked for.
    empty = {"pageSize": "", "pageCount": "", "labelId": "", "splitId": "", "onlyUnlabelled": ""}
    assert len(api.me.get(items, params=empty).json()) == 10


NO_PAGE = [
    ("pageSize", "ten"), ("pageSize", "-1"), ("pageSize", "0"), ("pageSize", "1001"),
    ("pageCount", "-1"), ("pageCount", "x"), ("onlyUnlabelled", "perhaps"),
]  # fmt: skip


def test_a_page_that_makes_no_sense_is_refused_by_name(api: Api) -> None:
    for name, value in NO_PAGE:
        response = api.me.get(f"{api.version}/items", params={name: value})
        assert (response.status_code, response.json()["field"]) == (400, name)


def test_items_are_filtered_by_split_label_and_lack_of_labels(api: Api) -> None:
    world = api.world
    cat, dog, bare = world.add("cat", "dog", "bare")
    (elsewhere,) = world.add("elsewhere", split=world.valid)
    world.annotate(cat, "cat")
    world.annotate(dog, "dog")
    labels = {each["name"]: each["id"] for each in api.me.get(f"{api.version}/labels").json()}

    def listed(**params: Any) -> set[UUID]:
        response = api.me.get(f"{api.version}/items", params=params)
        assert response.status_code == 200, response.text
        return {UUID(row["id"]) for row in response.json()}

    assert listed(splitId=str(world.valid.id)) == {elsewhere}
    assert listed(labelId=labels["cat"]) == {cat}
    assert listed(onlyUnlabelled="True") == {bare, elsewhere}
    assert listed(onlyUnlabelled="False") == {cat, dog, bare, elsewhere}
    assert listed(onlyUnlabelled="True", splitId=str(world.train.id)) == {bare}
    for name, id_ in (("splitId", world.dataset.id), ("labelId", world.dataset.id), ("splitId", 7)):
        response = api.me.get(f"{api.version}/items", params={name: str(id_)})
        assert (response.status_code, response.json()["field"]) == (404, name)


def test_an_item_of_several_splits_is_listed_once(api: Api) -> None:
    world = api.world
    splits = [{"id": str(split.id)} for split in (world.test, world.train, world.valid)]
    made = [make(api, text=f"{n}", splits=splits)["id"] for n in range(4)]
    listed = api.me.get(f"{api.version}/items", params={"pageSize": 3}).json()
    assert [row["id"] for row in listed] == made[:3]
    assert [split["name"] for split in listed[0]["splits"]] == ["train", "valid", "test"]


@pytest.fixture
def statements(api: Api) -> Callable[[str], list[str]]:
    """Statements that one request sends."""

    def ask(path: str) -> list[str]:
        sent: list[str] = []

        def note(_c: Any, _cursor: Any, statement: str, *_: Any) -> None:
            sent.append(statement)

        engine = api.deps.db.engine
        api.me.get(path)  # the first request of a key notes its use
        sa.event.listen(engine, "before_cursor_execute", note)
        try:
            response = api.me.get(path)
        finally:
            sa.event.remove(engine, "before_cursor_execute", note)
        assert response.status_code == 200, response.text
        return sent

    return ask


def test_lists_cost_the_same_statements_for_one_row_and_for_hundreds(
    api: Api, statements: Callable[[str], list[str]]
) -> None:
    world = api.world
    processor = world.processor()
    paths = [
        "/datasets", f"{api.dataset}", f"{api.dataset}/versions", f"{api.version}/splits",
        f"{api.version}/labels", f"{api.version}/items?pageSize=1000",
        f"{api.dataset}/post-processors", f"{api.dataset}/post-processors/jobs",
        f"{api.split.replace('/splits/', '/labels/splits/')}", "/operations",
    ]  # fmt: skip
    world.add("one")
    world.run(processor, classes("cat"))
    few = {path: statements(path) for path in paths}
    world.add(*(f"text {n}" for n in range(300)))
    world.run(processor, lambda given: classes(str(given.text)[-1]), limit=200)
    for n in range(20):
        world.processor(f"more {n}", enabled=False)
        with api.deps.db.begin() as tx:
            datasets.create_dataset(tx, world.user, f"dataset {n}")
    many = {path: statements(path) for path in paths}
    counts = {path: (len(few[path]), len(many[path])) for path in paths}
    print(counts)
    assert {path for path, (a, b) in counts.items() if a != b} == set()
    assert max(b for _, b in counts.values()) < 10
    assert len(api.me.get(f"{api.version}/items?pageSize=1000").json()) == 301


# Bodies.


def body_of(*parts: tuple[str, bytes], end: bool = True) -> bytes:
    lines = b"".join(
        b"--B\r\nContent-Disposition: form-data; " + head.encode() + b"\r\n\r\n" + content + b"\r\n"
        for head, content in parts
    )
    return lines + (b"--B--\r\n" if end else b"")


FORM = {"content-type": "multipart/form-data; boundary=B"}
FILE = ('name="file"; filename="a.txt"', b"content")


BAD_FORMS: list[tuple[dict[str, str], bytes, int]] = [
    ({}, b"", 400),
    ({"content-type": "application/json"}, b"{}", 400),
    ({"content-type": "multipart/form-data"}, body_of(FILE), 400),
    ({"content-type": "multipart/form-data; boundary=" + "B" * 500}, body_of(FILE), 400),
    (FORM, b"", 400),
    (FORM, b"nonsense", 400),
    (FORM, body_of(FILE, end=False), 400),
    (FORM, body_of(('name="other"', b"x")), 422),
    (FORM, body_of(('name="file"; filename="a"', b"x"), FILE), 422),
    (FORM, body_of((f'name="file"; filename="{"a" * 20_000}"', b"x")), 400),
    (FORM, body_of(('name="other"', b"x" * 2_000_000), FILE), 413),
    (FORM, body_of(*[FILE] * 50), 422),
]


def test_a_form_without_one_whole_file_is_refused(api: Api, subtests: Any) -> None:
    item = api.item()
    for headers, body, status in BAD_FORMS:
        with subtests.test(f"{status} {headers} {body[:40]!r}"):
            response = api.me.post(f"{item}/upload", content=body, headers=headers)
            assert response.status_code == status, response.text
            assert response.json()["field"] == "file"
    assert api.me.get(item).json()["version"] == 0
    assert list((api.deps.blobs.root / "incoming").glob("*")) == []


def test_a_form_may_hold_more_than_the_file_and_come_in_crumbs(api: Api) -> None:
    body = body_of(('name="note"', b"x"), FILE, ('name="after"', b"y"))
    crumbs = (body[n : n + 1] for n in range(len(body)))
    item = api.item()
    response = api.me.post(f"{item}/upload", content=crumbs, headers=FORM)
    assert response.status_code == 200, response.text
    assert response.json()["text"] == "content"


def test_names_of_files_in_other_letters_arrive(api: Api) -> None:
    item = make(api)
    assert upload(api, item, b"x", "größe 日本.txt")["name"] == "größe 日本.txt"
    hostile = upload(api, make(api), b"x", "../../etc/passwd")
    assert hostile["name"] == "passwd"


def announced(api: Api, path: str, headers: dict[str, str]) -> int:
    """The status of a request that says how long it is and sends not a byte of it."""
    host, port = api.address.removeprefix("http://").split(":")
    key = api.me.headers["authorization"]
    with contextlib.closing(http.client.HTTPConnection(host, int(port), timeout=10)) as raw:
        raw.putrequest("POST", f"/api/v1{path}")
        for name, value in {**headers, "content-length": "9999999", "authorization": key}.items():
            raw.putheader(name, value)
        raw.endheaders()
        return raw.getresponse().status


def test_a_file_is_taken_up_to_its_limit_and_not_a_byte_beyond(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    most = 300_000
    settings = api.deps.settings.model_copy(update={"max_file_bytes": most})
    object.__setattr__(api.deps, "settings", settings)
    fits = make(api)
    assert upload(api, fits, b"x" * most)["size_bytes"] == most
    too_long = body_of(('name="file"; filename="a"', b"x" * (most + 1)))

    def stream():
        yield too_long

    for content in (too_long, stream()):  # with its length told, and without
        response = api.me.post(
            f"{api.version}/items/{fits['id']}/upload", content=content, headers=FORM
        )
        assert (response.status_code, response.json()["field"]) == (413, "file")
    assert announced(api, f"{api.version}/items/{fits['id']}/upload", FORM) == 413
    lines = {"Content-Type": "application/x-ndjson"}
    assert announced(api, f"{api.version}/items/bulk", lines) == 413
    assert list((api.deps.blobs.root / "incoming").glob("*")) == []


def test_a_client_that_goes_away_leaves_nothing_behind(api: Api) -> None:
    item = api.item()

    def half():
        yield body_of(FILE, end=False)
        raise OSError("the cable was cut")

    with pytest.raises(OSError, match="cable"):
        api.me.post(f"{item}/upload", content=half(), headers=FORM)
    incoming = api.deps.blobs.root / "incoming"
    for _ in range(200):
        if not list(incoming.glob("*")):
            break
        threading.Event().wait(0.02)
    assert list(incoming.glob("*")) == []


def test_what_a_killed_process_had_received_goes_after_a_day(api: Api) -> None:
    incoming = api.deps.blobs.root / "incoming"
    incoming.mkdir(parents=True, exist_ok=True)
    old, fresh, folder = incoming / "old", incoming / "fresh", incoming / "folder"
    folder.mkdir()
    for path in (old, fresh, folder / "inside"):
        path.write_bytes(b"half of it")
    for path in (old, folder):
        os.utime(path, (time.time() - 90_000,) * 2)
    (sweep,) = (each for each in wiring.sweeps(api.deps) if each.name == "incoming")
    assert sweep.run() == 2
    assert list(incoming.iterdir()) == [fresh]
    fresh.unlink()


def test_a_json_body_has_a_limit(api: Api) -> None:
    most = 10_000
    settings = api.deps.settings.model_copy(update={"max_body_bytes": most})
    object.__setattr__(api.deps, "settings", settings)
    body = json.dumps({"text": "x" * most})

    def stream():
        yield body[:5000].encode()
        yield body[5000:].encode()

    for content in (body, stream()):
        response = api.me.post(f"{api.version}/items", content=content)
        assert response.status_code == 413, response.text
        assert "10000 bytes" in response.json()["message"]
    assert announced(api, f"{api.version}/items", {}) == 413
    stranger = api.with_header(None)
    assert stranger.post(f"{api.version}/items", content=body).status_code == 401


def test_json_is_read_whatever_it_is_called(api: Api) -> None:
    for headers in ({}, {"content-type": "application/json; charset=utf-8"},
                    {"content-type": "application/merge-patch+json"}):  # fmt: skip
        response = api.me.post(f"{api.version}/items", content='{"text": "x"}', headers=headers)
        assert response.status_code == 200, response.text


def test_a_stored_file_is_its_callers_to_name(api: Api) -> None:
    content = b"stored by itself"
    stored = api.me.post("/blobs", files={"file": ("x", content)}).json()
    assert stored["size_bytes"] == len(content)
    assert api.deps.blobs.path(stored["sha256"]).read_bytes() == content
    ((owner,),) = api.world.sql("SELECT user_id FROM blob_owners")
    assert owner == api.world.user
    again = api.me.post("/blobs", files={"file": ("y", content)})
    assert again.json() == stored


def test_a_database_that_is_away_is_503_and_says_when_to_come_again(api: Api) -> None:
    away = Database("postgresql://nobody@127.0.0.1:1/nothing", connections=1)
    there = api.deps.db
    object.__setattr__(api.deps, "db", away)
    response = api.me.get("/datasets")
    assert response.status_code == 503
    assert int(response.headers["retry-after"]) > 0
    assert "127.0.0.1" not in response.text
    object.__setattr__(api.deps, "db", there)
    assert api.me.get("/datasets").status_code == 200
    away.close()


def test_media_types_of_uploads_come_from_their_bytes(api: Api) -> None:
    assert upload(api, make(api), PNG, "lies.pdf")["media_type"] == "image/png"
    assert upload(api, make(api), b"", "empty.txt")["media_type"] == media.EMPTY


def test_new_files_against_claims_finishes_and_retries_never_deadlock(api: Api, tmp_path) -> None:
    """Whatever comes when, every item ends with the answer to its last file."""
    world = api.world
    first = world.processor("first", max_attempts=2, output_target="text", model_type="ocr")
    later = world.processor("later", order=1)
    version = world.train.version_id
    items = world.add(*(f"text {n}" for n in range(12)))
    ended = threading.Event()
    errors: list[BaseException] = []

    def guarded(work: Callable[[], object]) -> Callable[[], None]:
        def run() -> None:
            try:
                while not ended.is_set():
                    work()
            except BaseException as error:  # noqa: BLE001  shown below
                errors.append(error)

        return run

    def put(item: UUID, content: bytes) -> None:
        with api.deps.blobs.incoming() as (path, out):
            out.write(content)
            out.flush()
            item_files.put_file(api.deps, version, item, path, name="f.txt")

    def say(given: RunnerInput) -> Any:
        if random.random() < 0.3:
            return RunnerTimeout("slow")
        return {"text": "read"} if given.path else classes("cat")

    def turn(processor: PostProcessor) -> None:
        world.run(processor, say, limit=5)
        world.make_due()

    works: list[Callable[[], object]] = [
        lambda: put(random.choice(items), random.randbytes(4).hex().encode()),
        lambda: put(random.choice(items), random.randbytes(4).hex().encode()),
        lambda: turn(first),
        lambda: turn(later),
        lambda: operate.retry_failed(api.deps, world.user),
        lambda: processor_changes.change(
            api.deps, world.user, world.dataset, first.id, {"enabled": random.random() < 0.7}
        ),
    ]
    threads = [threading.Thread(target=guarded(work)) for work in works]
    for thread in threads:
        thread.start()
    ended.wait(3)
    ended.set()
    for thread in threads:
        thread.join()
    assert errors == []
    processor_changes.change(api.deps, world.user, world.dataset, first.id, {"enabled": True})
    rescue.Repair(api.deps).sweep()
    world.check()
    for item in items:
        put(item, b"the last")
    for _ in range(10):
        operate.retry_failed(api.deps, world.user)
        world.make_due()
        world.run(first, {"text": "read at last"})
        world.run(later, classes("dog"))
    live = [job for job in world.jobs() if job.status in {"pending", "processing"}]
    assert live == []
    for row in world.sql("SELECT text FROM dataset_items"):
        assert row.text == "read at last"
    world.check()
