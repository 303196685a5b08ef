"""States of items: what a client keeps about an item in a version, in words of its own."""

from uuid import UUID

from fastapi import APIRouter, Request, Response
from pydantic import ConfigDict

from ppworker.api.auth import Caller, KeyedRoute, Room
from ppworker.api.conditions import TAGGED, ExpectedVersion, tag
from ppworker.api.errors import responses
from ppworker.api.paging import HEADERS, PageCount, PageCursor, PageSize, position, tell
from ppworker.api.paths import ItemPath, VersionPath
from ppworker.api.wire import Asked, Base, Text
from ppworker.pipeline.edits import states
from ppworker.store import item_states
from ppworker.store.item_states import ItemState

router = APIRouter(route_class=KeyedRoute, tags=["items"], responses=responses(401, 403, 404, 503))
_UNPAGED = 10_000
"""Most states of one answer where no page size is asked for; it says when there are more."""


class ItemStateAnswer(Base):
    """The state of an item in a version; version 0 where it was never written."""

    item_id: Text
    dataset_version_id: Text
    user_id: Text = ""
    """Who wrote it last."""
    state: str = ""
    version: int = 0


class WrittenState(Asked):
    """A state to be; of the other fields that clients send along none is looked at."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"state": "reviewed"}]})

    state: str
    """In the client's own words; may be empty."""


@router.get("/datasets/{dataset_id}/versions/{version_id}/items/{item_id}/state", responses=TAGGED)
def read_item_state(
    deps: Room, version: VersionPath, item: ItemPath, response: Response
) -> ItemStateAnswer:
    """The state of an item in this version; empty, with version 0, where it was never written."""
    with deps.db.look() as tx:
        found = item_states.find_state(tx, version.id, item.id)
    tag(response, 0 if found is None else found.version)
    return _shown(version.id, item.id, found)


@router.put(
    "/datasets/{dataset_id}/versions/{version_id}/items/{item_id}/state",
    responses=responses(400, 412, 413, 422) | TAGGED,
)
def write_item_state(
    deps: Room,
    caller: Caller,
    version: VersionPath,
    item: ItemPath,
    body: WrittenState,
    response: Response,
    *,
    expected: ExpectedVersion,
) -> ItemStateAnswer:
    """Write the state of an item in this version; with If-Match only onto the version you read."""
    written = states.write(deps, version.id, item.id, caller.user_id, body.state, expected=expected)
    tag(response, written.version)
    return _shown(version.id, item.id, written)


@router.get(
    "/datasets/{dataset_id}/versions/{version_id}/states",
    responses=responses(400) | {200: {"headers": HEADERS}},
)
def list_item_states(
    request: Request,
    deps: Room,
    version: VersionPath,
    response: Response,
    *,
    page_size: PageSize = None,
    page_count: PageCount = None,
    cursor: PageCursor = None,
) -> list[ItemStateAnswer]:
    """States of a version that were written, in the order of their items.

    All of them unless a page size is given, up to ten thousand: then the header `X-Has-More` is
    true.
    """
    size = page_size or _UNPAGED
    at = position(f"states {version.id}", page_size=size, page_count=page_count, cursor=cursor)
    with deps.db.look() as tx:
        rows = item_states.list_states(
            tx, version.id, offset=at.offset, after=at.after, limit=size + 1
        )
    tell(request, response, at, rows[size - 1].item_id if len(rows) > size else None)
    return [_shown(version.id, row.item_id, row) for row in rows[:size]]


def _shown(version_id: UUID, item_id: UUID, found: ItemState | None) -> ItemStateAnswer:
    if found is None:
        return ItemStateAnswer.of(item_id=item_id, dataset_version_id=version_id)
    return ItemStateAnswer.of(
        id=found.id,
        created_at=found.created_at,
        updated_at=found.updated_at,
        item_id=item_id,
        dataset_version_id=version_id,
        user_id=found.user_id,
        state=found.state,
        version=found.version,
    )
