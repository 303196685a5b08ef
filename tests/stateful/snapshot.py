"""All rows that the laws are about, read at once: what a step began with, and what it left."""

from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import psycopg
import sqlalchemy as sa
from psycopg.rows import namedtuple_row

from ppworker.store import stats, verify

Row = Any
"""A row with its columns as attributes."""

_TABLES = {
    "jobs": "SELECT j.* FROM post_processor_jobs j ORDER BY j.id",
    "attempts": "SELECT a.* FROM job_attempts a ORDER BY a.job_id, a.lease_token",
    "annotations": "SELECT a.* FROM annotations a ORDER BY a.id",
    "items": "SELECT i.* FROM dataset_items i ORDER BY i.id",
    "members": "SELECT m.* FROM item_splits m ORDER BY m.item_id, m.split_id",
    "splits": "SELECT s.* FROM dataset_splits s ORDER BY s.id",
    "versions": "SELECT v.* FROM dataset_versions v ORDER BY v.id",
    "labels": "SELECT l.* FROM labels l ORDER BY l.id",
    "processors": 'SELECT p.* FROM post_processors p ORDER BY p."order", p.id',
    "operations": "SELECT o.* FROM operations o ORDER BY o.id",
    "results": "SELECT r.* FROM job_results r ORDER BY r.item_id, r.version_id",
}
_DRIFT = stats._DRIFT.replace("ANY(:splits)", "ANY(ARRAY(SELECT id FROM dataset_splits))")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The rows of every table, in the order of their keys, which is that of their making."""

    jobs: dict[UUID, Row] = field(default_factory=dict)
    attempts: dict[tuple[UUID, int], Row] = field(default_factory=dict)
    annotations: dict[UUID, Row] = field(default_factory=dict)
    items: dict[UUID, Row] = field(default_factory=dict)
    members: set[tuple[UUID, UUID, UUID]] = field(default_factory=set)
    """Item, version, split."""
    splits: dict[UUID, Row] = field(default_factory=dict)
    """Those that people see, as of versions and labels."""
    versions: dict[UUID, Row] = field(default_factory=dict)
    labels: dict[UUID, Row] = field(default_factory=dict)
    processors: dict[UUID, Row] = field(default_factory=dict)
    """Deleted ones among them."""
    operations: dict[UUID, Row] = field(default_factory=dict)
    results: dict[tuple[UUID, UUID, UUID], Row] = field(default_factory=dict)
    """By item, version, post-processor."""

    @property
    def pairs(self) -> set[tuple[UUID, UUID]]:
        """Each item with each version that it is in."""
        return {(item_id, version_id) for item_id, version_id, _ in self.members}

    def members_of(self, split_id: UUID) -> list[UUID]:
        """Items of a split."""
        return sorted(item_id for item_id, _, split in self.members if split == split_id)

    def held_by(self, tokens: dict[UUID, int]) -> set[UUID]:
        """Of jobs given with their tokens, those whose lease is still that one."""
        return {
            id_
            for id_, token in tokens.items()
            if (job := self.jobs.get(id_)) is not None
            and (job.status, job.lease_token) == ("processing", token)
        }


class Eyes:
    """Looks at a database by a connection of its own, with one round trip for everything.

    Args:
        url: of the database.
    """

    def __init__(self, url: str) -> None:
        plain = sa.make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
        self._connection = psycopg.connect(plain, autocommit=True, row_factory=namedtuple_row)
        self._connection.execute("SET plan_cache_mode = force_generic_plan")
        self._connection.execute("SET jit = off")

    def close(self) -> None:
        """Look no more."""
        self._connection.close()

    def look(self) -> tuple[Snapshot, list[str]]:
        """What is stored now, and the invariants that do not hold."""
        with self._connection.pipeline():
            told = {name: self._run(statement) for name, statement in _TABLES.items()}
            broken = {sentence: self._run(query) for sentence, query in verify.INVARIANTS.items()}
            broken[verify.STATS] = self._run(_DRIFT)
        found = [sentence for sentence, cursor in broken.items() if cursor.fetchall()]
        return _snapshot({name: cursor.fetchall() for name, cursor in told.items()}), found

    def _run(self, statement: str) -> psycopg.Cursor[Any]:
        return self._connection.execute(statement, prepare=True)


def _snapshot(rows: dict[str, list[Row]]) -> Snapshot:
    versions = {row.id: row for row in rows["versions"] if row.deleted_at is None}
    splits = {
        row.id: row
        for row in rows["splits"]
        if row.deleted_at is None and row.version_id in versions
    }
    return Snapshot(
        jobs={row.id: row for row in rows["jobs"]},
        attempts={(row.job_id, row.lease_token): row for row in rows["attempts"]},
        annotations={row.id: row for row in rows["annotations"]},
        items={row.id: row for row in rows["items"]},
        members={(row.item_id, row.version_id, row.split_id) for row in rows["members"]},
        splits=splits,
        versions=versions,
        labels={
            row.id: row
            for row in rows["labels"]
            if row.deleted_at is None and row.version_id in versions
        },
        processors={row.id: row for row in rows["processors"]},
        operations={row.id: row for row in rows["operations"]},
        results={
            (row.item_id, row.version_id, row.post_processor_id): row for row in rows["results"]
        },
    )
