"""Things that routes are asked about, made as a user makes them, and a digest of all that is."""

import hashlib
import io
import json
import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from uuid import UUID, uuid4

import httpx2
from PIL import Image

from api_server import Api, new_user, served_api
from factories import World, classes
from ppworker.errors import RunnerTimeout
from ppworker.pipeline.control import operations
from ppworker.pipeline.control.operation_steps import STEPS
from ppworker.pipeline.deps import Deps
from ppworker.pipeline.transfer import export
from ppworker.store import tables

UNNOTED = {"api_keys": "last_used_at", "users": "updated_at"}
"""Columns that change without a request having changed anything."""
UNWATCHED = frozenset({"workers", "login_attempts"})


def picture(word: str = "") -> bytes:
    """A small PNG; another word makes another file."""
    seed = hashlib.sha256(word.encode()).digest()
    out = io.BytesIO()
    Image.frombytes("RGB", (3, 3), (seed + seed)[:27]).save(out, "PNG")
    return out.getvalue()


def archive(**files: bytes | str) -> bytes:
    """A zip of these files; two underscores in a name stand for a slash, one behind for a dot."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as made:
        for name, content in files.items():
            made.writestr(name.replace("__", "/").replace("_", "."), content)
    return out.getvalue()


@dataclass
class Things:
    """One of each thing that a path or a body may name, all of one user."""

    api: Api
    me: httpx2.Client
    world: World
    ids: dict[str, str]
    marks: list[str]
    """Words that stand in what is this user's, and nowhere else."""

    def fill(self, value: Any) -> Any:
        """A path or a body with the names of its things replaced by their ids."""
        return filled(value, self.ids)


def filled(value: Any, ids: dict[str, str]) -> Any:
    """A value with ``{name}`` replaced by the id of that name, however deep it stands."""
    if isinstance(value, str):
        for name, id_ in ids.items():
            value = value.replace(f"{{{name}}}", id_)
        return value
    if isinstance(value, list):
        return [filled(each, ids) for each in value]
    if isinstance(value, dict):
        return {name: filled(each, ids) for name, each in value.items()}
    return value


def made(response: httpx2.Response) -> Any:
    """The answer to a request that must succeed."""
    assert response.is_success, f"{response.request.method} {response.request.url}: {response.text}"
    return response.json() if response.content else None


@contextmanager
def served_world(deps: Deps) -> Iterator[Api]:
    """The API with a user who can log in."""
    with served_api(deps, World(deps, username=f"user-{uuid4().hex[:8]}")) as api:
        yield api


def username(api: Api, user_id: UUID) -> str:
    """The name of a user."""
    ((name,),) = api.world.sql("SELECT username FROM users WHERE id = :id", id=user_id)
    return str(name)


def make_things(api: Api, user_id: UUID, me: httpx2.Client) -> Things:
    """A new dataset of a user, with a completed and a failed job and one of everything in it."""
    mark = uuid4().hex[:10]
    world = World(api.deps, username=username(api, user_id))
    bad = world.processor(f"bad{mark}", max_attempts=1)
    good = world.processor(f"good{mark}", order=1)
    (item,) = world.add(f"hello{mark}")
    world.run(bad, RunnerTimeout("too slow"))
    world.run(good, classes(f"cat{mark}"))
    failed = next(job for job in world.jobs(bad) if job.status == "failed")
    version = f"/datasets/{world.dataset.id}/versions/{world.dataset.version_id}"
    inferences = made(
        me.post(
            f"{version}/splits/{world.train.id}/add_inferences",
            json={"inferences": [{"id": f"i{mark}", "name": f"text{mark}"}]},
        )
    )
    assert inferences["inferences"][0]["dataset_item_id"]
    read = made(me.get(f"{version}/items/{item}"))
    own = made(
        me.post(
            f"/datasets/{world.dataset.id}/post-processors",
            json={"name": f"own{mark}", "model_type": "ner", "output_target": "annotations"},
        )
    )
    ids: dict[str, Any] = {
        "user_id": user_id,
        "dataset_id": world.dataset.id,
        "version_id": world.dataset.version_id,
        "split_id": world.train.id,
        "other_split_id": world.valid.id,
        "item_id": item,
        "job_id": failed.id,
        "label_id": read["annotations"][0]["label_id"],
        "annotation_id": read["annotations"][0]["id"],
        "post_processor_id": own["id"],
        "scripted_processor_id": good.id,
        "operation_id": made(me.get("/operations"))[0]["id"],
        "export_id": _exported(world),
        "mark": mark,
        **_models(me, mark),
        "friend_id": _friend(api, mark),
        "key_id": made(me.post("/me/apikeys", json={"name": f"spare{mark}"}))["id"],
    }
    ids["email"] = f"{mark}@example.org"
    made(me.post(f"/datasets/{world.dataset.id}/share", json={"email": ids["email"]}))
    return Things(api, me, world, {name: str(id_) for name, id_ in ids.items()}, [mark])


