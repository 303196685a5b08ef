"""The invariants of the data, as plain SQL: what must hold at any moment, after any crash.

Each of them is one statement with a snapshot of its own, so that a busy system may be asked. What
the schema's constraints refuse already is repeated only where an index could be broken.
"""

# ruff: noqa: S608  every part of a statement is a constant of this module

from collections.abc import Iterable
from dataclasses import dataclass

import sqlalchemy as sa

from ppworker.domain.job import EDGES, ENDS, MAX_SNOOZE_S, Status
from ppworker.store import stats
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


def _words(words: Iterable[str]) -> str:
    """A list of words as SQL writes it."""
    return "(" + ", ".join(f"'{word}'" for word in sorted(words)) + ")"


_LIVE = "('pending','processing')"
_GIVEN_BACK = _words(["released", "snoozed", "suspected"])
"""Ends of attempts that do not count."""
_FINAL = _words(cause for cause, to in ENDS.items() if to is not Status.PENDING)
_AFRESH = _words(
    ["input_changed", *(cause for cause, to in ENDS.items() if to is not Status.PENDING)]
)
"""Ends behind which the count of attempts begins anew."""
_WITHOUT_MODEL = _words(EDGES[Status.PENDING, Status.FAILED])
"""Reasons of jobs that failed while they waited."""

_JOBS: dict[str, str] = {
    "no job is processing long after its lease": """
        SELECT id::text FROM post_processor_jobs
        WHERE status = 'processing' AND least(lease_expires_at, deadline_at)
          < clock_timestamp() - interval '60 s'""",
    "a pending job is due within the longest wait there is": f"""
        SELECT id::text FROM post_processor_jobs WHERE status = 'pending'
        AND run_at > clock_timestamp() + interval '{MAX_SNOOZE_S + 60} s'""",
    "a pending job is ready if and only if no job of lower order of its item lives": f"""
        SELECT p.id::text FROM post_processor_jobs p WHERE p.status = 'pending'
        AND p.ready = EXISTS (SELECT 1 FROM post_processor_jobs l
          JOIN post_processors b ON b.id = l.post_processor_id WHERE l.item_id = p.item_id
          AND l.version_id = p.version_id AND l.status IN {_LIVE}
          AND l."order" < p."order" AND (b.enabled OR l.status = 'processing'))""",
    "a job has at most one live row per version, item and post-processor": f"""
        SELECT min(id::text) FROM post_processor_jobs WHERE status IN {_LIVE}
        GROUP BY item_id, version_id, post_processor_id HAVING count(*) > 1""",
    "a job that runs belongs to a batch and has a deadline": """
        SELECT id::text FROM post_processor_jobs
        WHERE (status = 'processing') <> (batch_id IS NOT NULL)
          OR (status = 'processing') <> (deadline_at IS NOT NULL)""",
    "a batch has one worker and one post-processor": """
        SELECT batch_id::text FROM post_processor_jobs WHERE status = 'processing'
        GROUP BY batch_id
        HAVING count(DISTINCT lease_owner) > 1 OR count(DISTINCT post_processor_id) > 1""",
    "suspects run with suspects alone": """
        SELECT batch_id::text FROM post_processor_jobs WHERE status = 'processing'
        GROUP BY batch_id HAVING count(DISTINCT is_suspect) > 1""",
    "a job that answered is no suspect": """
        SELECT id::text FROM post_processor_jobs
        WHERE status = 'completed' AND is_suspect""",
    "a job's item is in the job's version": """
        SELECT j.id::text FROM post_processor_jobs j WHERE NOT EXISTS (SELECT 1 FROM item_splits s
          WHERE s.item_id = j.item_id AND s.version_id = j.version_id)""",
    "a job's post-processor belongs to the dataset of its item": """
        SELECT j.id::text FROM post_processor_jobs j
        JOIN post_processors p ON p.id = j.post_processor_id
        JOIN dataset_items i ON i.id = j.item_id WHERE i.dataset_id <> p.dataset_id""",
    "a post-processor that was deleted has no live jobs for long": f"""
        SELECT j.id::text FROM post_processor_jobs j
        JOIN post_processors p ON p.id = j.post_processor_id WHERE j.status IN {_LIVE}
        AND p.deleted_at < now() - interval '10 min'
        AND EXISTS (SELECT 1 FROM datasets d WHERE d.id = p.dataset_id AND d.deleted_at IS NULL)""",
}

