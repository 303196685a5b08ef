"""What one chunk of an import adds to a version, gathered first and written set by set."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from uuid import UUID

from ppworker.domain import stats as stat_rule
from ppworker.domain.coordinates import About, family, nuls_in
from ppworker.domain.drop import Reason
from ppworker.domain.labels import normalise_label
from ppworker.domain.measurements import AnnotationsWritten
from ppworker.domain.post_processor import PostProcessor
from ppworker.formats.base import Record, Report
from ppworker.pipeline.transfer.placing import Placed, place
from ppworker.pipeline.uploads import ingest
from ppworker.store import annotations, blobs, items, jobs, stats, transfers
from ppworker.store.annotations import NewAnnotation
from ppworker.store.datasets import Split
from ppworker.store.db import Tx
from ppworker.store.ids import new_id
from ppworker.store.items import NewItem
from ppworker.store.transfers import Target

_BULK = 1
"""Priority of the jobs: interactive uploads go first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """A record and the item it becomes."""

    record: Record
    item: NewItem
    text: str | None
    """The item's text as the archive gives it, in which spans count."""


class Arrivals:
    """Gathers, then writes.

    Args:
        target: the version.
        user_id: who imports; annotations name them.
        splits: those of the version that are there, by name, the one for records without first.
        labels: those that are there, by the form in which names are compared.
    """

    def __init__(
        self,
        target: Target,
        user_id: UUID,
        splits: Mapping[str, Split],
        labels: Mapping[str, UUID],
    ) -> None:
        self.counts: Counter[str] = Counter()
        self.report = Report()
        self.jobs: list[jobs.NewJob] = []
        self._target = target
        self._user_id = user_id
        self._splits = splits
        self._labels = labels
        self._items: list[NewItem] = []
        self._members: dict[UUID, list[Split]] = {}
        self._annotations: list[NewAnnotation] = []
        self._states: dict[UUID, str] = {}

    def take(self, arrival: Arrival) -> None:
        """Add one item with its marks."""
        item, record = arrival.item, arrival.record
        splits = [self._splits[name] for name in record.splits if name in self._splits]
        splits = list({split.id: split for split in splits}.values()) or [self._default()]
        self._items.append(item)
        self._members[item.id] = splits
        self.counts["items_created"] += 1
        if record.state:
            self._states[item.id] = record.state
        if record.marks:
            self._annotate(arrival, splits[0])

    def plan(self, processors: Sequence[PostProcessor]) -> None:
        """The jobs of the new items, exactly as uploads get them."""
        if processors:
            for item in self._items:
                first, *also = self._members[item.id]
                self.jobs += ingest.plan(item, first, processors, priority=_BULK, also=also)
        self.counts["jobs_planned"] += len(self.jobs)

    def write(self, tx: Tx) -> None:
        """Write everything, each kind by one statement."""
        files = {i.content_sha256: i.size_bytes or 0 for i in self._items if i.content_sha256}
        blobs.insert_blobs(tx, files)
        items.insert_items(tx, self._items)
        version_id = self._target.version_id
        items.insert_memberships(
            tx,
            [
                (split.id, item_id, version_id)
                for item_id, splits in self._members.items()
                for split in splits
            ],
        )
        annotations.insert_annotations(tx, self._annotations)
        transfers.insert_states(tx, self._target, self._states)
        stats.append_deltas(tx, self._deltas())
        if self.jobs:
            jobs.insert_jobs(tx, self.jobs)

    def written(self) -> AnnotationsWritten:
        """The fact that it was committed, for the figures; no post-processor made it."""
        return AnnotationsWritten(
            post_processor="", inserted=len(self._annotations), deduplicated=0
        )

    def _default(self) -> Split:
        return next(iter(self._splits.values()))

    def _annotate(self, arrival: Arrival, split: Split) -> None:
        item, where = arrival.item, arrival.record.where or arrival.record.name
        about = About(
            family=family(item.media_type, item.extension),
            text=arrival.text,
            width=item.width,
            height=item.height,
            duration_s=item.duration_s,
            nuls=nuls_in(arrival.text or ""),
        )
        seen: set[object] = set()
        has_class = False
        for mark in arrival.record.marks:
            placed = place(mark, about, item.page_count)
            if not isinstance(placed, Reason) and not mark.is_exact:
                if placed.key in seen:
                    placed = Reason.DUPLICATE
                else:
                    seen.add(placed.key)
            if not isinstance(placed, Reason) and placed.kind == "class":
                if has_class and not self._target.multi_label:
                    placed = Reason.NOT_TOP
                has_class = True
            self._add(placed, item.id, split, where)

    def _add(self, placed: Placed | Reason, item_id: UUID, split: Split, where: str) -> None:
        if isinstance(placed, Reason):
            self.report.skip(f"annotation_{placed}", where)
            return
        label_id = self._labels.get(normalise_label(placed.label))
        if label_id is None:
            self.report.skip(f"annotation_{Reason.LABEL_CAP}", where)
            return
        self.counts["annotations_created"] += 1
        self._annotations.append(
            NewAnnotation(
                id=new_id(),
                version_id=self._target.version_id,
                item_id=item_id,
                label_id=label_id,
                split_id=split.id,
                user_id=self._user_id,
                kind=placed.kind,
                geometry=placed.geometry,
                coordinates=placed.coordinates,
                text=placed.text,
                page=placed.page,
                score=placed.score,
                source=placed.source,
                post_processor_id=None,
                job_id=None,
                model_version=placed.model_version,
                review=placed.review,
                fingerprint=None,
                origin=placed.origin,
            )
        )

    def _deltas(self) -> list[stat_rule.StatDelta]:
        counts: dict[UUID, Counter[UUID | None]] = {item.id: Counter() for item in self._items}
        for row in self._annotations:
            counts[row.item_id][row.label_id] += 1
        splits = {
            item_id: [split.id for split in members] for item_id, members in self._members.items()
        }
        # From nothing to what is there: equal changes are worked out once.
        unlabelled: dict[UUID, dict[UUID | None, int]] = {item.id: {} for item in self._items}
        return stat_rule.merge(
            [*stat_rule.joined(unlabelled, splits), *stat_rule.deltas(unlabelled, counts, splits)]
        )
