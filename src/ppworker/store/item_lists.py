"""Which items a list holds: pages in the order in which items were made, filtered.

Every list walks an index in the order of item ids and stops when its page is full. Filters of the
contract are exact however far that walk is. With the other filters a page ends after a bounded
look, so that nobody waits for a needle in a haystack; the next page begins where the look ended.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal
from uuid import UUID

import sqlalchemy as sa

from ppworker.store.db import Tx

JobState = Literal["pending", "processing", "completed", "failed"]
Source = Literal["human", "model", "inference", "import"]
Review = Literal["suggested", "accepted", "edited"]

LOOK_ITEMS = 3_000
"""Most items that one page looks at."""
LOOK_BYTES = 4 * 1024 * 1024
"""Most bytes of text that one page looks at; the first item is looked at whatever it holds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Filters:
    """Which items of a version; None asks for nothing.

    Label, score, source and review are asked of one and the same annotation.
    """

    split_id: UUID | None = None
    label_id: UUID | None = None
    """Only those that carry the label."""
    only_unlabelled: bool = False
    """Only those without any annotation."""
    job_status: JobState | None = None
    """Only those with a job in that state."""
    text: str | None = None
    """Only those with these characters in their text or name, in whatever case."""
    min_score: float | None = None
    max_score: float | None = None
    source: Source | None = None
    review: Review | None = None

    @property
    def is_about_annotation(self) -> bool:
        """Whether more is asked of an annotation than its label."""
        asked = (self.min_score, self.max_score, self.source, self.review)
        return any(value is not None for value in asked)

    @property
    def is_contradiction(self) -> bool:
        """Whether an annotation is asked for of items that have none."""
        return self.only_unlabelled and (self.label_id is not None or self.is_about_annotation)

    @property
    def is_bounded(self) -> bool:
        """Whether what fits may be rare and found by no index: a page ends after a look."""
        return self.is_about_annotation or self.job_status is not None or self.text is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """Where items are looked for; whose it is is the caller's to know."""

    version_id: UUID
    dataset_id: UUID
    split_ids: Sequence[UUID]
    """Live splits of the version."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """How to go to a page, by what is known of how many items there are: only its cost differs."""

    by_split: bool = False
    """Whether the split is smaller than the label."""
    is_disjoint: bool = False
    """Whether no item belongs to several splits."""
    from_end: bool = False
    """Whether the page is nearer to the end than to the beginning."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """Ids of a page."""

    ids: list[UUID]
    behind: UUID | None
    """The next page begins behind this id; None at the end of the list."""
    is_cut: bool = False
    """Whether the look ended before the page was full."""


def list_page(
    tx: Tx,
    scope: Scope,
    filters: Filters,
    *,
    after: UUID | None = None,
    offset: int = 0,
    limit: int,
    way: Way,
) -> Page:
    """A page of items, by one statement at most.

    Args:
        tx: where to read.
        scope: whose items.
        filters: which of them.
        after: only those behind this id.
        offset: how many of them to pass over.
        limit: most ids.
        way: how to go there.
    """
    if filters.is_contradiction:
        return Page(ids=[], behind=None)
    query = _Query(scope, filters, after=after, way=way)
    reach = offset + limit + 1
    query.parameters |= {"offset": offset, "most": limit + 1, "reach": reach, "walk": reach}
    if filters.is_bounded:
        return _look(tx, query, offset=offset, limit=limit)
    if way.from_end:
        return _from_end(tx, query, filters, offset=offset, limit=limit)
    ids = list(tx.execute(sa.text(_EXACT.format(**query.parts())), query.parameters).scalars())
    return Page(ids=ids[:limit], behind=ids[limit - 1] if len(ids) > limit else None)


def count_page(tx: Tx, scope: Scope, filters: Filters, *, most: int) -> int:
    """How many items the filters of the contract leave, counted one by one up to ``most``."""
    query = _Query(scope, filters, after=None, way=Way())
    query.parameters |= {"reach": most, "walk": most}
    return int(tx.execute(sa.text(_COUNT.format(**query.parts())), query.parameters).scalar_one())


_EXACT = """
SELECT d.item_id FROM ({driver}) d WHERE {fits} ORDER BY d.item_id OFFSET :offset LIMIT :most
"""
_COUNT = "SELECT count(*) FROM (SELECT FROM ({driver}) d WHERE {fits} LIMIT :reach) c"

# Rows come in order and none is made before it is asked for, so a full page ends the look. What is
# beyond its bytes neither fits nor does not: that, and the last item, say where the look ended.
_LOOK = """
SELECT looked.item_id, looked.fits, looked.before, looked.n FROM (
  SELECT d.item_id, lag(d.item_id) OVER w AS before, row_number() OVER w AS n,
    CASE WHEN row_number() OVER w = 1 OR sum(i.bytes) OVER w <= :look_bytes THEN {fits} END AS fits
  FROM ({driver} LIMIT :look_items) d CROSS JOIN LATERAL ({item} OFFSET 0) i
  WINDOW w AS (ORDER BY d.item_id ROWS UNBOUNDED PRECEDING)) looked
