"""Decides how a post-processor's new output replaces its old one, as a difference that keeps ids.

People's work is never touched, what a person deleted does not come back, and other post-processors'
annotations are left alone, but for the one label of an item where the dataset takes one.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal
from uuid import UUID

from ppworker.domain.apply import Draft
from ppworker.domain.drop import Reason, tally

Source = Literal["human", "model", "inference", "import"]

SCORE_NOISE = 1e-6
"""Difference of scores that is no change; a stored score may be rounded."""


@dataclass(slots=True, kw_only=True)
class Existing:
    """An annotation of the item in the version, as stored."""

    id: UUID
    label_id: UUID | None
    kind: str
    source: str
    """One of `Source`."""
    post_processor_id: UUID | None = None
    order: int = 0
    """Of its post-processor; means nothing without one."""
    reviewed: bool = False
    """Whether a person accepted or edited it."""
    deleted: bool = False
    """Tombstone: a person deleted or rejected it. The row stays so that it does not come back."""
    fingerprint: str | None = None
    score: float | None = None
    geometry: Mapping[str, Any] | None = None
    coordinates: str = ""

    @property
    def is_models(self) -> bool:
        """Whether it is a post-processor's output that no person has looked at."""
        return self.post_processor_id is not None and self.source == "model" and not self.reviewed


@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """New values for a row that the same prediction made before."""

    id: UUID
    draft: Draft
    label_id: UUID


@dataclass(slots=True, kw_only=True)
class Changes:
    """Difference between what stands and what should stand.

    Every draft is inserted, updates a row, is unchanged, or is counted as dropped.
    """

    insert: tuple[tuple[Draft, UUID], ...] = ()
    """Drafts with the ids of their labels."""
    update: tuple[Update, ...] = ()
    """Same prediction, other label, score or place. The row keeps its id."""
    delete: tuple[UUID, ...] = ()
    """Rows to remove for good: no tombstone, since no person deleted them."""
    unchanged: int = 0
    """Drafts whose rows stand as they are, reviewed ones among them."""
    dropped: Mapping[str, int] = field(default_factory=dict)


def replace(
    existing: Sequence[Existing],
    drafts: Sequence[tuple[Draft, UUID]],
    *,
    processor_id: UUID,
    order: int,
    multi_label: bool,
) -> Changes:
    """Difference that makes the drafts the output of one post-processor for one item.

    Args:
        existing: every annotation of the item in the version, tombstones included.
        drafts: the new output with the ids of its labels.
        processor_id: whose output it is; only its own unreviewed rows are changed or deleted.
        order: of that post-processor.
        multi_label: False where at most one ``class`` annotation stands per item. Then what a
            person, an import or an added inference put there wins, else the post-processor of the
            higher order, else the smaller id; the losing post-processor's row is deleted, and
            returns only when that post-processor is applied again.
    """
    own = [row for row in existing if row.post_processor_id == processor_id]
    dropped: Counter[Reason] = Counter()
    wanted = _new_or_standing(own, drafts, dropped)
    superseded: list[UUID] = []
    if not multi_label:
        wanted, superseded = _one_class(existing, wanted, (processor_id, order), dropped)
    rows = {row.fingerprint: row for row in own if row.fingerprint and not row.deleted}
    insert: list[tuple[Draft, UUID]] = []
    update: list[Update] = []
    unchanged = 0
    kept: set[UUID] = set()
    for draft, label_id in wanted:
        row = rows.get(draft.fingerprint)
        if row is None:
            insert.append((draft, label_id))
            continue
        kept.add(row.id)
        if row.is_models and _differs(row, draft, label_id):
            update.append(Update(id=row.id, draft=draft, label_id=label_id))
        else:
            unchanged += 1
    vanished = [row.id for row in own if row.is_models and not row.deleted and row.id not in kept]
    return Changes(
        insert=tuple(insert),
        update=tuple(update),
        delete=(*vanished, *superseded),
        unchanged=unchanged,
        dropped=tally(dropped),
    )


def label_counts(existing: Iterable[Existing]) -> Counter[UUID | None]:
    """Annotations of an item per label, as `ppworker.domain.stats.deltas` takes them."""
    return Counter(row.label_id for row in existing if not row.deleted)


def label_counts_after(existing: Sequence[Existing], changes: Changes) -> Counter[UUID | None]:
    """The same counts once the changes are written."""
    deleted = set(changes.delete)
    relabelled = {change.id: change.label_id for change in changes.update}
    counts: Counter[UUID | None] = Counter(label_id for _, label_id in changes.insert)
    counts.update(
        relabelled.get(row.id, row.label_id)
        for row in existing
        if not row.deleted and row.id not in deleted
    )
    return counts


def _new_or_standing(
    own: Sequence[Existing],
    drafts: Sequence[tuple[Draft, UUID]],
    dropped: Counter[Reason],
) -> list[tuple[Draft, UUID]]:
    tombstones = {row.fingerprint for row in own if row.deleted}
    wanted: list[tuple[Draft, UUID]] = []
    seen: set[str] = set()
    for draft, label_id in drafts:
        if draft.fingerprint in tombstones:
            dropped[Reason.DELETED_BY_PERSON] += 1
        elif draft.fingerprint in seen:
            dropped[Reason.DUPLICATE] += 1
        else:
            seen.add(draft.fingerprint)
            wanted.append((draft, label_id))
    return wanted


def _one_class(
    existing: Sequence[Existing],
    wanted: list[tuple[Draft, UUID]],
    processor: tuple[UUID, int],
    dropped: Counter[Reason],
) -> tuple[list[tuple[Draft, UUID]], list[UUID]]:
    """What is left of the drafts, and the rows of others that they supersede."""
    processor_id, order = processor
    classes = [pair for pair in wanted if pair[0].kind == "class"]
    if not classes:
        return wanted, []
    others = [pair for pair in wanted if pair[0].kind != "class"]
    standing = [row for row in existing if row.kind == "class" and not row.deleted]
    protected = [row for row in standing if not row.is_models]
    # A prediction that a person accepted here before is that row, not its rival.
    accepted = {row.fingerprint for row in protected if row.post_processor_id == processor_id}
    same = [pair for pair in classes if pair[0].fingerprint in accepted]
    rivals = [row for row in standing if row.is_models and row.post_processor_id != processor_id]
    best = (-order, processor_id)
    if protected or any(_precedence(row) < best for row in rivals):
        dropped[Reason.OUTRANKED] += len(classes) - len(same)
        return [*others, *same], []
    top = max(classes, key=lambda pair: -1.0 if pair[0].score is None else pair[0].score)
    dropped[Reason.NOT_TOP] += len(classes) - 1
    return [*others, top], [row.id for row in rivals]


def _precedence(row: Existing) -> tuple[int, UUID]:
    return -row.order, row.post_processor_id or row.id


def _differs(row: Existing, draft: Draft, label_id: UUID) -> bool:
    if row.label_id != label_id or row.coordinates != draft.coordinates:
        return True
    if row.score is None or draft.score is None:
        score_differs = row.score is not draft.score
    else:
        score_differs = abs(row.score - draft.score) > SCORE_NOISE
    return score_differs or row.geometry != draft.geometry
