"""Items changed by people: whole objects, onto the version that was read, beside running models."""

import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from api_server import Api, served_api
from factories import World, classes
from lock_words import waiting
from ppworker.domain import edit
from ppworker.errors import Conflict, NotFound, Stale
from ppworker.pipeline.control import operate
from ppworker.pipeline.deps import Deps
from ppworker.pipeline.edits import annotations, items
from ppworker.pipeline.setup import catalogue
from ppworker.pipeline.uploads import ingest, item_files
from ppworker.store import edits as store
from ppworker.store import labels as label_store

CALLERS = 50


@pytest.fixture
def world(module_deps: Deps) -> World:
    """A world of this test's own in the module's database."""
    return World(module_deps)


@pytest.fixture
def worlds(module_deps: Deps) -> Callable[..., World]:
    """Makes further ones."""
    return lambda **options: World(module_deps, **options)


@pytest.fixture(scope="module")
def server(module_deps: Deps) -> Iterator[Api]:
    """One server for the tests of this module."""
    with served_api(module_deps, World(module_deps)) as served:
        yield served


@pytest.fixture
def api(server: Api, world: World) -> Iterator[Api]:
    """The API with a world of this test's own."""
    found = Api(server.deps, world, server.address, server.stopping)
    yield found
    found.close()


def put(api: Api, item: Any, body: dict[str, Any], if_match: str | None = None) -> Any:
    headers = {} if if_match is None else {"If-Match": if_match}
    path = f"{api.version}/items/{item}"
    return api.me.put(path, content=json.dumps(body), headers=headers)


def test_null_leaves_a_field_and_nested_lists_are_not_looked_at(api: Api) -> None:
    world = api.world
    (item,) = world.add("hello")
    world.annotate(item, "cat")
    read = api.me.get(f"{api.version}/items/{item}").json()
    nothing = dict.fromkeys(read, None) | {"id": str(item)}
    unchanged = put(api, item, nothing).json()
    moving = {"version", "updated_at"}
    assert {k: v for k, v in unchanged.items() if k not in moving} == {
        k: v for k, v in read.items() if k not in moving
    }
    assert unchanged["version"] == read["version"] + 1
    emptied = read | {"annotations": [], "splits": [], "name": "renamed", "description": "d"}
    changed = put(api, item, emptied).json()
    assert (changed["name"], changed["description"], changed["text"]) == ("renamed", "d", "hello")
    assert (changed["annotations"], changed["splits"]) == (read["annotations"], read["splits"])
    assert changed["job_status"]["total"] == 0
    world.check()


def test_a_text_is_written_taken_away_and_given_to_an_item_without_one(api: Api) -> None:
    item = api.me.post(f"{api.version}/items", json={"name": "n"}).json()["id"]
    given = put(api, item, {"text": "some", "extension": ""}).json()
    assert (given["text"], given["extension"], given["media_type"]) == ("some", "txt", "text/plain")
    assert put(api, item, {"extension": ".MD"}).json()["extension"] == "md"
    gone = put(api, item, {"text": ""}).json()
    assert (gone["text"], gone["extension"], gone["media_type"]) == ("", "md", "")
    assert put(api, item, {"text": "a\x00b"}).json()["text"] == "ab"
    kept = api.world.sql("SELECT text_sha256 FROM dataset_items WHERE id = :id", id=item)
    assert kept != [(None,)]


WRONG: list[tuple[dict[str, Any], int, str]] = [
    ({"text": 7}, 422, "text"),
    ({"description": "x" * 10_001}, 422, "description"),
    ({"extension": "a/b"}, 422, "extension"),
    ({"name": ["x"]}, 422, "name"),
]
NO_TAG = ['"x"', "x", '"-1"', '"1", "2"', '"1', "", '"1.5"', '"' + "9" * 40 + '"']


def test_what_cannot_be_is_refused_by_name_and_changes_nothing(api: Api) -> None:
    (item,) = api.world.add("hello")
    for body, status, field in WRONG:
        refused = put(api, item, body)
        assert (refused.status_code, refused.json()["field"]) == (status, field)
    for tag in NO_TAG:
        refused = put(api, item, {"name": "x"}, tag)
        assert (refused.status_code, refused.json()["field"]) == (400, "If-Match"), tag
    most = api.deps.settings.max_text_bytes
    refused = put(api, item, {"text": "x" * (most + 1)})
    assert (refused.status_code, refused.json()["field"]) == (413, "text")
    assert api.me.get(f"{api.version}/items/{item}").json()["version"] == 0


