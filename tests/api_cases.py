"""One case for each route: how it is asked well, what it answers, how it is asked badly.

The walk over the router, the test of two users and the published schema all read this table. A new
route needs a case here, and nothing else.
"""

import json
import re
from dataclasses import dataclass, field
from typing import Any

import httpx2

from api_shapes import (
    ANNOTATION,
    APPLICATION,
    BLOB,
    BULK,
    CONTEXT,
    DATASET,
    INFERENCES,
    ITEM,
    JOB,
    JOB_DETAILS,
    KEY,
    LABEL,
    LOGIN,
    LOGOUT,
    MODEL,
    MODEL_INFERENCE,
    MODEL_VERSION,
    MOVE,
    NEW_KEY,
    OPERATION,
    PROBLEM,
    PROCESSOR,
    RETRIED,
    REVIEW,
    SHARE,
    SHARED_WITH,
    SPLIT,
    STAT,
    STATE,
    VERSION,
    Optional,
    Raw,
)
from api_things import Things, archive, filled, picture

CONTRACT = """
GET /dataset-versions/{version_id}/splits
GET /datasets/{dataset_id}/versions
POST /datasets/{dataset_id}/versions
GET /datasets/{dataset_id}/versions/{version_id}
PUT /datasets/{dataset_id}/versions/{version_id}
DELETE /datasets/{dataset_id}/versions/{version_id}
GET /datasets/{dataset_id}/versions/{version_id}/download
GET /datasets/{dataset_id}/versions/{version_id}/download/{split_id}
POST /datasets/{dataset_id}/versions/{version_id}/new
POST /datasets/{dataset_id}/versions/{version_id}/upload
POST /datasets/{dataset_id}/versions/{version_id}/upload/{format}
GET /datasetversions/{version_id}
GET /datasets/{dataset_id}/versions/{version_id}/labels/splits/{split_id}
GET /datasets/{dataset_id}/versions/{version_id}/labels/stats/splits/{split_id}
GET /datasets/{dataset_id}/versions/{version_id}/splits
POST /datasets/{dataset_id}/versions/{version_id}/splits
GET /datasets/{dataset_id}/versions/{version_id}/splits/{split_id}
PUT /datasets/{dataset_id}/versions/{version_id}/splits/{split_id}
DELETE /datasets/{dataset_id}/versions/{version_id}/splits/{split_id}
POST /datasets/{dataset_id}/versions/{version_id}/splits/{split_id}/add_inferences
GET /datasets/{dataset_id}/versions/{version_id}/items
POST /datasets/{dataset_id}/versions/{version_id}/items
GET /datasets/{dataset_id}/versions/{version_id}/items/{item_id}
PUT /datasets/{dataset_id}/versions/{version_id}/items/{item_id}
GET /datasets/{dataset_id}/versions/{version_id}/items/{item_id}/download
POST /datasets/{dataset_id}/versions/{version_id}/items/{item_id}/upload
GET /datasets/{dataset_id}/versions/{version_id}/items/{item_id}/jobs
POST /datasets/{dataset_id}/versions/{version_id}/items/{item_id}/jobs/{job_id}/retry
DELETE /datasets/{dataset_id}/versions/{version_id}/splits/{split_id}/items/{item_id}
""".strip().splitlines()
"""The routes of the public contract, each by name."""
assert len(set(CONTRACT)) == 29


def bare(route: str) -> str:
    """A route without the names of its parts: what they are called is nobody's contract."""
    return re.sub(r"\{\w+(:\w+)?\}", "{}", route)


@dataclass(kw_only=True)
class Bad:
    """A body that is refused, and the field that the error names."""

    body: Any
    field: str
    status: int = 422


