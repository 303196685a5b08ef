"""Annotations by HTTP: made, changed, deleted, reviewed; and items that are made with some."""

import json
import threading
from collections.abc import Callable, Iterator
from typing import Any
from uuid import UUID, uuid4

import pytest

from api_server import Api, new_user, served_api
from factories import World, classes
from ppworker.pipeline.deps import Deps
from ppworker.store import labels as label_store
from ppworker.store import shares

PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000020000000108020000007b40e8dd"
    "0000000f49444154789c63f8cfc0c0f01f00050001ff5d93b5ad0000000049454e44ae426082"
)


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


def label(world: World, name: str) -> str:
    with world.deps.db.begin() as tx:
        ids, _ = label_store.ensure_labels(
            tx, world.dataset.version_id, world.user, [name], post_processor_id=None, cap=None
        )
    return str(ids[name])


def body(world: World, item: UUID | str, name: str = "cat", **more: Any) -> dict[str, Any]:
    """As the contract's client sends it: every field, null where nothing is."""
    base = {"id": None, "created_at": None, "updated_at": None, "user_id": ""}
    ids = {"label_id": label(world, name), "item_id": str(item), "split_id": str(world.train.id)}
    return base | ids | {"coordinates": ""} | more


def annotate(api: Api, item: UUID | str, name: str = "cat", **more: Any) -> dict[str, Any]:
    response = api.me.post(
        f"{api.version}/annotations", content=json.dumps(body(api.world, item, name, **more))
    )
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


