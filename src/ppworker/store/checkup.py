"""What PostgreSQL says of itself to whoever looks for trouble ahead; read-only and quick."""

import os
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, cast

import psycopg
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError, ProgrammingError

from ppworker.store.db import Database, Tx, by_name

if TYPE_CHECKING:
    from ppworker.store.connections import Link

LIMIT_S = 5.0
"""Seconds that one look may take: what holds a table locked must not hold the doctor too."""

_SETTINGS = (
    "server_version_num",
    "server_encoding",
    "max_connections",
    "superuser_reserved_connections",
    "autovacuum",
    "track_counts",
    "fsync",
    "full_page_writes",
    "synchronous_commit",
    "default_transaction_isolation",
    "default_transaction_read_only",
    "statement_timeout",
    "lock_timeout",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class OldTransaction:
    """A transaction that keeps dead rows from being removed."""

    pid: int
    application: str
    state: str
    age_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerFacts:
    """One look at the server.

    Attributes:
        settings: as ``SHOW`` gives them, by name.
        is_standby: whether it only replays another server.
        connections: client connections there are, ours among them.
        old_transactions: those older than the limit asked for, oldest first.
        held_slots: replication slots that nobody reads and that hold old rows or WAL back.
        prepared: two-phase transactions that wait for their end.
        unvacuumed: tables of ours whose own setting turns autovacuum off.
        dead_rows: of the job table, beside ``live_rows``.
        xid_age: transactions since the oldest row of the database was frozen.
        ahead_s: how much its clock is ahead of ours, in seconds.
        round_trip_s: of one statement.
        through: what lies between: empty, or one of ``proxy``, ``transaction pooling``.
        limit: most connections of this role to this database; None for no limit of their own.
        untold: where this role may not look, in the server's words; what stands there is not known.
    """

    settings: Mapping[str, str]
    is_standby: bool
    connections: int
    old_transactions: Sequence[OldTransaction]
    held_slots: Sequence[str]
    prepared: int
    unvacuumed: Sequence[str]
    live_rows: int
    dead_rows: int
    xid_age: int
    ahead_s: float
    round_trip_s: float
    through: str
    limit: int | None = None
    untold: Sequence[str] = ()


def read(db: Database, *, old_after_s: float) -> ServerFacts:
    """Look at the server.

    Args:
        db: with two connections at least.
        old_after_s: seconds after which a transaction is called old.

    Raises:
        StoreUnavailable: it does not answer, or not in time.
    """
    untold: list[str] = []
    with db.begin(limit_s=LIMIT_S) as tx:
        started = time.monotonic()
        theirs: datetime = tx.execute(sa.text("SELECT clock_timestamp()")).scalar_one()
        round_trip_s = time.monotonic() - started
        ahead_s = (theirs - datetime.now(UTC)).total_seconds() + round_trip_s / 2
        found = tx.execute(
            sa.text("SELECT name, current_setting(name) FROM unnest(CAST(:names AS text[])) name"),
            {"names": list(_SETTINGS)},
        )
        settings = {row[0]: row[1] for row in found}
        old = _told(tx, untold, _OLD, age=old_after_s)
        slots = _told(tx, untold, _SLOTS)
        one = {name: value for asked in _FIGURES for name, value in _one(tx, untold, asked).items()}
        tables = list(tx.execute(_UNVACUUMED).scalars())
    return ServerFacts(
        settings=settings,
        old_transactions=[OldTransaction(**by_name(row)) for row in old],
        held_slots=[row[0] for row in slots],
        unvacuumed=tables,
        ahead_s=ahead_s,
        round_trip_s=round_trip_s,
        through=_between(db),
        untold=sorted(set(untold)),
        **(_UNKNOWN | one),
    )


def _told(
    tx: Tx, untold: list[str], asked: sa.TextClause, **values: Any
) -> Sequence[sa.Row[*tuple[Any, ...]]]:
    """The rows; none where this role may not look there, which is noted."""
    try:
        with tx.begin_nested():
            return tx.execute(asked, values).all()
    except ProgrammingError as error:
        if not isinstance(error.orig, psycopg.errors.InsufficientPrivilege):
            raise
        untold.append(error.orig.diag.message_primary or str(error.orig))
        return []


def _one(tx: Tx, untold: list[str], asked: sa.TextClause) -> dict[str, Any]:
    return next((by_name(row) for row in _told(tx, untold, asked)), {})


_OLD = sa.text("""
SELECT pid, application_name AS application, state,
  extract(epoch FROM clock_timestamp() - xact_start)::float8 AS age_s
FROM pg_stat_activity
WHERE datname = current_database() AND backend_type = 'client backend'
  AND pid <> pg_backend_pid() AND xact_start < clock_timestamp() - make_interval(secs => :age)
ORDER BY xact_start LIMIT 10
""")
_SLOTS = sa.text("""
SELECT slot_name FROM pg_replication_slots WHERE NOT active
  AND (xmin IS NOT NULL OR catalog_xmin IS NOT NULL OR restart_lsn IS NOT NULL)
ORDER BY slot_name
""")
_FIGURES = [
    sa.text(asked)
    for asked in (
        "SELECT pg_is_in_recovery() AS is_standby",
        """
SELECT coalesce(s.n_live_tup, 0) AS live_rows, coalesce(s.n_dead_tup, 0) AS dead_rows
FROM (SELECT to_regclass('post_processor_jobs') AS id) t
LEFT JOIN pg_stat_user_tables s ON s.relid = t.id
""",
        """
SELECT count(*) AS connections FROM pg_stat_activity WHERE backend_type = 'client backend'
""",
        "SELECT count(*) AS prepared FROM pg_prepared_xacts WHERE database = current_database()",
        "SELECT age(datfrozenxid) AS xid_age FROM pg_database WHERE datname = current_database()",
        """
SELECT min(most) AS "limit" FROM (
  SELECT datconnlimit AS most FROM pg_database WHERE datname = current_database()
  UNION ALL SELECT rolconnlimit FROM pg_roles WHERE rolname = current_user) AS limits
WHERE most >= 0 AND NOT (SELECT rolsuper FROM pg_roles WHERE rolname = current_user)
""",
    )
]
"""Each for itself: a role that may not look in one place may look in the others."""
_UNKNOWN = dict.fromkeys(("live_rows", "dead_rows", "connections", "prepared", "xid_age"), 0)
_UNVACUUMED = sa.text("""
SELECT c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = current_schema() AND c.relkind = 'r'
  AND 'autovacuum_enabled=false' = ANY(c.reloptions) ORDER BY 1
""")


def _between(db: Database) -> str:
    """Whether somebody stands between us and the server, and hands its sessions around.

    A server that we reach directly names our own port as that of its client. A pooler that pools
    transactions gives a second client the session of a first that has ended its transaction; the
    first then finds itself in another one, or waits in vain for one.
    """
    with db.engine.connect() as first, _bounded(first):
        if _is_direct(first):
            return ""
        mine = _session(first)
        first.rollback()  # nothing was written; it only ends the transaction
        try:
            with db.engine.connect() as second, _bounded(second):
                _session(second)  # most likely the session just given back, held while this lasts
                other = _session(first)
        except DBAPIError:
            return "proxy"  # which has no second session for us
    return "transaction pooling" if other != mine else "proxy"


@contextmanager
def _bounded(connection: Tx) -> Iterator[None]:
    """Have the connection be cut when it does not answer in time."""
    link = cast("Link", connection.connection.driver_connection)
    link.until = time.monotonic() + LIMIT_S
    try:
        yield
    finally:
        link.until = None


def _is_direct(connection: Tx) -> bool:
    said = connection.execute(sa.text("SELECT coalesce(inet_client_port(), -1)")).scalar_one()
    connection.rollback()
    driver: psycopg.Connection[object] = connection.connection.driver_connection  # type: ignore[assignment]  # SQLAlchemy knows no driver's type
    return bool(said == _own_port(driver))


def _own_port(driver: psycopg.Connection[object]) -> int:
    """Our end's port; -1 for a socket without one, as the server says it too."""
    with socket.socket(fileno=os.dup(driver.fileno())) as ours:
        name = ours.getsockname()
    return int(name[1]) if isinstance(name, tuple) else -1


def _session(connection: Tx) -> int:
    return int(connection.execute(sa.text("SELECT pg_backend_pid()")).scalar_one())
