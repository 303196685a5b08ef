"""Datasets: made with a first version, and read with all their versions in them."""

from collections.abc import Sequence
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Response
from pydantic import ConfigDict, Field
from pydantic.config import JsonDict

from ppworker.api.auth import Caller, KeyedRoute, Room
from ppworker.api.errors import responses
from ppworker.api.paths import DatasetPath, OwnDatasetPath, missing
from ppworker.api.resources import versions as version_routes
from ppworker.api.resources.operations import OperationAnswer, begun
from ppworker.api.resources.versions import VersionAnswer
from ppworker.api.wire import Asked, Base, Text
from ppworker.errors import Invalid
from ppworker.pipeline.deps import Deps
from ppworker.pipeline.setup import catalogue, logos
from ppworker.pipeline.transfer import delete
from ppworker.store import datasets, versions
from ppworker.store.datasets import Dataset
from ppworker.store.db import Tx
from ppworker.store.shares import OWNER

router = APIRouter(route_class=KeyedRoute, tags=["datasets"], responses=responses(401, 403, 503))

_EXAMPLE: JsonDict = {
    "name": "street signs",
    "description": "",
    "notes": "",
    "content_type": "images",
    "multi_label": False,
    "default_splits": True,
}


class DatasetAnswer(Base):
    """A dataset with its versions, oldest first."""

    user_id: Text = ""
    """Its owner."""
    notes: str = ""
    has_logo: bool = False
    logo: str = ""
    """What the logo's file is called; empty where there is none."""
    public: bool = False
    shared_with_me: bool = False
    share_role: str = ""
    """reader or writer, where somebody else's dataset is shared with you."""
    versions: list[VersionAnswer] = []
    multi_label: bool = False
    default_splits: bool = False
    content_type: str


class NewDataset(Asked):
    """A dataset to be; null means not given. Other fields of the contract are read over."""

    model_config = ConfigDict(json_schema_extra={"example": _EXAMPLE})

    name: str | None = None
    """Required."""
    description: Annotated[str | None, Field(max_length=catalogue.MAX_DESCRIPTION)] = None
    notes: Annotated[str | None, Field(max_length=catalogue.MAX_NOTES)] = None
    content_type: Annotated[str | None, Field(max_length=100)] = None
    """Required: images, text, tabular, ner or documents; another word is kept too."""
    multi_label: bool | None = None
    """Whether an item may carry several class labels; default false."""
    default_splits: bool | None = None
    """Whether versions begin with the splits train, valid and test; default true."""


class DatasetChange(Asked):
    """A dataset as it shall be; null leaves a field alone, and nested lists are read over."""

    model_config = ConfigDict(json_schema_extra={"example": _EXAMPLE})

    name: str | None = None
    description: Annotated[str | None, Field(max_length=catalogue.MAX_DESCRIPTION)] = None
    notes: Annotated[str | None, Field(max_length=catalogue.MAX_NOTES)] = None
    content_type: Annotated[str | None, Field(max_length=100)] = None
    multi_label: bool | None = None
    """True can become false only while no item is annotated."""
    default_splits: bool | None = None
    """For versions to come; those that are there keep their splits."""


@router.get("/datasets")
def list_datasets(deps: Room, caller: Caller) -> list[DatasetAnswer]:
    """Your datasets and those shared with you, newest first."""
    with deps.db.look() as tx:
        return _described(tx, datasets.list_datasets(tx, caller.user_id))


@router.post("/datasets", responses=responses(400, 409, 413, 422))
def create_dataset(deps: Room, caller: Caller, body: NewDataset) -> DatasetAnswer:
    """Make a dataset with a first version."""
    if body.content_type is None:
        raise Invalid(
            "is missing; write images, text, tabular, ner or documents", field="content_type"
        )
    made = catalogue.create_dataset(
        deps,
        caller.user_id,
        body.name or "",
        description=body.description or "",
        notes=body.notes or "",
        content_type=body.content_type,
        multi_label=bool(body.multi_label),
        default_splits=body.default_splits is not False,
    )
    with deps.db.look() as tx:
        return _described(tx, [made])[0]


@router.get("/datasets/{dataset_id}", responses=responses(404))
def read_dataset(deps: Room, dataset: DatasetPath) -> DatasetAnswer:
    """One dataset."""
    with deps.db.look() as tx:
        return _described(tx, [dataset])[0]


@router.put("/datasets/{dataset_id}", responses=responses(400, 404, 409, 413, 422))
def change_dataset(
    deps: Room, caller: Caller, dataset: DatasetPath, body: DatasetChange
) -> DatasetAnswer:
    """Change a dataset; what is null stays as it is."""
    catalogue.change_dataset(deps, dataset, body.given())
    return read_again(deps, caller.user_id, dataset)


@router.delete("/datasets/{dataset_id}", status_code=202, responses=responses(404))
def delete_dataset(deps: Room, response: Response, dataset: OwnDatasetPath) -> OperationAnswer:
    """Delete your dataset. It is gone at once; what was in it is removed by the operation."""
    return begun(response, delete.dataset(deps, dataset))


def read_again(deps: Deps, user_id: UUID, dataset: Dataset) -> DatasetAnswer:
    """A dataset as it is after a change, for whoever changed it."""
    with deps.db.look() as tx:
        found = datasets.find_dataset(tx, user_id, dataset.id)
        if found is None:
            raise missing("dataset", dataset.id)  # deleted in this very moment
        return _described(tx, [found])[0]


def _described(tx: Tx, found: Sequence[Dataset]) -> list[DatasetAnswer]:
    """Datasets with their versions, in three statements however many they are."""
    own: dict[UUID, list[VersionAnswer]] = {}
    listed = versions.list_versions(tx, [dataset.id for dataset in found])
    for version, answer in zip(listed, version_routes.described(tx, listed), strict=True):
        own.setdefault(version.dataset_id, []).append(answer)
    return [_shown(dataset, own.get(dataset.id, [])) for dataset in found]


def _shown(dataset: Dataset, own: list[VersionAnswer]) -> DatasetAnswer:
    is_shared = dataset.role != OWNER
    return DatasetAnswer.of(
        id=dataset.id,
        created_at=dataset.created_at,
        updated_at=dataset.updated_at,
        name=dataset.name,
        description=dataset.description,
        user_id=dataset.user_id,
        notes=dataset.notes,
        has_logo=dataset.logo_sha256 is not None,
        logo=logos.file_name(dataset),
        shared_with_me=is_shared,
        share_role=dataset.role if is_shared else "",
        versions=own,
        multi_label=dataset.multi_label,
        default_splits=dataset.default_splits,
        content_type=dataset.content_type,
    )