@dataclass(kw_only=True)
class Case:
    """One route."""

    method: str
    path: str
    shape: Any
    """What it answers; None where it answers nothing."""
    status: int = 200
    body: Any = None
    lines: bool = False
    """Whether its body is JSON Lines, written down here as a list."""
    file: tuple[str, bytes, str] | None = None
    query: dict[str, str] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)
    first: "list[Case]" = field(default_factory=list)
    """What is asked before, so that there is anything to answer."""
    bad: list[Bad] = field(default_factory=list)
    problem: Any = field(default_factory=lambda: PROBLEM)
    """The shape of its errors."""
    fresh: bool = False
    """Whether it is to be asked about what nobody has touched."""
    bodyless: bool = False
    """Whether it takes no body, or any."""
    is_open: bool = False
    """Whether it needs no key."""
    is_account: bool = False
    """Whether it is about whoever asks, so that a stranger is answered by their own."""
    everybodys: bool = False
    """Whether what the path names is there for everybody."""
    ends_account: bool = False
    """Whether it ends the account of whoever asks."""

    @property
    def name(self) -> str:
        return f"{self.method} {self.path}"

    @property
    def parts(self) -> list[str]:
        """Names of the things in the path."""
        return [part for part in re.findall(r"\{(\w+)\}", self.path) if part != "format"]

    def ask(self, client: httpx2.Client, ids: dict[str, str], body: Any = ...) -> httpx2.Response:
        """The answer to it, asked well unless another body is given."""
        options: dict[str, Any] = {"headers": filled(self.headers, ids)}
        content = filled(self.body if body is ... else body, ids)
        if self.file is not None:
            options["files"] = {"file": self.file}
        elif self.lines and isinstance(content, list):
            options["content"] = "\n".join(json.dumps(line) for line in content)
            options["headers"] |= {"Content-Type": "application/x-ndjson"}
        elif content is not None:
            # As the contract's own client does: JSON without a content type.
            options["content"] = json.dumps(content)
        query = filled(self.query, ids)
        return client.request(self.method, filled(self.path, ids), params=query, **options)

    def prepare(self, things: Things) -> None:
        """Ask what comes first."""
        for step in self.first:
            response = step.ask(things.me, things.ids)
            assert response.is_success, f"{step.name}: {response.text}"


D = "/datasets/{dataset_id}"
V = D + "/versions/{version_id}"
S = V + "/splits/{split_id}"
I = V + "/items/{item_id}"  # noqa: E741  the letter of the reference
P = D + "/post-processors"
NOTE = ("note.txt", b"hello again", "text/plain")
PICTURE = ("dot.png", picture("case"), "image/png")
FOLDERS = ("dataset.zip", archive(train__dog__one_txt="a dog"), "application/x-zip-compressed")
ZIP = Raw("application/zip")
REFERENCE = {"id": "{split_id}", "name": "train", "version_id": "{version_id}"}

PERSON = {
    "username": "reg{mark}", "email": "reg{mark}@example.org", "name": None, "firstname": None,
    "password": "correct horse",
}  # fmt: skip
REGISTER = Case(
    method="POST", path="/register", shape=LOGIN, is_open=True, body=PERSON,
    problem=PROBLEM | {"registration": Optional({
        "username": str, "email": str, "name": str, "firstname": str, "password": str})},
    bad=[
        Bad(body={k: v for k, v in PERSON.items() if k != "password"}, field="password"),
        Bad(body=PERSON | {"username": 5}, field="username"),
        Bad(body=PERSON | {"email": "no address"}, field="email"),
    ],
)  # fmt: skip
ACCOUNTS = [
    REGISTER,
    Case(
        method="POST",
        path="/login",
        fresh=True,
        shape=LOGIN,
        is_open=True,
        first=[REGISTER],
        body={"username": "reg{mark}", "password": "correct horse"},
        bad=[
            Bad(body={"username": "reg{mark}"}, field="password"),
            Bad(body={"username": ["a"], "password": "x"}, field="username"),
        ],
    ),
    Case(method="POST", path="/logout", shape=LOGOUT, is_account=True, bodyless=True),
    Case(method="GET", path="/me/context", shape=CONTEXT, is_account=True),
    Case(method="GET", path="/me/apikeys", shape=[KEY], is_account=True),
    Case(
        method="POST",
        path="/me/apikeys",
        shape=NEW_KEY,
        is_account=True,
        body={"name": "new", "scopes": [], "organization_id": None, "expires_in_days": 3},
        bad=[
            Bad(body={"name": "n", "expires_in_days": 0}, field="expires_in_days"),
            Bad(body={"name": "n", "scopes": ["all"]}, field="scopes[0]"),
        ],
    ),
    Case(method="PUT", path="/me/apikeys/{key_id}", shape=KEY, bodyless=True),
    Case(method="DELETE", path="/me/apikeys/{key_id}", shape=None, status=204),
    Case(method="DELETE", path="/users/{user_id}", shape=None, status=204, ends_account=True),
]