def annotations(api: Api, item: UUID | str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = api.me.get(f"{api.version}/items/{item}").json()["annotations"]
    return found


def picture(world: World) -> UUID:
    """An item of a picture of 200 by 100 pixels."""
    (item,) = world.add("x")
    world.sql(
        "UPDATE dataset_items SET text = NULL, text_sha256 = NULL, media_type = 'image/png', "
        "extension = 'png', width = 200, height = 100, page_count = 3 WHERE id = :id",
        id=item,
    )
    return item


def sound(world: World) -> UUID:
    """An item of a recording of ten seconds."""
    (item,) = world.add("x")
    world.sql(
        "UPDATE dataset_items SET text = NULL, text_sha256 = NULL, media_type = 'audio/wav', "
        "extension = 'wav', duration_s = 10 WHERE id = :id",
        id=item,
    )
    return item


def test_an_annotation_is_made_read_changed_and_deleted(api: Api) -> None:
    world = api.world
    (item,) = world.add("a cat on a mat")
    made = annotate(api, item, coordinates="2 5")
    assert {key: made[key] for key in ("kind", "text", "source", "review", "confidence")} == {
        "kind": "span", "text": "cat", "source": "human", "review": "accepted", "confidence": None,
    }  # fmt: skip
    assert (made["item_id"], made["split_id"]) == (str(item), str(world.train.id))
    assert made["user_id"] == str(world.user)
    path = f"{api.version}/annotations/{made['id']}"
    assert api.me.get(path).json() == made
    assert annotations(api, item) == [made]
    listed = api.me.get(f"{api.version}/annotations", params={"item_id": str(item)})
    assert (listed.json(), listed.headers["X-Has-More"]) == ([made], "false")
    second = annotate(api, item, "mat", coordinates="11 14")
    asked: dict[str, Any] = {"item_id": str(item), "pageSize": 1}
    page = api.me.get(f"{api.version}/annotations", params=asked)
    assert page.json() == [made]
    for further in ({"pageCount": 1}, {"cursor": page.headers["X-Next-Cursor"]}):
        rest = api.me.get(f"{api.version}/annotations", params={**asked, **further})
        assert (rest.json(), rest.headers["X-Has-More"]) == ([second], "false")
    assert api.me.delete(f"{api.version}/annotations/{second['id']}").status_code == 200
    world.check()
    changed = api.me.put(path, content=json.dumps(made | {"coordinates": "11 14"})).json()
    assert (changed["text"], changed["review"], changed["id"]) == ("mat", "accepted", made["id"])
    assert changed["label_id"] == made["label_id"]
    other = label(world, "dog")
    changed = api.me.put(path, content=json.dumps({"label_id": other, "coordinates": None})).json()
    assert (changed["label_id"], changed["coordinates"]) == (other, "11 14")
    world.check()
    gone = api.me.delete(path)
    assert (gone.status_code, gone.json()) == (200, changed)
    assert api.me.delete(path).status_code == 404
    assert api.me.get(path).status_code == 404
    assert annotations(api, item) == []
    assert world.sql("SELECT id FROM annotations WHERE item_id = :id", id=item) == []
    world.check()


PLACES = [
    # item, coordinates, kind, as they are read
    (picture, "0.5 0.5 0.25 .5", "bbox", "0.5 0.5 0.25 .5"),
    (picture, "0.002 0.5 0.01 0.5", "bbox", "0.003500 0.500000 0.007000 0.500000"),
    (picture, "1 2", "class", "1 2"),
    (picture, "M 0 0 L 5 5 Z", "class", "M 0 0 L 5 5 Z"),
    (picture, "", "class", ""),
    (sound, "1.5 2", "segment", "1.5 2"),
    (sound, "9.5 11", "segment", "9.500 10.000"),
    (lambda world: world.add("12345")[0], "0 5", "span", "0 5"),
    (lambda world: world.add("12345")[0], "0.5 0.5 0.1 0.1", "class", "0.5 0.5 0.1 0.1"),
]


def test_places_mean_what_the_item_says_and_the_clients_string_stays(api: Api) -> None:
    for make, coordinates, kind, shown in PLACES:
        made = annotate(api, make(api.world), coordinates=coordinates)
        assert (made["kind"], made["coordinates"]) == (kind, shown), coordinates
    (box,) = api.world.sql("SELECT geometry FROM annotations WHERE coordinates LIKE '% .5'")
    assert box[0] == {"box": [75.0, 25.0, 125.0, 75.0]}
    api.world.check()


def test_text_and_page_are_a_persons_to_write_and_a_span_quotes_the_item(api: Api) -> None:
    world = api.world
    item = picture(world)
    box = annotate(api, item, coordinates="0.5 0.5 0.5 0.5", text="STOP", page=2)
    assert (box["text"], box["page"]) == ("STOP", 2)
    path = f"{api.version}/annotations/{box['id']}"
    changed = api.me.put(path, json={"text": "GO"}).json()
    assert (changed["text"], changed["page"], changed["kind"]) == ("GO", 2, "bbox")
    assert api.me.put(path, json={"text": ""}).json()["text"] == ""
    assert geometry(world, box["id"]) is None, "a later page has no size that is known"
    first = annotate(api, item, coordinates="0.5 0.5 0.5 0.5")
    assert geometry(world, first["id"]) == {"box": [50.0, 25.0, 150.0, 75.0]}
    where = f"{api.version}/annotations/{first['id']}"
    assert api.me.put(where, json={"coordinates": "0.25 0.5 0.5 1"}).json()["kind"] == "bbox"
    assert geometry(world, first["id"]) == {"box": [0.0, 0.0, 100.0, 100.0]}
    assert api.me.put(where, json={"coordinates": "anything"}).json()["kind"] == "class"
    assert geometry(world, first["id"]) is None
    refused = api.me.put(path, json={"page": 3})
    assert (refused.status_code, refused.json()["field"]) == (422, "page")
    (text,) = world.add("hello")
    assert annotate(api, text, coordinates="0 4", text="nonsense")["text"] == "hell"


def geometry(world: World, id_: str) -> Any:
    return world.sql("SELECT geometry FROM annotations WHERE id = :id", id=id_)[0][0]


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"label_id": str(uuid4())}, "label_id"),
    ({"label_id": "x"}, "label_id"),
    ({"label_id": None}, "label_id"),
    ({"item_id": str(uuid4())}, "item_id"),
    ({"item_id": ""}, "item_id"),
    ({"split_id": str(uuid4())}, "split_id"),
    ({"split_id": 7}, "split_id"),
    ({"coordinates": "3 99"}, "coordinates"),
    ({"coordinates": "3 3"}, "coordinates"),
    ({"coordinates": "\x00"}, "coordinates"),
    ({"coordinates": "x" * 100_001}, "coordinates"),
    ({"text": "\ud800"}, "text"),
    ({"page": -1}, "page"),
    ({"page": 0.5}, "page"),
]


