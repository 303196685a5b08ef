"""Every route of the API: its fields and types, whose it is, what a key is for, what it refuses.

The table names each route that there is, so that none is forgotten.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import httpx2
import pytest

from api_server import Api, Optional, Stamp, fits, new_user
from factories import World, classes
from ppworker.api.app import PREFIX, create_app, routes
from ppworker.errors import RunnerTimeout

BASE = {"id": str, "created_at": Stamp, "updated_at": Stamp, "name": str, "description": str}
SPLIT = BASE | {"user_id": str, "version_id": str}
LABEL = BASE | {
    "user_id": str, "version_id": str, "color": str, "index": int, "shortcut": str,
}  # fmt: skip
VERSION = BASE | {
    "labels": [LABEL], "user_id": str, "dataset_id": str, "splits": [SPLIT], "default_split": str,
    "config": str,
}  # fmt: skip
DATASET = BASE | {
    "user_id": str, "notes": str, "has_logo": bool, "logo": str, "public": bool,
    "shared_with_me": bool, "share_role": str, "versions": [VERSION], "multi_label": bool, "default_splits": bool,
    "content_type": str,
}  # fmt: skip
STAT = {
    "id": str, "created_at": Optional(Stamp), "updated_at": Optional(Stamp), "label_id": str,
    "split_id": str, "count": int, "annotation_count": int, "item_count": int,
}  # fmt: skip
ANNOTATION = BASE | {
    "label_id": str, "item_id": str, "split_id": str, "coordinates": str, "user_id": str,
    "kind": str, "text": str, "page": Optional(int), "confidence": Optional(float), "source": str,
    "review": str, "post_processor_id": Optional(str), "model_version": str,
}  # fmt: skip
JOB_STATUS = {"pending": int, "processing": int, "completed": int, "failed": int, "total": int}
ITEM = BASE | {
    "user_id": str, "text": str, "splits": [SPLIT], "annotations": [ANNOTATION], "extension": str,
    "version": int, "job_status": JOB_STATUS, "media_type": str, "size_bytes": int,
    "width": Optional(int), "height": Optional(int), "page_count": Optional(int),
    "duration_s": Optional(float),
}  # fmt: skip
JOB = BASE | {
    "post_processor_id": str, "dataset_item_id": str, "dataset_id": str, "status": str,
    "attempts": int, "max_attempts": int, "error": Optional(str), "result": Optional(str),
    "started_at": Optional(Stamp), "completed_at": Optional(Stamp), "user_id": str,
    "reason": str, "dropped": dict, "next_attempt_at": Optional(Stamp),
}  # fmt: skip
JOB_DETAILS = JOB | {"post_processor_name": str, "item_name": str}
PROCESSOR = BASE | {
    "dataset_id": str, "model_type": str, "enabled": bool, "order": int, "model_id": Optional(str),
    "model_version": str, "external_provider": str, "external_model": str, "external_config": str,
    "output_target": str, "auto_create_labels": bool, "confidence_threshold": float,
    "prompt": str, "user_id": str, "model_name": str, "model_kind": str, "is_external": bool,
    "provider_name": str, "runner": str, "config": dict, "file_types": [str], "splits": [str],
    "label_mapping": dict, "label_prefix": str, "max_new_labels": int, "keep_unscored": bool,
    "batch_size": int, "concurrency_cap": Optional(int), "timeout_s": float, "max_attempts": int,
    "on_failure": str,
}  # fmt: skip
INFERENCE_ITEM = BASE | {
    "created_at": Optional(Stamp), "updated_at": Optional(Stamp), "prediction": str,
    "confidence": float, "inference_id": str, "coordinates": str,
}  # fmt: skip
INFERENCE = BASE | {
    "created_at": Optional(str), "updated_at": Optional(str), "prediction": str,
    "confidence": float, "model_id": str, "model_version_id": str, "extension": str,
    "user_id": str, "error_reported": bool, "error": str, "application_id": str,
    "inference_host": str, "inference_time": str, "end_to_end_time": str, "dataset_item_id": str,
    "result": str, "inference_items": [INFERENCE_ITEM], "hidden": bool, "privacy_enabled": bool,
    "config": str,
}  # fmt: skip
INFERENCES = BASE | {
    "created_at": Optional(Stamp), "updated_at": Optional(Stamp), "keep_annotations": bool,
    "inferences": [INFERENCE],
}  # fmt: skip
OPERATION = {
    "id": str, "kind": str, "status": str, "done": int, "total": Optional(int), "counts": dict,
    "dataset_id": Optional(str), "reason": str, "error": Optional(str), "created_at": Stamp,
    "started_at": Optional(Stamp), "completed_at": Optional(Stamp),
}  # fmt: skip
BLOB = {"sha256": str, "size_bytes": int}


@dataclass
class Things:
    """One of each thing that a path may name, of the world's user."""

    api: Api
    ids: dict[str, str] = field(default_factory=dict)

    def path(self, template: str) -> str:
        return template.format(**self.ids)


