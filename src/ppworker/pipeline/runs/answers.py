"""What a model said, applied to today's settings and labels, before any of it is written."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol
from uuid import UUID

from ppworker.domain.apply import Applied, Draft, Target, apply
from ppworker.domain.drop import add_counts
from ppworker.domain.events import LabelsCreated
from ppworker.domain.inference import Inference
from ppworker.domain.job import Outcome
from ppworker.domain.labels import Resolver
from ppworker.domain.post_processor import PostProcessor
from ppworker.pipeline.deps import Deps
from ppworker.pipeline.runs.label_cache import LabelCache
from ppworker.store import labels
from ppworker.store.claims import ClaimedJob
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

    job: ClaimedJob
    outcome: Outcome
    answer: Answer | None = None


@dataclass(slots=True, kw_only=True)
class Mapped:
    """An ended attempt with what its answer becomes, if it has one."""

    ended: Ended
    drafted: "Drafted | None" = None


class Inferred(NamedTuple):
    """A model's answer for an item of a version, with what applying it needs to know."""

    key: UUID
    """Tells it from others that are mapped with it; a job's id would not, for the copy of a version
    keeps answers of the same jobs."""
    version_id: UUID
    user_id: UUID
    inference: Inference
    target: Target


@dataclass(slots=True, kw_only=True)
class Drafted:
    """What an answer becomes by today's settings and labels."""

    text: str | None
    """New text of the item; None leaves its text alone."""
    drafts: tuple[tuple[Draft, UUID], ...]
    """With the ids of their labels."""
    dropped: Mapping[str, int] = field(default_factory=dict)
    """Everything of the answer that became no draft, by reason."""


class Names(Protocol):
    """Labels of versions, by name."""

    def get(
        self, version_ids: Collection[UUID], *, fresh: bool = False
    ) -> Mapping[UUID, Mapping[str, UUID]]:
        """Label ids by name for each version; ``fresh`` reads them now."""

    def create(
        self, processor: PostProcessor, version_id: UUID, user_id: UUID, names: Sequence[str]
    ) -> Mapping[str, UUID]:
        """Ids of the named labels; those beyond the post-processor's cap are left out."""


class CreatedNames:
    """Labels as they are remembered, and created in short transactions of their own."""

    def __init__(self, deps: Deps, cache: LabelCache) -> None:
        self._deps = deps
        self._cache = cache

    def get(
        self, version_ids: Collection[UUID], *, fresh: bool = False
    ) -> Mapping[UUID, Mapping[str, UUID]]:
        """As ``Names.get``."""
        return self._cache.get(version_ids, fresh=fresh)

    def create(
        self, processor: PostProcessor, version_id: UUID, user_id: UUID, names: Sequence[str]
    ) -> Mapping[str, UUID]:
        """As ``Names.create``."""

        def work(tx: Tx) -> tuple[dict[str, UUID], list[str]]:
            return labels.ensure_labels(
                tx,
                version_id,
                user_id,
                names,
                post_processor_id=processor.id,
                cap=processor.max_new_labels,
            )

        ids, created = self._deps.db.transact(work)
        self._cache.forget(version_id)
        if created:
            self._deps.emit(
                [
                    LabelsCreated(
                        version_id=version_id,
                        post_processor=processor.name,
                        names=tuple(created),
                    )
                ]
            )
        return ids


def map_answers(
    deps: Deps, cache: LabelCache, processor: PostProcessor, ended: Sequence[Ended]
) -> list[Mapped]:
    """Apply every answer and find or create the labels it uses, before the finish begins."""
    inferred = [
        Inferred(
            each.job.id,
            each.job.version_id,
            each.job.user_id,
            each.answer.inference,
            each.answer.target,
        )
        for each in ended
        if each.answer is not None
    ]
    drafted = map_inferences(CreatedNames(deps, cache), processor, inferred) if inferred else {}
    return [Mapped(ended=each, drafted=drafted.get(each.job.id)) for each in ended]


def map_inferences(
    labels_of: Names, processor: PostProcessor, inferred: Sequence[Inferred]
) -> dict[UUID, Drafted]:
    """What each answer becomes, by its key; labels it needs are created in between."""
    versions = {each.version_id for each in inferred}
    names = labels_of.get(versions)
    applied = _apply_all(processor, inferred, names)
    if any(a.new_labels or "unknown_label" in a.dropped for a in applied.values()):
        # What is remembered may be seconds old; what creates or drops must be decided on today's.
        names = labels_of.get(versions, fresh=True)
        applied = _apply_all(processor, inferred, names)
        names = _create_labels(labels_of, processor, inferred, applied, names)
        if any("label_cap" in a.dropped for a in applied.values()):
            # One answer alone wanted too many. What was left of it may be there now for another.
            applied = _apply_all(processor, inferred, names)
    found = {}
    for each in inferred:
        outcome = applied[each.key]
        ids = names[each.version_id]
        drafts = tuple((d, ids[d.label]) for d in outcome.drafts if d.label in ids)
        dropped = [outcome.dropped, each.inference.dropped]
        if len(drafts) < len(outcome.drafts):
            dropped.append({"label_cap": len(outcome.drafts) - len(drafts)})
        found[each.key] = Drafted(
            text=outcome.text,
            drafts=drafts,
            dropped=add_counts(*dropped) if any(dropped) else outcome.dropped,
        )
    return found


def _apply_all(
    processor: PostProcessor,
    inferred: Sequence[Inferred],
    names: Mapping[UUID, Mapping[str, UUID]],
) -> dict[UUID, Applied]:
    resolvers = {version_id: Resolver(processor, known) for version_id, known in names.items()}
    return {
        each.key: apply(
            each.inference,
            processor,
            names[each.version_id],
            each.target,
            resolvers[each.version_id],
        )
        for each in inferred
    }


def _create_labels(
    labels_of: Names,
    processor: PostProcessor,
    inferred: Sequence[Inferred],
    applied: Mapping[UUID, Applied],
    names: Mapping[UUID, Mapping[str, UUID]],
) -> dict[UUID, Mapping[str, UUID]]:
    """Create what the answers need, version by version; ids by name."""
    wanted: dict[UUID, dict[str, None]] = {}
    for each in inferred:
        for name in applied[each.key].new_labels:
            wanted.setdefault(each.version_id, {})[name] = None
    owners = {each.version_id: each.user_id for each in inferred}
    complete: dict[UUID, Mapping[str, UUID]] = {**names}
    for version_id in sorted(wanted):
        ids = labels_of.create(processor, version_id, owners[version_id], list(wanted[version_id]))
        complete[version_id] = {**complete[version_id], **ids}
    return complete
