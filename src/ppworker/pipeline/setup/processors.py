"""Creates post-processors: everything about one is checked before anything is written."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal
from uuid import UUID

from ppworker.domain.inference import TASKS, Task
from ppworker.domain.labels import MAX_NAME, normalise_label
from ppworker.domain.post_processor import OUTPUT_TARGETS, OutputTarget, PostProcessor
from ppworker.domain.text import clean_json, clean_text
from ppworker.errors import Invalid
from ppworker.pipeline.deps import Deps
from ppworker.pipeline.setup.catalogue import checked_name
from ppworker.runners import registry
from ppworker.runners.base import RunnerSpec
from ppworker.store import datasets, labels, post_processors
from ppworker.store.datasets import Dataset, as_id
from ppworker.store.db import Tx
from ppworker.store.ids import new_id

_WRITES_TEXT = frozenset({"ocr", "stt", "stt-diarization", "llm"})
"""Tasks whose answer may hold a text for the item."""
_MOSTLY_TEXT = frozenset({"ocr", "stt"})
"""Tasks that are asked for the text and nothing else unless somebody says so."""
_ON_FAILURE: dict[str, Literal["continue", "stop"]] = {"continue": "continue", "stop": "stop"}

BUILT_IN: Mapping[Task, str] = {
    "classification": "magika",
    "detection": "rapidocr-boxes",
    "ner": "usaddress",
    "ocr": "rapidocr",
    "stt": "pocketsphinx",
}
"""The runner of a task for whom nobody named one."""

_MAX_DESCRIPTION = 10_000
_MAX_PREFIX = 100
_MAX_EXTENSION = 16
_MAX_ORDER = 1_000_000
_MAX_NEW_LABELS = 10_000
_MAX_TIMEOUT_S = 86_400.0
_MAX_CAP = 10_000
_MAX_MAPPING = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """A post-processor to be, as the caller asks for it; the fields are ``PostProcessor``'s."""

    name: str
    runner: str
    description: str = ""
    enabled: bool = True
    model_type: str | None = None
    """None: the runner's natural one."""
    output_target: str | None = None
    """None: text for ocr and stt, else annotations."""
    runner_config: Mapping[str, object] = field(default_factory=dict)
    model_id: UUID | None = None
    model_version: str = ""
    order: int = 0
    auto_create_labels: bool = True
    max_new_labels: int = 100
    confidence_threshold: float = 0.0
    keep_unscored: bool = True
    file_types: tuple[str, ...] = ()
    splits: tuple[str, ...] = ()
    label_mapping: Mapping[str, str | None] = field(default_factory=dict)
    label_prefix: str = ""
    batch_size: int = 200
    concurrency_cap: int | None = None
    timeout_s: float = 300.0
    max_attempts: int = 3
    on_failure: str = "continue"


def create(
    deps: Deps, user_id: UUID, dataset: Dataset, wanted: Wanted, *, by_path: bool = True
) -> PostProcessor:
    """Create a post-processor in a dataset.

    Args:
        deps: the collaborators.
        user_id: who creates it.
        dataset: where.
        wanted: what is asked for.
        by_path: whether the runner may be named ``module:Class``; no at doors open to strangers.

    Raises:
        Invalid: something of it cannot work; ``field`` names it, the message says what would.
        Conflict: the dataset has one of that name.
    """
    processor = checked(dataset, wanted, by_path=by_path)

    def work(tx: Tx) -> None:
        check_references(tx, user_id, dataset, processor)
        post_processors.create_post_processor(tx, user_id, processor)

    deps.db.transact(work)
    return processor


def built_in(model_type: str) -> str:
    """Name of the runner that comes with ppworker for a task.

    Raises:
        Invalid: the task is unknown, or no model for it comes with ppworker.
    """
    for task in TASKS:
        if task == model_type:
            break
    else:
        raise Invalid(f"must be one of {', '.join(TASKS)}, not '{model_type}'", field="model_type")
    found = BUILT_IN.get(task)
    if found is None or found not in registry.names():
        raise Invalid(
            f"no model for {model_type} is built in; name a runner that serves it "
            f"(known are {', '.join(registry.names())})",
            field="runner",
        )
    return found


def checked(
    dataset: Dataset, wanted: Wanted, *, by_path: bool, id_: UUID | None = None
) -> PostProcessor:
    """The post-processor that is asked for, checked as far as that needs no database.

    Args:
        dataset: where it is to be.
        wanted: what is asked for.
        by_path: whether the runner may be named ``module:Class``.
        id_: of one that exists; None makes a new one.

    Raises:
        Invalid: something of it cannot work.
    """
    name = checked_name(wanted.name)
    description, _ = clean_text(wanted.description)
    if len(description) > _MAX_DESCRIPTION:
        raise Invalid(f"has at most {_MAX_DESCRIPTION} characters", field="description")
    config, unfit = clean_json(dict(wanted.runner_config))
    if unfit:
        raise Invalid(
            "the runner's settings hold what JSON or PostgreSQL cannot store (NUL, lone "
            "surrogates, NaN); leave it out",
            field="runner_config",
        )
    spec = registry.check(wanted.runner, config, by_path=by_path)
    model_type = _model_type(wanted, spec)
    _check_numbers(wanted)
    on_failure = _ON_FAILURE.get(wanted.on_failure)
    if on_failure is None:
        raise Invalid(f"must be one of {', '.join(_ON_FAILURE)}", field="on_failure")
    return PostProcessor(
        id=id_ or new_id(),
        dataset_id=dataset.id,
        name=name,
        description=description,
        enabled=wanted.enabled,
        model_type=model_type,
        runner=wanted.runner,
        runner_config=config,
        model_id=wanted.model_id,
        model_version=wanted.model_version,
        reads=spec.reads,
        media_types=spec.media_types,
        order=wanted.order,
        output_target=_target(wanted, model_type),
        auto_create_labels=wanted.auto_create_labels,
        max_new_labels=wanted.max_new_labels,
        confidence_threshold=wanted.confidence_threshold,
        keep_unscored=wanted.keep_unscored,
        file_types=_file_types(wanted.file_types),
        splits=tuple(dict.fromkeys(wanted.splits)),
        label_mapping=_mapping(wanted.label_mapping),
        label_prefix=_prefix(wanted.label_prefix),
        batch_size=wanted.batch_size,
        concurrency_cap=wanted.concurrency_cap,
        timeout_s=wanted.timeout_s,
        max_attempts=wanted.max_attempts,
        on_failure=on_failure,
    )


