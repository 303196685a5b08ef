"""What an answer changes of an item: decided from what was read under its lock, then written.

A finish does it with the answer of a model, a reapply with one that was kept.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple
from uuid import UUID

from ppworker.domain import replace as replace_rule
from ppworker.domain import stats as stat_rule
from ppworker.domain.apply import Draft
from ppworker.domain.measurements import AnnotationsWritten
from ppworker.domain.post_processor import PostProcessor
from ppworker.pipeline.runs.answers import Drafted
from ppworker.store import annotations, items, labels, stats
from ppworker.store.db import Tx
from ppworker.store.ids import new_id


class Origin(NamedTuple):
    """Where an answer comes from, and whose annotations it makes."""

    job_id: UUID
    """The job that asked the model; it need not exist any more."""
    item_id: UUID
    version_id: UUID
    user_id: UUID
    model_version: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Read:
    """What is decided on, all of it read after the items' locks were won."""

    labels: set[UUID]
    """Labels of the answers that exist, held against deletion."""
    existing: Mapping[tuple[UUID, UUID], list[replace_rule.Existing]]
    """Annotations of each (item, version)."""
    splits: Mapping[tuple[UUID, UUID], list[UUID]]


@dataclass(slots=True)
class Plan:
    """What one transaction will write; counts are by (item, version)."""

    texts: dict[UUID, str] = field(default_factory=dict)
    insert: list[annotations.NewAnnotation] = field(default_factory=list)
    update: list[annotations.NewAnnotation] = field(default_factory=list)
    delete: list[UUID] = field(default_factory=list)
    unchanged: int = 0
    before: dict[tuple[UUID, UUID], Counter[UUID | None]] = field(default_factory=dict)
    after: dict[tuple[UUID, UUID], Counter[UUID | None]] = field(default_factory=dict)
    splits: dict[tuple[UUID, UUID], list[UUID]] = field(default_factory=dict)


def read(tx: Tx, pairs: Sequence[tuple[UUID, UUID]], label_ids: Iterable[UUID]) -> Read:
    """Hold the labels, then read the annotations and splits of each (item, version).

    The items must be locked, in an earlier statement.
    """
    return Read(
        labels=labels.lock_labels(tx, label_ids),
        existing=annotations.read_existing(tx, pairs),
        splits=items.read_splits(tx, pairs),
    )


def add(
    plan: Plan,
    processor: PostProcessor,
    origin: Origin,
    drafted: Drafted,
    read: Read,
    *,
    multi_label: bool,
) -> tuple[replace_rule.Changes, list[Mapping[str, int]]]:
    """Add to the plan how an answer's drafts replace what stands.

    Returns the difference, and the drops of every step by reason. The text is the caller's to
    decide.
    """
    pair = (origin.item_id, origin.version_id)
    existing, splits = read.existing.get(pair, []), read.splits.get(pair, [])
    drafts = [(draft, label_id) for draft, label_id in drafted.drafts if label_id in read.labels]
    changes = replace_rule.replace(
        existing,
        drafts,
        processor_id=processor.id,
        order=processor.order,
        multi_label=multi_label,
    )
    dropped = [drafted.dropped, changes.dropped]
    if len(drafts) < len(drafted.drafts):
        dropped.append({"label_deleted": len(drafted.drafts) - len(drafts)})
    plan.insert += [
        _row(processor, origin, splits, draft, label_id, new_id())
        for draft, label_id in changes.insert
    ]
    plan.update += [
        _row(processor, origin, splits, update.draft, update.label_id, update.id)
        for update in changes.update
    ]
    plan.delete += changes.delete
    plan.unchanged += changes.unchanged
    plan.before[pair] = replace_rule.label_counts(existing)
    plan.after[pair] = replace_rule.label_counts_after(existing, changes)
    plan.splits[pair] = splits
    return changes, dropped


def write(tx: Tx, plan: Plan) -> None:
    """Write texts, annotations and the deltas of their label stats."""
    # What a first run of a model seldom has costs no round trip.
    if plan.delete:
        annotations.delete_suggestions(tx, plan.delete)
    if plan.update:
        annotations.update_predictions(tx, plan.update)
    if plan.texts:
        items.write_texts(tx, plan.texts)
    annotations.insert_annotations(tx, plan.insert)
    stats.append_deltas(tx, stat_rule.deltas(plan.before, plan.after, plan.splits))


def written(post_processor: str, plan: Plan) -> AnnotationsWritten:
    """The fact that a plan was committed, for the figures."""
    return AnnotationsWritten(
        post_processor=post_processor,
        inserted=len(plan.insert),
        updated=len(plan.update),
        deleted=len(plan.delete),
        deduplicated=plan.unchanged,
    )


def _row(
    processor: PostProcessor,
    origin: Origin,
    splits: list[UUID],
    draft: Draft,
    label_id: UUID,
    id_: UUID,
) -> annotations.NewAnnotation:
    return annotations.NewAnnotation(
        id=id_,
        version_id=origin.version_id,
        item_id=origin.item_id,
        label_id=label_id,
        split_id=splits[0] if splits else None,
        user_id=origin.user_id,
        kind=draft.kind,
        geometry=None if draft.geometry is None else json.dumps(draft.geometry),
        coordinates=draft.coordinates,
        text=draft.text,
        page=draft.page,
        score=draft.score,
        source="model",
        post_processor_id=processor.id,
        job_id=origin.job_id,
        model_version=origin.model_version,
        review="suggested",
        fingerprint=draft.fingerprint,
    )