WHERE looked.fits IS NOT FALSE OR looked.n = :look_items ORDER BY looked.item_id LIMIT :reach
"""
_WITHOUT_TEXT = "SELECT 0 AS bytes"
_WITH_TEXT = """
SELECT octet_length(coalesce(t.text, '')) AS bytes, coalesce(t.text, '') AS text, t.name
FROM dataset_items t WHERE t.id = d.item_id
"""


# How many there are is asked in the same statement: between two, some might come.
_FROM_END = """
WITH n AS MATERIALIZED (SELECT CAST(coalesce(sum(c.item_count), 0) AS bigint) AS n FROM (
  SELECT item_count FROM label_stats WHERE split_id = ANY(:counted) AND bucket = 'total'
  UNION ALL
  SELECT item_count FROM label_stat_deltas
  WHERE split_id = ANY(:counted) AND bucket = 'total') c)
SELECT d.item_id, (SELECT n FROM n) AS n FROM (
  SELECT p.item_id FROM item_splits p WHERE {where} ORDER BY p.item_id DESC
  OFFSET (SELECT greatest(n - :offset - :limit, 0) FROM n)
  LIMIT (SELECT greatest(least(:limit, n - :offset), 0) FROM n)) d ORDER BY d.item_id
"""


def _from_end(tx: Tx, query: "_Query", filters: Filters, *, offset: int, limit: int) -> Page:
    """A page of all items of a split, or of a version whose splits share none, gone to from behind
    by the count that label stats keep exactly."""
    where, counted = _OF_VERSION, query.parameters["splits"]
    if filters.split_id is not None:
        where, counted = _OF_SPLIT, [filters.split_id]
    rows = tx.execute(
        sa.text(_FROM_END.format(where=where)),
        query.parameters | {"counted": counted, "limit": limit},
    ).all()
    ids = [row.item_id for row in rows]
    is_end = not rows or rows[0].n <= offset + limit
    return Page(ids=ids, behind=None if is_end else ids[-1])


def _look(tx: Tx, query: "_Query", *, offset: int, limit: int) -> Page:
    rows = tx.execute(
        sa.text(_LOOK.format(**query.parts())),
        query.parameters | {"look_items": LOOK_ITEMS, "look_bytes": LOOK_BYTES, "walk": LOOK_ITEMS},
    )
    found: list[UUID] = []
    for row in rows.all():
        if row.fits is None:
            return Page(ids=found[offset:], behind=row.before, is_cut=True)
        if row.fits:
            if len(found) == offset + limit:
                return Page(ids=found[offset:], behind=found[-1])
            found.append(row.item_id)
        if row.n == LOOK_ITEMS:
            is_cut = len(found) < offset + limit
            return Page(ids=found[offset:], behind=row.item_id, is_cut=is_cut)
    return Page(ids=found[offset:], behind=None)


# What gives item ids in order, each once. Words of states stand in the statements themselves: a
# plan made for any state could not use an index that is for some of them.
_BY_JOB = """
SELECT DISTINCT j.item_id FROM post_processor_jobs j
WHERE j.version_id = :version AND j.status = '{status}' {after} ORDER BY j.item_id
"""
_BY_RUNNING_JOB = """
SELECT DISTINCT j.item_id FROM post_processors p
JOIN post_processor_jobs j ON j.post_processor_id = p.id AND j.status = 'processing'
WHERE p.dataset_id = :dataset AND j.version_id = :version {after} ORDER BY j.item_id
"""
_BY_LABEL = """
SELECT DISTINCT a.item_id FROM annotations a
WHERE a.label_id = :label AND a.deleted_at IS NULL {after} ORDER BY a.item_id
"""
_OF_SPLIT = "p.split_id = :split"
_OF_VERSION = "p.version_id = :version AND p.split_id = ANY(:splits)"
_BY_MEMBERSHIP = """
SELECT {distinct} p.item_id FROM item_splits p WHERE {where} {after} ORDER BY p.item_id
"""
_BY_LACK_IN_SPLIT = """
SELECT u.item_id FROM unlabelled_items u WHERE u.split_id = :split {after} ORDER BY u.item_id
"""
_BY_LACK = """
SELECT DISTINCT m.item_id FROM unnest(CAST(:splits AS uuid[])) AS s(id) CROSS JOIN LATERAL (
  SELECT u.item_id FROM unlabelled_items u WHERE u.split_id = s.id {after}
  ORDER BY u.item_id LIMIT :walk) m ORDER BY m.item_id