SHARES = [
    Case(
        method="POST",
        path=f"{D}/share",
        shape=SHARE,
        body={
            "email": "{email}",
            "entity_type": "datasets",
            "entity_id": "{dataset_id}",
            "without_invite": True,
            "role_id": None,
        },
        bad=[
            Bad(body={"email": 7}, field="email"),
            Bad(body={"email": "{email}", "role_id": "king"}, field="role_id"),
        ],
    ),
    Case(method="GET", path=f"{D}/shares", shape=[SHARED_WITH]),
    Case(method="DELETE", path=f"{D}/shares/{{friend_id}}", shape=None, status=204),
]

DATASETS = [
    Case(method="GET", path="/datasets", shape=[DATASET], is_account=True),
    Case(
        method="POST", path="/datasets", shape=DATASET, is_account=True,
        body={"name": "new", "content_type": "text", "default_splits": True, "id": None},
        bad=[
            Bad(body={"name": "new", "content_type": "text", "multi_label": "perhaps"},
                field="multi_label"),
            Bad(body={"name": 7, "content_type": "text"}, field="name"),
        ],
    ),
    Case(method="GET", path=D, shape=DATASET),
    Case(
        method="PUT", path=D, shape=DATASET,
        body={"name": "renamed{mark}", "notes": None, "versions": [{"name": None}]},
        bad=[Bad(body={"name": "n", "multi_label": "perhaps"}, field="multi_label")],
    ),
    Case(method="DELETE", path=D, shape=OPERATION, status=202),
    Case(method="POST", path=f"{D}/upload", shape=DATASET, file=PICTURE),
    Case(
        method="GET", path=f"{D}/logo", shape=Raw("image/png"),
        first=[Case(method="POST", path=f"{D}/upload", shape=DATASET, file=PICTURE)],
    ),
]  # fmt: skip

VERSIONS = [
    Case(method="GET", path=f"{D}/versions", shape=[VERSION]),
    Case(
        method="POST", path=f"{D}/versions", shape=VERSION,
        body={"name": "second", "dataset_id": "{dataset_id}", "labels": [], "splits": []},
        bad=[Bad(body={"name": ["second"]}, field="name")],
    ),
    Case(method="GET", path=V, shape=VERSION),
    Case(method="GET", path="/datasetversions/{version_id}", shape=VERSION),
    Case(
        method="PUT", path=V, shape=VERSION,
        body={"name": None, "config": '{"column_names": "a,b"}', "default_split": None,
              "dataset_id": "{dataset_id}", "labels": None},
        bad=[Bad(body={"config": {"column_names": "a"}}, field="config")],
    ),
    Case(method="DELETE", path=V, shape=OPERATION, status=202),
    Case(
        method="POST", path=f"{V}/new", shape=VERSION,
        body={"dataset_id": "{dataset_id}", "name": None},
        bad=[Bad(body={"name": 5}, field="name")],
    ),
    Case(method="GET", path=f"{V}/download", shape=ZIP),
    Case(method="GET", path=f"{V}/download/{{split_id}}", shape=ZIP),
    Case(method="POST", path=f"{V}/upload", shape=VERSION, file=FOLDERS),
    Case(method="POST", path=f"{V}/upload/{{format}}", shape=VERSION, file=FOLDERS),
]  # fmt: skip

