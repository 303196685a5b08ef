"""Inferences: a model asked about a text or a file, what it said elsewhere, and what is kept."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Depends, Path, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse
from pydantic import Field, ValidationError
from starlette.concurrency import run_in_threadpool

from ppworker.api import uploads as receiving
from ppworker.api.auth import Caller, KeyedRoute, KeyedUploadRoute, Room
from ppworker.api.errors import responses
from ppworker.api.paging import PageCount, PageSize, QueryFlag, QueryText
from ppworker.api.paths import identity, missing
from ppworker.api.resources.models import ModelPath
from ppworker.api.turns import Turns
from ppworker.api.uploads import BODY, OneFile
from ppworker.api.wire import Asked, Base, Flag, Share, Text
from ppworker.errors import Conflict, Malformed, NotFound, TooLarge
from ppworker.pipeline.deps import Deps
from ppworker.pipeline.inferences import collected
from ppworker.pipeline.inferences.predict import Input
from ppworker.pipeline.setup import models
from ppworker.pipeline.setup.models import Chosen
from ppworker.pipeline.uploads.names import clean_name
from ppworker.store import model_inferences as store
from ppworker.store.datasets import as_id
from ppworker.store.model_inferences import ModelInference, Page

_ERRORS = responses(401, 403, 404, 503)
router = APIRouter(route_class=KeyedRoute, tags=["inferences"], responses=_ERRORS)
asking = APIRouter(route_class=KeyedUploadRoute, tags=["inferences"], responses=_ERRORS)
"""Routes that read their body by limits of their own."""

EitherId = Annotated[
    str, Path(alias="id", description="Of a model, to ask it; of an inference, to change it.")
]
"""One path serves both: a published schema must not have two that differ by a name alone."""

PAGE = 25
_MOST_ITEMS = 10_000
_WORD = Field(max_length=collected.MAX_WORD)
_LONG = Field(max_length=collected.MAX_LONG)
_TEXT_BODY: dict[str, Any] = {
    "schema": {
        "type": "object",
        "required": ["input_text"],
        "properties": {
            "input_text": {"type": "string", "minLength": 1},
            "temperature": {"type": ["number", "null"]},
            "max_tokens": {"type": ["integer", "null"]},
        },
        "example": {"input_text": "123 Main Street, Springfield, IL 62704"},
    }
}
ASKED: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {**BODY["requestBody"]["content"], "application/json": _TEXT_BODY},
    }
}
"""The description of a body that is a file or a text."""


class TextBody(Asked):
    """A text that a model is asked about."""

    input_text: str
    temperature: float | None = None
    """Taken from clients that send it; no installed model knows it."""
    max_tokens: int | None = None
    """Likewise."""


class PredictionBody(Asked):
    """One prediction of an inference."""

    prediction: Annotated[str | None, _WORD] = None
    confidence: Annotated[float | None, Field(ge=0, le=1)] = None
    coordinates: Annotated[str | None, _LONG] = None


class InferenceBody(Asked):
    """An inference; null means the default, or unchanged."""

    name: str | None = Field(default=None, examples=["invoice.png"])
    """The text that the model was asked about, or the name of the file."""
    description: Annotated[str | None, _LONG] = None
    prediction: Annotated[str | None, _WORD] = None
    confidence: Annotated[float | None, Field(ge=0, le=1)] = None
    model_version_id: str | None = None
    """A version of the model; by default its active one."""
    extension: Annotated[str | None, _WORD] = Field(default=None, examples=["png"])
    """Of the file; none where the model was asked about a text."""
    error_reported: bool | None = None
    error: Annotated[str | None, _LONG] = None
    application_id: Annotated[str | None, _WORD] = None
    inference_host: Annotated[str | None, _WORD] = None
    inference_time: Annotated[str | None, _WORD] = Field(default=None, examples=["228.278543ms"])
    end_to_end_time: Annotated[str | None, _WORD] = None
    result: str | None = None
    inference_items: Annotated[list[PredictionBody] | None, Field(max_length=_MOST_ITEMS)] = None
    """Its predictions; a change leaves them as they are."""
    hidden: bool | None = None
    privacy_enabled: bool | None = None
    config: Annotated[str | None, _LONG] = None


class ModelInferenceItem(Base):
    """One prediction of an inference."""

    prediction: Text = ""
    confidence: float | None = None
    """Null where the model gives none."""
    inference_id: Text = ""
    coordinates: Text = ""


class ModelInferenceAnswer(Base):
    """What a model said about one input."""

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
    """The item that it became last."""
    result: Text = ""
    """The text that the model wrote, if it writes any."""
    inference_items: list[ModelInferenceItem] = []
    hidden: Flag = False
    privacy_enabled: Flag = False
    config: str = "{}"


@asynccontextmanager
async def _received(request: Request, deps: Deps, caller: Any) -> AsyncIterator[Input]:
    """The body: a form with a file, or JSON with a text."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        async with asynccontextmanager(receiving.receive)(request, deps, caller) as file:
            yield Input(path=file.path, name=file.name)
    elif kind in {"", "application/json"} or kind.endswith("+json"):
        yield Input(text=_text(await _whole(request, deps.settings.max_body_bytes)).input_text)
    else:
        raise Malformed("the body must be JSON with input_text, or multipart/form-data with file")


