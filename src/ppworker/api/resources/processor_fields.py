"""The fields of a post-processor on the wire, and what they mean in the pipeline's own terms.

What the contract has no field for (the runner, file types, splits, the label mapping, the runner's
options) may stand beside the contract's fields or inside ``external_config``, which is JSON text:
the only place where some clients can put it. Beside wins.
"""

import json
from typing import Annotated, Any

from pydantic import ConfigDict, Field, ValidationError

from ppworker.api.wire import Asked, Base, OptionalText, Text, Time
from ppworker.errors import Invalid
from ppworker.store.post_processors import Stored
from ppworker.telemetry import redacted

PROVIDERS = ("openai", "anthropic")
"""External providers that the contract knows."""

_Whole = Annotated[int, Field(ge=-(10**9), le=10**9)]
_MAX_CONFIG = 100_000


class Extras(Asked):
    """Settings that the contract has no field for; null means not given."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)

    runner: str | None = None
    """Name of the runner; default the built-in one of the model type."""
    config: dict[str, Any] | None = None
    """Options of the runner."""
    file_types: list[str] | None = None
    """Only such files, as png; none means all."""
    splits: list[str] | None = None
    """Only items of the splits of these names; none means all."""
    label_mapping: dict[str, str | None] | None = None
    """Label of the model to the dataset's, by id or name; null drops it."""
    label_prefix: str | None = None
    """Put before the names of new labels."""
    max_new_labels: _Whole | None = None
    keep_unscored: bool | None = None
    """Whether a prediction without a score passes a threshold above 0."""
    batch_size: _Whole | None = None
    concurrency_cap: _Whole | None = None
    """Most batches at a time, over all workers."""
    timeout_s: float | None = None
    max_attempts: _Whole | None = None
    on_failure: str | None = None
    """Whether later post-processors of the item run when this one failed: continue or stop."""


class ProcessorBody(Extras):
    """A post-processor as it shall be; null means the default, or unchanged."""

    name: str | None = None
    model_type: str | None = None
    """stt, stt-diarization, classification, detection, ner, ocr or llm."""
    description: str | None = None
    enabled: bool | None = None
    order: _Whole | None = None
    """Lower ones run first."""
    model_id: str | None = None
    """A built-in model or one of yours; runner and options are taken from it as it is now."""
    model_version: str | None = None
    """Id, name or version of one of its versions; default its active one."""
    external_provider: str | None = None
    """None can be used yet: no runner for one is installed."""
    external_model: str | None = None
    """Goes with an external provider."""
    external_config: Annotated[str | None, Field(max_length=_MAX_CONFIG)] = None
    """JSON text; holds what has no field of its own, and options of the runner."""
    output_target: str | None = None
    """text, annotations or both."""
    auto_create_labels: bool | None = None
    confidence_threshold: float | None = None
    prompt: str | None = None


class ProcessorAnswer(Base):
    """A post-processor. The fields from runner on are ours."""

    dataset_id: Text
    model_type: str
    enabled: bool
    order: int
    model_id: OptionalText = None
    model_version: str = ""
    external_provider: str = ""
    external_model: str = ""
    external_config: str = ""
    output_target: str
    auto_create_labels: bool
    confidence_threshold: float
    prompt: str = ""
    user_id: Text = ""
    model_name: str = ""
    model_kind: str = ""
    is_external: bool = False
    provider_name: str = ""
    runner: str
    config: dict[str, Any] = {}
    file_types: list[str] = []
    splits: list[str] = []
    label_mapping: dict[str, str | None] = {}
    label_prefix: str = ""
    max_new_labels: int
    keep_unscored: bool
    batch_size: int
    concurrency_cap: int | None = None
    timeout_s: float
    max_attempts: int
    on_failure: str
    paused: bool = False
    """Whether somebody paused it; `ppworker processors resume` lets it run."""
    circuit_until: Time | None = None
    """When it tries one job again, while its model fails; null when it does not."""
    circuit_reason: str = ""
    """Why its model failed last: unavailable, overloaded, timeout or auth."""