_HISTORY: dict[str, str] = {
    "a job has as many ended attempts as leases it ended": """
        SELECT j.id::text FROM post_processor_jobs j LEFT JOIN (
          SELECT job_id, count(*) AS ended, max(lease_token) AS last FROM job_attempts GROUP BY 1
        ) a ON a.job_id = j.id
        WHERE j.lease_token - (j.status = 'processing')::int <> coalesce(a.ended, 0)
          OR a.last > j.lease_token - (j.status = 'processing')::int""",
    "a terminal job's last attempt says how it ended": f"""
        SELECT j.id::text FROM post_processor_jobs j JOIN job_attempts a
          ON a.job_id = j.id AND a.lease_token = j.lease_token
        WHERE j.status IN ('completed','failed') AND j.reason NOT IN {_WITHOUT_MODEL}
          AND (j.status = 'completed') <> (a.cause = 'finished')""",
    "every step of a job's history is a legal edge": f"""
        SELECT a.job_id::text FROM job_attempts a WHERE a.cause NOT IN {_words(ENDS)}""",
    "the attempts of a job count on, but for those that were given back": f"""
        SELECT job_id::text FROM (
          SELECT job_id, attempt, cause, lag(cause) OVER w AS before, lag(attempt) OVER w AS last
          FROM job_attempts WINDOW w AS (PARTITION BY job_id ORDER BY lease_token)) a
        WHERE before = 'finished' OR attempt <> 1 AND (before IS NULL OR before IN {_AFRESH}
          OR attempt <> last + (before NOT IN {_GIVEN_BACK})::int)""",
    "a job's attempts are its claims but for those that were given back": f"""
        SELECT j.id::text FROM post_processor_jobs j LEFT JOIN job_attempts a
          ON a.job_id = j.id AND a.lease_token = j.lease_token - (j.status = 'processing')::int
        WHERE CASE
          WHEN a.cause = 'finished' THEN j.status <> 'completed' OR j.attempts <> a.attempt
          WHEN j.status = 'completed' THEN true
          WHEN j.attempts - (j.status = 'processing')::int = 0 THEN false
          WHEN j.status = 'failed' AND a.cause IN {_FINAL} THEN j.attempts <> a.attempt
          ELSE a.cause IS NULL OR a.cause IN {_AFRESH}
            OR j.attempts - (j.status = 'processing')::int
              <> a.attempt - (a.cause IN {_GIVEN_BACK})::int END""",
    "an attempt does not begin before the one before it ended": """
        SELECT job_id::text FROM (SELECT job_id, started_at, ended_at, lag(ended_at) OVER (
            PARTITION BY job_id ORDER BY lease_token) AS before FROM job_attempts) a
        WHERE ended_at < started_at - interval '1 s' OR started_at < before - interval '1 s'""",
    "an attempt belongs to a job": """
        SELECT a.job_id::text FROM job_attempts a WHERE NOT EXISTS (
          SELECT 1 FROM post_processor_jobs j WHERE j.id = a.job_id)""",
}

_ANSWERS: dict[str, str] = {
    "a completed job kept its raw answer": """
        SELECT j.id::text FROM post_processor_jobs j WHERE j.status = 'completed'
        AND NOT EXISTS (SELECT 1 FROM job_results r WHERE r.item_id = j.item_id
          AND r.version_id = j.version_id AND r.post_processor_id = j.post_processor_id)""",
    "a kept answer comes from a job that completed": """
        SELECT r.job_id::text FROM job_results r JOIN post_processor_jobs j ON j.id = r.job_id
        WHERE j.status <> 'completed' OR j.item_id <> r.item_id
          OR j.post_processor_id <> r.post_processor_id""",
    "a kept answer's item is in the answer's version": """
        SELECT r.job_id::text FROM job_results r WHERE NOT EXISTS (SELECT 1 FROM item_splits s
          WHERE s.item_id = r.item_id AND s.version_id = r.version_id)""",
    "a model's annotation stands only for a post-processor that answered for the item": """
        SELECT a.id::text FROM annotations a WHERE a.source = 'model'
        AND NOT EXISTS (SELECT 1 FROM job_results r WHERE r.item_id = a.item_id
          AND r.version_id = a.version_id AND r.post_processor_id = a.post_processor_id)""",
    "a model's annotation comes from a job that completed": """
        SELECT a.id::text FROM annotations a JOIN post_processor_jobs j ON j.id = a.job_id
        WHERE a.source = 'model' AND (j.status <> 'completed' OR j.item_id <> a.item_id
          OR j.post_processor_id <> a.post_processor_id)""",
    "a prediction stands once": """
        SELECT min(id::text) FROM annotations WHERE fingerprint IS NOT NULL
        GROUP BY item_id, version_id, post_processor_id, fingerprint HAVING count(*) > 1""",
}

