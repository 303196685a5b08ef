"""Every field and type of the contract's answers, written down from its reference by hand.

What the reference names and what is ours beside it stand apart, so that neither gets lost.
"""

import re
from collections.abc import Mapping
from typing import Any

_STAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z")


class Stamp:
    """Stands for a time in an expected shape."""


class Optional:
    """Stands for null or something."""

    def __init__(self, shape: Any) -> None:
        self.shape = shape


class Raw:
    """Stands for bytes of a media type instead of JSON."""

    def __init__(self, media_type: str) -> None:
        self.media_type = media_type


class Anything:
    """Stands for JSON of any kind, where the contract lets a client say what it likes."""


def fits(value: Any, shape: Any, where: str = "answer") -> None:
    """Make sure that a value has exactly the fields and types of a shape."""
    if isinstance(shape, Optional):
        if value is not None:
            fits(value, shape.shape, where)
    elif isinstance(shape, Mapping):
        assert isinstance(value, dict), f"{where}: {value!r} is no object"
        assert value.keys() == shape.keys(), (
            f"{where}: missing {sorted(shape.keys() - value.keys())}, "
            f"unexpected {sorted(value.keys() - shape.keys())}"
        )
        for name, inner in shape.items():
            fits(value[name], inner, f"{where}.{name}")
    elif isinstance(shape, list):
        assert isinstance(value, list), f"{where}: {value!r} is no list"
        for position, each in enumerate(value):
            fits(each, shape[0], f"{where}[{position}]")
    elif shape is Anything:
        return
    elif shape is Stamp:
        assert _STAMP.fullmatch(str(value)), f"{where}: {value!r}"
    elif shape is float:
        assert type(value) in {int, float}, f"{where}: {value!r}"
    else:
        assert type(value) is shape, f"{where}: {value!r} is no {shape.__name__}"


def holds(value: Any, shape: Any) -> bool:
    """Whether something stands in every list of a shape's first level, so that it shows anything."""
    return not isinstance(shape, list) or bool(value)


BASE = {"id": str, "created_at": Stamp, "updated_at": Stamp, "name": str, "description": str}
LATER = BASE | {"created_at": Optional(Stamp), "updated_at": Optional(Stamp)}
"""Base of what may not be there yet."""

PROBLEM = {"message": str, "severity": str, "field": str}

# 1.1 Accounts
LOGIN = {
    "id": str, "username": str, "name": str, "email": str, "firstname": str, "apikey": str,
}  # fmt: skip
CONTEXT = {
    "user_id": str, "organizations": [dict], "roles": [dict], "permissions": [str],
} | {"username": str, "scopes": [str]}  # fmt: skip
KEY = {
    "id": str, "user_id": str, "organization_id": Optional(str), "name": str, "key_prefix": str,
    "scopes": [str], "last_used_at": Optional(Stamp), "expires_at": Optional(Stamp),
    "disabled": bool,
} | {"created_at": Stamp, "updated_at": Stamp}  # fmt: skip
NEW_KEY = KEY | {"key": str}
LOGOUT = {"ended": bool}

# 1.4, 1.5
SPLIT = BASE | {"user_id": str, "version_id": str}
LABEL = BASE | {
    "user_id": str, "version_id": str, "color": str, "index": int, "shortcut": str,
}  # fmt: skip
STAT = {
    "id": str, "created_at": Optional(Stamp), "updated_at": Optional(Stamp), "label_id": str,
    "split_id": str, "count": int, "annotation_count": int, "item_count": int,
}  # fmt: skip

# 1.3, 1.2
VERSION = BASE | {
    "labels": [LABEL], "user_id": str, "dataset_id": str, "splits": [SPLIT], "default_split": str,
    "config": str,
}  # fmt: skip
DATASET = BASE | {
    "user_id": str, "notes": str, "has_logo": bool, "logo": str, "public": bool,
    "shared_with_me": bool, "versions": [VERSION], "multi_label": bool, "default_splits": bool,
    "content_type": str,
} | {"share_role": str}  # fmt: skip
SHARE = BASE | {
    "email": str, "entity_type": str, "entity_id": str, "without_invite": bool, "role_id": str,
} | {"user_id": str}  # fmt: skip
SHARED_WITH = {
    "user_id": str, "username": str, "email": str, "role": str, "created_at": Stamp,
    "updated_at": Stamp,
}  # fmt: skip

# 1.7
_OURS_OF_ANNOTATIONS = {
    "kind": str, "text": str, "page": Optional(int), "confidence": Optional(float), "source": str,
    "review": str, "stale": bool, "post_processor_id": Optional(str), "model_version": str,
}  # fmt: skip
ANNOTATION = (
    BASE
    | {"label_id": str, "item_id": str, "split_id": str, "coordinates": str, "user_id": str}
    | _OURS_OF_ANNOTATIONS
)