SPLITS = [
    Case(method="GET", path=f"{V}/splits", shape=[SPLIT]),
    Case(method="GET", path="/dataset-versions/{version_id}/splits", shape=[SPLIT]),
    Case(
        method="POST", path=f"{V}/splits", shape=SPLIT,
        body={"name": "further{mark}", "version_id": "{version_id}"},
        bad=[Bad(body={"name": {}}, field="name"), Bad(body={"name": ""}, field="name")],
    ),
    Case(method="GET", path=S, shape=SPLIT),
    Case(
        method="PUT", path=S, shape=SPLIT, body={"name": "renamed{mark}", "description": None},
        bad=[Bad(body={"name": False}, field="name")],
    ),
    Case(method="DELETE", path=S, shape=OPERATION, status=202),
    Case(
        method="POST", path=f"{S}/add_inferences", shape=INFERENCES,
        body={"inferences": [{"id": "i2{mark}", "name": "b", "inference_items": [
            {"prediction": "cat", "confidence": 0.5, "name": None}]}]},
        bad=[Bad(
            body={"inferences": [{"inference_items": [{"prediction": "x", "confidence": 3}]}]},
            field="inferences[0].inference_items[0].confidence",
        )],
    ),
]  # fmt: skip

LABELS = [
    Case(method="GET", path=f"{V}/labels", shape=[LABEL]),
    Case(
        method="POST", path=f"{V}/labels", shape=LABEL,
        body={"name": "further{mark}", "version_id": "{version_id}", "index": 0, "color": None},
        bad=[Bad(body={"name": 3}, field="name"), Bad(body={"name": ""}, field="name")],
    ),
    Case(method="GET", path=f"{V}/labels/{{label_id}}", shape=LABEL),
    Case(
        method="PUT", path=f"{V}/labels/{{label_id}}", shape=LABEL,
        body={"name": "renamed{mark}", "color": "#010203", "shortcut": None},
        bad=[Bad(body={"name": "x", "color": 5}, field="color")],
    ),
    Case(method="DELETE", path=f"{V}/labels/{{label_id}}", shape=OPERATION, status=202),
    Case(method="GET", path=f"{V}/labels/splits/{{split_id}}", shape=[STAT]),
    Case(method="GET", path=f"{V}/labels/stats/splits/{{split_id}}", shape=STAT),
]  # fmt: skip

ITEMS = [
    Case(method="GET", path=f"{V}/items", shape=[ITEM]),
    Case(
        method="POST", path=f"{V}/items", shape=ITEM,
        body={"name": None, "text": "x", "splits": [REFERENCE], "annotations": [], "version": 0},
        bad=[
            Bad(body={"splits": [{"id": "nobody's"}]}, field="splits[0].id"),
            Bad(body={"text": 5}, field="text"),
        ],
    ),
    Case(
        method="POST", path=f"{V}/items/bulk", shape=BULK, lines=True,
        body=[{"name": "one", "text": "first"}, {"text": "second", "splits": ["train"]}],
        bad=[
            Bad(body=[{"text": "fine"}, {"text": 5}], field="line 2: text"),

        ],
    ),
    Case(method="GET", path=I, shape=ITEM),
    Case(
        method="PUT", path=I, shape=ITEM,
        body={"name": "renamed", "text": None, "splits": [REFERENCE], "annotations": [{}]},
        bad=[Bad(body={"name": "x", "text": ["a"]}, field="text")],
    ),
    Case(method="POST", path=f"{I}/upload", shape=ITEM, file=NOTE),
    Case(
        method="GET", path=f"{I}/download", shape=Raw("text/plain; charset=utf-8"),
        first=[Case(method="POST", path=f"{I}/upload", shape=ITEM, file=NOTE)],
    ),
    Case(
        method="POST", path=f"{S}/move_items", shape=MOVE, fresh=True,
        body={"item_ids": ["{item_id}"], "to": "{other_split_id}"},
        bad=[
            Bad(body={"item_ids": ["nobody's"], "to": "{other_split_id}"}, field="item_ids[0]"),
            Bad(body={"item_ids": ["{item_id}"], "to": "{split_id}"}, field="to"),
            Bad(body={"item_ids": ["{item_id}"], "to": "{item_id}"}, field="to"),
            Bad(body={"item_ids": [], "to": "{other_split_id}"}, field="item_ids"),
            Bad(body={"item_ids": ["{split_id}"], "to": "{other_split_id}"}, field="item_ids",
                status=404),
        ],
    ),
    Case(method="DELETE", path=f"{S}/items/{{item_id}}", shape=ITEM),
    Case(method="GET", path=f"{I}/state", shape=STATE),
    Case(
        method="PUT", path=f"{I}/state", shape=STATE, body={"name": None, "state": "reviewed"},
        bad=[Bad(body={"state": 5}, field="state")],
    ),
    Case(
        method="GET", path=f"{V}/states", shape=[STATE],
        first=[Case(method="PUT", path=f"{I}/state", shape=STATE, body={"state": "x"})],
    ),
]  # fmt: skip

