"""Raw answers of models, kept per (version, item, post-processor) beyond the life of their jobs."""

from collections.abc import Sequence
from typing import Any, NamedTuple
from uuid import UUID

import sqlalchemy as sa

from ppworker.store import bulk
from ppworker.store.db import Tx
from ppworker.store.tables import job_results


class Result(NamedTuple):
    """A row to be written, in the order of its columns."""

    version_id: UUID
    item_id: UUID
    post_processor_id: UUID
    job_id: UUID
    raw: str
    """JSON text."""
    model_version: str
    input_revision: str


_COLUMNS = Result._fields


def write_results(tx: Tx, results: Sequence[Result]) -> None:
    """Keep raw answers, each replacing the one before it."""
    bulk.insert(
        tx,
        job_results,
        _COLUMNS,
        results,
        after="ON CONFLICT (item_id, version_id, post_processor_id) DO UPDATE SET "
        "job_id = excluded.job_id, raw = excluded.raw, model_version = excluded.model_version, "
        "input_revision = excluded.input_revision, created_at = now()",
    )


def find_raw(tx: Tx, job_id: UUID) -> Any | None:
    """The raw answer that a job left, None when it left none or another replaced it."""
    return tx.execute(
        sa.text(
            "SELECT r.raw FROM post_processor_jobs j JOIN job_results r "
            "ON r.item_id = j.item_id AND r.version_id = j.version_id "
            "AND r.post_processor_id = j.post_processor_id AND r.job_id = j.id WHERE j.id = :id"
        ),
        {"id": job_id},
    ).scalar_one_or_none()