# 1.6
JOB_STATUS = {"pending": int, "processing": int, "completed": int, "failed": int, "total": int}
_OURS_OF_ITEMS = {
    "media_type": str, "size_bytes": int, "width": Optional(int), "height": Optional(int),
    "page_count": Optional(int), "duration_s": Optional(float),
}  # fmt: skip
ITEM = BASE | {
    "user_id": str, "text": str, "splits": [SPLIT], "annotations": [ANNOTATION], "extension": str,
    "version": int, "job_status": JOB_STATUS,
} | _OURS_OF_ITEMS  # fmt: skip
STATE = LATER | {
    "item_id": str, "dataset_version_id": str, "user_id": str, "state": str, "version": int,
}  # fmt: skip

# 1.8
JOB = BASE | {
    "post_processor_id": str, "dataset_item_id": str, "dataset_id": str, "status": str,
    "attempts": int, "max_attempts": int, "error": Optional(str), "result": Optional(str),
    "started_at": Optional(Stamp), "completed_at": Optional(Stamp), "user_id": str,
} | {"reason": str, "dropped": dict, "next_attempt_at": Optional(Stamp)}  # fmt: skip
JOB_DETAILS = JOB | {"post_processor_name": str, "item_name": str}
_OURS_OF_PROCESSORS = {
    "runner": str, "config": dict, "file_types": [str], "splits": [str], "label_mapping": dict,
    "label_prefix": str, "max_new_labels": int, "keep_unscored": bool, "batch_size": int,
    "concurrency_cap": Optional(int), "timeout_s": float, "max_attempts": int, "on_failure": str,
    "paused": bool, "circuit_until": Optional(Stamp), "circuit_reason": str,
}  # fmt: skip
PROCESSOR = BASE | {
    "dataset_id": str, "model_type": str, "enabled": bool, "order": int, "model_id": Optional(str),
    "model_version": str, "external_provider": str, "external_model": str, "external_config": str,
    "output_target": str, "auto_create_labels": bool, "confidence_threshold": float,
    "prompt": str, "user_id": str, "model_name": str, "model_kind": str, "is_external": bool,
    "provider_name": str,
} | _OURS_OF_PROCESSORS  # fmt: skip

# 1.9
INFERENCE_ITEM = LATER | {
    "prediction": str, "confidence": float, "inference_id": str, "coordinates": str,
}  # fmt: skip
INFERENCE = BASE | {
    "created_at": Optional(str), "updated_at": Optional(str), "prediction": str,
    "confidence": float, "model_id": str, "model_version_id": str, "extension": str,
    "user_id": str, "error_reported": bool, "error": str, "application_id": str,
    "inference_host": str, "inference_time": str, "end_to_end_time": str, "dataset_item_id": str,
    "result": str, "inference_items": [INFERENCE_ITEM], "hidden": bool, "privacy_enabled": bool,
    "config": str,
}  # fmt: skip
INFERENCES = LATER | {"keep_annotations": bool, "inferences": [INFERENCE]}
APPLICATION = LATER | {
    "base_framework": str, "base_framework_version": str, "framework": str,
    "framework_version": str, "application": str, "inference_host": str,
    "can_convert_to_onnx": bool, "can_convert_to_tensorflow": bool, "can_convert_to_tflite": bool,
    "continual_training": bool, "has_embedding_support": bool, "has_labels_file": bool,
    "inference_extensions": str,
}  # fmt: skip
MODEL = LATER | {
    "user_id": str, "notes": str, "has_logo": bool, "logo": str, "public": bool,
    "shared_with_me": bool, "active_version_id": str, "can_inference": bool, "kind": str,
    "config": str, "application_id": str, "has_ml_model": bool, "has_onnx_model": bool,
    "has_onnx_int8_model": bool, "has_tflite_model": bool, "has_labels_file": bool,
    "auto_convert": bool, "privacy_enabled": bool,
}  # fmt: skip
METRIC = {"name": str, "description": str, "model_version_id": str, "value": float}
MODEL_VERSION = BASE | {
    "model_id": str, "user_id": str, "can_inference": bool, "has_logo": bool, "config": str,
    "application_id": str, "version": str, "version_number": int, "has_ml_model": bool,
    "has_onnx_model": bool, "has_onnx_int8_model": bool, "has_tflite_model": bool,
    "has_labels_file": bool, "dataset_id": str, "dataset_version_id": str, "job_id": str,
    "metrics": [METRIC],
}  # fmt: skip

MODEL_INFERENCE = INFERENCE | {
    "created_at": Stamp, "updated_at": Stamp,
    "inference_items": [INFERENCE_ITEM | {"confidence": Optional(float)}],
}  # fmt: skip

# Ours
OPERATION = {
    "id": str, "kind": str, "status": str, "done": int, "total": Optional(int), "counts": dict,
    "result": dict, "dataset_id": Optional(str), "reason": str, "error": Optional(str), "created_at": Stamp,
    "started_at": Optional(Stamp), "completed_at": Optional(Stamp),
}  # fmt: skip
REVIEW = {
    "action": str, "changed": int, "already": int, "conflicts": int, "missing": int,
    "operation": Optional(OPERATION),
}  # fmt: skip
RETRIED = {"retried": int, "skipped": int}
MOVE = {"moved": int}
BULK = {
    "items": int, "items_created": int, "annotations_created": int, "jobs_planned": int,
    "repeated": bool, "operation": OPERATION,
}  # fmt: skip
BLOB = {"sha256": str, "size_bytes": int}
