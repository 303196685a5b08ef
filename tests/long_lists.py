"""A dataset as long as one likes, made by few statements, and what each statement of a list costs.

Its shape is the worst for lists: people labelled from the front, so that what is left to do lies
behind nine tenths of the items; a label and a failure are rare; jobs are as many as items.
"""

import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from api_server import Api
from factories import World

RARE_EVERY = 1000
"""Every so many items there is one with the rare label."""
FAILED_EVERY = 10_000

# Ids in the order of their making, as ours are.
_ID = (
    "CAST(lpad(to_hex(1750000000000 + ({n})), 12, '0') || '7' || substr(md5(({n})::text || '{k}'), "
    "1, 3) || '8' || substr(md5(({n})::text || '{k}'), 4, 15) AS uuid)"
)
_ITEM, _ANNOTATION, _JOB = (
    _ID.format(n="n", k="i"),
    _ID.format(n="n * 8 + k", k="a"),
    _ID.format(n="n", k="j"),
)

_STEPS = (
    # Foreign keys would take minutes to check, and triggers hours to run.
    "SET LOCAL session_replication_role = replica",
    "SET LOCAL synchronous_commit = off",
    (
        "INSERT INTO labels (id, version_id, user_id, name, normalised_name, color, index) "
        "SELECT gen_random_uuid(), :version, :user, 'l' || n, 'l' || n, '#000', n "
        "FROM generate_series(0, 19) n"
    ),
    (
        f"INSERT INTO dataset_items (id, dataset_id, user_id, name, text, text_sha256, extension) "
        f"SELECT {_ITEM}, :dataset, :user, 'letter_' || n || '.txt', 'The quick ' || md5(n::text) || "
        "' brown fox ' || n || ' jumps over ' || md5((n * 7)::text) || ' lazy dogs', "
        "repeat('0', 64), 'txt' FROM generate_series(1, :n) n"
    ),
    (
        f"INSERT INTO item_splits (split_id, item_id, version_id) SELECT CASE WHEN n % 10 < 8 "
        f"THEN CAST(:train AS uuid) WHEN n % 10 = 8 THEN CAST(:valid AS uuid) "
        f"ELSE CAST(:test AS uuid) END, {_ITEM}, :version FROM generate_series(1, :n) n"
    ),
    # 50 for 9 items: five for each item of all.
    (
        f"INSERT INTO annotations (id, version_id, item_id, label_id, user_id, kind, score, source, "
        f"post_processor_id, fingerprint) SELECT {_ANNOTATION}, :version, {_ITEM}, l.id, :user, "
        f"'class', 0.5 + (n * 7 + k * 13) % 500 / 1000.0, 'model', :processor, n || '.' || k "
        f"FROM generate_series(1, :n * 9 / 10) n CROSS JOIN generate_series(0, 5) k "
        f"JOIN labels l ON l.version_id = :version AND l.index = "
        f"CASE WHEN k = 0 AND n % {RARE_EVERY} = 0 THEN 19 ELSE (n + k * 3) % 19 END "
        f"WHERE k < 5 OR n % 9 < 5"
    ),
    (
        f"INSERT INTO post_processor_jobs (id, post_processor_id, item_id, version_id, user_id, "
        f'status, ready, "order", max_attempts, attempts, completed_at) SELECT {_JOB}, :processor, '
        f"{_ITEM}, :version, :user, CASE WHEN n > :n * 9 / 10 THEN 'pending' "
        f"WHEN n % {FAILED_EVERY} = 77 THEN 'failed' ELSE 'completed' END, true, 0, 3, 0, "
        f"CASE WHEN n <= :n * 9 / 10 THEN now() END FROM generate_series(1, :n) n"
    ),
    (
        "INSERT INTO unlabelled_items SELECT split_id, item_id FROM item_splits "
        f"WHERE item_id > (SELECT {_ITEM} FROM (SELECT CAST(:n AS bigint) * 9 / 10 AS n) last)"
    ),
    (
        "INSERT INTO label_stats (split_id, bucket, label_id, annotation_count, item_count) "
        "SELECT m.split_id, 'label', a.label_id, count(*), count(DISTINCT a.item_id) "
        "FROM item_splits m JOIN annotations a USING (item_id, version_id) GROUP BY 1, 3"
    ),
    (
        "INSERT INTO label_stats (split_id, bucket, annotation_count, item_count) "
        "SELECT m.split_id, 'total', 0, count(*) FROM item_splits m GROUP BY 1 UNION ALL "
        "SELECT u.split_id, 'unlabelled', 0, count(*) FROM unlabelled_items u GROUP BY 1"
    ),
)


