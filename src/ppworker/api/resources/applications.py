"""What models can be made with here: one application for each installed runner."""

from fastapi import APIRouter

from ppworker.api.auth import Caller, KeyedRoute
from ppworker.api.errors import responses
from ppworker.api.wire import Base
from ppworker.pipeline.setup.built_in_models import (
    BASE_FRAMEWORK,
    BASE_FRAMEWORK_VERSION,
    list_built_in,
)

router = APIRouter(route_class=KeyedRoute, tags=["models"], responses=responses(401, 403, 503))


class ApplicationAnswer(Base):
    """A kind of model that can be asked here."""

    base_framework: str
    base_framework_version: str
    framework: str
    """The package that holds the model."""
    framework_version: str
    application: str
    """What clients call its task, such as ocr."""
    inference_host: str
    can_convert_to_onnx: bool
    can_convert_to_tensorflow: bool
    can_convert_to_tflite: bool
    continual_training: bool
    has_embedding_support: bool
    has_labels_file: bool
    inference_extensions: str
    """Extensions of the files that it takes, comma between; empty where it takes any."""


@router.get("/applications")
def list_applications(_caller: Caller) -> list[ApplicationAnswer]:
    """Applications: one for each runner that is installed here, sorted by name."""
    return [
        ApplicationAnswer.of(
            id=each.application_id,
            name=each.runner,
            description=each.description,
            base_framework=BASE_FRAMEWORK,
            base_framework_version=BASE_FRAMEWORK_VERSION,
            framework=each.framework,
            framework_version=each.framework_version,
            application=each.kind,
            inference_host="",
            can_convert_to_onnx=False,
            can_convert_to_tensorflow=False,
            can_convert_to_tflite=False,
            continual_training=False,
            has_embedding_support=False,
            has_labels_file=False,
            inference_extensions=each.extensions,
        )
        for each in list_built_in()
    ]
