"""States of items: per item and version, written onto the version that was read."""

import json
import threading
from collections import Counter
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest

from api_server import Api, new_user, served_api
from factories import World
from lock_words import waiting
from ppworker.errors import Stale
from ppworker.pipeline.deps import Deps
from ppworker.pipeline.edits import states
from ppworker.store import items


@pytest.fixture
def world(module_deps: Deps) -> World:
    """A world of this test's own in the module's database."""
    return World(module_deps)


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


def put(api: Api, item: Any, state: Any, if_match: str | None = None) -> Any:
    """As the contract's client does: the whole object, of which only the state is meant."""
    body = {"id": None, "name": None, "item_id": "", "version": 0, "state": state}
    headers = {} if if_match is None else {"If-Match": if_match}
    path = f"{api.version}/items/{item}/state"
    return api.me.put(path, content=json.dumps(body), headers=headers)


def test_a_state_that_was_never_written_is_a_scaffold(api: Api) -> None:
    (item,) = api.world.add("x")
    read = api.me.get(f"{api.version}/items/{item}/state")
    assert (read.status_code, read.headers["ETag"]) == (200, '"0"')
    assert read.json() == {
        "id": "", "created_at": None, "updated_at": None, "name": "", "description": "",
        "item_id": str(item), "dataset_version_id": str(api.world.dataset.version_id),
        "user_id": "", "state": "", "version": 0,
    }  # fmt: skip
    assert api.me.get(f"{api.version}/states").json() == []


def test_a_state_is_written_read_and_listed(api: Api) -> None:
    world = api.world
    first, second = world.add("x", "y")
    said = json.dumps({"reviewed": True, "by": "Zoë"})
    written = put(api, first, said, '"0"')
    assert (written.status_code, written.headers["ETag"]) == (200, '"1"')
    assert (written.json()["state"], written.json()["version"]) == (said, 1)
    assert written.json()["user_id"] == str(world.user)
    assert api.me.get(f"{api.version}/items/{first}/state").json() == written.json()
    again = put(api, first, "", '"1"').json()
    assert (again["state"], again["version"], again["id"]) == ("", 2, written.json()["id"])
    put(api, second, "other")
    listed = api.me.get(f"{api.version}/states")
    assert [s["item_id"] for s in listed.json()] == [str(first), str(second)]
    assert listed.headers["X-Has-More"] == "false"
    page = api.me.get(f"{api.version}/states", params={"pageSize": 1})
    assert ([s["item_id"] for s in page.json()], page.headers["X-Has-More"]) == (
        [str(first)], "true",
    )  # fmt: skip
    for further in ({"pageCount": 1}, {"cursor": page.headers["X-Next-Cursor"]}):
        rest = api.me.get(f"{api.version}/states", params={"pageSize": 1, **further})
        assert [s["item_id"] for s in rest.json()] == [str(second)]
    item = api.me.get(f"{api.version}/items/{first}").json()
    assert item["version"] == 0, "a state is beside its item"
    world.sql("UPDATE dataset_items SET deleted_at = now() WHERE id = :id", id=first)
    assert [s["item_id"] for s in api.me.get(f"{api.version}/states").json()] == [str(second)]
    assert put(api, first, "x").status_code == 404


def test_a_stale_write_is_told_the_version_there_is(api: Api) -> None:
    (item,) = api.world.add("x")
    assert put(api, item, "a", '"1"').json()["current_version"] == 0
    assert put(api, item, "a", '"0"').status_code == 200
    stale = put(api, item, "b", '"0"')
    assert (stale.status_code, stale.json()["current_version"]) == (412, 1)
    assert put(api, item, "b").json()["version"] == 2


def test_what_no_state_can_be_is_refused_by_name(api: Api) -> None:
    (item,) = api.world.add("x")
    for state in (None, 5, ["x"], "\x00", "\ud800"):
        refused = put(api, item, state)
        assert (refused.status_code, refused.json()["field"]) == (422, "state"), state
    refused = put(api, item, "x", "new")
    assert (refused.status_code, refused.json()["field"]) == (400, "If-Match")
    most = api.deps.settings.max_text_bytes
    assert put(api, item, "x" * (most + 1)).status_code == 413
    assert api.me.get(f"{api.version}/states").json() == []


def test_a_stranger_sees_no_state(api: Api) -> None:
    (item,) = api.world.add("x")
    put(api, item, "secret")
    stranger = api.client(new_user(api.deps, f"stranger-{uuid4().hex[:6]}"))
    for path in (f"{api.version}/items/{item}/state", f"{api.version}/states"):
        assert stranger.get(path).status_code == 404
    path = f"{api.version}/items/{item}/state"
    assert stranger.put(path, json={"state": "x"}).status_code == 404
    assert api.me.get(f"{api.version}/items/{uuid4()}/state").status_code == 404


def test_of_fifty_who_read_the_same_version_exactly_one_is_followed(world: World) -> None:
    (item,) = world.add("x")
    barrier = threading.Barrier(50)
    ends: list[str] = []

    def write() -> None:
        barrier.wait()
        try:
            states.write(world.deps, world.dataset.version_id, item, world.user, "mine", expected=0)
            ends.append("written")
        except Stale as error:
            ends.append(f"stale at {error.current_version}")

    threads = [threading.Thread(target=write) for _ in range(50)]
    with world.deps.db.begin() as tx:
        items.lock_items(tx, [item])
        for thread in threads:
            thread.start()
        # All of them meet at the item before any has read what there is.
        while not ends and waiting(tx) < 5:
            threading.Event().wait(0.01)
        assert ends == []
    for thread in threads:
        thread.join()
    assert Counter(ends) == {"written": 1, "stale at 1": 49}
