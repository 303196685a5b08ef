"""Versions of models; a built-in model has one, which stays as it is."""

from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import Field

from ppworker.api.auth import Caller, KeyedRoute, Room
from ppworker.api.errors import responses
from ppworker.api.paths import identity, missing
from ppworker.api.resources.models import WRITING, Long, ModelPath, Word, built_in_config
from ppworker.api.wire import Answer, Asked, Base, Text
from ppworker.pipeline.deps import Deps
from ppworker.pipeline.setup import models
from ppworker.pipeline.setup.built_in_models import BuiltIn
from ppworker.store import models as model_store
from ppworker.store.models import Model, ModelVersion

router = APIRouter(route_class=KeyedRoute, tags=["models"], responses=responses(401, 403, 404, 503))
_MOST_METRICS = 1000


class MetricBody(Asked):
    """A figure of a version."""

    name: Annotated[str | None, Field(max_length=255)] = None
    description: Annotated[str | None, Field(max_length=10_000)] = None
    value: float | None = None


class MetricAnswer(Answer):
    """A figure of a version."""

    name: Text = ""
    description: Text = ""
    model_version_id: Text = ""
    value: float = 0.0


class ModelVersionBody(Asked):
    """A version as it shall be; null means the default, or unchanged."""

    name: Word = Field(default=None, examples=["second try"])
    description: Long = None
    config: Long = None
    """JSON text; where it names a runner, it stands for the model's."""
    application_id: Word = None
    version: Word = Field(default=None, examples=["2.0"])
    dataset_id: Word = None
    dataset_version_id: Word = None
    job_id: Word = None
    metrics: Annotated[list[MetricBody] | None, Field(max_length=_MOST_METRICS)] = None
    """Of a new version; a change leaves them as they are."""


class ModelVersionAnswer(Base):
    """A version of a model."""

    model_id: Text = ""
    user_id: Text = ""
    can_inference: bool = False
    has_logo: bool = False
    config: Text = ""
    application_id: Text = ""
    version: Text = ""
    version_number: int
    has_ml_model: bool = False
    has_onnx_model: bool = False
    has_onnx_int8_model: bool = False
    has_tflite_model: bool = False
    has_labels_file: bool = False
    dataset_id: Text = ""
    dataset_version_id: Text = ""
    job_id: Text = ""
    metrics: list[MetricAnswer] = []


@router.get("/models/{model_id}/versions")
def list_model_versions(deps: Room, model: ModelPath) -> list[ModelVersionAnswer]:
    """Versions of a model, oldest first."""
    if isinstance(model, BuiltIn):
        return [_of_built_in(model)]
    with deps.db.look() as tx:
        found = model_store.list_versions(tx, model.id, limit=models.MOST)
    return [_shown(model, each) for each in found]


@router.post("/models/{model_id}/versions", responses=WRITING)
def create_model_version(
    deps: Room, caller: Caller, model: ModelPath, body: ModelVersionBody
) -> ModelVersionAnswer:
    """Make a version of a model of your own; the first one becomes its active one."""
    id_ = models.create_version(deps, caller.user_id, model.id, _values(body))
    return _read(deps, model, str(id_))


@router.get("/models/{model_id}/versions/{version_id}")
def read_model_version(deps: Room, model: ModelPath, version_id: str) -> ModelVersionAnswer:
    """One version."""
    return _read(deps, model, version_id)


@router.put("/models/{model_id}/versions/{version_id}", responses=WRITING)
def change_model_version(
    deps: Room, caller: Caller, model: ModelPath, version_id: str, body: ModelVersionBody
) -> ModelVersionAnswer:
    """Change a version; null leaves a field as it is."""
    wanted = identity(version_id, "version")
    models.change_version(deps, caller.user_id, model.id, wanted, _values(body))
    return _read(deps, model, version_id)


@router.delete("/models/{model_id}/versions/{version_id}", status_code=204)
def delete_model_version(deps: Room, caller: Caller, model: ModelPath, version_id: str) -> None:
    """Delete a version; if it was the active one, the model has none then."""
    models.delete_version(deps, caller.user_id, model.id, identity(version_id, "version"))


def _values(body: ModelVersionBody) -> dict[str, Any]:
    values = body.given()
    if body.metrics is not None:
        values["metrics"] = [each.given() for each in body.metrics]
    return values


def _read(deps: Deps, model: BuiltIn | Model, version_id: str) -> ModelVersionAnswer:
    wanted = identity(version_id, "version")
    if isinstance(model, BuiltIn):
        if wanted != model.version_id:
            raise missing("version", version_id)
        return _of_built_in(model)
    with deps.db.look() as tx:
        found = model_store.find_version(tx, model.id, wanted)
    if found is None:
        raise missing("version", version_id)
    return _shown(model, found)


def _of_built_in(model: BuiltIn) -> ModelVersionAnswer:
    return ModelVersionAnswer.of(
        id=model.version_id,
        name="v1",
        model_id=model.id,
        can_inference=model.can_inference,
        config=built_in_config(model),
        application_id=model.application_id,
        version=model.framework_version,
        version_number=1,
    )


def _shown(model: Model, version: ModelVersion) -> ModelVersionAnswer:
    can_inference = models.can_inference(version.config) or models.can_inference(model.config)
    return ModelVersionAnswer.of(
        id=version.id,
        created_at=version.created_at,
        updated_at=version.updated_at,
        name=version.name,
        description=version.description,
        model_id=version.model_id,
        user_id=version.user_id,
        can_inference=can_inference,
        config=models.shown_config(version.config),
        application_id=version.application_id,
        version=version.version,
        version_number=version.version_number,
        dataset_id=version.dataset_id,
        dataset_version_id=version.dataset_version_id,
        job_id=version.job_id,
        metrics=[MetricAnswer.of(**each, model_version_id=version.id) for each in version.metrics],
    )