def test_what_no_annotation_can_be_is_refused_by_name(api: Api) -> None:
    world = api.world
    (item,) = world.add("a text")
    made = annotate(api, item, "cat", coordinates="0 1")
    for wrong, field in REFUSED:
        sent = json.dumps(body(world, item) | wrong)
        refused = api.me.post(f"{api.version}/annotations", content=sent)
        assert (refused.status_code, refused.json()["field"]) == (422, field), wrong
        # Null and empty leave a field of a PUT as it is.
        if not any(value in {None, ""} for value in wrong.values()):
            refused = api.me.put(f"{api.version}/annotations/{made['id']}", content=sent)
            assert (refused.status_code, refused.json()["field"]) == (422, field), wrong
    assert annotations(api, item) == [made]
    (other,) = world.add("another")
    refused = api.me.put(f"{api.version}/annotations/{made['id']}", json={"item_id": str(other)})
    assert (refused.status_code, refused.json()["field"]) == (422, "item_id")
    world.sql("UPDATE labels SET deleted_at = now() WHERE id = :id", id=made["label_id"])
    refused = api.me.post(
        f"{api.version}/annotations",
        json={"label_id": made["label_id"], "item_id": str(item), "split_id": None},
    )
    assert (refused.status_code, refused.json()["field"]) == (422, "label_id")


def test_another_datasets_label_item_or_split_is_not_there(api: Api, worlds: Any) -> None:
    other = worlds(username=f"other-{uuid4().hex[:6]}")
    (mine,), (theirs,) = api.world.add("mine"), other.add("theirs")
    for wrong, field in (
        ({"label_id": label(other, "cat")}, "label_id"),
        ({"item_id": str(theirs)}, "item_id"),
        ({"split_id": str(other.train.id)}, "split_id"),
        ({"split_id": str(api.world.valid.id)}, "split_id"),
    ):
        refused = api.me.post(f"{api.version}/annotations", json=body(api.world, mine) | wrong)
        assert (refused.status_code, refused.json()["field"]) == (422, field)
    made = annotate(api, mine)
    stranger = api.client(other.user)
    their_version = f"/datasets/{other.dataset.id}/versions/{other.dataset.version_id}"
    for version in (api.version, their_version):
        path = f"{version}/annotations/{made['id']}"
        for ask in (stranger.get, stranger.delete):
            assert ask(path).status_code == 404
        assert stranger.put(path, json={"text": "x"}).status_code == 404
        assert stranger.post(f"{path}/accept").status_code == 404
        assert stranger.post(f"{path}/reject").status_code == 404
    counted = stranger.post(
        f"{their_version}/annotations/review", json={"action": "reject", "ids": [made["id"]]}
    )
    assert counted.json()["missing"] == 1
    assert annotations(api, mine) == [made]


