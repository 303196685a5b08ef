"""The limit: the job by hand in sets of 100, without any queue. Run as a process of its own.

Waits for the file it is given, drains the table, prints the monotonic time of its last commit.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import psycopg

from benchmarks import byhand

BATCH = 100

_CLAIM = """
UPDATE jobs j SET status = 'processing', attempts = attempts + 1, started_at = now() FROM items i
WHERE j.id = ANY(ARRAY(SELECT id FROM jobs WHERE status = 'pending'
  ORDER BY id LIMIT %s FOR UPDATE SKIP LOCKED))
AND i.id = j.item_id RETURNING j.id, j.item_id, i.split, i.text
"""
_FINISH = """
WITH d AS (
  SELECT * FROM unnest(%s::bigint[], %s::bigint[], %s::text[], %s::text[], %s::real[], %s::text[])
    AS d(job_id, item_id, split, label, score, result)),
u AS (
  UPDATE jobs j SET status = 'completed', result = d.result::jsonb, completed_at = now()
  FROM d WHERE j.id = d.job_id AND j.status = 'processing' RETURNING j.id),
a AS (
  INSERT INTO annotations (job_id, item_id, label, confidence)
  SELECT d.job_id, d.item_id, d.label, d.score FROM d JOIN u ON u.id = d.job_id)
INSERT INTO label_stats AS s (split, label, annotation_count, item_count)
SELECT d.split, d.label, count(*), count(*) FROM d JOIN u ON u.id = d.job_id
GROUP BY 1, 2 ORDER BY 1, 2
ON CONFLICT (split, label) DO UPDATE SET
  annotation_count = s.annotation_count + excluded.annotation_count,
  item_count = s.item_count + excluded.item_count, updated_at = now()
"""


def main(go: Path) -> None:
    """Drain the table of ``byhand``."""
    options = "-c plan_cache_mode=force_generic_plan"
    connection = psycopg.connect(byhand.DSN, autocommit=True, options=options)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    while not go.exists():
        time.sleep(0.001)
    last = time.monotonic()
    while rows := connection.execute(_CLAIM, (BATCH,)).fetchall():
        done = [_done(*row) for row in rows]
        connection.execute(_FINISH, [list(column) for column in zip(*done, strict=True)])
        last = time.monotonic()
    sys.stdout.write(f"{last}\n")


def _done(job_id: int, item_id: int, split: str, _text: str) -> tuple[Any, ...]:
    label, score = byhand.model(item_id)
    return job_id, item_id, split, label, score, json.dumps(byhand.raw(label, score))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
