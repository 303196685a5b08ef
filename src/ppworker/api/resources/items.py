"""Items of a version: listed in pages, made one at a time, given their file."""

from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Request, Response
from pydantic import Field

from ppworker.api.auth import Caller, KeyedRoute, KeyedUploadRoute, Room
from ppworker.api.conditions import TAGGED, ExpectedVersion, tag
from ppworker.api.errors import responses
from ppworker.api.paging import (
    DEFAULT_PAGE,
    TOTALS,
    PageCount,
    PageCursor,
    PageSize,
    position,
    tell,
    tell_total,
)
from ppworker.api.paths import ItemPath, SplitPath, VersionPath, missing
from ppworker.api.resources import annotations as annotation_shape
from ppworker.api.resources import splits as split_routes
from ppworker.api.resources.annotations import AnnotationAnswer, ItemsAnnotation
from ppworker.api.resources.item_filters import WantedItems, scope_of
from ppworker.api.resources.splits import SplitAnswer
from ppworker.api.uploads import BODY, OneFile
from ppworker.api.wire import Answer, Asked, Base, Text
from ppworker.errors import Conflict, Invalid, Malformed
from ppworker.pipeline.deps import Deps
from ppworker.pipeline.edits import items as edits
from ppworker.pipeline.edits.annotations import annotate_new
from ppworker.pipeline.transfer import delete
from ppworker.pipeline.uploads import item_files
from ppworker.store import datasets, item_counts, item_lists, item_pages
from ppworker.store.datasets import Split, as_id
from ppworker.store.db import Tx
from ppworker.store.item_counts import Size
from ppworker.store.item_lists import Page
from ppworker.store.item_pages import Item
from ppworker.store.versions import Version

_ERRORS = responses(401, 403, 404, 503)
router = APIRouter(route_class=KeyedRoute, tags=["items"], responses=_ERRORS)
uploads = APIRouter(route_class=KeyedUploadRoute, tags=["items"], responses=_ERRORS)


class JobStatus(Answer):
    """How many jobs of an item are in which state."""

    pending: int = 0
    processing: int = 0
    completed: int = 0
    failed: int = 0
    total: int = 0


class ItemAnswer(Base):
    """An item with its splits, annotations and the state of its jobs.

    Media type, sizes and duration are ours; the contract does not know them.
    """

    user_id: Text = ""
    text: Text = ""
    splits: list[SplitAnswer] = []
    annotations: list[AnnotationAnswer] = []
    extension: str = ""
    version: int = 0
    job_status: JobStatus
    media_type: str = ""
    size_bytes: int = 0
    width: int | None = None
    height: int | None = None
    page_count: int | None = None
    duration_s: float | None = None


class SplitReference(Asked):
    """A split, of which only the id is looked at."""

    id: str


class NewItem(Asked):
    """An item to be; null means not given."""

    name: Annotated[str | None, Field(max_length=10_000)] = None
    description: str | None = None
    text: str | None = None
    extension: Annotated[str | None, Field(max_length=100)] = None
    splits: Annotated[list[SplitReference] | None, Field(max_length=100)] = None
    """None or empty: the version's default split, else its first one."""
    annotations: Annotated[list[ItemsAnnotation] | None, Field(max_length=1_000)] = None
    """Made with the item, as if by themselves just after it."""


class ChangedItem(Asked):
    """New values of an item; null leaves one as it is.

    Splits and annotations that clients send along are not looked at.
    """

    name: Annotated[str | None, Field(max_length=10_000)] = None
    description: str | None = None
    text: str | None = None
    """Empty: it has none any more."""
    extension: Annotated[str | None, Field(max_length=100)] = None
    """Empty leaves it as it is."""


@router.get(
    "/datasets/{dataset_id}/versions/{version_id}/items",
    responses={200: {"headers": TOTALS}, **responses(400)},
)
def list_items(
    deps: Room,
    version: VersionPath,
    filters: WantedItems,
    request: Request,
    response: Response,
    *,
    page_size: PageSize = None,
    page_count: PageCount = None,
    cursor: PageCursor = None,
) -> list[ItemAnswer]:
    """A page of items in the order in which they were made; ten of them unless you say more."""
    size = page_size or DEFAULT_PAGE
    at = position(
        f"items of {version.id}, {filters}", page_size=size, page_count=page_count, cursor=cursor
    )
    with deps.db.look() as tx:
        splits = datasets.list_splits_of(tx, [version.id])
        scope = scope_of(tx, version, splits, filters)
        counts = item_counts.read_counts(tx, scope, filters.label_id)
        page = item_lists.list_page(
            tx,
            scope,
            filters,
            after=at.after,
            offset=at.offset,
            limit=size,
            way=item_counts.way_to(counts, filters, offset=at.offset),
        )
        if page.is_cut and at.offset:
            raise Malformed(
                "too few items fit the filters to count the pages so far; "
                "go from page to page by the header X-Next-Cursor",
                field="pageCount",
            )
        if at.after is None:
            told = item_counts.size(tx, scope, filters, counts)
            tell_total(response, _known_size(told, page, at.offset))
        found = _described(tx, version, item_pages.list_items(tx, page.ids), splits)
    tell(request, response, at, page.behind)
    return found


def _known_size(told: Size, page: Page, offset: int) -> Size:
    """How long the list is: at its end that is seen."""
    is_end = page.behind is None and (page.ids or not offset)
    return Size(exactly=offset + len(page.ids)) if is_end else told