def _model_type(wanted: Wanted, spec: RunnerSpec) -> Task:
    if wanted.model_type is None:
        return spec.tasks[0]
    for task in spec.tasks:
        if task == wanted.model_type:
            return task
    raise Invalid(
        f"runner '{wanted.runner}' serves {', '.join(spec.tasks)}, not '{wanted.model_type}'",
        field="model_type",
    )


def _target(wanted: Wanted, model_type: Task) -> OutputTarget:
    if wanted.output_target is None:
        return "text" if model_type in _MOSTLY_TEXT else "annotations"
    for target in OUTPUT_TARGETS:
        if target == wanted.output_target:
            break
    else:
        raise Invalid(f"must be one of {', '.join(OUTPUT_TARGETS)}", field="output_target")
    if target != "annotations" and model_type not in _WRITES_TEXT:
        raise Invalid(
            f"{model_type} gives no text for the item; its target must be annotations",
            field="output_target",
        )
    return target


def _check_numbers(wanted: Wanted) -> None:
    _within("order", wanted.order, -_MAX_ORDER, _MAX_ORDER)
    _within("max_new_labels", wanted.max_new_labels, 0, _MAX_NEW_LABELS)
    _within("confidence_threshold", wanted.confidence_threshold, 0, 1)
    _within("batch_size", wanted.batch_size, 1, 1000)
    _within("max_attempts", wanted.max_attempts, 1, 100)
    _within("timeout_s", wanted.timeout_s, 0.1, _MAX_TIMEOUT_S)
    if wanted.concurrency_cap is not None:
        _within("concurrency_cap", wanted.concurrency_cap, 1, _MAX_CAP)


def _within(name: str, value: float, low: float, high: float) -> None:
    # A value that is no number compares false, and so is refused too.
    if not (math.isfinite(value) and low <= value <= high):
        raise Invalid(f"must be a number from {low:g} to {high:g}, not {value:g}", field=name)


def _file_types(given: tuple[str, ...]) -> tuple[str, ...]:
    found = []
    for file_type in given:
        extension = file_type.strip().removeprefix(".").lower()
        is_plain = extension.isascii() and extension.isalnum() and len(extension) <= _MAX_EXTENSION
        if not is_plain:
            raise Invalid(
                f"'{file_type}' is no file extension; write one like png", field="file_types"
            )
        found.append(extension)
    return tuple(dict.fromkeys(found))


def _mapping(given: Mapping[str, str | None]) -> dict[str, str | None]:
    if len(given) > _MAX_MAPPING:
        raise Invalid(f"at most {_MAX_MAPPING} labels can be mapped", field="label_mapping")
    forms: dict[str, str] = {}
    for source, to in given.items():
        form = normalise_label(source)
        if not form or clean_text(source)[1]:
            raise Invalid(
                "a label that is mapped has a name, without NUL and lone surrogates",
                field="label_mapping",
            )
        if form in forms:
            raise Invalid(
                f"'{forms[form]}' and '{source}' are the same label, case apart; map it once",
                field="label_mapping",
            )
        forms[form] = source
        if to is not None and not (to.strip() and len(to) <= MAX_NAME and to.isprintable()):
            raise Invalid(
                f"'{source}' is mapped to what can be no label; write FROM=TO, or FROM= to drop it",
                field="label_mapping",
            )
    return dict(given)


def _prefix(given: str) -> str:
    if len(given) > _MAX_PREFIX or not given.isprintable():
        raise Invalid(
            f"a prefix has at most {_MAX_PREFIX} characters and no control characters",
            field="label_prefix",
        )
    return given


def check_references(tx: Tx, user_id: UUID, dataset: Dataset, processor: PostProcessor) -> None:
    """Make sure that the splits and labels it names are there.

    Raises:
        Invalid: one is not.
    """
    _check_splits(tx, user_id, dataset, processor)
    _check_mapped_ids(tx, dataset, processor)


def _check_splits(tx: Tx, user_id: UUID, dataset: Dataset, processor: PostProcessor) -> None:
    there = [split.name for split in datasets.list_splits(tx, user_id, dataset.version_id)]
    for name in processor.splits:
        if name not in there:
            raise Invalid(
                f"dataset '{dataset.name}' has no split '{name}'; it has {', '.join(there)}",
                field="splits",
            )


def _check_mapped_ids(tx: Tx, dataset: Dataset, processor: PostProcessor) -> None:
    """A mapping may name a label by its id; one that does not exist is a slip of the pen."""
    wanted = {id_ for to in processor.label_mapping.values() if to and (id_ := as_id(to))}
    if not wanted:
        return
    there = {label.id for label in labels.list_labels(tx, dataset.version_id)}
    for id_ in sorted(wanted - there):
        raise Invalid(f"dataset '{dataset.name}' has no label {id_}", field="label_mapping")
