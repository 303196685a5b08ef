"""Thousands of items in one request."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Request, Response

from ppworker.api.auth import Caller, KeyedUploadRoute, Room
from ppworker.api.errors import responses
from ppworker.api.many_files import SPLIT, Packed, pack, receive_lines
from ppworker.api.paths import VersionPath
from ppworker.api.resources import operations as operation_routes
from ppworker.api.resources.archives import check
from ppworker.api.resources.inferences import Waiting
from ppworker.api.resources.operations import OperationAnswer
from ppworker.api.uploads import PART
from ppworker.api.wire import Answer
from ppworker.errors import Malformed
from ppworker.pipeline.transfer import bulk

router = APIRouter(
    route_class=KeyedUploadRoute, tags=["items"], responses=responses(401, 403, 404, 503)
)

LINES = frozenset(
    {"", "application/x-ndjson", "application/jsonl", "application/x-jsonlines", "application/json"}
)
"""Content types of lines; clients of the contract send JSON without saying so."""
_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/x-ndjson": {
                "schema": {"type": "string"},
                "example": '{"name": "a", "text": "hello", "splits": ["train"], '
                '"annotations": [{"label": "greeting", "coordinates": "0 5"}]}\n',
            },
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": [PART],
                    "properties": {
                        PART: {"type": "array", "items": {"type": "string", "format": "binary"}},
                        SPLIT: {"type": "string"},
                    },
                }
            },
        },
    }
}


class BulkAnswer(Answer):
    """What was made, and the operation that makes it; with 202 it goes on."""

    items: int
    """Items of the request."""
    items_created: int
    """Of them, so far."""
    annotations_created: int
    jobs_planned: int
    repeated: bool
    """The idempotency key was known: this is what was made the first time."""
    operation: OperationAnswer


async def _receive(request: Request, deps: Room, _: Caller) -> AsyncIterator[Packed | Path]:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind in LINES:
        async for path in receive_lines(request, deps):
            yield path
    elif kind == "multipart/form-data":
        async for packed in pack(request, deps):
            yield packed
    else:
        raise Malformed(
            "the body must be application/x-ndjson, one JSON object a line, or "
            f"multipart/form-data with parts named {PART}",
            field="Content-Type",
        )


@router.post(
    "/datasets/{dataset_id}/versions/{version_id}/items/bulk",
    responses=responses(400, 409, 413, 422)
    | {202: {"model": BulkAnswer, "description": "It takes longer: the operation goes on"}},
    openapi_extra=_BODY,
)
def create_items(
    request: Request,
    response: Response,
    deps: Room,
    caller: Caller,
    version: VersionPath,
    body: Annotated[Packed | Path, Depends(_receive)],
    *,
    idempotency_key: Annotated[str | None, Header(max_length=200)] = None,
) -> BulkAnswer:
    """Make many items: JSON Lines with one item each, or many files.

    All are checked before any is made; an error names the line. An item names its splits by id or
    name and its labels likewise; what is named and not there is made. The same Idempotency-Key
    with the same body makes them once.
    """
    if isinstance(body, Packed):
        accepted = bulk.take_files(
            deps,
            caller.user_id,
            version.id,
            body.path,
            body.files,
            split=body.split or None,
            key=idempotency_key,
        )
    else:
        accepted = bulk.take_lines(deps, caller.user_id, version.id, body, key=idempotency_key)
    waiting: Waiting = request.app.state.waiting
    operation = waiting.follow(deps, caller.user_id, accepted.operation_id)
    if operation.is_over:
        check(operation)
    else:
        response.status_code = 202
        response.headers["Location"] = f"/api/v1/operations/{operation.id}"
    return BulkAnswer.of(
        items=accepted.total,
        items_created=operation.counts.get("items_created", 0),
        annotations_created=operation.counts.get("annotations_created", 0),
        jobs_planned=operation.counts.get("jobs_planned", 0),
        repeated=accepted.repeated,
        operation=operation_routes.shown(operation),
    )