@pytest.fixture
def things(api: Api) -> Things:
    """A completed and a failed job, a label, an annotation, a post-processor, an operation."""
    world = api.world
    bad = world.processor("bad", max_attempts=1)
    good = world.processor("good", order=1)
    (item,) = world.add("hello")
    world.run(bad, RunnerTimeout("too slow"))
    world.run(good, classes("cat"))
    failed = next(job for job in world.jobs() if job.status == "failed")
    made = api.me.post(
        f"{api.dataset}/post-processors",
        json={"name": "own", "model_type": "ner", "output_target": "annotations"},
    )
    done = api.me.post(
        f"{api.split}/add_inferences", json={"inferences": [{"id": "i1", "name": "a text"}]}
    )
    assert done.status_code == 200, done.text
    (operation,) = api.me.get("/operations").json()
    ids = {
        "dataset_id": world.dataset.id,
        "version_id": world.dataset.version_id,
        "split_id": world.train.id,
        "item_id": item,
        "job_id": failed.id,
        "post_processor_id": made.json()["id"],
        "operation_id": operation["id"],
    }
    return Things(api, {name: str(id_) for name, id_ in ids.items()})


@dataclass(kw_only=True)
class Case:
    """One route: how it is asked well, what it answers, how it is asked badly."""

    method: str
    path: str
    shape: Any
    status: int = 200
    body: Any = None
    upload: bool = False
    bad: Any = None
    """A body that it refuses."""
    bad_field: str = ""
    bad_status: int = 422

    @property
    def name(self) -> str:
        return f"{self.method} {self.path}"

    def ask(self, client: httpx2.Client, path: str, body: Any = None) -> httpx2.Response:
        options: dict[str, Any] = {}
        if self.upload:
            options["files"] = {"file": ("note.txt", b"hello again", "text/plain")}
        elif body is not None:
            # As the contract's own client does: JSON without a content type.
            options["content"] = json.dumps(body)
        return client.request(self.method, path, **options)


