"""Post-processors of a dataset: made, changed, disabled, deleted."""

from collections.abc import Iterator
from contextlib import contextmanager
from uuid import UUID

from fastapi import APIRouter

from ppworker.api.auth import Caller, KeyedRoute, Room
from ppworker.api.errors import responses
from ppworker.api.paths import DatasetPath, identity, missing
from ppworker.api.resources.processor_fields import (
    ProcessorAnswer,
    ProcessorBody,
    settings_of,
    shown,
)
from ppworker.errors import Invalid
from ppworker.pipeline.deps import Deps
from ppworker.pipeline.setup import processor_changes, processors
from ppworker.pipeline.setup.processor_models import with_model
from ppworker.pipeline.setup.processors import Wanted
from ppworker.store import post_processors
from ppworker.store.post_processors import Stored

router = APIRouter(
    route_class=KeyedRoute, tags=["post-processors"], responses=responses(401, 403, 404, 503)
)
_WRITING = responses(400, 409, 413, 422)


@router.get("/datasets/{dataset_id}/post-processors")
def list_post_processors(deps: Room, dataset: DatasetPath) -> list[ProcessorAnswer]:
    """Post-processors of a dataset in their order of execution, disabled ones included."""
    with deps.db.look() as tx:
        found = post_processors.list_stored(tx, dataset.id)
    return [shown(stored) for stored in found]


@router.post("/datasets/{dataset_id}/post-processors", responses=_WRITING)
def create_post_processor(
    deps: Room, caller: Caller, dataset: DatasetPath, body: ProcessorBody
) -> ProcessorAnswer:
    """Make a post-processor; it runs on every item that comes from now on.

    It takes runner and options of a model, or of the built-in one for its model type.
    """
    with _fields(body):
        given, options = settings_of(body)
        if body.model_id or body.model_version:
            named = body.model_id or "", body.model_version or ""
            given = with_model(deps, caller.user_id, given, *named)
        model_type = given.setdefault("model_type", "")
        given.setdefault("name", "")
        given["runner_config"] = given.get("runner_config", {}) | options
        if "runner" not in given:
            given["runner"] = processors.built_in(model_type)
        made = processors.create(deps, dataset.user_id, dataset, Wanted(**given), by_path=False)
    return _read(deps, dataset.id, made.id)


@router.get("/datasets/{dataset_id}/post-processors/{post_processor_id}")
def read_post_processor(
    deps: Room, dataset: DatasetPath, post_processor_id: str
) -> ProcessorAnswer:
    """One post-processor."""
    return _read(deps, dataset.id, identity(post_processor_id, "post-processor"))


@router.put("/datasets/{dataset_id}/post-processors/{post_processor_id}", responses=_WRITING)
def change_post_processor(
    deps: Room, caller: Caller, dataset: DatasetPath, post_processor_id: str, body: ProcessorBody
) -> ProcessorAnswer:
    """Change a post-processor; null leaves a field as it is, and so does a redacted secret.

    While it is disabled, its pending jobs wait, and keep no later post-processor waiting.
    """
    id_ = identity(post_processor_id, "post-processor")
    with _fields(body):
        given, options = settings_of(body)
        if body.model_id or body.model_version:
            named = body.model_id or "", body.model_version or ""
            stored = _stored(deps, dataset.id, id_).processor
            given = with_model(deps, caller.user_id, given, *named, stored=stored)
        processor_changes.change(deps, dataset.user_id, dataset, id_, given, options=options)
    return _read(deps, dataset.id, id_)


@router.delete("/datasets/{dataset_id}/post-processors/{post_processor_id}", status_code=204)
def delete_post_processor(deps: Room, dataset: DatasetPath, post_processor_id: str) -> None:
    """Delete a post-processor. Its pending jobs go, those that are over stay readable."""
    processor_changes.delete(deps, dataset, identity(post_processor_id, "post-processor"))


def _read(deps: Deps, dataset_id: UUID, id_: UUID) -> ProcessorAnswer:
    return shown(_stored(deps, dataset_id, id_))


def _stored(deps: Deps, dataset_id: UUID, id_: UUID) -> Stored:
    with deps.db.look() as tx:
        found = post_processors.find_stored(tx, dataset_id, id_)
    if found is None:
        raise missing("post-processor", id_)
    return found


@contextmanager
def _fields(body: ProcessorBody) -> Iterator[None]:
    """Name the fields of errors as the wire calls them."""
    try:
        yield
    except Invalid as error:
        error.field = error.field.replace("runner_config", "config", 1)
        if error.field == "config.prompt" and body.prompt:
            error.field = "prompt"
        raise
