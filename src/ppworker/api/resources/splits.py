"""Splits of a version."""

from typing import Annotated

from fastapi import APIRouter, Response
from pydantic import ConfigDict, Field

from ppworker.api.auth import KeyedRoute, Room
from ppworker.api.errors import responses
from ppworker.api.paths import LoneVersionPath, SplitPath, VersionPath, missing
from ppworker.api.resources.operations import OperationAnswer, begun
from ppworker.api.wire import Asked, Base, Text
from ppworker.pipeline.setup import catalogue
from ppworker.pipeline.transfer import delete
from ppworker.store import datasets
from ppworker.store.datasets import Split

router = APIRouter(route_class=KeyedRoute, tags=["splits"], responses=responses(401, 403, 404, 503))

_SPLITS = "/datasets/{dataset_id}/versions/{version_id}/splits"


class SplitAnswer(Base):
    """A split."""

    user_id: Text = ""
    version_id: Text


class SplitBody(Asked):
    """A split as it shall be; null means not given, or leaves a field alone."""

    model_config = ConfigDict(json_schema_extra={"example": {"name": "hard cases"}})

    name: str | None = None
    """Required of a new one."""
    description: Annotated[str | None, Field(max_length=catalogue.MAX_DESCRIPTION)] = None


def shown(split: Split) -> SplitAnswer:
    """A split as clients read it."""
    return SplitAnswer.model_validate(split)


@router.get(_SPLITS)
def list_splits(deps: Room, version: VersionPath) -> list[SplitAnswer]:
    """Splits of a version, oldest first."""
    with deps.db.look() as tx:
        found = datasets.list_splits_of(tx, [version.id])
    return [shown(split) for split in found]


@router.get("/dataset-versions/{version_id}/splits")
def list_splits_alone(deps: Room, version: LoneVersionPath) -> list[SplitAnswer]:
    """Splits of a version, which is named by its id alone."""
    return list_splits(deps, version)


@router.post(_SPLITS, responses=responses(400, 409, 413, 422))
def create_split(deps: Room, version: VersionPath, body: SplitBody) -> SplitAnswer:
    """Make a split."""
    made = catalogue.create_split(
        deps, version.id, version.user_id, body.name or "", description=body.description or ""
    )
    return shown(made)


@router.get(_SPLITS + "/{split_id}")
def read_split(split: SplitPath) -> SplitAnswer:
    """One split."""
    return shown(split)


@router.put(_SPLITS + "/{split_id}", responses=responses(400, 409, 413, 422))
def change_split(deps: Room, split: SplitPath, body: SplitBody) -> SplitAnswer:
    """Change a split; what is null stays as it is. Post-processors that name it are not changed."""
    catalogue.change_split(deps, split, body.given())
    with deps.db.look() as tx:
        found = datasets.find_split(tx, split.version_id, split.id)
    if found is None:
        raise missing("split", split.id)  # deleted in this very moment
    return shown(found)


@router.delete(_SPLITS + "/{split_id}", status_code=202)
def delete_split(deps: Room, response: Response, split: SplitPath) -> OperationAnswer:
    """Delete a split. It is gone at once; items that are in no other one are removed by the
    operation."""
    return begun(response, delete.split(deps, split))
