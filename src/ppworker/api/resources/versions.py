"""Versions of a dataset, with their labels and splits in them."""

from collections.abc import Sequence
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Request, Response
from pydantic import ConfigDict, Field

from ppworker.api.auth import KeyedRoute, Room
from ppworker.api.errors import responses
from ppworker.api.paths import DatasetPath, LoneVersionPath, VersionPath, missing
from ppworker.api.resources import labels as label_routes
from ppworker.api.resources import splits as split_routes
from ppworker.api.resources.inferences import Waiting
from ppworker.api.resources.labels import LabelAnswer
from ppworker.api.resources.operations import OperationAnswer, begun, later
from ppworker.api.resources.splits import SplitAnswer
from ppworker.api.wire import Asked, Base, Text
from ppworker.domain.job import Status
from ppworker.errors import Conflict
from ppworker.pipeline.deps import Deps
from ppworker.pipeline.setup import catalogue
from ppworker.pipeline.transfer import delete, duplicate
from ppworker.store import datasets, labels, versions
from ppworker.store.db import Tx
from ppworker.store.versions import Version

router = APIRouter(
    route_class=KeyedRoute, tags=["versions"], responses=responses(401, 403, 404, 503)
)


class VersionAnswer(Base):
    """A version with what belongs to it."""

    labels: list[LabelAnswer] = []
    user_id: Text = ""
    dataset_id: Text
    splits: list[SplitAnswer] = []
    default_split: Text = ""
    """Id of the split shown first; empty where nobody chose one."""
    config: str = ""


class NewVersion(Asked):
    """A version to be; null means not given."""

    model_config = ConfigDict(json_schema_extra={"example": {"name": "v2", "description": ""}})

    name: str | None = None
    """By default v and a number."""
    description: Annotated[str | None, Field(max_length=catalogue.MAX_DESCRIPTION)] = None
    config: Annotated[str | None, Field(max_length=catalogue.MAX_CONFIG)] = None
    """Text of your own; given back as it came."""


class VersionChange(NewVersion):
    """A version as it shall be; null leaves a field alone, and nested lists are read over."""

    default_split: Annotated[str | None, Field(max_length=100)] = None
    """Id of a split of the version, or empty for none."""


class Duplication(Asked):
    """What a copy is called; null means not given."""

    model_config = ConfigDict(json_schema_extra={"example": {"name": "before the review"}})

    name: str | None = None
    """By default the name of the source and the word copy."""
    description: Annotated[str | None, Field(max_length=catalogue.MAX_DESCRIPTION)] = None


@router.get("/datasets/{dataset_id}/versions")
def list_versions(deps: Room, dataset: DatasetPath) -> list[VersionAnswer]:
    """Versions of a dataset, oldest first."""
    with deps.db.look() as tx:
        return described(tx, versions.list_versions(tx, [dataset.id]))


@router.post("/datasets/{dataset_id}/versions", responses=responses(400, 413, 422))
def create_version(deps: Room, dataset: DatasetPath, body: NewVersion) -> VersionAnswer:
    """Make a version without items."""
    made = catalogue.create_version(
        deps,
        dataset,
        name=body.name or "",
        description=body.description or "",
        config=body.config or "",
    )
    with deps.db.look() as tx:
        return described(tx, [made])[0]


@router.get("/datasets/{dataset_id}/versions/{version_id}")
def read_version(deps: Room, version: VersionPath) -> VersionAnswer:
    """One version."""
    with deps.db.look() as tx:
        return described(tx, [version])[0]


@router.get("/datasetversions/{version_id}")
def read_version_alone(deps: Room, version: LoneVersionPath) -> VersionAnswer:
    """One version, by its id alone."""
    with deps.db.look() as tx:
        return described(tx, [version])[0]


@router.put("/datasets/{dataset_id}/versions/{version_id}", responses=responses(400, 413, 422))
def change_version(deps: Room, version: VersionPath, body: VersionChange) -> VersionAnswer:
    """Change a version; what is null stays as it is."""
    catalogue.change_version(deps, version, body.given())
    return read_again(deps, version, version.id)


@router.delete("/datasets/{dataset_id}/versions/{version_id}", status_code=202)
def delete_version(deps: Room, response: Response, version: VersionPath) -> OperationAnswer:
    """Delete a version. It is gone at once; items that no other version has are removed by the
    operation."""
    return begun(response, delete.version(deps, version))


@router.post(
    "/datasets/{dataset_id}/versions/{version_id}/new",
    response_model=VersionAnswer,
    responses=responses(400, 409, 413, 422)
    | {202: {"model": OperationAnswer, "description": "It takes longer: the operation"}},
)
def duplicate_version(
    request: Request,
    deps: Room,
    version: VersionPath,
    body: Duplication | None = None,
) -> Any:
    """Duplicate a version with labels, splits, annotations and states; items are shared, and no
    job is made.

    What takes longer than a request may is answered by 202 with the operation, which goes on, and
    whose result names the copy.
    """
    wanted = body or Duplication()
    operation_id = duplicate.begin(
        deps, version, name=wanted.name or "", description=wanted.description or None
    )
    waiting: Waiting = request.app.state.waiting
    operation = waiting.follow(deps, version.user_id, operation_id)
    if operation.status == Status.FAILED:
        raise Conflict(
            f"operation {operation.id} failed: {operation.error or operation.reason}",
            field="version",
        )
    if not operation.is_over:
        return later(operation)
    return read_again(deps, version, duplicate.copy_of(operation))


def read_again(deps: Deps, version: Version, version_id: UUID) -> VersionAnswer:
    """A version as it is after a change."""
    with deps.db.look() as tx:
        found = versions.find_version(tx, version.user_id, version.dataset_id, version_id)
        if found is None:
            raise missing("version", version_id)  # deleted in this very moment
        return described(tx, [found])[0]


def described(tx: Tx, found: Sequence[Version]) -> list[VersionAnswer]:
    """Versions with their labels and splits, in two statements however many they are."""
    ids = [version.id for version in found]
    own_splits: dict[UUID, list[SplitAnswer]] = {}
    for split in datasets.list_splits_of(tx, ids):
        own_splits.setdefault(split.version_id, []).append(split_routes.shown(split))
    own_labels: dict[UUID, list[LabelAnswer]] = {}
    for label in labels.list_labels_of(tx, ids):
        own_labels.setdefault(label.version_id, []).append(label_routes.shown(label))
    return [
        VersionAnswer.of(
            id=version.id,
            created_at=version.created_at,
            updated_at=version.updated_at,
            name=version.name,
            description=version.description,
            user_id=version.user_id,
            dataset_id=version.dataset_id,
            default_split=version.default_split,
            config=version.config,
            splits=own_splits.get(version.id, []),
            labels=own_labels.get(version.id, []),
        )
        for version in found
    ]