def fill(world: World, items: int) -> None:
    """Fill the world's dataset with items, five annotations for each and a job for each."""
    processor = world.processor("reader")
    values = {
        "n": items,
        "user": world.user,
        "dataset": world.dataset.id,
        "version": world.train.version_id,
        "train": world.train.id,
        "valid": world.valid.id,
        "test": world.test.id,
        "processor": processor.id,
    }
    with world.deps.db.begin() as tx:
        for step in _STEPS:
            tx.execute(sa.text(step), values)
    with world.deps.db.engine.connect() as connection:
        connection.execution_options(isolation_level="AUTOCOMMIT")
        connection.execute(
            sa.text(
                "VACUUM ANALYZE dataset_items, item_splits, annotations, post_processor_jobs, "
                "unlabelled_items, label_stats, labels"
            )
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What the database does for one request."""

    rows: int
    statements: int
    ms: float
    """Of all its statements together, planning included; the median of several runs."""
    blocks: int
    indexes: frozenset[str]
    scanned: frozenset[str]
    """Tables that are read from end to end."""
    leading_index: str
    """The index that the list walks; empty where it is none that goes page by page."""
    slowest: str
    """The plan of the statement that takes longest."""
    headers: Mapping[str, str]


def cost(api: Api, path: str, *, runs: int = 1, **params: Any) -> Cost:
    """What a list costs the database, by the plans of the statements that the API really sends."""
    sent: list[tuple[str, Any]] = []

    def note(_c: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        sent.append((statement, parameters))

    engine = api.deps.db.engine
    api.me.get(path, params=params)  # the first request of a key notes its use
    sa.event.listen(engine, "before_cursor_execute", note)
    try:
        response = api.me.get(path, params=params)
    finally:
        sa.event.remove(engine, "before_cursor_execute", note)
    assert response.status_code == 200, response.text
    with api.deps.db.look() as tx:
        taken = [[_explained(tx, *each) for each in sent] for _ in range(runs)]
    plans = [plan["Plan"] for plan in taken[-1]]
    seen = [node for plan in plans for node in _nodes(plan)]
    slowest = max(taken[-1], key=lambda plan: float(plan["Execution Time"]))
    return Cost(
        rows=len(response.json()),
        statements=len(sent),
        ms=statistics.median(
            sum(plan["Execution Time"] + plan["Planning Time"] for plan in run) for run in taken
        ),
        blocks=sum(plan["Shared Hit Blocks"] + plan["Shared Read Blocks"] for plan in plans),
        indexes=frozenset(node["Index Name"] for node in seen if "Index Name" in node),
        scanned=frozenset(n["Relation Name"] for n in seen if n["Node Type"] == "Seq Scan"),
        leading_index=_walked(sent, plans),
        slowest=json.dumps(slowest, indent=1),
        headers=response.headers,
    )


def _walked(sent: Sequence[tuple[str, Any]], plans: Sequence[Mapping[str, Any]]) -> str:
    for (statement, _), plan in zip(sent, plans, strict=True):
        if "OFFSET" in statement:
            found = [node["Index Name"] for node in _nodes(plan) if "Index Name" in node]
            return next((name for name in found if not name.startswith("label_stat")), "")
    return ""


def _explained(tx: sa.Connection, statement: str, parameters: Any) -> dict[str, Any]:
    # Without a clock at every row, which would double what counting rows takes.
    rows = tx.exec_driver_sql(
        f"EXPLAIN (ANALYZE, BUFFERS, TIMING OFF, FORMAT JSON) {statement}", parameters
    )
    plan: dict[str, Any] = rows.scalar_one()[0]
    return plan


def _nodes(plan: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    yield plan
    for child in plan.get("Plans", []):
        yield from _nodes(child)
