"""Annotations: as they stand inside items, and made, changed and deleted one by one."""

from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Query, Request, Response
from pydantic import ConfigDict, Field
from pydantic.config import JsonDict

from ppworker.api.auth import Caller, KeyedRoute, Room
from ppworker.api.errors import responses
from ppworker.api.paging import HEADERS, PageCount, PageCursor, PageSize, position, tell
from ppworker.api.paths import VersionPath, identity, missing
from ppworker.api.wire import MOST_PAGE, Asked, Base, Id, IdOrEmpty, OptionalText, Text
from ppworker.domain.edit import Wanted, is_stale
from ppworker.domain.geometry import MAX_PAGES
from ppworker.errors import Invalid
from ppworker.pipeline.edits import annotations as pipeline
from ppworker.pipeline.edits.annotations import Shown
from ppworker.store import edits, item_pages
from ppworker.store.datasets import as_id

router = APIRouter(
    route_class=KeyedRoute, tags=["annotations"], responses=responses(401, 403, 404, 503)
)
_WRITING = responses(400, 409, 413, 422)
_LONGEST = 100_000

_EXAMPLE: JsonDict = {
    "label_id": "0198c6b5-3c1e-7a51-9d0c-5b6f7e8d9a10",
    "item_id": "0198c6b5-3c1e-7a51-9d0c-5b6f7e8d9a11",
    "split_id": "0198c6b5-3c1e-7a51-9d0c-5b6f7e8d9a12",
    "coordinates": "0.5 0.5 0.2 0.1",
}


class AnnotationAnswer(Base):
    """What somebody or some model said about an item.

    The contract knows label, item, split, coordinates and user; the rest is ours.
    """

    label_id: Text
    item_id: Text
    split_id: Text
    coordinates: Text = ""
    user_id: Text = ""
    kind: str
    """class, bbox, polygon, keypoints, span or segment."""
    text: Text = ""
    page: int | None = None
    confidence: float | None = None
    source: str
    """human, model, inference or import."""
    review: str
    """suggested, accepted, edited or rejected."""
    stale: bool = False
    """Whether it is a span of a text that was changed since."""
    post_processor_id: OptionalText = None
    model_version: Text = ""


class NewAnnotation(Asked):
    """An annotation to be."""

    model_config = ConfigDict(json_schema_extra={"examples": [_EXAMPLE]})

    label_id: Id
    item_id: Id
    split_id: IdOrEmpty | None = None
    """A split of the item; null or empty: its first one."""
    coordinates: Annotated[str | None, Field(max_length=_LONGEST)] = None
    """``x y w h`` as shares of an image with x, y the centre; ``start end`` in characters of a text
    or seconds of a recording; empty for the whole item. Anything else is kept as it is."""
    text: Annotated[str | None, Field(max_length=_LONGEST)] = None
    """What stands or is said at the place; a span quotes the item instead."""
    page: Annotated[int | None, Field(ge=0, lt=MAX_PAGES)] = None
    """Of a document, from 0."""


class ChangedAnnotation(NewAnnotation):
    """New values of an annotation; null leaves one as it is."""

    label_id: IdOrEmpty | None = None  # type: ignore[assignment]  # here it may be left out
    item_id: IdOrEmpty | None = None  # type: ignore[assignment]
    """An annotation stays with its item: if given, the same one."""


class ItemsAnnotation(NewAnnotation):
    """An annotation of an item that is being made."""

    item_id: str | None = None  # type: ignore[assignment]
    """Not looked at: the item has no id yet."""


@router.get(
    "/datasets/{dataset_id}/versions/{version_id}/annotations",
    responses=responses(400) | {200: {"headers": HEADERS}},
)
def list_annotations(
    request: Request,
    deps: Room,
    version: VersionPath,
    response: Response,
    *,
    item_id: Annotated[str, Query(description="Whose annotations.")],
    page_size: PageSize = None,
    page_count: PageCount = None,
    cursor: PageCursor = None,
) -> list[AnnotationAnswer]:
    """Annotations of an item, oldest first; a thousand of them unless you say fewer."""
    size = page_size or MOST_PAGE
    at = position(
        f"annotations {version.id} {item_id}", page_size=size, page_count=page_count, cursor=cursor
    )
    with deps.db.look() as tx:
        item = item_pages.find_item(tx, version.id, identity(item_id, "item_id"))
        if item is None:
            raise missing("item_id", item_id)
        splits = item_pages.list_memberships(tx, version.id, [item.id]).get(item.id, [])
        rows = edits.list_annotations(
            tx, version.id, item.id, offset=at.offset, after=at.after, limit=size + 1
        )
    tell(request, response, at, rows[size - 1].id if len(rows) > size else None)
    first = str(splits[0]) if splits else ""
    return [shown(row, split_id=first, text=item.text) for row in rows[:size]]


