"""Splits of a version."""

from fastapi import APIRouter

from ppworker.api.auth import KeyedRoute, Room
from ppworker.api.errors import responses
from ppworker.api.paths import VersionPath
from ppworker.api.wire import Base, Text
from ppworker.store import datasets
from ppworker.store.datasets import Split

router = APIRouter(route_class=KeyedRoute, tags=["splits"], responses=responses(401, 403, 404, 503))


class SplitAnswer(Base):
    """A split."""

    user_id: Text = ""
    version_id: Text


def shown(split: Split) -> SplitAnswer:
    """A split as clients read it."""
    return SplitAnswer.model_validate(split)


@router.get("/datasets/{dataset_id}/versions/{version_id}/splits")
def list_splits(deps: Room, version: VersionPath) -> list[SplitAnswer]:
    """Splits of a version, oldest first."""
    with deps.db.look() as tx:
        found = datasets.list_splits(tx, version.user_id, version.id)
    return [shown(split) for split in found]
