"""What is, for a scrape: figures read at once that cost the live jobs, not the history."""

from collections.abc import Mapping
from dataclasses import dataclass

import sqlalchemy as sa

from ppworker.store import activity, overview
from ppworker.store.db import Tx
from ppworker.store.overview import ProcessorStatus


@dataclass(frozen=True, slots=True, kw_only=True)
class Readings:
    """Figures of one moment."""

    processors: list[ProcessorStatus]
    oldest_lease_s: Mapping[str, float]
    """By post-processor's name."""
    workers: Mapping[str, int]
    """By state."""
    deltas: int
    oldest_delta_s: float | None
    operations: Mapping[tuple[str, str], int]
    """Those that are not over, by kind and status."""
    dead_letters: int
    oldest_transaction_s: float
    dead_tuples: int
    hot_ratio: float | None
    """None where nothing was updated yet."""


def read(tx: Tx, *, timeout_s: float) -> Readings:
    """Read the figures in a transaction of its own; statements that take too long are given up."""
    tx.execute(
        sa.text(
            "SELECT set_config('statement_timeout', :ms, true), set_config('jit', 'off', true)"
        ),
        {"ms": str(round(timeout_s * 1000))},
    )
    processors, _, _ = overview.read_processors(tx)
    deltas, oldest_delta_s = overview.count_deltas(tx)
    states = [each.state for each in overview.read_workers(tx)]
    table = tx.execute(_TABLE).one()
    return Readings(
        processors=processors,
        oldest_lease_s={row.name: row.age_s for row in tx.execute(_LEASES)},
        workers={state: states.count(state) for state in ("live", "draining", "lost")},
        deltas=deltas.rows,
        oldest_delta_s=oldest_delta_s,
        operations={(row.kind, row.status): row.n for row in tx.execute(_OPERATIONS)},
        dead_letters=activity.count_dead_letters(tx).rows,
        oldest_transaction_s=tx.execute(_OLDEST_TRANSACTION).scalar_one(),
        dead_tuples=table.dead,
        hot_ratio=table.hot / table.updated if table.updated else None,
    )


_LEASES = sa.text("""
SELECT p.name, max(extract(epoch FROM clock_timestamp() - j.started_at))::float8 AS age_s
FROM post_processor_jobs j JOIN post_processors p ON p.id = j.post_processor_id
WHERE j.status = 'processing' GROUP BY 1
""")
_OPERATIONS = sa.text("""
SELECT kind, status, count(*) AS n FROM operations
WHERE status IN ('pending','processing') GROUP BY 1, 2
""")
_OLDEST_TRANSACTION = sa.text("""
SELECT coalesce(max(extract(epoch FROM clock_timestamp() - xact_start)), 0)::float8
FROM pg_stat_activity
WHERE datname = current_database() AND backend_type = 'client backend' AND pid <> pg_backend_pid()
""")
_TABLE = sa.text("""
SELECT coalesce(max(n_dead_tup), 0) AS dead, coalesce(max(n_tup_hot_upd), 0) AS hot,
  coalesce(max(n_tup_upd), 0) AS updated
FROM pg_stat_user_tables WHERE relid = 'post_processor_jobs'::regclass
""")
