"""Labels of a version, and how many annotations and items each has in a split."""

from uuid import UUID

from fastapi import APIRouter

from ppworker.api.auth import KeyedRoute, Room
from ppworker.api.errors import responses
from ppworker.api.paths import SplitPath, VersionPath
from ppworker.api.wire import Answer, Base, Text, Time
from ppworker.store import labels, stats
from ppworker.store.labels import Label

router = APIRouter(route_class=KeyedRoute, tags=["labels"], responses=responses(401, 403, 404, 503))


class LabelAnswer(Base):
    """A label."""

    user_id: Text = ""
    version_id: Text
    color: str = ""
    index: int = 0
    shortcut: str = ""


class LabelStat(Answer):
    """Counts of one label in one split; label_id is empty in the row of unlabelled items."""

    id: str = ""
    created_at: Time | None = None
    updated_at: Time | None = None
    label_id: str
    split_id: str
    count: int
    annotation_count: int
    item_count: int


def shown(label: Label) -> LabelAnswer:
    """A label as clients read it."""
    return LabelAnswer.model_validate(label)


@router.get("/datasets/{dataset_id}/versions/{version_id}/labels")
def list_labels(deps: Room, version: VersionPath) -> list[LabelAnswer]:
    """Labels of a version by their index."""
    with deps.db.look() as tx:
        found = labels.list_labels(tx, version.id)
    return [shown(label) for label in found]


@router.get("/datasets/{dataset_id}/versions/{version_id}/labels/splits/{split_id}")
def list_label_stats(deps: Room, version: VersionPath, split: SplitPath) -> list[LabelStat]:
    """A row for every label, also where there is nothing to count, and one of unlabelled items."""
    # In this order: a label that is made in between has a row without counts, not the reverse.
    with deps.db.look() as tx:
        counted = stats.read_stats(tx, [split.id])
        known = labels.list_labels(tx, version.id)
    by_label = {row.label_id: row for row in counted if row.bucket == "label"}
    unlabelled = sum(row.item_count for row in counted if row.bucket == "unlabelled")
    rows = []
    for label in known:
        row = by_label.get(label.id)
        rows.append(
            _row(
                split.id,
                str(label.id),
                annotations=row.annotation_count if row else 0,
                items=row.item_count if row else 0,
            )
        )
    return [*rows, _row(split.id, "", annotations=0, items=unlabelled)]


@router.get("/datasets/{dataset_id}/versions/{version_id}/labels/stats/splits/{split_id}")
def read_split_stats(deps: Room, split: SplitPath) -> LabelStat:
    """How many items and annotations a split has in all."""
    with deps.db.look() as tx:
        counted = stats.read_stats(tx, [split.id])
    total = [row for row in counted if row.bucket == "total"]
    return _row(
        split.id,
        "",
        annotations=sum(row.annotation_count for row in total),
        items=sum(row.item_count for row in total),
    )


def _row(split_id: UUID, label_id: str, *, annotations: int, items: int) -> LabelStat:
    return LabelStat(
        label_id=label_id,
        split_id=str(split_id),
        count=items,
        annotation_count=annotations,
        item_count=items,
    )
