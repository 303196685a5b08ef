"""Files that are stored by themselves, for messages that name them by their hash."""

from fastapi import APIRouter

from ppworker.api.auth import Caller, KeyedUploadRoute, Room
from ppworker.api.errors import responses
from ppworker.api.uploads import BODY, OneFile
from ppworker.api.wire import Answer
from ppworker.pipeline.uploads import sources

uploads = APIRouter(
    route_class=KeyedUploadRoute, tags=["blobs"], responses=responses(400, 401, 403, 413, 422, 503)
)


class BlobAnswer(Answer):
    """A stored file."""

    sha256: str
    size_bytes: int


@uploads.post("/blobs", openapi_extra=BODY)
def store_blob(deps: Room, caller: Caller, file: OneFile) -> BlobAnswer:
    """Store a file; a message of yours may name it by its hash from now on."""
    size = file.path.stat().st_size
    return BlobAnswer(
        sha256=sources.keep_received(deps, caller.user_id, file.path), size_bytes=size
    )
