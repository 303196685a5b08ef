"""Decides which post-processors of a dataset make a job for an item."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Literal
from uuid import UUID

from ppworker.domain.inference import Task

OutputTarget = Literal["text", "annotations", "both"]
OUTPUT_TARGETS: tuple[OutputTarget, ...] = ("text", "annotations", "both")
TEXT_DOCUMENTS = (
    "application/vnd.openxmlformats-officedocument.wordprocessingml.document",
    "application/msword",
)
"""Files of text whose text has to be taken out of them at the upload. A reader of text gets a job
for one in any case: where no text could be taken, the job fails and says so."""
Reads = Literal["file", "text", "any"]
"""What a runner reads of an item: its file, its text, or the file where there is one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PostProcessor:
    """Configuration of one model for one dataset."""

    id: UUID
    dataset_id: UUID
    name: str
    model_type: Task
    runner: str
    """Name in the runner registry."""
    runner_config: Mapping[str, object] = field(default_factory=dict)
    model_id: UUID | None = None
    """The model that runner and options were taken from, None where they were named themselves."""
    model_version: str = ""
    """As somebody named a version of that model, empty where nobody did."""
    reads: Reads = "any"
    media_types: tuple[str, ...] = ("*/*",)
    """Media types the runner takes, with ``*`` as wildcard; recorded from its spec at creation."""
    description: str = ""
    enabled: bool = True
    order: int = 0
    output_target: OutputTarget = "annotations"
    auto_create_labels: bool = True
    max_new_labels: int = 100
    """Most labels this post-processor may create in one version."""
    confidence_threshold: float = 0.0
    keep_unscored: bool = True
    """Whether a prediction without a score passes a threshold above 0."""
    file_types: tuple[str, ...] = ()
    """File extensions without dot, lower case; empty means all. Text-only items are ``txt``."""
    splits: tuple[str, ...] = ()
    """Names of splits; empty means all."""
    label_mapping: Mapping[str, str | None] = field(default_factory=dict)
    """Prediction label to dataset label (its name or its id); None drops the prediction."""
    label_prefix: str = ""
    batch_size: int = 200
    """Most jobs claimed at once."""
    concurrency_cap: int | None = None
    """Most batches running at once over all workers; None means no cap."""
    timeout_s: float = 300.0
    """Most seconds one job may spend in the model."""
    max_attempts: int = 3
    on_failure: Literal["continue", "stop"] = "continue"
    """Whether later post-processors of an item still run when this one failed."""
    half_open: bool = field(default=False, compare=False)
    """Whether its pause by failures is over and its model has not answered since, when it was read
    for a worker: jobs then run one at a time."""
    revision: str = field(default="", compare=False)
    """Changes with every change of the stored row; empty where it was not read from there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemFacts:
    """What planning and applying need to know of an item."""

    extension: str = ""
    media_type: str = ""
    has_file: bool = False
    has_text: bool = False
    split_names: frozenset[str] = frozenset()


def plan_jobs(item: ItemFacts, processors: Iterable[PostProcessor]) -> list[PostProcessor]:
    """Post-processors that make a job for the item, in their order of execution.

    A text reader matches an item with text, one whose text an earlier match will write, and a
    document that should have text.
    """
    matched: list[PostProcessor] = []
    for processor in sorted(processors, key=lambda p: (p.order, p.id)):
        if (
            processor.enabled
            and _passes_filters(item, processor)
            and _can_read(item, processor, matched)
        ):
            matched.append(processor)
    return matched


def first_order(matched: Sequence[PostProcessor]) -> int | None:
    """Lowest order among the matches: jobs of that order are ready at once."""
    return min((p.order for p in matched), default=None)


def _passes_filters(item: ItemFacts, processor: PostProcessor) -> bool:
    extensions = {item.extension.lower().lstrip(".")}
    if not item.has_file:
        extensions.add("txt")  # whatever its name looks like
    if processor.file_types and extensions.isdisjoint(processor.file_types):
        return False
    return not processor.splits or not item.split_names.isdisjoint(processor.splits)


def _can_read(item: ItemFacts, processor: PostProcessor, earlier: Sequence[PostProcessor]) -> bool:
    if processor.reads != "text" and item.has_file:
        return any(fnmatchcase(item.media_type, pattern) for pattern in processor.media_types)
    if processor.reads == "file":
        return False
    if item.has_text or (item.has_file and item.media_type in TEXT_DOCUMENTS):
        return True
    return any(p.order < processor.order and p.output_target in {"text", "both"} for p in earlier)


def input_revision(reads: Reads, content_sha256: str | None, text_sha256: str | None) -> str:
    """Hash of what the runner reads of an item; a change of it makes a running answer stale."""
    if reads == "text":
        return text_sha256 or ""
    if reads == "file":
        return content_sha256 or ""
    return content_sha256 or text_sha256 or ""
