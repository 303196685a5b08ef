"""Short words for tests in which one transaction waits for another."""

import sqlalchemy as sa

from ppworker.store.db import Tx


def waiting(tx: Tx) -> int:
    """How many sessions of the database wait for a lock now."""
    tx.execute(sa.text("SELECT pg_stat_clear_snapshot()"))
    found = tx.execute(
        sa.text(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() "
            "AND wait_event_type = 'Lock'"
        )
    )
    return int(found.scalar_one())