_LISTS = ("file_types", "splits")
_RENAMED = {"config": "runner_config"}
_OUTSIDE = frozenset(
    {"model_id", "model_version", "external_provider", "external_model", "external_config",
     "prompt"}
)  # fmt: skip
"""Fields of the contract that are no setting of the pipeline's."""


def settings_of(body: ProcessorBody) -> tuple[dict[str, Any], dict[str, Any]]:
    """The settings that a body asks for, and options of the runner to be merged with those it has.

    Raises:
        Invalid: ``external_config`` is no JSON object of the right types, or the model that is
            asked for is an external one.
    """
    _check_model(body)
    extras, options = _inside(body.external_config or "")
    given = extras | {name: value for name, value in body.given().items() if name not in _OUTSIDE}
    if body.prompt:
        options["prompt"] = body.prompt
    for name in _LISTS:
        if name in given:
            given[name] = tuple(given[name])
    return {_RENAMED.get(name, name): value for name, value in given.items()}, options


def _check_model(body: ProcessorBody) -> None:
    if body.model_id and body.external_provider:
        raise Invalid("name a model or an external provider, not both", field="model_id")
    if body.external_provider:
        if body.external_provider not in PROVIDERS:
            known = ", ".join(PROVIDERS)
            raise Invalid(f"must be one of {known}", field="external_provider")
        raise Invalid(
            f"no runner for {body.external_provider} is installed; leave the provider out and "
            "name a runner that is",
            field="external_provider",
        )
    if body.external_model:
        raise Invalid("goes with an external provider", field="external_model")


def _inside(text: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Settings and options of the runner that stand in ``external_config``."""
    if not text.strip():
        return {}, {}
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        raise Invalid("is no JSON", field="external_config") from None
    if not isinstance(found, dict):
        raise Invalid("must be the text of a JSON object", field="external_config")
    try:
        extras = Extras.model_validate(found).given()
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise Invalid(str(first["msg"]), field=f"external_config.{where}") from None
    options = {name: value for name, value in found.items() if name not in Extras.model_fields}
    return extras, options


def shown(stored: Stored) -> ProcessorAnswer:
    """A post-processor as clients read it, without anything that looks like a secret."""
    processor = stored.processor
    config = redacted(dict(processor.runner_config))
    extras: dict[str, Any] = {
        "runner": processor.runner,
        "config": config,
        "file_types": list(processor.file_types),
        "splits": list(processor.splits),
        "label_mapping": dict(processor.label_mapping),
        "label_prefix": processor.label_prefix,
        "max_new_labels": processor.max_new_labels,
        "keep_unscored": processor.keep_unscored,
        "batch_size": processor.batch_size,
        "concurrency_cap": processor.concurrency_cap,
        "timeout_s": processor.timeout_s,
        "max_attempts": processor.max_attempts,
        "on_failure": processor.on_failure,
    }
    prompt = config.get("prompt", "")
    return ProcessorAnswer.of(
        id=processor.id,
        created_at=stored.created_at,
        updated_at=stored.updated_at,
        name=processor.name,
        description=processor.description,
        dataset_id=processor.dataset_id,
        model_type=processor.model_type,
        enabled=processor.enabled,
        order=processor.order,
        external_config=json.dumps(extras, separators=(",", ":"), ensure_ascii=False),
        output_target=processor.output_target,
        auto_create_labels=processor.auto_create_labels,
        confidence_threshold=processor.confidence_threshold,
        prompt=prompt if isinstance(prompt, str) else "",
        user_id=stored.user_id,
        model_id=processor.model_id,
        model_version=processor.model_version,
        model_name=stored.model_name or processor.runner,
        model_kind=stored.model_kind or processor.model_type,
        paused=stored.pauses.paused_by_operator,
        circuit_until=stored.pauses.circuit_until,
        circuit_reason=stored.pauses.circuit_reason,
        **extras,
    )