@router.post(
    "/datasets/{dataset_id}/versions/{version_id}/items", responses=responses(400, 409, 413, 422)
)
def create_item(deps: Room, caller: Caller, version: VersionPath, body: NewItem) -> ItemAnswer:
    """Make an item. With text its post-processors run; without, they do when it gets its file."""
    new = [
        annotation_shape.wanted(each, path=f"annotations[{position}].")
        for position, each in enumerate(body.annotations or [])
    ]
    with deps.db.look() as tx:
        there = datasets.list_splits(tx, version.user_id, version.id)
    draft = item_files.Draft(
        name=body.name or "",
        description=body.description or "",
        text=body.text or "",
        extension=body.extension or "",
    )
    made = item_files.create(
        deps,
        _chosen(version, there, body.splits or []),
        draft,
        also_write=annotate_new(version.id, caller.user_id, new, item_text=draft.text),
    )
    with deps.db.look() as tx:
        found = item_pages.find_item(tx, version.id, made)
        if found is None:
            raise missing("item", made)  # deleted in this very moment
        return _described(tx, version, [found])[0]


def _chosen(
    version: Version, there: Sequence[Split], wanted: Sequence[SplitReference]
) -> list[Split]:
    """The splits an item goes to: those named, else the default one, else the first."""
    if not there:
        raise Conflict("the version has no split; make one first", field="splits")
    by_id = {split.id: split for split in there}
    if not wanted:
        default = version.default_split
        return [by_id[default] if default in by_id else there[0]]
    found: dict[Any, Split] = {}
    for place, reference in enumerate(wanted):
        id_ = as_id(reference.id)
        split = None if id_ is None else by_id.get(id_)
        if split is None:
            raise Invalid(f"the version has no split '{reference.id}'", field=f"splits[{place}].id")
        found[split.id] = split
    return list(found.values())


@router.get("/datasets/{dataset_id}/versions/{version_id}/items/{item_id}", responses=TAGGED)
def read_item(deps: Room, version: VersionPath, item: ItemPath, response: Response) -> ItemAnswer:
    """One item."""
    tag(response, item.version)
    with deps.db.look() as tx:
        return _described(tx, version, [item])[0]


@router.put(
    "/datasets/{dataset_id}/versions/{version_id}/items/{item_id}",
    responses=responses(400, 412, 413, 422) | TAGGED,
)
def change_item(
    deps: Room,
    version: VersionPath,
    item: ItemPath,
    body: ChangedItem,
    response: Response,
    *,
    expected: ExpectedVersion,
) -> ItemAnswer:
    """Change an item; with If-Match only if it is at the version you read. Nothing runs by it."""
    changed = edits.Changed(
        name=body.name, description=body.description, text=body.text, extension=body.extension
    )
    edits.change(deps, version.id, item.id, changed, expected=expected)
    answer = _read(deps, version, item)
    tag(response, answer.version)
    return answer


@uploads.post(
    "/datasets/{dataset_id}/versions/{version_id}/items/{item_id}/upload",
    responses=responses(400, 413, 422),
    openapi_extra=BODY,
)
def upload_item_file(deps: Room, version: VersionPath, item: ItemPath, file: OneFile) -> ItemAnswer:
    """Give an item its file, or another one in its place: its post-processors run on it."""
    item_files.put_file(deps, version.id, item.id, file.path, name=file.name)
    return _read(deps, version, item)


@router.delete("/datasets/{dataset_id}/versions/{version_id}/splits/{split_id}/items/{item_id}")
def remove_item(deps: Room, version: VersionPath, split: SplitPath, item: ItemPath) -> ItemAnswer:
    """Take an item out of a split; the item as it was before.

    One that is in no split of any version any more is deleted with its annotations and jobs.
    """
    answer = _read(deps, version, item)
    delete.item(deps, split, item.id)
    return answer


def _read(deps: Deps, version: Version, item: Item) -> ItemAnswer:
    with deps.db.look() as tx:
        found = item_pages.find_item(tx, version.id, item.id)
        if found is None:
            raise missing("item", item.id)
        return _described(tx, version, [found])[0]


def _described(
    tx: Tx, version: Version, found: Sequence[Item], there: Sequence[Split] | None = None
) -> list[ItemAnswer]:
    """Items with all that belongs to them, in four statements however many they are; in three where
    the splits are known."""
    ids = [item.id for item in found]
    there = datasets.list_splits_of(tx, [version.id]) if there is None else there
    splits = {split.id: split for split in there}
    memberships = item_pages.list_memberships(tx, version.id, ids)
    annotated = item_pages.list_annotations(tx, version.id, ids)
    counts = item_pages.count_jobs(tx, version.id, ids)
    answers = []
    for item in found:
        own = [split_id for split_id in memberships.get(item.id, []) if split_id in splits]
        first = str(own[0]) if own else ""
        jobs = counts.get(item.id, {})
        answers.append(
            ItemAnswer.of(
                id=item.id,
                created_at=item.created_at,
                updated_at=item.updated_at,
                name=item.name,
                description=item.description,
                user_id=item.user_id,
                text=item.text,
                splits=[split_routes.shown(splits[split_id]) for split_id in own],
                annotations=[
                    annotation_shape.shown(row, split_id=first, text=item.text)
                    for row in annotated.get(item.id, [])
                ],
                extension=item.extension,
                version=item.version,
                job_status=JobStatus(**jobs, total=sum(jobs.values())),
                media_type=item.media_type,
                size_bytes=item.size_bytes or 0,
                width=item.width,
                height=item.height,
                page_count=item.page_count,
                duration_s=item.duration_s,
            )
        )
    return answers