def test_a_writer_with_whom_it_is_shared_annotates_in_their_own_name(api: Api) -> None:
    writer = new_user(api.deps, f"writer-{uuid4().hex[:6]}")
    with api.deps.db.begin() as tx:
        shares.put_share(tx, api.world.dataset.id, writer, "writer")
    (item,) = api.world.add("x")
    client = api.client(writer)
    made = client.post(f"{api.version}/annotations", json=body(api.world, item))
    assert made.json()["user_id"] == str(writer)
    assert api.me.delete(f"{api.version}/annotations/{made.json()['id']}").status_code == 200
    state = client.put(f"{api.version}/items/{item}/state", json={"state": "s"}).json()
    assert state["user_id"] == str(writer)
    undone = client.post(
        f"{api.dataset}/post-processors/{api.world.processor().id}/undo",
        json={"version_id": str(api.world.dataset.version_id)},
    )
    assert undone.status_code == 200, undone.text
    assert client.get(f"/operations/{undone.json()['id']}").status_code == 200
    assert api.me.get(f"/operations/{undone.json()['id']}").status_code == 200


def take_one_label(world: World) -> None:
    world.sql("UPDATE datasets SET multi_label = false WHERE id = :id", id=world.dataset.id)


@pytest.fixture
def single(api: Api) -> Api:
    """The API of a dataset that takes one label per item."""
    take_one_label(api.world)
    return api


def test_one_label_per_item_is_replaced_by_the_next_one(single: Api) -> None:
    world = single.world
    (item,) = world.add("x", "y")[:1]
    first = annotate(single, item, "cat")
    second = annotate(single, item, "dog")
    assert annotations(single, item) == [second]
    assert second["id"] != first["id"]
    span = annotate(single, item, "part", coordinates="0 1")
    assert [a["id"] for a in annotations(single, item)] == [second["id"], span["id"]]
    # A place that becomes the whole item is the item's one label from then on.
    path = f"{single.version}/annotations/{span['id']}"
    assert single.me.put(path, json={"coordinates": ""}).json()["kind"] == "class"
    assert [a["id"] for a in annotations(single, item)] == [span["id"]]
    world.check()


def test_a_persons_label_replaces_a_models_for_good(single: Api) -> None:
    world = single.world
    processor = world.processor()
    (item,) = world.add("x")
    world.run(processor, classes("cat"))
    mine = annotate(single, item, "dog")
    assert annotations(single, item) == [mine]
    single.me.delete(f"{single.version}/annotations/{mine['id']}")
    rerun(world, item)
    world.run(processor, classes("cat"))
    assert annotations(single, item) == [], "a person said that it is no cat"
    rerun(world, item)
    world.run(processor, classes("fox"))
    assert len(annotations(single, item)) == 1
    world.check()


def rerun(world: World, item: UUID) -> None:
    """Have what ran on an item run again, as a new file would."""
    world.again(item)


def test_fifty_at_once_leave_one_label_where_one_is_allowed(single: Api) -> None:
    world = single.world
    (item,) = world.add("x")
    bodies = [body(world, item, f"label {n % 5}") for n in range(50)]
    statuses: list[int] = []

    def post(sent: dict[str, Any]) -> None:
        statuses.append(single.me.post(f"{single.version}/annotations", json=sent).status_code)

    threads = [threading.Thread(target=post, args=(sent,)) for sent in bodies]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert statuses == [200] * 50
    assert len(annotations(single, item)) == 1
    world.check()