def _exported(world: World) -> UUID:
    """The operation that made an archive, as when nobody waited for it."""
    asked = export.begin(
        world.deps, world.user, world.dataset.version_id, split=None, format_name="ppworker"
    )
    operations.follow(world.deps, STEPS, world.user, asked.operation_id, until=lambda: False)
    return asked.operation_id


def _models(me: httpx2.Client, mark: str) -> dict[str, str]:
    """A model with a version and an inference that has a file; and one that is built in."""
    built_in = next(each for each in made(me.get("/models")) if each["name"] == "usaddress")
    model = made(me.post("/models", json={"name": f"model{mark}", "kind": "ner"}))
    version = made(me.post(f"/models/{model['id']}/versions", json={"name": f"first{mark}"}))
    inference = made(me.post(f"/inferences/{model['id']}/add", json={"name": f"page{mark}"}))
    file = {"file": ("page.png", picture(mark), "image/png")}
    made(me.post(f"/inferences/{inference['id']}/upload", files=file))
    return {
        "model_id": model["id"],
        "model_version_id": version["id"],
        "inference_id": inference["id"],
        "built_in_id": built_in["id"],
        "built_in_version_id": built_in["active_version_id"],
    }


def _friend(api: Api, mark: str) -> UUID:
    """Somebody with whom the dataset is shared."""
    friend = new_user(api.deps, f"friend-{mark}")
    api.world.sql(
        "UPDATE users SET email = :email WHERE id = :id", email=f"{mark}@example.org", id=friend
    )
    return friend


def digest(api: Api) -> dict[str, str]:
    """For each table a hash of all that stands in it."""
    parts = " UNION ALL ".join(
        f"SELECT '{name}', md5(coalesce(string_agg(r, chr(10) ORDER BY r), '')) "
        f'FROM (SELECT {row_of(name)} AS r FROM "{name}" t) q'
        for name in watched()
    )
    return dict(map(tuple, api.world.sql(parts)))


def rows(api: Api) -> set[tuple[str, str]]:
    """Every row of every table, as text."""
    parts = " UNION ALL ".join(
        f"SELECT '{name}', {row_of(name)} FROM \"{name}\" t" for name in watched()
    )
    return {(name, text) for name, text in api.world.sql(parts)}


def watched() -> list[str]:
    """Tables that hold what is somebody's."""
    return [name for name in tables.metadata.tables if name not in UNWATCHED]


def row_of(table: str) -> str:
    """The expression for a row as text, without what changes by itself."""
    left_out = UNNOTED.get(table)
    return "to_jsonb(t)::text" if left_out is None else f"(to_jsonb(t) - '{left_out}')::text"


_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")


def owned_by(everything: set[tuple[str, str]], user_id: str) -> set[tuple[str, str]]:
    """The rows that name a user, or the id of a row that does, and so on."""
    known, found = {user_id}, set[tuple[str, str]]()
    parsed = [(row, set(_UUID.findall(row[1]))) for row in everything]
    while True:
        more = [row for row, ids in parsed if row not in found and ids & known]
        if not more:
            return found
        found |= set(more)
        known |= {str(json.loads(text).get("id")) for _, text in more}
