"""The same job written by hand with plain dramatiq and psycopg: one item per message.

As one writes it well: a lean schema, two transactions per item (claim, finish), counters last so
that their rows are locked as briefly as can be. Run as ``dramatiq benchmarks.byhand``.
"""

import os
import threading
from typing import Any

import dramatiq
import psycopg
from dramatiq.brokers.redis import RedisBroker
from psycopg.types.json import Jsonb

DSN = os.environ.get("BENCH_DSN", "")
PREFETCH, PROCESSES, THREADS = 64, 2, 8

SCHEMA = """
CREATE TABLE items (
  id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  split text NOT NULL,
  text text NOT NULL,
  created_at timestamptz NOT NULL DEFAULT now());
CREATE TABLE jobs (
  id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  item_id bigint NOT NULL REFERENCES items,
  status text NOT NULL DEFAULT 'pending',
  attempts int NOT NULL DEFAULT 0,
  created_at timestamptz NOT NULL DEFAULT now(),
  started_at timestamptz,
  completed_at timestamptz,
  result jsonb);
CREATE INDEX jobs_pending ON jobs (id) WHERE status = 'pending';
CREATE TABLE annotations (
  id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  job_id bigint NOT NULL UNIQUE REFERENCES jobs,
  item_id bigint NOT NULL REFERENCES items,
  label text NOT NULL,
  confidence real NOT NULL,
  created_at timestamptz NOT NULL DEFAULT now());
CREATE INDEX annotations_item ON annotations (item_id);
CREATE TABLE label_stats (
  split text NOT NULL,
  label text NOT NULL,
  annotation_count bigint NOT NULL,
  item_count bigint NOT NULL,
  updated_at timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (split, label));
"""
LOAD = """
WITH made AS (
  INSERT INTO items (split, text)
  SELECT (ARRAY['train','train','train','val','test'])[1 + mod(g, 5)], 'item ' || g
  FROM generate_series(1, %s) g RETURNING id)
INSERT INTO jobs (item_id) SELECT id FROM made ORDER BY id RETURNING id
"""
CHECK = """
SELECT
  (SELECT count(*) FROM jobs WHERE status = 'completed' AND attempts = 1 AND result IS NOT NULL
     AND started_at IS NOT NULL AND completed_at IS NOT NULL) AS completed,
  (SELECT count(*) FROM jobs) AS jobs,
  (SELECT count(DISTINCT job_id) FROM annotations) AS annotated,
  (SELECT count(*) FROM annotations) AS annotations,
  (SELECT count(*) FROM (
     SELECT i.split, a.label, count(*) AS n, count(DISTINCT i.id) AS m
     FROM annotations a JOIN items i ON i.id = a.item_id GROUP BY 1, 2) r
   FULL JOIN label_stats s USING (split, label)
   WHERE r.n IS DISTINCT FROM s.annotation_count OR r.m IS DISTINCT FROM s.item_count) AS drift
"""
_CLAIM = """
UPDATE jobs j SET status = 'processing', attempts = attempts + 1, started_at = now()
FROM items i WHERE j.id = %s AND j.status = 'pending' AND i.id = j.item_id
RETURNING j.item_id, i.split, i.text
"""
_FINISH = """
UPDATE jobs SET status = 'completed', result = %s, completed_at = now()
WHERE id = %s AND status = 'processing'
"""
_ANNOTATE = "INSERT INTO annotations (job_id, item_id, label, confidence) VALUES (%s, %s, %s, %s)"
_COUNT = """
INSERT INTO label_stats AS s (split, label, annotation_count, item_count) VALUES (%s, %s, 1, 1)
ON CONFLICT (split, label) DO UPDATE SET annotation_count = s.annotation_count + 1,
  item_count = s.item_count + 1, updated_at = now()
"""

broker = RedisBroker(url=os.environ.get("BENCH_REDIS_URL", ""), namespace="byhand")  # type: ignore[no-untyped-call]
dramatiq.set_broker(broker)
_of_thread = threading.local()


def model(item_id: int) -> tuple[str, float]:
    """One label of ten and a score."""
    return f"label{item_id * 7 % 10}", item_id * 31 % 100 / 100


def raw(label: str, score: float) -> dict[str, object]:
    """The model's answer as it is kept."""
    return {"model": "trivial", "predictions": [{"label": label, "score": score}]}


@dramatiq.actor
def item(job_id: int) -> None:
    """The whole job of one item."""
    connection = _connection()
    row = connection.execute(_CLAIM, (job_id,)).fetchone()
    if row is None:
        return
    item_id, split, _text = row
    label, score = model(item_id)
    with connection.transaction():
        connection.execute(_FINISH, (Jsonb(raw(label, score)), job_id))
        connection.execute(_ANNOTATE, (job_id, item_id, label, score))
        connection.execute(_COUNT, (split, label))


def _connection() -> psycopg.Connection[tuple[Any, ...]]:
    found: psycopg.Connection[tuple[Any, ...]] | None = getattr(_of_thread, "connection", None)
    if found is None:
        found = _of_thread.connection = psycopg.connect(DSN, autocommit=True)
    return found
