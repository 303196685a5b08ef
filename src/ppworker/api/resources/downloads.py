"""Files of items, and small pictures of them."""

import asyncio
import hashlib
from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response
from starlette.concurrency import run_in_threadpool

from ppworker.api import attachments
from ppworker.api.auth import KeyedRoute, Room
from ppworker.api.errors import responses
from ppworker.api.paging import QueryFlag
from ppworker.api.paths import ItemPath
from ppworker.errors import Invalid, NotFound, RunnerError, Unavailable
from ppworker.pipeline.deps import Deps
from ppworker.pipeline.uploads.names import clean_name
from ppworker.pipeline.uploads.thumbnails import MEDIA_TYPES, Thumbnails
from ppworker.store.item_pages import Item

router = APIRouter(route_class=KeyedRoute, tags=["items"], responses=responses(401, 403, 404, 503))

_PICTURE_S = 60.0
"""Most seconds that a request waits for a small picture; many may be waited for at once."""


@router.get(
    "/datasets/{dataset_id}/versions/{version_id}/items/{item_id}/download",
    response_class=Response,
    responses={**attachments.ANSWERS, **responses(400, 416, 422)},
)
async def download_item(
    request: Request,
    deps: Room,
    item: ItemPath,
    thumbnail: Annotated[
        QueryFlag,
        Query(description="A small upright JPEG of the image, or of the first page, instead."),
    ] = None,
) -> Response:
    """The file of an item, or the text of one that has no file, as an attachment."""
    if thumbnail:
        return await _picture(request, item)
    return await run_in_threadpool(_whole, deps, request, item)


def _whole(deps: Deps, request: Request, item: Item) -> Response:
    if item.content_sha256 is not None:
        return attachments.of_file(
            request,
            deps.blobs.path(item.content_sha256),
            tag=item.content_sha256,
            media_type=item.media_type,
            name=_name(item, item.extension),
        )
    if not item.text:
        raise NotFound("the item has neither a file nor a text", field="item")
    tag = hashlib.sha256(item.text.encode()).hexdigest()
    return attachments.of_text(request, item.text, tag=tag, name=_name(item, "txt"))


async def _picture(request: Request, item: Item) -> Response:
    """A small picture. No thread waits for it, or a list of pictures would hold them all."""
    sha256 = item.content_sha256
    if sha256 is None or item.media_type not in MEDIA_TYPES:
        what = "an item without a file" if sha256 is None else item.media_type
        raise NotFound(f"there is no thumbnail of {what}", field="thumbnail")
    maker: Thumbnails = request.app.state.thumbnails
    made = await run_in_threadpool(maker.ask, sha256, item.media_type)
    try:
        # Shielded, for others may wait for the same one when this request goes.
        path = await asyncio.wait_for(asyncio.shield(asyncio.wrap_future(made)), _PICTURE_S)
    except RunnerError as error:
        if error.retryable:
            raise Unavailable("the thumbnail cannot be made now; ask again") from None
        raise Invalid(f"there is no thumbnail of it: {error}", field="thumbnail") from None
    except TimeoutError:
        raise Unavailable("the thumbnail is still being made; ask again") from None
    return await run_in_threadpool(
        attachments.of_file,
        request,
        path,
        tag=f"{sha256}-thumbnail",
        media_type="image/jpeg",
        name=_name(item, "jpg"),
    )


def _name(item: Item, extension: str) -> str:
    """How a client calls the file of an item."""
    name = clean_name(item.name or str(item.id))
    if not extension or name.lower().endswith(f".{extension}"):
        return name
    return f"{name}.{extension}"
