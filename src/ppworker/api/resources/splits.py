"""Splits of a version."""

from typing import Annotated

from fastapi import APIRouter, Response
from pydantic import ConfigDict, Field

from ppworker.api.auth import KeyedRoute, Room
from ppworker.api.errors import responses
from ppworker.api.paths import LoneVersionPath, SplitPath, VersionPath, identities, missing
from ppworker.api.resources.operations import OperationAnswer, begun
from ppworker.api.wire import Answer, Asked, Base, Id, Text
from ppworker.errors import Invalid
from ppworker.pipeline.edits import moves
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


class Move(Asked):
    """Items of a split, and the split of the same version that they go to."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "item_ids": ["0198c6b5-3c1e-7a51-9d0c-5b6f7e8d9a10"],
                    "to": "0198c6b5-3c1e-7a51-9d0c-5b6f7e8d9a11",
                }
            ]
        }
    )

    item_ids: Annotated[list[Id], Field(min_length=1, max_length=moves.MOST)]
    to: Id


class MoveAnswer(Answer):
    """What a move did."""

    moved: int


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


@router.post(_SPLITS + "/{split_id}/move_items", responses=responses(400, 413, 422))
def move_items(deps: Room, split: SplitPath, body: Move) -> MoveAnswer:
    """Move items of this split to another one of the version, with their annotations.

    All of them or none, at most a thousand. No job is planned by it, and none ends.
    """
    ids = identities(body.item_ids, "item_ids")
    with deps.db.look() as tx:
        there = datasets.list_splits_of(tx, [split.version_id])
    to = next((each for each in there if str(each.id) == body.to), None)
    if to is None:
        raise Invalid(f"the version has no split '{body.to}'", field="to")
    return MoveAnswer(moved=moves.move(deps, ids, source=split, to=to))


@router.delete(_SPLITS + "/{split_id}", status_code=202)
def delete_split(deps: Room, response: Response, split: SplitPath) -> OperationAnswer:
    """Delete a split. It is gone at once; items that are in no other one are removed by the
    operation."""
    return begun(response, delete.split(deps, split))