async def _whole(request: Request, most: int) -> bytes:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > most:
            raise TooLarge(f"the body has more than {most} bytes")
    return bytes(body)


def _text(body: bytes) -> TextBody:
    try:
        value = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Malformed(f"the body is not JSON: {error}"[:200]) from None
    try:
        return TextBody.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise RequestValidationError([{**first, "loc": ("body", *first["loc"])}]) from None


def chosen(deps: Room, caller: Caller, model_id: str) -> Chosen:
    """The model of the path, in its active version."""
    identity(model_id, "model")
    with deps.db.look() as tx:
        return models.choose(tx, caller.user_id, model_id)


def chosen_version(deps: Room, caller: Caller, model_id: str, version_id: str) -> Chosen:
    """The version of the path, of the model of the path."""
    identity(model_id, "model")
    identity(version_id, "version")
    with deps.db.look() as tx:
        return models.choose(tx, caller.user_id, model_id, version_id)


def asked_model(deps: Room, caller: Caller, id_: EitherId) -> Chosen:
    """The model of a path that may name either."""
    return chosen(deps, caller, id_)


ChosenPath = Annotated[Chosen, Depends(chosen)]
AskedPath = Annotated[Chosen, Depends(asked_model)]
ChosenVersionPath = Annotated[Chosen, Depends(chosen_version)]


def inference(deps: Room, caller: Caller, inference_id: str) -> ModelInference:
    """The inference of the path."""
    wanted = identity(inference_id, "inference")
    with deps.db.look() as tx:
        found = store.find_inference(tx, caller.user_id, wanted)
    if found is None:
        raise missing("inference", inference_id)
    return found


def changed_inference(deps: Room, caller: Caller, id_: EitherId) -> ModelInference:
    """The inference of a path that may name either."""
    return inference(deps, caller, id_)


InferencePath = Annotated[ModelInference, Depends(inference)]
ChangedPath = Annotated[ModelInference, Depends(changed_inference)]


@asking.post("/inferences/{id}", responses=responses(400, 409, 413, 422), openapi_extra=ASKED)
async def infer(
    request: Request, deps: Room, caller: Caller, model: AskedPath
) -> ModelInferenceAnswer:
    """Ask a model about a file or a text, now; the answer is kept under its id."""
    turns: Turns = request.app.state.turns
    await run_in_threadpool(model.spec)  # before the body is read: a model that only collects
    async with _received(request, deps, caller) as given:
        said = await turns.ask(model, given)
        found = await run_in_threadpool(collected.keep, deps, caller.user_id, model, given, said)
    return _shown(found)


@asking.post(
    "/inferences/{model_id}/versions/{version_id}",
    responses=responses(400, 409, 413, 422),
    openapi_extra=ASKED,
)
async def infer_with_version(
    request: Request, deps: Room, caller: Caller, model: ChosenVersionPath
) -> ModelInferenceAnswer:
    """Ask a version of a model about a file or a text, now."""
    return await infer(request, deps, caller, model)


