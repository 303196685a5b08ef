"""What a model said, applied to today's settings and labels, before any of it is written."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from uuid import UUID

from ppworker.domain.apply import Applied, Draft, Target, apply
from ppworker.domain.drop import add_counts
from ppworker.domain.events import LabelsCreated
from ppworker.domain.inference import Inference
from ppworker.domain.job import Outcome
from ppworker.domain.labels import Resolver
from ppworker.domain.post_processor import PostProcessor
from ppworker.pipeline.deps import Deps
from ppworker.pipeline.label_cache import LabelCache
from ppworker.store import jobs, labels
from ppworker.store.db import Tx


@dataclass(slots=True, kw_only=True)
class Answer:
    """A model's answer, read but not yet applied."""

    raw: str
    """JSON text, unchanged but for what PostgreSQL refuses."""
    refused: int
    """Characters and values that it refuses, taken out of ``raw``."""
    model_version: str
    inference: Inference
    target: Target


@dataclass(slots=True, kw_only=True)
class Ended:
    """An attempt that is over, with its answer if it has one."""

    job: jobs.ClaimedJob
    outcome: Outcome
    answer: Answer | None = None


@dataclass(slots=True, kw_only=True)
class Mapped:
    """An ended attempt with its answer mapped to drafts and the ids of their labels."""

    ended: Ended
    applied: Applied | None = None
    drafts: tuple[tuple[Draft, UUID], ...] = ()
    dropped: Mapping[str, int] = field(default_factory=dict)


def map_answers(
    deps: Deps, cache: LabelCache, processor: PostProcessor, ended: Sequence[Ended]
) -> list[Mapped]:
    """Apply every answer and find or create the labels it uses, before the finish begins."""
    answered = [each for each in ended if each.answer is not None]
    versions = {each.job.version_id for each in answered}
    names = cache.get(versions) if versions else {}
    applied = _apply_all(processor, answered, names)
    if any(a.new_labels or "unknown_label" in a.dropped for a in applied.values()):
        # What is remembered may be seconds old; what creates or drops must be decided on today's.
        names = cache.get(versions, fresh=True)
        applied = _apply_all(processor, answered, names)
        names = _create_labels(deps, cache, processor, answered, applied, names)
    mapped = []
    for each in ended:
        outcome = applied.get(each.job.id)
        if outcome is None:
            mapped.append(Mapped(ended=each))
            continue
        ids = names[each.job.version_id]
        drafts = tuple((d, ids[d.label]) for d in outcome.drafts if d.label in ids)
        dropped = outcome.dropped
        if len(drafts) < len(outcome.drafts):
            capped = len(outcome.drafts) - len(drafts)
            dropped = add_counts(dropped, {"label_cap": capped})
        mapped.append(Mapped(ended=each, applied=outcome, drafts=drafts, dropped=dropped))
    return mapped


def _apply_all(
    processor: PostProcessor,
    answered: Sequence[Ended],
    names: Mapping[UUID, Mapping[str, UUID]],
) -> dict[UUID, Applied]:
    resolvers = {version_id: Resolver(processor, known) for version_id, known in names.items()}
    return {
        each.job.id: apply(
            each.answer.inference,
            processor,
            names[each.job.version_id],
            each.answer.target,
            resolvers[each.job.version_id],
        )
        for each in answered
        if each.answer is not None
    }


def _create_labels(
    deps: Deps,
    cache: LabelCache,
    processor: PostProcessor,
    answered: Sequence[Ended],
    applied: Mapping[UUID, Applied],
    names: Mapping[UUID, Mapping[str, UUID]],
) -> dict[UUID, dict[str, UUID]]:
    """Create what the answers need, a short transaction for each version; ids by name."""
    wanted: dict[UUID, dict[str, None]] = {}
    for each in answered:
        for name in applied[each.job.id].new_labels:
            wanted.setdefault(each.job.version_id, {})[name] = None
    owners = {each.job.version_id: each.job.user_id for each in answered}
    complete = {version_id: dict(known) for version_id, known in names.items()}
    for version_id in sorted(wanted):

        def create(tx: Tx, version_id: UUID = version_id) -> tuple[dict[str, UUID], list[str]]:
            return labels.ensure_labels(
                tx,
                version_id,
                owners[version_id],
                list(wanted[version_id]),
                post_processor_id=processor.id,
                cap=processor.max_new_labels,
            )

        ids, created = deps.db.transact(create)
        complete[version_id] |= ids
        cache.forget(version_id)
        if created:
            deps.emit(
                [
                    LabelsCreated(
                        version_id=version_id,
                        post_processor=processor.name,
                        names=tuple(created),
                    )
                ]
            )
    return complete