D = "/datasets/{dataset_id}"
V = D + "/versions/{version_id}"
P = D + "/post-processors"
CASES = [
    Case(method="GET", path="/datasets", shape=[DATASET]),
    Case(
        method="POST", path="/datasets", shape=DATASET,
        body={"name": "new", "content_type": "text", "default_splits": True, "id": None},
        bad={"name": "new", "content_type": "text", "multi_label": "perhaps"},
        bad_field="multi_label",
    ),
    Case(method="GET", path=D, shape=DATASET),
    Case(method="GET", path=f"{D}/versions", shape=[VERSION]),
    Case(method="GET", path=V, shape=VERSION),
    Case(method="GET", path=f"{V}/splits", shape=[SPLIT]),
    Case(method="GET", path=f"{V}/labels", shape=[LABEL]),
    Case(method="GET", path=f"{V}/labels/splits/{{split_id}}", shape=[STAT]),
    Case(method="GET", path=f"{V}/labels/stats/splits/{{split_id}}", shape=STAT),
    Case(method="GET", path=f"{V}/items", shape=[ITEM]),
    Case(
        method="POST", path=f"{V}/items", shape=ITEM,
        body={"name": None, "text": "x", "splits": [], "annotations": [], "version": 0},
        bad={"splits": [{"id": "nobody's"}]}, bad_field="splits[0].id",
    ),
    Case(method="GET", path=f"{V}/items/{{item_id}}", shape=ITEM),
    Case(method="GET", path=f"{V}/items/{{item_id}}/jobs", shape=[JOB_DETAILS]),
    Case(
        method="POST", path=f"{V}/items/{{item_id}}/jobs/{{job_id}}/retry", shape=JOB, body={}
    ),
    # After the retry: a new file makes new jobs, and then the failed one stays failed.
    Case(method="POST", path=f"{V}/items/{{item_id}}/upload", shape=ITEM, upload=True),
    Case(
        method="POST", path=f"{V}/splits/{{split_id}}/add_inferences", shape=INFERENCES,
        body={"inferences": [{"id": "i2", "name": "b", "inference_items": [
            {"prediction": "cat", "confidence": 0.5, "name": None}]}]},
        bad={"inferences": [{"inference_items": [{"prediction": "x", "confidence": 3}]}]},
        bad_field="inferences[0].inference_items[0].confidence",
    ),
    Case(method="GET", path=P, shape=[PROCESSOR]),
    Case(
        method="POST", path=P, shape=PROCESSOR,
        body={"name": "p", "model_type": "ocr", "external_config": '{"file_types": ["png"]}'},
        bad={"name": "p", "model_type": "ocr", "confidence_threshold": 1.5},
        bad_field="confidence_threshold",
    ),
    Case(method="GET", path=f"{P}/jobs", shape=[JOB_DETAILS]),
    Case(method="GET", path=f"{P}/{{post_processor_id}}", shape=PROCESSOR),
    Case(
        method="PUT", path=f"{P}/{{post_processor_id}}", shape=PROCESSOR,
        body={"name": None, "enabled": False}, bad={"order": "first"}, bad_field="order",
    ),
    Case(method="DELETE", path=f"{P}/{{post_processor_id}}", shape=None, status=204),
    Case(method="GET", path="/operations", shape=[OPERATION]),
    Case(method="GET", path="/operations/{operation_id}", shape=OPERATION),
    Case(method="POST", path="/blobs", shape=BLOB, upload=True),
]  # fmt: skip


def test_every_route_has_its_case():
    """And no router holds one that the list of routes does not know."""
    assert sorted(case.name for case in CASES) == sorted(
        f"{route.method} {route.path.removeprefix(PREFIX)}" for route in routes()
    )


def test_the_application_has_no_other_routes(deps):
    published = create_app(deps, threads=2).openapi()["paths"]
    assert {(m.upper(), path) for path, methods in published.items() for m in methods} == {
        (route.method, route.path) for route in routes()
    }


def test_every_answer_has_exactly_its_fields_and_types(things: Things, subtests: Any) -> None:
    for case in CASES:
        with subtests.test(case.name):
            response = case.ask(things.api.me, things.path(case.path), case.body)
            assert response.status_code == case.status, response.text
            assert response.headers["x-content-type-options"] == "nosniff"
            if case.shape is None:
                assert response.content == b""
                continue
            fits(response.json(), case.shape)
            if isinstance(case.shape, list):
                assert response.json(), "an empty list shows nothing"