ANNOTATIONS = [
    Case(
        method="POST", path=f"{V}/annotations", shape=ANNOTATION,
        body={"label_id": "{label_id}", "item_id": "{item_id}", "split_id": "{split_id}",
              "coordinates": "0.5 0.5 0.2 0.2"},
        bad=[
            Bad(body={"label_id": "{label_id}", "item_id": 4, "split_id": ""}, field="item_id"),
            Bad(body={"label_id": "nobody's", "item_id": "{item_id}", "split_id": "{split_id}"},
                field="label_id"),
            Bad(body={"item_id": "{item_id}", "split_id": "{split_id}"}, field="label_id"),
        ],
    ),
    Case(
        method="PUT", path=f"{V}/annotations/{{annotation_id}}", shape=ANNOTATION,
        body={"label_id": None, "coordinates": None, "item_id": "{item_id}"},
        bad=[Bad(body={"coordinates": 5}, field="coordinates")],
    ),
    Case(method="DELETE", path=f"{V}/annotations/{{annotation_id}}", shape=ANNOTATION),
    Case(
        method="GET", path=f"{V}/annotations", shape=[ANNOTATION], query={"item_id": "{item_id}"}
    ),
    Case(method="GET", path=f"{V}/annotations/{{annotation_id}}", shape=ANNOTATION),
    *(
        Case(
            method="POST", path=f"{V}/annotations/{{annotation_id}}/{action}", shape=ANNOTATION,
            bodyless=True, fresh=True,
        )
        for action in ("accept", "reject")
    ),
    Case(
        method="POST", path=f"{V}/annotations/review", shape=REVIEW, fresh=True,
        body={"action": "reject", "filter": {"max_score": 0.95}},
        bad=[
            Bad(body={"action": "accept", "ids": ["nobody's"]}, field="ids[0]"),
            Bad(body={"action": "perhaps", "ids": []}, field="action"),
        ],
    ),
]  # fmt: skip

JOBS = [
    Case(method="GET", path=f"{P}/jobs", shape=[JOB_DETAILS]),
    Case(method="GET", path=f"{I}/jobs", shape=[JOB_DETAILS]),
    Case(
        method="POST", path=f"{I}/jobs/{{job_id}}/retry", shape=JOB, body={}, bodyless=True,
        fresh=True,
    ),
    Case(
        method="POST", path=f"{P}/jobs/retry", shape=RETRIED, fresh=True,
        body={"reason": "unavailable", "successors": False},
        bad=[
            Bad(body={"post_processor_id": "nobody's"}, field="post_processor_id"),
            Bad(body={"successors": "perhaps"}, field="successors"),
        ],
    ),
]  # fmt: skip

PROCESSORS = [
    Case(method="GET", path=P, shape=[PROCESSOR]),
    Case(
        method="POST", path=P, shape=PROCESSOR,
        body={"name": "p{mark}", "model_type": "ocr", "external_config": '{"file_types": ["png"]}'},
        bad=[Bad(body={"name": "p", "model_type": "ocr", "confidence_threshold": 1.5},
                 field="confidence_threshold")],
    ),
    Case(method="GET", path=f"{P}/{{post_processor_id}}", shape=PROCESSOR),
    Case(
        method="PUT", path=f"{P}/{{post_processor_id}}", shape=PROCESSOR,
        body={"name": None, "enabled": False},
        bad=[Bad(body={"order": "first"}, field="order")],
    ),
    Case(method="DELETE", path=f"{P}/{{post_processor_id}}", shape=None, status=204),
    Case(
        method="POST", path=f"{P}/{{post_processor_id}}/undo", shape=OPERATION, fresh=True,
        body={"version_id": "{version_id}"},
        bad=[Bad(body={"version_id": "nobody's"}, field="version_id")],
    ),
]  # fmt: skip

