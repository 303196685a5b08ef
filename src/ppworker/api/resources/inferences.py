"""Inferences made elsewhere, added to a split."""

import time
from collections.abc import Callable, Sequence
from threading import BoundedSemaphore, Event
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BeforeValidator, ValidationError

from ppworker.api.auth import Caller, KeyedRoute, Room
from ppworker.api.errors import responses
from ppworker.api.paths import SplitPath
from ppworker.api.resources import operations as operation_routes
from ppworker.api.resources.operations import OperationAnswer
from ppworker.api.wire import Asked, Base, Flag, Share, Text
from ppworker.domain.job import Status
from ppworker.errors import Conflict
from ppworker.pipeline.control import operations
from ppworker.pipeline.control.operation_steps import STEPS
from ppworker.pipeline.deps import Deps
from ppworker.pipeline.inferences import collected, inferences
from ppworker.store.operations import Operation

router = APIRouter(
    route_class=KeyedRoute, tags=["inferences"], responses=responses(401, 403, 404, 503)
)


class InferenceItemAnswer(Base):
    """One prediction of an inference."""

    created_at: str | None = None  # type: ignore[assignment]  # whatever the client calls it
    updated_at: str | None = None  # type: ignore[assignment]
    prediction: Text = ""
    confidence: Share = 0.0
    inference_id: Text = ""
    coordinates: Text = ""


def _items(value: Any) -> Any:
    return [] if value is None else value


def _config(value: Any) -> Any:
    return "{}" if value is None else value


class InferenceAnswer(Base):
    """An inference as it was sent, and the item it became."""

    created_at: str | None = None  # type: ignore[assignment]  # whatever the client calls it
    updated_at: str | None = None  # type: ignore[assignment]
    prediction: Text = ""
    confidence: Share = 0.0
    model_id: Text = ""
    model_version_id: Text = ""
    extension: Text = ""
    user_id: Text = ""
    error_reported: Flag = False
    error: Text = ""
    application_id: Text = ""
    inference_host: Text = ""
    inference_time: Text = ""
    end_to_end_time: Text = ""
    dataset_item_id: Text = ""
    result: Text = ""
    inference_items: Annotated[list[InferenceItemAnswer], BeforeValidator(_items)] = []
    hidden: Flag = False
    privacy_enabled: Flag = False
    config: Annotated[str, BeforeValidator(_config)] = "{}"


class InferencesBody(Asked):
    """Inferences to be added to a split."""

    keep_annotations: bool | None = None
    """Whether predictions become annotations; false adds the items unlabelled. Default true."""
    inferences: list[dict[str, Any]] | None = None


class InferencesAnswer(Base):
    """What was added."""

    keep_annotations: bool
    inferences: list[InferenceAnswer]


class Waiting:
    """Lets few requests wait for operations at a time, so that the others find a free thread."""

    def __init__(self, most: int, stopping: Event) -> None:
        self._places = BoundedSemaphore(max(1, most))
        self._stopping = stopping

    def follow(self, deps: Deps, user_id: UUID, operation_id: UUID) -> Operation:
        """Run an operation for as long as a request waits; its state then."""
        until = self._until(deps.settings.operation_wait_s)
        has_place = self._places.acquire(blocking=False)
        try:
            wait = until if has_place else _at_once
            return operations.follow(deps, STEPS, user_id, operation_id, until=wait)
        finally:
            if has_place:
                self._places.release()

    def _until(self, wait_s: float) -> Callable[[], bool]:
        ends = time.monotonic() + wait_s
        return lambda: self._stopping.is_set() or time.monotonic() >= ends


def _at_once() -> bool:
    return True


@router.post(
    "/datasets/{dataset_id}/versions/{version_id}/splits/{split_id}/add_inferences",
    response_model=InferencesAnswer,
    responses=responses(400, 409, 413, 422)
    | {202: {"model": OperationAnswer, "description": "It takes longer: the operation"}},
)
def add_inferences(
    request: Request,
    response: Response,
    deps: Room,
    caller: Caller,
    split: SplitPath,
    *,
    body: InferencesBody,
) -> Any:
    """Add inferences to a split as items, and their predictions as annotations.

    One that is kept here, under the id of one of yours, brings its file and its text along. All of
    them are checked before any is written. What takes longer than a request may is answered by 202
    with the operation, which goes on.
    """
    keep = body.keep_annotations is not False
    sent = body.inferences or []
    if not sent:
        return InferencesAnswer(keep_annotations=keep, inferences=[])
    echo = _echo(sent)  # before anything is written: what cannot be given back is refused
    whole = collected.complete(deps, caller.user_id, split, sent)
    kept_by = caller.user_id if whole.has_kept else None
    accepted = inferences.add(deps, split, whole.inferences, keep_annotations=keep, kept_by=kept_by)
    waiting: Waiting = request.app.state.waiting
    operation = waiting.follow(deps, split.user_id, accepted.operation_id)
    if operation.status == Status.FAILED:
        raise Conflict(
            f"operation {operation.id} failed: {operation.error or operation.reason}",
            field="inferences",
        )
    if not operation.is_over:
        response.status_code = 202
        return _later(operation)
    found = inferences.find_items(deps, split, whole.inferences)
    for answer, item_id in zip(echo, found, strict=True):
        if item_id is not None:
            answer.dataset_item_id = str(item_id)
    return InferencesAnswer(keep_annotations=keep, inferences=echo)


def _later(operation: Operation) -> Response:
    answer = operation_routes.shown(operation)
    return Response(
        answer.model_dump_json(),
        status_code=202,
        media_type="application/json",
        headers={"Location": f"/api/v1/operations/{operation.id}"},
    )


def _echo(sent: Sequence[dict[str, Any]]) -> list[InferenceAnswer]:
    """What was sent, its nulls as zero values: clients cannot bear to read those they sent.

    Raises:
        RequestValidationError: a field is of another type than the contract says.
    """
    answers = []
    for position, raw in enumerate(sent):
        try:
            answers.append(InferenceAnswer.model_validate(raw))
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where = ("body", "inferences", position, *first["loc"])
            raise RequestValidationError([{**first, "loc": where}]) from None
    return answers
