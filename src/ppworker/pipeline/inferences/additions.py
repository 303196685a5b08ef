"""What one chunk of inferences adds to a dataset, gathered first and written set by set."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from uuid import UUID

from ppworker.domain import given as rule
from ppworker.domain import stats as stat_rule
from ppworker.domain.apply import Draft
from ppworker.domain.coordinates import About
from ppworker.domain.drop import Reason
from ppworker.domain.given import Given
from ppworker.domain.labels import normalise_label
from ppworker.domain.measurements import AnnotationsWritten
from ppworker.domain.post_processor import PostProcessor
from ppworker.domain.replace import Existing, label_counts
from ppworker.pipeline.uploads import ingest
from ppworker.store import annotations, inferences, items, jobs, stats
from ppworker.store.annotations import NewAnnotation
from ppworker.store.datasets import Split
from ppworker.store.db import Tx
from ppworker.store.ids import new_id

_BULK = 1
"""Priority of the jobs: interactive uploads go first."""


@dataclass(slots=True, kw_only=True)
class Touched:
    """An item that the chunk is about, as it is by now."""

    id: UUID
    about: About
    splits: list[UUID]
    """Of the version; grows as the item joins."""
    existing: list[Existing] = field(default_factory=list)
    """Its annotations in the version, tombstones included; grows as some are added."""
    standing: rule.Standing | None = None
    """The same, as predictions are compared with it; read once, when first needed."""
    is_new: bool = False
    before: tuple[Counter[UUID | None], list[UUID]] | None = None
    """Label counts and splits as they were, set at the first change of an item that was there."""


@dataclass(slots=True, kw_only=True)
class LabelIds:
    """Labels that the predictions need."""

    known: Mapping[str, UUID]
    """By the form in which names are compared."""
    held: set[UUID]
    """Those that exist, locked against deletion."""


class Additions:
    """Gathers, then writes.

    Args:
        split: where items go.
        labels: None where only items are added.
    """

    def __init__(self, split: Split, labels: LabelIds | None) -> None:
        self.counts: Counter[str] = Counter()
        self.jobs: list[jobs.NewJob] = []
        self.became: dict[str, UUID] = {}
        """Items by the ids of their inferences, those that were known before too."""
        self._split = split
        self._labels = labels
        self._touched: dict[UUID, Touched] = {}
        """Items that are new or change."""
        self._items: list[items.NewItem] = []
        self._memberships: list[tuple[UUID, UUID, UUID]] = []
        self._inferences: list[inferences.NewInference] = []
        self._annotations: list[NewAnnotation] = []

    def create(self, item: items.NewItem, about: About) -> Touched:
        """A new item, member of the split."""
        touched = Touched(id=item.id, about=about, splits=[], is_new=True)
        self._touched[item.id] = touched
        self._items.append(item)
        self._add_member(touched)
        self.counts["items_created"] += 1
        return touched

    def join(self, touched: Touched) -> None:
        """Make an item a member of the split unless it is one."""
        if self._split.id not in touched.splits:
            self._note(touched)
            self._add_member(touched)
            self.counts["splits_joined"] += 1

    def record(self, external_id: str, touched: Touched, raw: str) -> UUID:
        """Note which item an inference became; returns the id of its row."""
        id_ = new_id()
        split = self._split
        self._inferences.append(
            inferences.NewInference(
                id_, split.dataset_id, split.user_id, external_id, touched.id, raw
            )
        )
        return id_

    def annotate(self, touched: Touched, given: Given, inference_id: UUID) -> None:
        """Add those predictions that nobody's annotation says already, and count the others."""
        self.counts["predictions"] += len(given.predictions)
        if self._labels is None:
            self.counts["not_kept"] += len(given.predictions)
            return
        multi_label = self._split.multi_label
        drafts, dropped = rule.drafts(given.predictions, touched.about, multi_label=multi_label)
        wanted = self._with_ids(drafts, self._labels)
        touched.standing = touched.standing or rule.Standing(touched.existing)
        added = rule.missing(touched.standing, wanted, multi_label=multi_label)
        self.counts["already_there"] += added.already_there
        for reason, count in (dropped + added.dropped).items():
            self.counts[f"dropped_{reason}"] += count
        if not added.insert:
            return
        self._note(touched)
        self.counts["annotations_added"] += len(added.insert)
        for draft, label_id in added.insert:
            row = self._row(touched, given, inference_id, draft, label_id)
            self._annotations.append(row)
            touched.existing.append(_existing(row, draft))

    def plan(self, processors: Sequence[PostProcessor]) -> None:
        """The jobs of the new items, exactly as uploads get them."""
        if processors:
            for item in self._items:
                self.jobs += ingest.plan(item, self._split, processors, priority=_BULK)
        self.counts["jobs_planned"] += len(self.jobs)

    def write(self, tx: Tx) -> None:
        """Write everything, each kind by one statement."""
        items.insert_items(tx, self._items)
        items.insert_memberships(tx, self._memberships)
        inferences.insert_inferences(tx, self._inferences)
        annotations.insert_annotations(tx, self._annotations)
        stats.append_deltas(tx, self._deltas())
        if self.jobs:
            jobs.insert_jobs(tx, self.jobs)

    def written(self) -> AnnotationsWritten:
        """The fact that it was committed, for the figures; no post-processor made it."""
        return AnnotationsWritten(
            post_processor="",
            inserted=len(self._annotations),
            deduplicated=self.counts["already_there"],
        )

    def _add_member(self, touched: Touched) -> None:
        touched.splits.append(self._split.id)
        self._memberships.append((self._split.id, touched.id, self._split.version_id))

    def _with_ids(self, drafts: Sequence[Draft], labels: LabelIds) -> list[tuple[Draft, UUID]]:
        found: list[tuple[Draft, UUID]] = []
        for draft in drafts:
            label_id = labels.known.get(normalise_label(draft.label))
            if label_id is None:
                self.counts[f"dropped_{Reason.LABEL_CAP}"] += 1
            elif label_id not in labels.held:
                self.counts["dropped_label_deleted"] += 1
            else:
                found.append((draft, label_id))
        return found

    def _row(
        self, touched: Touched, given: Given, inference_id: UUID, draft: Draft, label_id: UUID
    ) -> NewAnnotation:
        return NewAnnotation(
            id=new_id(),
            version_id=self._split.version_id,
            item_id=touched.id,
            label_id=label_id,
            split_id=self._split.id,
            user_id=self._split.user_id,
            kind=draft.kind,
            geometry=None if draft.geometry is None else json.dumps(draft.geometry),
            coordinates=draft.coordinates,
            text=draft.text,
            page=draft.page,
            score=draft.score,
            source="inference",
            post_processor_id=None,
            job_id=None,
            model_version=given.model_version,
            review="suggested",
            fingerprint=draft.fingerprint,
            inference_id=inference_id,
        )

    def _note(self, touched: Touched) -> None:
        """Remember how an item stood before its first change."""
        if touched.before is None and not touched.is_new:
            self._touched[touched.id] = touched
            touched.before = (label_counts(touched.existing), list(touched.splits))

    def _deltas(self) -> list[stat_rule.StatDelta]:
        """How the stats change: items leave as they were and come back as they are."""
        changed = self._touched.values()
        old = {t.id: t.before for t in changed if t.before is not None}
        left = stat_rule.left(
            {id_: counts for id_, (counts, _) in old.items()},
            {id_: splits for id_, (_, splits) in old.items()},
        )
        joined = stat_rule.joined(
            {t.id: label_counts(t.existing) for t in changed}, {t.id: t.splits for t in changed}
        )
        return stat_rule.merge([*left, *joined])


def _existing(row: NewAnnotation, draft: Draft) -> Existing:
    return Existing(
        id=row.id,
        label_id=row.label_id,
        kind=row.kind,
        source=row.source,
        fingerprint=row.fingerprint,
        score=row.score,
        geometry=draft.geometry,
        coordinates=row.coordinates,
    )