def test_an_item_is_made_with_its_annotations_or_not_at_all(api: Api) -> None:
    world = api.world
    new: dict[str, Any] = {
        "text": "a cat and a dog",
        "splits": [{"id": str(s.id)} for s in (world.train, world.valid)],
        "annotations": [
            body(world, "", "cat", coordinates="2 5", split_id=""),
            body(world, "", "dog", coordinates="12 15", split_id=str(world.valid.id)),
        ],
    }
    made = api.me.post(f"{api.version}/items", json=new).json()
    told = [(a["text"], a["split_id"], a["source"]) for a in made["annotations"]]
    assert told == [
        ("cat", str(world.train.id), "human"), ("dog", str(world.valid.id), "human"),
    ]  # fmt: skip
    assert {a["item_id"] for a in made["annotations"]} == {made["id"]}
    world.check()
    for wrong, field in (
        ({"coordinates": "2 99"}, "annotations[1].coordinates"),
        ({"label_id": str(uuid4())}, "annotations[1].label_id"),
        ({"split_id": str(world.test.id)}, "annotations[1].split_id"),
        ({"split_id": "x"}, "annotations[1].split_id"),
    ):
        parts = [new["annotations"][0], {**new["annotations"][1], **wrong}]
        refused = api.me.post(f"{api.version}/items", json={**new, "annotations": parts})
        assert (refused.status_code, refused.json()["field"]) == (422, field)
    refused = api.me.post(f"{api.version}/items", json={**new, "text": "a\x00 cat and a dog"})
    assert (refused.status_code, refused.json()["field"]) == (422, "text")
    take_one_label(world)
    two = [body(world, "", "cat"), body(world, "", "dog")]
    refused = api.me.post(f"{api.version}/items", json={"text": "x", "annotations": two})
    assert (refused.status_code, refused.json()["field"]) == (422, "annotations[1]")
    assert len(api.me.get(f"{api.version}/items").json()) == 1, "nothing is left behind"
    world.check()


def test_a_changed_text_keeps_its_spans_and_shows_them_as_stale(api: Api) -> None:
    world = api.world
    (item,) = world.add("the cat sat")
    span = annotate(api, item, coordinates="4 7")
    whole = annotate(api, item, "tame")
    assert (span["text"], span["stale"]) == ("cat", False)
    put = api.me.put(f"{api.version}/items/{item}", json={"text": "the old cat sat"})
    found = {a["id"]: a for a in put.json()["annotations"]}
    assert found[span["id"]]["stale"]
    assert found[span["id"]]["coordinates"] == "4 7"
    assert not found[whole["id"]]["stale"]
    path = f"{api.version}/annotations/{span['id']}"
    mended = api.me.put(path, json={"coordinates": "8 11"}).json()
    assert (mended["text"], mended["stale"]) == ("cat", False)
    assert api.me.put(f"{api.version}/items/{item}", json={"text": ""}).json()["text"] == ""
    assert api.me.get(path).json()["stale"]
    world.check()


def suggest(world: World, *scores: float) -> tuple[UUID, dict[str, str]]:
    """An item with a suggestion of each score; their ids by label."""
    processor = world.processor()
    (item,) = world.add("x")
    said = [{"label": f"at {score}", "score": score} for score in scores]
    world.run(processor, {"predictions": said})
    return item, {a.label: str(a.id) for a in world.annotations(item)}


def test_a_suggestion_is_accepted_or_rejected_and_twice_is_once(api: Api) -> None:
    world = api.world
    item, ids = suggest(world, 0.9, 0.1)
    good, bad = (f"{api.version}/annotations/{ids[name]}" for name in ("at 0.9", "at 0.1"))
    for path, action, review in ((good, "accept", "accepted"), (bad, "reject", "rejected")) * 2:
        answer = api.me.post(f"{path}/{action}")
        assert (answer.status_code, answer.json()["review"]) == (200, review)
        assert answer.json()["source"] == "model"
    for path, action in ((good, "reject"), (bad, "accept")):
        refused = api.me.post(f"{path}/{action}")
        assert (refused.status_code, refused.json()["field"]) == (409, "annotation")
    assert [a["review"] for a in annotations(api, item)] == ["accepted"]
    assert api.me.get(bad).status_code == 404
    assert api.me.post(f"{api.version}/annotations/{uuid4()}/accept").status_code == 404
    world.check()