_ANNOTATIONS: dict[str, str] = {
    "an item of a single-label dataset has one class annotation at most": """
        SELECT min(a.item_id::text) FROM annotations a
        JOIN dataset_versions v ON v.id = a.version_id JOIN datasets d ON d.id = v.dataset_id
        WHERE NOT d.multi_label AND a.kind = 'class' AND a.deleted_at IS NULL
        GROUP BY a.item_id, a.version_id HAVING count(*) > 1""",
    "what a person took away is marked as rejected": """
        SELECT a.id::text FROM annotations a
        WHERE (a.deleted_at IS NOT NULL) <> (a.review = 'rejected')""",
    "an annotated item belongs to a split of that version": """
        SELECT a.id::text FROM annotations a WHERE NOT EXISTS (
          SELECT 1 FROM item_splits s WHERE s.item_id = a.item_id AND s.version_id = a.version_id)
        """,
    "an inference's annotation stands on the item that the inference became": """
        SELECT a.id::text FROM annotations a WHERE a.source = 'inference' AND NOT EXISTS (
          SELECT 1 FROM inferences n WHERE n.id = a.inference_id AND n.item_id = a.item_id)""",
    "an inference belongs to the dataset of its item": """
        SELECT n.id::text FROM inferences n JOIN dataset_items i ON i.id = n.item_id
        WHERE i.dataset_id <> n.dataset_id OR i.user_id <> n.user_id""",
}

_BARE = """
          SELECT s.split_id, s.item_id FROM item_splits s WHERE NOT EXISTS (
            SELECT 1 FROM annotations a WHERE a.item_id = s.item_id
              AND a.version_id = s.version_id AND a.deleted_at IS NULL)"""
_OVERLAPS = """
          SELECT version_id, item_id FROM item_splits GROUP BY 1, 2 HAVING count(*) > 1"""

_ITEMS: dict[str, str] = {
    "what is told to be without annotations is just that": f"""
        SELECT item_id::text FROM (
          ({_BARE} EXCEPT SELECT split_id, item_id FROM unlabelled_items)
          UNION ALL (SELECT split_id, item_id FROM unlabelled_items EXCEPT {_BARE})) w""",
    "an item of several splits of a version, and no other, is known as one": f"""
        SELECT item_id::text FROM (
          ({_OVERLAPS} EXCEPT SELECT version_id, item_id FROM split_overlaps)
          UNION ALL (SELECT version_id, item_id FROM split_overlaps EXCEPT {_OVERLAPS})) w""",
    "an item belongs to a version of its dataset": """
        SELECT s.item_id::text FROM item_splits s JOIN dataset_items i ON i.id = s.item_id
        JOIN dataset_versions v ON v.id = s.version_id WHERE v.dataset_id <> i.dataset_id""",
    "an item is in a split": """
        SELECT i.id::text FROM dataset_items i WHERE NOT EXISTS (
          SELECT 1 FROM item_splits s WHERE s.item_id = i.id)""",
    "an item with a state is in the state's version": """
        SELECT t.item_id::text FROM item_states t WHERE NOT EXISTS (SELECT 1 FROM item_splits s
          WHERE s.item_id = t.item_id AND s.version_id = t.version_id)""",
    "label stats are of splits that are there": """
        SELECT t.split_id::text FROM (SELECT split_id FROM label_stats
          UNION ALL SELECT split_id FROM label_stat_deltas) t
        WHERE NOT EXISTS (SELECT 1 FROM dataset_splits s WHERE s.id = t.split_id)""",
    "the default split of a version is one of its own": """
        SELECT v.id::text FROM dataset_versions v WHERE v.default_split IS NOT NULL
        AND v.deleted_at IS NULL AND NOT EXISTS (SELECT 1 FROM dataset_splits s
          WHERE s.id = v.default_split AND s.version_id = v.id AND s.deleted_at IS NULL)""",
}

_WORK: dict[str, str] = {
    "no operation is processing long after its lease": """
        SELECT id::text FROM operations WHERE status = 'processing'
          AND lease_expires_at < clock_timestamp() - interval '60 s'""",
    "inferences that were applied were applied to the last one": """
        SELECT id::text FROM operations WHERE kind = 'apply_inferences'
          AND (done > total OR (status = 'completed' AND done <> total))""",
    "a post-processor that is paused by its failures says why and until when": """
        SELECT post_processor_id::text FROM post_processor_circuits
        WHERE (opened_at IS NULL) <> (open_until IS NULL) OR open_until < opened_at
          OR (open_until IS NOT NULL AND reason = '')""",
}

INVARIANTS: dict[str, str] = _JOBS | _HISTORY | _ANSWERS | _ANNOTATIONS | _ITEMS | _WORK
"""Each query returns the rows that break its invariant."""

STATS = "label stats equal a recount"
"""The one invariant that ``store.stats`` says, beside its repair."""


def run(tx: Tx) -> list[Finding]:
    """Check every invariant; an empty list means that all hold."""
    found = []
    for sentence, query in INVARIANTS.items():
        rows = tx.execute(
            sa.text(f"SELECT count(*), (array_agg(id))[1:{_EXAMPLES}] FROM ({query}) AS broken(id)")
        ).one()
        if rows[0]:
            found.append(Finding(invariant=sentence, count=rows[0], examples=list(rows[1])))
    drift = stats.find_drift(tx, stats.list_split_ids(tx))
    if drift:
        splits = [str(row.split_id) for row in drift]
        found.append(Finding(invariant=STATS, count=len(drift), examples=splits[:_EXAMPLES]))
    return found