def test_a_stale_write_is_told_the_version_there_is(api: Api) -> None:
    (item,) = api.world.add("hello")
    read = api.me.get(f"{api.version}/items/{item}")
    assert read.headers["ETag"] == '"0"'
    first = put(api, item, {"name": "one"}, read.headers["ETag"])
    assert (first.status_code, first.headers["ETag"], first.json()["version"]) == (200, '"1"', 1)
    stale = put(api, item, {"name": "two"}, '"0"')
    assert stale.status_code == 412
    assert stale.json()["current_version"] == 1
    assert stale.json()["severity"] == "error"
    assert "version 1" in stale.json()["message"]
    for tag, name in (('W/"1"', "weak"), ("2", "bare"), ("*", "any"), (None, "none")):
        assert put(api, item, {"name": name}, tag).json()["name"] == name
    assert put(api, item, {"name": "x"}, '"99"').json()["current_version"] == 5


def together(calls: list[Any]) -> list[Any]:
    """What each call came to, all begun at once."""
    barrier = threading.Barrier(len(calls))
    ends: list[Any] = []

    def one(call: Any) -> None:
        barrier.wait()
        try:
            ends.append(call())
        except Exception as error:  # noqa: BLE001  the tests look at it
            ends.append(error)

    threads = [threading.Thread(target=one, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return ends


def test_of_fifty_who_read_the_same_version_exactly_one_is_followed(world: World) -> None:
    (item,) = world.add("hello")
    version = world.dataset.version_id

    def write(name: str) -> Any:
        wanted = items.Changed(name=name)
        return lambda: items.change(world.deps, version, item, wanted, expected=0)

    # The same words too: what decides is the version, not what is written.
    ends = together([write(f"name {n % 2}") for n in range(CALLERS)])
    assert Counter(map(type, ends)) == {type(None): 1, Stale: CALLERS - 1}
    assert {end.current_version for end in ends if end} == {1}
    assert world.sql("SELECT version FROM dataset_items WHERE id = :id", id=item) == [(1,)]


def test_the_same_by_http(api: Api) -> None:
    (item,) = api.world.add("hello")
    ends = together([lambda: put(api, item, {"name": "x"}, '"0"')] * CALLERS)
    assert Counter(end.status_code for end in ends) == {200: 1, 412: CALLERS - 1}


def test_a_text_changed_while_a_model_reads_it_sends_the_job_back(world: World) -> None:
    reader = world.processor(reads="text")
    (item,) = world.add("old")
    new = items.Changed(text="new")
    report = world.run(
        reader,
        lambda given: classes(given.text or ""),
        during=lambda: items.change(world.deps, world.dataset.version_id, item, new),
    )
    assert (report.completed, report.again) == (0, 1)
    assert world.annotations(item) == []
    world.run(reader, lambda given: classes(given.text or ""))
    assert [a.label for a in world.annotations(item)] == ["new"]
    world.check()


def test_a_model_leaves_a_text_that_a_person_changed(world: World, tmp_path: Path) -> None:
    file = tmp_path / "page.bin"
    file.write_bytes(b"\x00a page\xff")
    upload = ingest.Upload(name="page.bin", path=file)
    (item,) = ingest.take_upload(world.deps, world.train, [upload]).item_ids

    def edit(text: str) -> None:
        items.change(world.deps, world.dataset.version_id, item, items.Changed(text=text))

    def read(during: Callable[[], object] = lambda: None) -> tuple[str | None, dict[str, int]]:
        """One more model reads the file: the text there is then, and what its job counts."""
        model = world.processor(model_type="ocr", output_target="text", reads="file")
        list(operate.backfill(world.deps, model, [world.train]))
        assert world.run(model, {"text": "the model's"}, during=during).completed == 1
        ((text,),) = world.sql("SELECT text FROM dataset_items WHERE id = :item", item=item)
        (job,) = world.jobs(model)
        return text, job.dropped

    assert read() == ("the model's", {})
    edit("the model's")  # clients send whole objects: that changes nothing
    assert read() == ("the model's", {})
    assert read(during=lambda: edit("mine")) == ("mine", {"text_edited": 1})
    assert read() == ("mine", {"text_edited": 1})
    edit("")
    assert read() == ("the model's", {})
    edit("mine again")
    item_files.put_file(world.deps, world.dataset.version_id, item, file, name="page.bin")
    assert read() == ("the model's", {})
    world.check()


def test_a_change_plans_nothing_and_a_name_disturbs_nobody(world: World) -> None:
    reader = world.processor(reads="text")
    (item,) = world.add("text")
    renamed = items.Changed(name="renamed")
    report = world.run(
        reader,
        during=lambda: items.change(world.deps, world.dataset.version_id, item, renamed),
    )
    assert report.completed == 1
    items.change(world.deps, world.dataset.version_id, item, items.Changed(text="other"))
    assert world.statuses() == ["completed"]
    world.check()


def label(world: World, name: str) -> UUID:
    with world.deps.db.begin() as tx:
        ids, _ = label_store.ensure_labels(
            tx, world.dataset.version_id, world.user, [name], post_processor_id=None, cap=None
        )
    return ids[name]


@pytest.mark.parametrize("multi_label", [True, False])
def test_edits_beside_finishes_lose_nothing_and_never_deadlock(
    worlds: Any, *, multi_label: bool
) -> None:
    """People annotate, change and delete what models write at the same moment."""
    world = worlds(multi_label=multi_label)
    processors = [world.processor(order=0) for _ in range(2)]
    ids = world.add(*(f"text {n}" for n in range(12)))
    version, deps = world.dataset.version_id, world.deps
    labels = [label(world, f"label {n}") for n in range(3)]

    def person(number: int) -> Any:
        def work() -> None:
            for position, item in enumerate(ids):
                new = annotations.New(label_id=labels[(number + position) % 3])
                made = annotations.annotate(deps, version, world.user, item, new)
                if (number + position) % 3 == 0:
                    # Somebody's label may have taken its place where only one may stand.
                    with suppress(*[] if multi_label else [NotFound]):
                        annotations.delete(deps, version, made.row.id)

        return work

    def model(processor: Any) -> Any:
        return lambda: world.run(processor, classes("cat", "dog"))

    def writer() -> None:
        for item in reversed(ids):
            items.change(deps, version, item, items.Changed(description="d"))

    ends = together([person(0), person(1), *(model(each) for each in processors), writer])
    assert not [end for end in ends if isinstance(end, Exception)]
    ((human,),) = world.sql(
        "SELECT count(*) FROM annotations WHERE source = 'human' AND version_id = :id", id=version
    )
    assert human == 2 * 12 - 8 if multi_label else human <= 12
    world.check()


class TestRules:
    """What is decided without a database."""

    def test_a_review_decides_suggestions_and_nothing_else(self) -> None:
        verdicts = {
            (action, state): str(edit.review(action, state))
            for action in ("accept", "reject")
            for state in ("suggested", "accepted", "edited", "rejected")
        }
        assert verdicts == {
            ("accept", "suggested"): "changed", ("reject", "suggested"): "changed",
            ("accept", "accepted"): "already", ("reject", "accepted"): "conflicts",
            ("accept", "edited"): "conflicts", ("reject", "edited"): "conflicts",
            ("accept", "rejected"): "conflicts", ("reject", "rejected"): "already",
        }  # fmt: skip

    @pytest.mark.parametrize(
        ("coordinates", "quoted", "text", "is_stale"),
        [
            ("0 3", "cat", "cat sat", False),
            ("0 3", "cat", "dog sat", True),
            ("0 3", "cat", "ca", True),
            ("0 3", "cat", None, True),
            ("0 3", None, "anything", False),
            ("0 30", None, "short", True),
            ("somewhere", "cat", "dog", False),
            ("0 3 5", "cat", "dog", False),
        ],
    )
    def test_a_span_is_stale_where_its_text_is_another(
        self, coordinates: str, quoted: str | None, text: str | None, *, is_stale: bool
    ) -> None:
        assert edit.is_stale("span", coordinates, quoted, text) is is_stale
        assert not edit.is_stale("class", coordinates, quoted, text)


def test_a_label_that_is_being_deleted_gets_no_new_annotation(world: World) -> None:
    """Whoever marks a label deleted waits for those who use it, and then finds what they made."""
    (item,) = world.add("x")
    cat, version = label(world, "cat"), world.dataset.version_id
    marked = threading.Event()

    def mark() -> None:
        world.sql("UPDATE labels SET deleted_at = now() WHERE id = :id", id=cat)
        marked.set()

    with world.deps.db.begin() as tx:
        assert store.hold_labels(tx, version, {cat}) == {cat}
        thread = threading.Thread(target=mark)
        thread.start()
        while not waiting(tx) and not marked.is_set():
            threading.Event().wait(0.01)
        assert not marked.is_set()
    thread.join()
    with world.deps.db.begin() as tx:
        assert store.hold_labels(tx, version, {cat}) == set()
    with pytest.raises(Exception, match="no label"):
        annotations.annotate(world.deps, version, world.user, item, annotations.New(label_id=cat))


def test_a_rule_of_one_label_per_item_waits_for_whoever_annotates_by_the_old_one(
    world: World,
) -> None:
    (item,) = world.add("x")
    cat, version = label(world, "cat"), world.dataset.version_id
    told: list[str] = []

    def narrow() -> None:
        try:
            catalogue.change_dataset(world.deps, world.dataset, {"multi_label": False})
            told.append("changed")
        except Conflict as error:
            told.append(error.field)

    thread = threading.Thread(target=narrow)
    write = annotations.annotate_new(
        version, world.user, [annotations.New(label_id=cat)], item_text="x"
    )
    with world.deps.db.begin() as tx:
        write(tx, item)
        thread.start()
        while not waiting(tx) and not told:
            threading.Event().wait(0.01)
        assert not told
    thread.join()
    assert told == ["multi_label"]
