"""Labels of a version, and how many annotations and items each has in a split."""

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Depends, Response
from pydantic import ConfigDict, Field

from ppworker.api.auth import KeyedRoute, Room
from ppworker.api.errors import responses
from ppworker.api.paths import SplitPath, VersionPath, identity, missing
from ppworker.api.resources.operations import OperationAnswer, begun
from ppworker.api.wire import Answer, Asked, Base, Text, Time
from ppworker.pipeline.setup import catalogue
from ppworker.pipeline.transfer import delete
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


class LabelBody(Asked):
    """A label as it shall be; null means not given, or leaves a field alone. Its index is ours."""

    model_config = ConfigDict(
        json_schema_extra={"example": {"name": "stop sign", "color": "#d62728", "shortcut": "s"}}
    )

    name: str | None = None
    """Required of a new one; once in a version, case and width apart."""
    description: Annotated[str | None, Field(max_length=catalogue.MAX_DESCRIPTION)] = None
    color: str | None = None
    """Like #1f77b4 or #fff; empty: ours, or the one that it has."""
    shortcut: Annotated[str | None, Field(max_length=catalogue.MAX_SHORTCUT)] = None


def _label(deps: Room, parent: VersionPath, label_id: str) -> Label:
    """The label of the path, of the version of the path."""
    wanted = identity(label_id, "label")
    with deps.db.look() as tx:
        found = labels.find_label(tx, parent.id, wanted)
    if found is None:
        raise missing("label", label_id)
    return found


LabelPath = Annotated[Label, Depends(_label)]
_LABELS = "/datasets/{dataset_id}/versions/{version_id}/labels"


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


@router.get(_LABELS)
def list_labels(deps: Room, version: VersionPath) -> list[LabelAnswer]:
    """Labels of a version by their index."""
    with deps.db.look() as tx:
        found = labels.list_labels(tx, version.id)
    return [shown(label) for label in found]


@router.post(_LABELS, responses=responses(400, 409, 413, 422))
def create_label(deps: Room, version: VersionPath, body: LabelBody) -> LabelAnswer:
    """Make a label, with the next index that is free."""
    details = {name: value for name, value in body.given().items() if name != "name"}
    made = catalogue.create_label(deps, version.id, version.user_id, body.name or "", details)
    return shown(made)


@router.get(_LABELS + "/{label_id}")
def read_label(label: LabelPath) -> LabelAnswer:
    """One label."""
    return shown(label)


@router.put(_LABELS + "/{label_id}", responses=responses(400, 409, 413, 422))
def change_label(deps: Room, label: LabelPath, body: LabelBody) -> LabelAnswer:
    """Change a label; what is null stays as it is."""
    catalogue.change_label(deps, label, body.given())
    return shown(_label_again(deps, label))


def _label_again(deps: Room, label: Label) -> Label:
    with deps.db.look() as tx:
        found = labels.find_label(tx, label.version_id, label.id)
    if found is None:
        raise missing("label", label.id)  # deleted in this very moment
    return found


@router.delete(_LABELS + "/{label_id}", status_code=202)
def delete_label(
    deps: Room, response: Response, version: VersionPath, label: LabelPath
) -> OperationAnswer:
    """Delete a label. It is gone at once; its annotations are removed by the operation."""
    return begun(response, delete.label(deps, version, label))


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
