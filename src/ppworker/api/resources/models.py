"""Models: the built-in ones, which are everybody's, and those of whoever asks."""

from typing import Annotated, Literal

from fastapi import APIRouter, Depends
from pydantic import Field

from ppworker.api.auth import Caller, KeyedRoute, Room
from ppworker.api.errors import responses
from ppworker.api.paths import identity, missing
from ppworker.api.wire import Asked, Base, Text
from ppworker.errors import Conflict
from ppworker.pipeline.setup import built_in_models, models
from ppworker.pipeline.setup.built_in_models import BuiltIn
from ppworker.store import model_inferences
from ppworker.store import models as model_store
from ppworker.store.datasets import as_id
from ppworker.store.models import Model

router = APIRouter(route_class=KeyedRoute, tags=["models"], responses=responses(401, 403, 404, 503))
WRITING = responses(400, 409, 413, 422)
_EXAMPLE = '{"runner": "usaddress", "runner_config": {"max_chars": 500}}'


Word = Annotated[str | None, Field(max_length=models.MAX_NAME)]
Long = Annotated[str | None, Field(max_length=models.MAX_LONG)]


class ModelBody(Asked):
    """A model as it shall be; null means the default, or unchanged."""

    name: Word = Field(default=None, examples=["addresses"])
    description: Long = None
    notes: Long = None
    kind: Word = Field(default=None, examples=["ner"])
    config: Long = Field(default=None, examples=[_EXAMPLE])
    """JSON text; a key runner names what runs the model, runner_config its options."""
    application_id: Word = None
    active_version_id: str | None = None
    """One of its versions."""
    auto_convert: bool | None = None
    privacy_enabled: bool | None = None
    """Whether what the model is asked is not kept."""
    public: Literal[False] | None = None
    """Models of people are not public here; only false is taken."""


class ModelAnswer(Base):
    """A model."""

    user_id: Text = ""
    notes: Text = ""
    has_logo: bool = False
    logo: str = ""
    public: bool = False
    shared_with_me: bool = False
    active_version_id: Text = ""
    can_inference: bool = False
    kind: Text = ""
    config: Text = ""
    application_id: Text = ""
    has_ml_model: bool = False
    has_onnx_model: bool = False
    has_onnx_int8_model: bool = False
    has_tflite_model: bool = False
    has_labels_file: bool = False
    auto_convert: bool = False
    privacy_enabled: bool = False


def model(deps: Room, caller: Caller, model_id: str) -> BuiltIn | Model:
    """The model of the path."""
    wanted = identity(model_id, "model")
    if (built_in := built_in_models.find_built_in(wanted)) is not None:
        return built_in
    with deps.db.look() as tx:
        found = model_store.find_model(tx, caller.user_id, wanted)
    if found is None:
        raise missing("model", model_id)
    return found


ModelPath = Annotated[BuiltIn | Model, Depends(model)]


@router.get("/models")
def list_models(deps: Room, caller: Caller) -> list[ModelAnswer]:
    """The built-in models by name, then your own, newest first."""
    with deps.db.look() as tx:
        own = model_store.list_models(tx, caller.user_id, limit=models.MOST)
    shown = [_shown(each) for each in built_in_models.list_built_in()]
    return shown + [_shown(each) for each in own]


@router.post("/models", responses=WRITING)
def create_model(deps: Room, caller: Caller, body: ModelBody) -> ModelAnswer:
    """Make a model of your own: a runner with its options, or none, which collects inferences."""
    id_ = models.create(deps, caller.user_id, _values(body))
    return _shown(model(deps, caller, str(id_)))


@router.get("/models/{model_id}")
def read_model(found: ModelPath) -> ModelAnswer:
    """One model."""
    return _shown(found)


@router.put("/models/{model_id}", responses=WRITING)
def change_model(deps: Room, caller: Caller, found: ModelPath, body: ModelBody) -> ModelAnswer:
    """Change a model of your own; null leaves a field as it is, and so does a redacted secret."""
    models.refuse_built_in(found.id)
    models.change(deps, caller.user_id, found.id, _values(body))
    return _shown(model(deps, caller, str(found.id)))


@router.delete("/models/{model_id}", status_code=204)
def delete_model(deps: Room, caller: Caller, found: ModelPath) -> None:
    """Delete a model of your own. Post-processors that were made from it run on."""
    models.delete(deps, caller.user_id, found.id)


@router.get("/models/{model_id}/stats")
def read_inference_stats(deps: Room, caller: Caller, found: ModelPath) -> int:
    """How many inferences of a model you have, added and hidden ones included."""
    with deps.db.look() as tx:
        return model_inferences.count_inferences(tx, caller.user_id, found.id)


def _values(body: ModelBody) -> dict[str, object]:
    values: dict[str, object] = body.given()
    values.pop("public", None)
    active = values.pop("active_version_id", None)
    if isinstance(active, str) and active:
        values["active_version_id"] = _version_id(active)
    return values


def _version_id(given: str) -> object:
    """The id of a version that a body names."""
    found = as_id(given)
    if found is None:
        raise Conflict("the model has no such version", field="active_version_id")
    return found


def _shown(found: BuiltIn | Model) -> ModelAnswer:
    if isinstance(found, BuiltIn):
        return ModelAnswer.of(
            id=found.id,
            name=found.runner,
            description=found.description,
            public=True,
            active_version_id=found.version_id,
            can_inference=found.can_inference,
            kind=found.kind,
            config=built_in_config(found),
            application_id=found.application_id,
        )
    return ModelAnswer.of(
        id=found.id,
        created_at=found.created_at,
        updated_at=found.updated_at,
        name=found.name,
        description=found.description,
        user_id=found.user_id,
        notes=found.notes,
        active_version_id=found.active_version_id,
        can_inference=any(map(models.can_inference, (found.active_config, found.config))),
        kind=found.kind,
        config=models.shown_config(found.config),
        application_id=found.application_id,
        auto_convert=found.auto_convert,
        privacy_enabled=found.privacy_enabled,
    )


def built_in_config(found: BuiltIn) -> str:
    """The config of a model of one's own that is the same."""
    return f'{{"runner": "{found.runner}"}}'
