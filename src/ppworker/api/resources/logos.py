"""The logo of a dataset: a small picture, taken in and given back."""

from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Depends, Request
from fastapi.responses import FileResponse

from ppworker.api.auth import Caller, KeyedRoute, KeyedUploadRoute, Room
from ppworker.api.errors import responses
from ppworker.api.paths import DatasetPath, missing
from ppworker.api.resources import datasets as dataset_routes
from ppworker.api.resources.datasets import DatasetAnswer
from ppworker.api.uploads import BODY, Received, take
from ppworker.pipeline.setup import logos

_ERRORS = responses(401, 403, 404, 503)
router = APIRouter(route_class=KeyedRoute, tags=["datasets"], responses=_ERRORS)
uploads = APIRouter(route_class=KeyedUploadRoute, tags=["datasets"], responses=_ERRORS)


async def _receive(request: Request, deps: Room, _: Caller) -> AsyncIterator[Received]:
    length = request.headers.get("content-length", "")
    if length.isdigit() and int(length) > 2 * logos.MAX_BYTES:
        raise logos.too_large()
    async for received in take(request, deps, limit=2 * logos.MAX_BYTES):
        yield received


@uploads.post(
    "/datasets/{dataset_id}/upload", responses=responses(400, 413, 422), openapi_extra=BODY
)
def upload_logo(
    deps: Room,
    caller: Caller,
    dataset: DatasetPath,
    file: Annotated[Received, Depends(_receive)],
) -> DatasetAnswer:
    """Give a dataset its logo, a PNG or JPEG of at most 5 MB and 4096 x 4096 pixels."""
    logos.put(deps, dataset, file.path, name=file.name)
    return dataset_routes.read_again(deps, caller.user_id, dataset)


@router.get(
    "/datasets/{dataset_id}/logo",
    response_class=FileResponse,
    responses={
        200: {
            "description": "The picture",
            "content": {
                kind: {"schema": {"type": "string", "format": "binary"}}
                for kind in logos.EXTENSIONS
            },
        }
    },
)
def read_logo(deps: Room, dataset: DatasetPath) -> FileResponse:
    """The logo of a dataset, as it was uploaded."""
    if dataset.logo_sha256 is None or not deps.blobs.has(dataset.logo_sha256):
        raise missing("logo", dataset.id)
    return FileResponse(
        deps.blobs.path(dataset.logo_sha256),
        media_type=dataset.logo_media_type,
        filename=logos.file_name(dataset),
        content_disposition_type="attachment",
    )
