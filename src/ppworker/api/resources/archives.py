"""Archives of a version: taken in as items, given out as files."""

from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import FileResponse
from pydantic import BeforeValidator, Field
from starlette.background import BackgroundTask

from ppworker.api.auth import Caller, KeyedRoute, KeyedUploadRoute, Room
from ppworker.api.errors import responses
from ppworker.api.paging import absent
from ppworker.api.paths import SplitPath, VersionPath, identity, missing
from ppworker.api.resources import operations as operation_routes
from ppworker.api.resources import versions as version_routes
from ppworker.api.resources.inferences import Waiting
from ppworker.api.resources.operations import OperationAnswer
from ppworker.api.resources.versions import VersionAnswer
from ppworker.api.uploads import BODY, OneFile, Received
from ppworker.domain.job import Status
from ppworker.errors import Conflict
from ppworker.pipeline.deps import Deps
from ppworker.pipeline.transfer import export, shelf, stage
from ppworker.store import datasets, operations
from ppworker.store.datasets import Split
from ppworker.store.operations import Operation
from ppworker.store.versions import Version

_ERRORS = responses(401, 403, 404, 503)
router = APIRouter(route_class=KeyedRoute, tags=["archives"], responses=_ERRORS)
uploads = APIRouter(route_class=KeyedUploadRoute, tags=["archives"], responses=_ERRORS)

FORMAT, LOSSES, OPERATION = "X-Format", "X-Losses", "X-Operation-Id"
"""Headers: the format that was taken, how much of the dataset it cannot hold, which operation."""

_LATER: dict[int | str, dict[str, Any]] = {
    202: {"model": OperationAnswer, "description": "It takes longer: the operation"}
}
_ZIP: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The archive",
        "content": {"application/zip": {"schema": {"type": "string", "format": "binary"}}},
    }
}
_Format = Annotated[
    Annotated[str, Field(max_length=100)] | None,
    BeforeValidator(absent),
    Query(description="folders, yolo, csv, spacy-ner, coco, labelstudio or ppworker; of another "
          "one the usual format of the dataset is given.", examples=["folders"]),
]  # fmt: skip


@uploads.post(
    "/datasets/{dataset_id}/versions/{version_id}/upload",
    response_model=VersionAnswer,
    responses=responses(400, 409, 413, 422) | _LATER,
    openapi_extra=BODY,
)
def upload_archive(
    request: Request, deps: Room, caller: Caller, version: VersionPath, file: OneFile
) -> Any:
    """Add the items of an archive, whose format is found out, to a version.

    All of it is checked before anything is written. What takes longer than a request may is
    answered by 202 with the operation, which goes on.
    """
    return _taken(request, deps, caller.user_id, version, file, None)


@uploads.post(
    "/datasets/{dataset_id}/versions/{version_id}/upload/{format}",
    response_model=VersionAnswer,
    responses=responses(400, 409, 413, 422) | _LATER,
    openapi_extra=BODY,
)
def upload_archive_of_format(
    request: Request,
    deps: Room,
    caller: Caller,
    version: VersionPath,
    format: str,  # noqa: A002  the contract's word
    file: OneFile,
) -> Any:
    """Add the items of an archive of a format: folders, yolo, csv, spacy-ner, coco, labelstudio or
    ppworker."""
    return _taken(request, deps, caller.user_id, version, file, format)


@router.get(
    "/datasets/{dataset_id}/versions/{version_id}/download",
    response_class=FileResponse,
    responses=_ZIP | responses(400, 409) | _LATER,
)
def download_version(
    request: Request,
    deps: Room,
    caller: Caller,
    version: VersionPath,
    *,
    format: _Format = None,  # noqa: A002
) -> Response:
    """A version as an archive. What takes longer than a request may is answered by 202 with the
    operation; the file is then at its `download`."""
    return _given(request, deps, caller.user_id, version, None, format)


@router.get(
    "/datasets/{dataset_id}/versions/{version_id}/download/{split_id}",
    response_class=FileResponse,
    responses=_ZIP | responses(400, 409) | _LATER,
)
def download_split(
    request: Request,
    deps: Room,
    caller: Caller,
    version: VersionPath,
    split: SplitPath,
    *,
    format: _Format = None,  # noqa: A002
) -> Response:
    """One split of a version as an archive; likewise."""
    return _given(request, deps, caller.user_id, version, split, format)


@router.get(
    "/operations/{operation_id}/download",
    response_class=FileResponse,
    responses=_ZIP | responses(409),
)
def download_export(deps: Room, caller: Caller, operation_id: str) -> FileResponse:
    """The archive that an export made, for a day."""
    wanted = identity(operation_id, "operation")
    with deps.db.look() as tx:
        found = operations.find_operation(tx, caller.user_id, wanted)
        # Who may not read the dataset any more may not read its archive either.
        is_open = (
            found is not None
            and found.dataset_id is not None
            and datasets.find_dataset(tx, caller.user_id, found.dataset_id) is not None
        )
    if found is None or not is_open:
        raise missing("operation", operation_id)
    return _file(deps, found)


def _taken(
    request: Request,
    deps: Deps,
    user_id: UUID,
    version: Version,
    file: Received,
    format_name: str | None,
) -> Any:
    accepted = stage.take_archive(deps, user_id, version.id, file.path, format_name)
    waiting: Waiting = request.app.state.waiting
    operation = waiting.follow(deps, user_id, accepted.operation_id)
    if not operation.is_over:
        return operation_routes.later(operation)
    check(operation)
    return version_routes.read_again(deps, version, version.id)


def _given(
    request: Request,
    deps: Deps,
    user_id: UUID,
    version: Version,
    split: Split | None,
    format_name: str | None,
) -> Response:
    asked = export.begin(deps, user_id, version.id, split=split, format_name=format_name)
    waiting: Waiting = request.app.state.waiting
    operation = waiting.follow(deps, user_id, asked.operation_id)
    if not operation.is_over:
        answer = operation_routes.later(operation)
        answer.headers[FORMAT] = asked.format
        return answer
    check(operation)
    answer = _file(deps, operation)
    # Nobody was told of it, so nobody will ask for it again.
    answer.background = BackgroundTask(shelf.drop, deps, operation.id)
    return answer


def _file(deps: Deps, operation: Operation) -> FileResponse:
    path = export.archive(deps, operation)
    said = operation.result
    return FileResponse(
        path,
        media_type="application/zip",
        filename=str(said.get("file_name") or "dataset.zip"),
        headers={
            FORMAT: str(said.get("format", "")),
            LOSSES: str(sum(said.get("losses", {}).values())),
            OPERATION: str(operation.id),
        },
    )


def check(operation: Operation) -> None:
    """Make sure that an operation that is over ended well.

    Raises:
        Conflict: it failed.
    """
    if operation.status == Status.FAILED:
        raise Conflict(
            f"operation {operation.id} failed: {operation.error or operation.reason}",
            field="file",
        )