@router.post("/inferences/{model_id}/add", responses=responses(400, 409, 413, 422))
def add_inference(
    deps: Room, caller: Caller, model: ChosenPath, body: InferenceBody
) -> ModelInferenceAnswer:
    """Keep what a model said elsewhere; its file may follow by an upload."""
    values = body.given()
    version = values.pop("model_version_id", "")
    if version and version != str(model.version_id):
        model = _of_version(deps, caller.user_id, model, version)
    if body.inference_items is not None:
        values["inference_items"] = [each.given() for each in body.inference_items]
    return _shown(collected.add(deps, caller.user_id, model, values))


def _of_version(deps: Deps, user_id: UUID, model: Chosen, version: str) -> Chosen:
    try:
        with deps.db.look() as tx:
            return models.choose(tx, user_id, str(model.model_id), version)
    except NotFound:
        raise Conflict("the model has no such version", field="model_version_id") from None


@asking.post(
    "/inferences/{inference_id}/upload",
    responses=responses(400, 413, 422),
    openapi_extra=BODY,
)
def upload_inference_file(
    deps: Room, caller: Caller, found: InferencePath, file: OneFile
) -> ModelInferenceAnswer:
    """Give an inference the file that the model was asked about."""
    given = Input(path=file.path, name=file.name)
    return _shown(collected.put_file(deps, caller.user_id, found.id, given))


@router.get(
    "/inferences/{inference_id}/download",
    response_class=FileResponse,
    responses={200: {"content": {"*/*": {}}, "description": "The file"}},
)
def download_inference_file(deps: Room, found: InferencePath) -> FileResponse:
    """The file that a model was asked about, as an attachment."""
    path = deps.blobs.path(found.content_sha256) if found.content_sha256 else None
    if path is None or not path.is_file():
        raise NotFound("the inference has no file", field="inference")
    return FileResponse(
        path,
        media_type=found.media_type or "application/octet-stream",
        filename=clean_name(found.name),
        content_disposition_type="attachment",
    )


@router.put("/inferences/{id}", responses=responses(400, 413, 422))
def change_inference(
    deps: Room, caller: Caller, found: ChangedPath, body: InferenceBody
) -> ModelInferenceAnswer:
    """Change what you say of an inference: its name, description, result, error, whether it is
    hidden. What the model said stays."""
    return _shown(collected.change(deps, caller.user_id, found.id, body.given()))


@router.get("/models/{model_id}/inferences", responses=responses(400))
def list_inferences(
    deps: Room,
    caller: Caller,
    model: ModelPath,
    response: Response,
    *,
    page_size: PageSize = None,
    page_count: PageCount = None,
    version_ids: Annotated[QueryText, Query(alias="modelVersionIds")] = None,
    include_already_added: Annotated[QueryFlag, Query(alias="includeAlreadyAdded")] = None,
    show_hidden: Annotated[QueryFlag, Query(alias="showHidden")] = None,
) -> list[ModelInferenceAnswer]:
    """Your inferences of a model, newest first; those that became items only when asked for.

    The header `X-Has-More` tells whether another page follows.
    """
    size = page_size or PAGE
    wanted = None if version_ids is None else [as_id(each) for each in version_ids.split(",")]
    page = Page(
        offset=(page_count or 0) * size,
        limit=size + 1,
        version_ids=None if wanted is None else [id_ for id_ in wanted if id_ is not None],
        with_added=bool(include_already_added),
        with_hidden=bool(show_hidden),
    )
    with deps.db.look() as tx:
        rows = store.list_inferences(tx, caller.user_id, model.id, page)
    response.headers["X-Has-More"] = "true" if len(rows) > size else "false"
    return [_shown(row) for row in rows[:size]]


def _shown(row: ModelInference) -> ModelInferenceAnswer:
    items = [ModelInferenceItem.of(**each, inference_id=row.id) for each in row.items]
    names = ModelInferenceAnswer.model_fields.keys() - {"inference_items"}
    values = {name: getattr(row, name) for name in names}
    return ModelInferenceAnswer.of(**values, inference_items=items)
