"""Datasets: made with a first version, and read with all their versions in them."""

from collections.abc import Sequence
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter
from pydantic import Field

from ppworker.api.auth import Caller, KeyedRoute, Room
from ppworker.api.errors import responses
from ppworker.api.paths import DatasetPath
from ppworker.api.resources import versions as version_routes
from ppworker.api.resources.versions import VersionAnswer
from ppworker.api.wire import Asked, Base, Text
from ppworker.pipeline.setup import catalogue
from ppworker.store import datasets, versions
from ppworker.store.datasets import DEFAULT_SPLITS, Dataset
from ppworker.store.db import Tx
from ppworker.store.shares import OWNER

router = APIRouter(route_class=KeyedRoute, tags=["datasets"], responses=responses(401, 403, 503))


class DatasetAnswer(Base):
    """A dataset with its versions."""

    user_id: Text = ""
    notes: str = ""
    has_logo: bool = False
    logo: str = ""
    public: bool = False
    shared_with_me: bool = False
    share_role: str = ""
    """What you may do with it where it is shared with you: reader or writer."""
    versions: list[VersionAnswer] = []
    multi_label: bool = False
    default_splits: bool = False
    content_type: str


class NewDataset(Asked):
    """A dataset to be; null means not given."""

    name: str | None = None
    description: Annotated[str | None, Field(max_length=10_000)] = None
    notes: Annotated[str | None, Field(max_length=100_000)] = None
    content_type: Annotated[str | None, Field(max_length=100)] = None
    """images, text, tabular, ner, documents, or another word; default documents."""
    multi_label: bool | None = None
    """Whether an item may carry several class labels; default false."""
    default_splits: bool | None = None
    """Whether the first version gets the splits train, valid and test; default true."""


@router.get("/datasets")
def list_datasets(deps: Room, caller: Caller) -> list[DatasetAnswer]:
    """Your datasets and those shared with you, newest first."""
    with deps.db.look() as tx:
        return _described(tx, datasets.list_datasets(tx, caller.user_id))


@router.post("/datasets", responses=responses(400, 409, 413, 422))
def create_dataset(deps: Room, caller: Caller, body: NewDataset) -> DatasetAnswer:
    """Make a dataset with a first version."""
    splits = () if body.default_splits is False else DEFAULT_SPLITS
    made = catalogue.create_dataset(
        deps,
        caller.user_id,
        body.name or "",
        description=body.description or "",
        notes=body.notes or "",
        content_type=body.content_type or "documents",
        multi_label=bool(body.multi_label),
        splits=splits,
    )
    with deps.db.look() as tx:
        return _described(tx, [made])[0]


@router.get("/datasets/{dataset_id}", responses=responses(404))
def read_dataset(deps: Room, dataset: DatasetPath) -> DatasetAnswer:
    """One dataset."""
    with deps.db.look() as tx:
        return _described(tx, [dataset])[0]


def _described(tx: Tx, found: Sequence[Dataset]) -> list[DatasetAnswer]:
    """Datasets with their versions, in three statements however many they are."""
    own: dict[UUID, list[VersionAnswer]] = {}
    listed = versions.list_versions(tx, [dataset.id for dataset in found])
    for version, answer in zip(listed, version_routes.described(tx, listed), strict=True):
        own.setdefault(version.dataset_id, []).append(answer)
    return [_shown(dataset, own.get(dataset.id, [])) for dataset in found]


def _shown(dataset: Dataset, own: list[VersionAnswer]) -> DatasetAnswer:
    names = {split.name for split in own[0].splits} if own else set()
    return DatasetAnswer.of(
        id=dataset.id,
        created_at=dataset.created_at,
        updated_at=dataset.updated_at,
        name=dataset.name,
        description=dataset.description,
        user_id=dataset.user_id,
        notes=dataset.notes,
        shared_with_me=dataset.role != OWNER,
        share_role="" if dataset.role == OWNER else dataset.role,
        versions=own,
        multi_label=dataset.multi_label,
        default_splits=names >= set(DEFAULT_SPLITS),
        content_type=dataset.content_type,
    )