@router.post("/datasets/{dataset_id}/versions/{version_id}/annotations", responses=_WRITING)
def create_annotation(
    deps: Room, caller: Caller, version: VersionPath, body: NewAnnotation
) -> AnnotationAnswer:
    """Annotate an item. Where a dataset takes one label per item, it replaces the one it has."""
    item_id = _needed(body.item_id, "item_id")
    return described(pipeline.annotate(deps, version.id, caller.user_id, item_id, wanted(body)))


@router.get("/datasets/{dataset_id}/versions/{version_id}/annotations/{annotation_id}")
def read_annotation(deps: Room, version: VersionPath, annotation_id: str) -> AnnotationAnswer:
    """One annotation."""
    wanted_id = identity(annotation_id, "annotation")
    with deps.db.look() as tx:
        return described(pipeline.find(tx, version.id, wanted_id))


@router.put(
    "/datasets/{dataset_id}/versions/{version_id}/annotations/{annotation_id}", responses=_WRITING
)
def change_annotation(
    deps: Room, version: VersionPath, annotation_id: str, body: ChangedAnnotation
) -> AnnotationAnswer:
    """Change an annotation; null leaves a field as it is.

    What a model said is edited from then on: it keeps its model and score, and no run changes it.
    """
    changed = pipeline.Changed(
        label_id=_optional(body.label_id, "label_id"),
        item_id=_optional(body.item_id, "item_id"),
        split_id=_optional(body.split_id, "split_id"),
        coordinates=body.coordinates,
        page=body.page,
        text=body.text,
    )
    wanted_id = identity(annotation_id, "annotation")
    return described(pipeline.change(deps, version.id, wanted_id, changed))


@router.delete("/datasets/{dataset_id}/versions/{version_id}/annotations/{annotation_id}")
def delete_annotation(deps: Room, version: VersionPath, annotation_id: str) -> AnnotationAnswer:
    """Delete an annotation and answer it. What a model said does not come back with a next run."""
    return described(pipeline.delete(deps, version.id, identity(annotation_id, "annotation")))


def wanted(body: NewAnnotation, *, path: str = "") -> pipeline.New:
    """The annotation that a body asks for.

    Args:
        body: what a client sent.
        path: put before the names of fields in errors.

    Raises:
        Invalid: an id is none.
    """
    return pipeline.New(
        label_id=_needed(body.label_id, f"{path}label_id"),
        split_id=_optional(body.split_id, f"{path}split_id"),
        where=Wanted(coordinates=body.coordinates or "", page=body.page, text=body.text or None),
        path=path,
    )


def _optional(given: str | None, name: str) -> UUID | None:
    return _needed(given, name) if given else None


def _needed(given: str, name: str) -> UUID:
    found = as_id(given)
    if found is None:
        raise Invalid(f"'{given}' is no id", field=name)
    return found


def described(found: Shown) -> AnnotationAnswer:
    """An annotation by itself as clients read it."""
    split_id = str(found.split_id) if found.split_id else ""
    return shown(found.row, split_id=split_id, text=found.item_text)


def shown(row: Any, *, split_id: str, text: str | None) -> AnnotationAnswer:
    """An annotation as clients read it.

    Args:
        row: of the table.
        split_id: a split of its item, where it does not know one itself.
        text: of its item.
    """
    return AnnotationAnswer.of(
        id=row.id,
        created_at=row.created_at,
        updated_at=row.updated_at,
        label_id=row.label_id,
        item_id=row.item_id,
        split_id=row.split_id or split_id,
        coordinates=row.coordinates,
        user_id=row.user_id,
        kind=row.kind,
        text=row.text,
        page=row.page,
        confidence=row.score,
        source=row.source,
        review=row.review,
        stale=is_stale(row.kind, row.coordinates, row.text, text),
        post_processor_id=row.post_processor_id,
        model_version=row.model_version,
    )