"""

# What is asked of each item: looked up one by one, for as joins they would be planned for whole
# tables. Each is true or false and never null.
_IS_MEMBER = """(SELECT true FROM item_splits p WHERE p.item_id = d.item_id
  AND p.version_id = :version AND p.split_id = ANY(:splits) LIMIT 1) IS NOT NULL"""
_IS_IN_SPLIT = """(SELECT true FROM item_splits p
  WHERE p.split_id = :split AND p.item_id = d.item_id) IS NOT NULL"""
_IS_ANNOTATED = """(SELECT true FROM annotations a WHERE a.item_id = d.item_id
  AND a.version_id = :version AND a.deleted_at IS NULL {more} LIMIT 1) IS {found}"""
_HAS_TEXT = "(i.text ~ :pattern OR i.name ~ :pattern)"


class _Query:
    """The parts of a statement: one index that is walked, and conditions for the rest."""

    def __init__(self, scope: Scope, filters: Filters, *, after: UUID | None, way: Way) -> None:
        self._filters = filters
        self._conditions: list[str] = []
        self._after = after
        self.parameters: dict[str, Any] = {
            "version": scope.version_id,
            "dataset": scope.dataset_id,
            "splits": list(scope.split_ids),
            "split": filters.split_id,
            "label": filters.label_id,
            "after": after,
        }
        self._walks_label = (
            filters.label_id is not None and filters.job_status is None and not way.by_split
        )
        self._is_disjoint = way.is_disjoint
        self._driver = self._drive()
        self._ask()

    def parts(self) -> dict[str, str]:
        """What the statements are put together from."""
        return {
            "driver": self._driver,
            "fits": " AND ".join(self._conditions) or "true",
            "item": _WITHOUT_TEXT if self._filters.text is None else _WITH_TEXT,
        }

    def _drive(self) -> str:
        wanted = self._filters
        if wanted.job_status is not None:
            is_running = wanted.job_status == "processing"
            statement, alias = (_BY_RUNNING_JOB if is_running else _BY_JOB), "j"
        elif self._walks_label:
            statement, alias = _BY_LABEL, "a"
        elif wanted.only_unlabelled:
            statement, alias = (_BY_LACK if wanted.split_id is None else _BY_LACK_IN_SPLIT), "u"
        else:
            statement, alias = _BY_MEMBERSHIP, "p"
        if alias in {"j", "a"}:  # the others say of themselves where an item belongs
            self._conditions.append(_IS_MEMBER if wanted.split_id is None else _IS_IN_SPLIT)
        after = "" if self._after is None else f"AND {alias}.item_id > :after"
        is_once = wanted.split_id is not None or self._is_disjoint
        return statement.format(
            after=after,
            status=wanted.job_status,
            where=_OF_VERSION if wanted.split_id is None else _OF_SPLIT,
            distinct="" if is_once else "DISTINCT",
        )

    def _ask(self) -> None:
        wanted = self._filters
        is_told = self._walks_label and not wanted.is_about_annotation
        if not is_told and (wanted.label_id is not None or wanted.is_about_annotation):
            self._conditions.append(_IS_ANNOTATED.format(more=self._of(wanted), found="NOT NULL"))
        if wanted.only_unlabelled and wanted.job_status is not None:
            self._conditions.append(_IS_ANNOTATED.format(more="", found="NULL"))
        if wanted.text is not None:
            self._conditions.append(_HAS_TEXT)
            self.parameters["pattern"] = in_any_case(wanted.text)

    def _of(self, wanted: Filters) -> str:
        """What is asked of one annotation."""
        self.parameters |= {
            "min_score": wanted.min_score,
            "max_score": wanted.max_score,
            "source": wanted.source,
            "review": wanted.review,
        }
        asked = {
            "a.label_id = :label": wanted.label_id,
            "a.score >= :min_score": wanted.min_score,
            "a.score <= :max_score": wanted.max_score,
            "a.source = :source": wanted.source,
            "a.review = :review": wanted.review,
        }
        return "".join(f" AND {words}" for words, value in asked.items() if value is not None)


def in_any_case(text: str) -> str:
    """A regular expression of PostgreSQL's that finds just these characters, in whatever case.

    Made here, because what a database takes for the same letter depends on how it was set up.
    """
    return "".join(_one_of(_cases(character)) for character in text)


def _cases(character: str) -> set[str]:
    near = {character, character.lower(), character.upper(), character.title()}
    near |= {each.lower() for each in near} | {each.upper() for each in near}
    return {each for each in near if len(each) == 1}


def _one_of(characters: set[str]) -> str:
    # By their numbers, so that none of them means anything to the reader of the expression.
    words = "".join(
        each if each.isascii() and each.isalnum() else f"\\U{ord(each):08X}"
        for each in sorted(characters)
    )
    return f"[{words}]" if len(characters) > 1 else words