def test_many_are_reviewed_together_and_each_is_counted(api: Api) -> None:
    world = api.world
    item, ids = suggest(world, 0.9, 0.8, 0.7, 0.6)
    api.me.put(f"{api.version}/annotations/{ids['at 0.6']}", json={"label_id": label(world, "x")})
    asked = {"action": "accept", "ids": [*ids.values(), ids["at 0.9"], str(uuid4())]}
    review = f"{api.version}/annotations/review"
    answer = api.me.post(review, json=asked).json()
    assert answer == {
        "action": "accept", "changed": 3, "already": 0, "conflicts": 1, "missing": 1,
        "operation": None,
    }  # fmt: skip
    again = api.me.post(review, json=asked).json()
    assert (again["changed"], again["already"], again["conflicts"]) == (0, 3, 1)
    rejected = api.me.post(review, json={**asked, "action": "reject"}).json()
    assert (rejected["changed"], rejected["conflicts"]) == (0, 4)
    reviews = sorted(a["review"] for a in annotations(api, item))
    assert reviews == ["accepted", "accepted", "accepted", "edited"]
    world.check()


def test_what_matches_a_filter_is_reviewed_by_an_operation(api: Api) -> None:
    world = api.world
    first, _ = suggest(world, 0.9, 0.5, 0.1)
    second, _ = suggest(world, 0.1)
    (processor, _) = world.sql(
        "SELECT id FROM post_processors WHERE dataset_id = :id ORDER BY id", id=world.dataset.id
    )
    review = f"{api.version}/annotations/review"
    narrow = {"min_score": 0.1, "max_score": 0.5, "post_processor_id": str(processor.id)}
    answer = api.me.post(review, json={"action": "reject", "filter": narrow}).json()
    assert answer["changed"] == 2
    operation = answer["operation"]
    assert (operation["status"], operation["kind"]) == ("completed", "review")
    assert operation["counts"] == {"annotations_rejected": 2, "items_changed": 1}
    assert (operation["done"], operation["total"]) == (2, 2)
    assert [len(annotations(api, item)) for item in (first, second)] == [1, 1]
    wide = {"source": "model", "label_id": None}
    answer = api.me.post(review, json={"action": "accept", "filter": wide}).json()
    assert answer["changed"] == 2
    assert api.me.post(review, json={"action": "reject", "filter": {}}).json()["changed"] == 0
    world.check()


NO_REVIEW = [
    ({"action": "accept"}, "ids"),
    ({"action": "accept", "ids": [], "filter": {}}, "ids"),
    ({"action": "perhaps", "ids": []}, "action"),
    ({"action": "accept", "ids": ["x"]}, "ids[0]"),
    ({"action": "accept", "ids": [str(uuid4())] * 1001}, "ids"),
    ({"action": "accept", "filter": {"label_id": str(uuid4())}}, "filter.label_id"),
    ({"action": "accept", "filter": {"post_processor_id": "x"}}, "filter.post_processor_id"),
    ({"action": "accept", "filter": {"min_score": 2}}, "filter.min_score"),
    ({"action": "accept", "filter": {"min_score": 0.5, "max_score": 0.4}}, "filter.max_score"),
    ({"action": "accept", "filter": {"source": "elsewhere"}}, "filter.source"),
]


def test_a_review_that_makes_no_sense_is_refused_by_name(api: Api) -> None:
    for sent, field in NO_REVIEW:
        refused = api.me.post(f"{api.version}/annotations/review", json=sent)
        assert (refused.status_code, refused.json()["field"]) == (422, field), sent


def test_an_annotation_knows_a_split_even_where_nobody_said_one(api: Api) -> None:
    world = api.world
    (item,) = world.add("x", split=world.valid)
    made = annotate(api, item, split_id=None)
    assert made["split_id"] == str(world.valid.id)
    world.sql("UPDATE annotations SET split_id = NULL WHERE id = :id", id=made["id"])
    (shown,) = annotations(api, item)
    assert shown["split_id"] == str(world.valid.id)
    # Sent back as it was read, it says nothing new.
    put = api.me.put(f"{api.version}/annotations/{made['id']}", content=json.dumps(shown))
    assert put.json()["updated_at"] == made["updated_at"]
