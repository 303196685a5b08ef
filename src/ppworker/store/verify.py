"""The invariants of the data, as plain SQL: what must hold at any moment, after any crash."""

from dataclasses import dataclass

import sqlalchemy as sa

from ppworker.store.db import Tx

_EXAMPLES = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One invariant that does not hold."""

    invariant: str
    """What should hold, as a sentence."""
    count: int
    examples: list[str]
    """Ids of some rows that break it."""


INVARIANTS: dict[str, str] = {
    "no job is processing long after its lease": """
        SELECT id::text FROM post_processor_jobs
        WHERE status = 'processing' AND least(lease_expires_at, deadline_at)
          < clock_timestamp() - interval '60 s'""",
    "a pending job is ready if and only if no job of lower order of its item lives": """
        SELECT p.id::text FROM post_processor_jobs p WHERE p.status = 'pending'
        AND p.ready = EXISTS (SELECT 1 FROM post_processor_jobs l
          JOIN post_processors b ON b.id = l.post_processor_id WHERE l.item_id = p.item_id
          AND l.version_id = p.version_id AND l.status IN ('pending','processing')
          AND l."order" < p."order" AND (b.enabled OR l.status = 'processing'))""",
    "a job has at most one live row per version, item and post-processor": """
        SELECT min(id::text) FROM post_processor_jobs WHERE status IN ('pending','processing')
        GROUP BY item_id, version_id, post_processor_id HAVING count(*) > 1""",
    "a job has as many ended attempts as leases it ended": """
        SELECT j.id::text FROM post_processor_jobs j
        WHERE j.lease_token - (j.status = 'processing')::int
          <> (SELECT count(*) FROM job_attempts a WHERE a.job_id = j.id)""",
    "a terminal job's last attempt says how it ended": """
        SELECT j.id::text FROM post_processor_jobs j JOIN job_attempts a
          ON a.job_id = j.id AND a.lease_token = j.lease_token
        WHERE j.status IN ('completed','failed') AND j.reason <> 'cancelled'
          AND j.reason <> 'predecessor_failed'
          AND (j.status = 'completed') <> (a.cause = 'finished')""",
    "a completed job kept its raw answer": """
        SELECT j.id::text FROM post_processor_jobs j WHERE j.status = 'completed'
        AND NOT EXISTS (SELECT 1 FROM job_results r WHERE r.item_id = j.item_id
          AND r.version_id = j.version_id AND r.post_processor_id = j.post_processor_id)""",
    "a model's annotation stands only for a post-processor that answered for the item": """
        SELECT a.id::text FROM annotations a WHERE a.source = 'model'
        AND NOT EXISTS (SELECT 1 FROM job_results r WHERE r.item_id = a.item_id
          AND r.version_id = a.version_id AND r.post_processor_id = a.post_processor_id)""",
    "an item of a single-label dataset has one class annotation at most": """
        SELECT min(a.item_id::text) FROM annotations a
        JOIN dataset_versions v ON v.id = a.version_id JOIN datasets d ON d.id = v.dataset_id
        WHERE NOT d.multi_label AND a.kind = 'class' AND a.deleted_at IS NULL
        GROUP BY a.item_id, a.version_id HAVING count(*) > 1""",
    "an annotated item belongs to a split of that version": """
        SELECT a.id::text FROM annotations a WHERE a.deleted_at IS NULL AND NOT EXISTS (
          SELECT 1 FROM item_splits s WHERE s.item_id = a.item_id AND s.version_id = a.version_id)
        """,
    "what is told to be without annotations is just that": """
        SELECT item_id::text FROM (
          (SELECT s.split_id, s.item_id FROM item_splits s WHERE NOT EXISTS (
            SELECT 1 FROM annotations a WHERE a.item_id = s.item_id
              AND a.version_id = s.version_id AND a.deleted_at IS NULL)
          EXCEPT SELECT split_id, item_id FROM unlabelled_items)
          UNION ALL
          (SELECT split_id, item_id FROM unlabelled_items EXCEPT
          SELECT s.split_id, s.item_id FROM item_splits s WHERE NOT EXISTS (
            SELECT 1 FROM annotations a WHERE a.item_id = s.item_id
              AND a.version_id = s.version_id AND a.deleted_at IS NULL))) w""",
    "an item of several splits of a version is known as one": """
        SELECT item_id::text FROM (SELECT version_id, item_id FROM item_splits GROUP BY 1, 2
          HAVING count(*) > 1 EXCEPT SELECT version_id, item_id FROM split_overlaps) w""",
    "an item belongs to a version of its dataset": """
        SELECT s.item_id::text FROM item_splits s JOIN dataset_items i ON i.id = s.item_id
        JOIN dataset_versions v ON v.id = s.version_id WHERE v.dataset_id <> i.dataset_id""",
    "an inference's annotation stands on the item that the inference became": """
        SELECT a.id::text FROM annotations a WHERE a.source = 'inference' AND NOT EXISTS (
          SELECT 1 FROM inferences n WHERE n.id = a.inference_id AND n.item_id = a.item_id)""",
    "an inference belongs to the dataset of its item": """
        SELECT n.id::text FROM inferences n JOIN dataset_items i ON i.id = n.item_id
        WHERE i.dataset_id <> n.dataset_id OR i.user_id <> n.user_id""",
    "no operation is processing long after its lease": """
        SELECT id::text FROM operations WHERE status = 'processing'
          AND lease_expires_at < clock_timestamp() - interval '60 s'""",
    "inferences that were applied were applied to the last one": """
        SELECT id::text FROM operations WHERE kind = 'apply_inferences'
          AND (done > total OR (status = 'completed' AND done <> total))""",
    "every step of a job's history is a legal edge": """
        SELECT a.job_id::text FROM job_attempts a WHERE a.cause NOT IN ('finished',
          'transient_error', 'snoozed', 'released', 'rescued', 'input_changed', 'exhausted',
          'permanent_error', 'crashed', 'cancelled')""",
}
"""Each query returns the rows that break its invariant; stats are compared by ``store.stats``."""


def run(tx: Tx) -> list[Finding]:
    """Check every invariant; an empty list means that all hold."""
    found = []
    for sentence, query in INVARIANTS.items():
        rows = tx.execute(
            sa.text(
                f"SELECT count(*), (array_agg(id))[1:{_EXAMPLES}] FROM ({query}) AS broken(id)"  # noqa: S608
            )
        ).one()
        if rows[0]:
            found.append(Finding(invariant=sentence, count=rows[0], examples=list(rows[1])))
    return found