M = "/models/{model_id}"
VERSION_OF_MODEL = f"{M}/versions/{{model_version_id}}"
INFERENCE_BODY = {
    "name": "a text", "inference_time": "1.5ms", "hidden": None,
    "inference_items": [{"prediction": "dog", "confidence": 0.5, "coordinates": None}],
}  # fmt: skip
MODELS = [
    Case(method="GET", path="/applications", shape=[APPLICATION], is_account=True),
    Case(method="GET", path="/models", shape=[MODEL], is_account=True),
    Case(
        method="POST", path="/models", shape=MODEL, is_account=True,
        body={"name": "new", "kind": "ner", "auto_convert": True, "public": False},
        bad=[
            Bad(body={"name": 5}, field="name"),
            Bad(body={"name": "n", "public": True}, field="public"),
        ],
    ),
    Case(method="GET", path=M, shape=MODEL),
    Case(
        method="PUT", path=M, shape=MODEL, body={"name": None, "description": "changed"},
        bad=[Bad(body={"name": "n", "privacy_enabled": "no"}, field="privacy_enabled")],
    ),
    Case(method="DELETE", path=M, shape=None, status=204),
    Case(method="GET", path=f"{M}/versions", shape=[MODEL_VERSION]),
    Case(
        method="POST", path=f"{M}/versions", shape=MODEL_VERSION,
        body={"name": "second", "application_id": None, "metrics": [{"name": "f1", "value": 0.5}]},
        bad=[Bad(body={"name": "n", "metrics": [{"value": "high"}]}, field="metrics[0].value")],
    ),
    Case(method="GET", path=VERSION_OF_MODEL, shape=MODEL_VERSION),
    Case(
        method="PUT", path=VERSION_OF_MODEL, shape=MODEL_VERSION, body={"version": "2"},
        bad=[Bad(body={"version": 2}, field="version")],
    ),
    Case(method="DELETE", path=VERSION_OF_MODEL, shape=None, status=204),
    Case(method="GET", path=f"{M}/inferences", shape=[MODEL_INFERENCE]),
    Case(method="GET", path=f"{M}/stats", shape=int),
    Case(
        method="POST", path="/inferences/{model_id}/add", shape=MODEL_INFERENCE,
        body=INFERENCE_BODY,
        bad=[
            Bad(body={"inference_items": [{"confidence": 2}]},
                field="inference_items[0].confidence"),
            Bad(body={"inference_time": 12}, field="inference_time"),
        ],
    ),
    Case(
        method="PUT", path="/inferences/{inference_id}", shape=MODEL_INFERENCE,
        body={"error_reported": True, "name": None},
        bad=[Bad(body={"hidden": "perhaps"}, field="hidden")],
    ),
    Case(
        method="POST", path="/inferences/{inference_id}/upload", shape=MODEL_INFERENCE,
        file=PICTURE,
    ),
    Case(method="GET", path="/inferences/{inference_id}/download", shape=Raw("image/png")),
    Case(
        method="POST", path="/inferences/{built_in_id}", shape=MODEL_INFERENCE, everybodys=True,
        body={"input_text": "500 Oak Avenue, Portland, OR 97201"},
        bad=[Bad(body={"input_text": 7}, field="input_text"), Bad(body={}, field="input_text")],
    ),
    Case(
        method="POST", path="/inferences/{built_in_id}/versions/{built_in_version_id}",
        shape=MODEL_INFERENCE, everybodys=True,
        body={"input_text": "97201 Portland"},
        bad=[Bad(body={"input_text": None}, field="input_text")],
    ),
]  # fmt: skip

OTHERS = [
    Case(method="GET", path="/operations", shape=[OPERATION], is_account=True),
    Case(method="GET", path="/operations/{operation_id}", shape=OPERATION),
    Case(method="GET", path="/operations/{export_id}/download", shape=ZIP),
    Case(method="POST", path="/blobs", shape=BLOB, file=NOTE, is_account=True),
]

CASES: list[Case] = [
    *ACCOUNTS, *SHARES, *DATASETS, *VERSIONS, *SPLITS, *LABELS, *ITEMS, *ANNOTATIONS, *JOBS,
    *PROCESSORS, *MODELS, *OTHERS,
]  # fmt: skip
