"""Versions of a dataset, with their labels and splits in them."""

from collections.abc import Sequence
from uuid import UUID

from fastapi import APIRouter

from ppworker.api.auth import KeyedRoute, Room
from ppworker.api.errors import responses
from ppworker.api.paths import DatasetPath, VersionPath
from ppworker.api.resources import labels as label_routes
from ppworker.api.resources import splits as split_routes
from ppworker.api.resources.labels import LabelAnswer
from ppworker.api.resources.splits import SplitAnswer
from ppworker.api.wire import Base, Text
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
    config: str = ""


@router.get("/datasets/{dataset_id}/versions")
def list_versions(deps: Room, dataset: DatasetPath) -> list[VersionAnswer]:
    """Versions of a dataset, oldest first."""
    with deps.db.look() as tx:
        return described(tx, versions.list_versions(tx, [dataset.id]))


@router.get("/datasets/{dataset_id}/versions/{version_id}")
def read_version(deps: Room, version: VersionPath) -> VersionAnswer:
    """One version."""
    with deps.db.look() as tx:
        return described(tx, [version])[0]


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