def refused(response: httpx2.Response, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text
    problem: dict[str, Any] = response.json()
    fits(problem, {"message": str, "severity": str, "field": str})
    assert problem["message"]
    assert problem["severity"] == "error"
    return problem


def state(api: Api) -> Any:
    """What a request that is refused must leave alone."""
    return api.world.sql(
        "SELECT (SELECT count(*) FROM dataset_items), (SELECT sum(version) FROM dataset_items), "
        "(SELECT count(*) FROM post_processors WHERE deleted_at IS NULL AND enabled), "
        "(SELECT count(*) FROM post_processor_jobs WHERE status = 'failed'), "
        "(SELECT count(*) FROM operations), (SELECT count(*) FROM blob_owners), "
        "(SELECT count(*) FROM datasets)"
    )


def test_somebody_else_finds_nothing(things: Things, subtests: Any) -> None:
    api = things.api
    stranger = api.client(new_user(api.deps, "stranger"))
    unknown = {name: str(uuid4()) for name in things.ids}
    for case in CASES:
        before = state(api)
        if "{" not in case.path:
            if case.method == "GET":
                assert case.ask(stranger, case.path).json() == []
            continue
        with subtests.test(case.name):
            problem = refused(case.ask(stranger, things.path(case.path), case.body), 404)
            assert "ppworker " not in problem["message"], "names a command of the command line"
            missing = refused(case.ask(api.me, case.path.format(**unknown), case.body), 404)
            assert missing["field"] == problem["field"] or "operation" in case.path
            refused(case.ask(api.me, case.path.format(**dict.fromkeys(unknown, "x"))), 404)
            assert state(api) == before


def test_nobody_comes_in_without_a_key(things: Things, subtests: Any) -> None:
    api = things.api
    headers = (None, "Bearer", "Bearer nope", "Basic dTpw", "nobody:ppw_x", "ppw_x", "")
    strangers = [api.with_header(header) for header in headers]
    before = state(api)
    for case in CASES:
        with subtests.test(case.name):
            for stranger in strangers:
                response = case.ask(stranger, things.path(case.path), case.body)
                assert refused(response, 401)["field"] == "Authorization"
                assert response.headers["www-authenticate"] == "Bearer"
    assert state(api) == before


def test_a_key_for_the_other_scope_is_refused(things: Things, subtests: Any) -> None:
    api = things.api
    reader = api.client(api.world.user, scopes=["read"])
    writer = api.client(api.world.user, scopes=["write"])
    before = state(api)
    for case in CASES:
        client = writer if case.method == "GET" else reader
        with subtests.test(case.name):
            response = case.ask(client, things.path(case.path), case.body)
            assert "this key is not for" in refused(response, 403)["message"]
    assert state(api) == before
    assert reader.get("/datasets").status_code == 200


def test_a_bad_body_is_refused_by_the_name_of_its_field(things: Things, subtests: Any) -> None:
    api = things.api
    before = state(api)
    for case in [case for case in CASES if case.bad is not None]:
        path = things.path(case.path)

        def ask(content: str, path: str = path, method: str = case.method, **headers: str) -> Any:
            return api.me.request(method, path, content=content, headers=headers)

        with subtests.test(case.name):
            problem = refused(case.ask(api.me, path, case.bad), 422)
            assert problem["field"] == case.bad_field
            refused(ask('{"name": '), 400)
            refused(ask("[1]"), 422)
            named = refused(ask("{}", **{"content-type": "text/plain"}), 422)
            assert "application/json" in named["message"]
    assert state(api) == before


def test_every_route_that_takes_a_body_has_a_bad_one():
    writing = {case.name for case in CASES if case.method in {"POST", "PUT"} and not case.upload}
    told = {case.name for case in CASES if case.bad is not None}
    assert writing - told == {f"POST {V}/items/{{item_id}}/jobs/{{job_id}}/retry"}


def test_each_part_of_a_path_belongs_to_the_one_before(
    things: Things, worlds: Callable[..., World], subtests: Any
) -> None:
    """Also where both are the same user's: what is of another dataset is not here."""
    api = things.api
    ((name,),) = api.world.sql("SELECT username FROM users WHERE id = :id", id=api.world.user)
    other = worlds(username=name)
    processor = other.processor()
    (item,) = other.add("x")
    (job,) = other.jobs(processor)
    theirs = {
        "dataset_id": other.dataset.id,
        "version_id": other.dataset.version_id,
        "split_id": other.train.id,
        "item_id": item,
        "job_id": job.id,
        "post_processor_id": processor.id,
    }
    before = state(api)
    for case in CASES:
        parts = [part for part in theirs if f"{{{part}}}" in case.path]
        for part in parts if len(parts) > 1 else ():
            with subtests.test(f"{case.name}: {part}"):
                path = case.path.format(**things.ids | {part: str(theirs[part])})
                refused(case.ask(api.me, path, case.body), 404)
    assert state(api) == before
