"""The transaction: the only place that connects, commits and names what PostgreSQL did wrong."""

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import psycopg
import sqlalchemy as sa
from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError, InvalidRequestError, StatementError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from ppworker.errors import CommitUnknown, StoreRefused, StoreUnavailable
from ppworker.store.connections import CONNECT, STEADY_PLANS, Keeper, Limits, Link, address

T = TypeVar("T")
Tx = Connection
"""A connection inside a transaction; store functions take it first and never commit."""


def by_name(row: sa.Row[*tuple[Any, ...]]) -> dict[str, Any]:
    """The values of a row by the names of their columns."""
    return dict(row._mapping)  # noqa: SLF001  public by documentation


def allow(tx: Tx, *, statement_s: int) -> None:
    """Let a statement take so long, for the rest of the transaction: server and client alike."""
    tx.execute(
        sa.text("SELECT set_config('statement_timeout', :limit, true)"),
        {"limit": f"{statement_s}s"},
    )
    _link(tx).allow(statement_s)


def try_lock(tx: Tx, name: str) -> bool:
    """Take an advisory lock until the transaction ends; false while somebody else has it."""
    return bool(
        tx.execute(
            sa.text("SELECT pg_try_advisory_xact_lock(hashtextextended(:name, 0))"), {"name": name}
        ).scalar_one()
    )


_REPEAT = (psycopg.errors.DeadlockDetected, psycopg.errors.SerializationFailure)
_REPEATS = 10
_POOL_TIMEOUT_S = 30


class Database:
    """A bounded pool of connections to one PostgreSQL.

    Args:
        url: ``postgresql://`` or ``postgres://`` URL, of one host or several.
        connections: most connections of this process.
        name: shown as ``application_name`` in ``pg_stat_activity``.
        steady_plans: for workers, who send the same few statements all day: plan each once, and
            by its index however small the table was when it was planned. Planning anew costs more
            than running them, and a plan made for an empty table would scan a full one.
        limits: what may take how long in a session; None for no limits.
        failed: told what was under way (connect, transaction or commit) and what went wrong
            (unavailable, unknown, deadlock or refused); must be quick and not raise.
        came_back: told when PostgreSQL answers again after it was away.

    Raises:
        ConfigurationError: the URL is malformed; the message never repeats it.
    """

    def __init__(
        self,
        url: str,
        *,
        connections: int = 5,
        name: str = "ppworker",
        steady_plans: bool = False,
        limits: Limits | None = None,
        failed: Callable[[str, str], None] = lambda _operation, _reason: None,
        came_back: Callable[[], None] = lambda: None,
    ) -> None:
        self._failed = failed
        self._came_back = came_back
        self._is_away = False
        self._keeper = Keeper(STEADY_PLANS if steady_plans else {}, limits)
        self.engine = sa.create_engine(
            address(url),
            # Errors are logged with their statements, and values may be hashes of passwords.
            hide_parameters=True,
            pool_size=connections,
            max_overflow=0,
            pool_timeout=_POOL_TIMEOUT_S,
            pool_use_lifo=True,
            connect_args={"application_name": name, **CONNECT},
        )
        self._keeper.look_after(self.engine)

    @contextmanager
    def begin(self, *, limit_s: float | None = None) -> Iterator[Tx]:
        """One READ COMMITTED transaction; commits at the end, rolls back on any error.

        Args:
            limit_s: seconds that it may take; then the connection is cut.

        Raises:
            StoreUnavailable: no connection, or it was lost before COMMIT: nothing was written.
            CommitUnknown: the connection was lost during COMMIT.
            StoreRefused: a value or a constraint was violated.
        """
        with self._connected(limit_s) as connection:
            transaction = connection.begin()
            try:
                if settings := self._keeper.settings_of(connection):
                    connection.exec_driver_sql(settings)
                yield connection
            except BaseException as error:
                _roll_back(connection, transaction)
                named = _named(error)
                self._note("transaction", named)
                if named is error:
                    raise
                raise named from error
            try:
                transaction.commit()
            except DBAPIError as error:
                if _is_lost(error):
                    connection.invalidate()
                    unknown = CommitUnknown(_reason(error))
                    self._note("commit", unknown)
                    raise unknown from error
                named = _named(error)
                self._note("commit", named)
                raise named from error

    @contextmanager
    def look(self, *, limit_s: float | None = None) -> Iterator[Tx]:
        """A connection to read with, each statement for itself: saves two of three round trips.

        Raises:
            StoreUnavailable: as ``begin``.
        """
        with self._connected(limit_s) as connection:
            try:
                yield connection.execution_options(isolation_level="AUTOCOMMIT")
            except DBAPIError as error:
                named = _named(error)
                self._note("transaction", named)
                if named is error:
                    raise
                raise named from error

    @contextmanager
    def _connected(self, limit_s: float | None) -> Iterator[Connection]:
        try:
            connection = self.engine.connect()
        except (DBAPIError, PoolTimeout, InvalidRequestError) as error:
            away = StoreUnavailable(_reason(error))
            self._note("connect", away)
            raise away from error
        if self._is_away:
            self._is_away = False
            self._came_back()
        with connection:
            if limit_s is None:
                yield connection
                return
            link = _link(connection)
            link.until = time.monotonic() + limit_s
            try:
                yield connection
            finally:
                link.until = None

    def _note(self, operation: str, error: BaseException) -> None:
        """Tell of an error of PostgreSQL's; what callers raise inside is none of ours."""
        if isinstance(error, StoreUnavailable):
            self._is_away = True
            reason = "unknown" if isinstance(error, CommitUnknown) else "unavailable"
        elif isinstance(error, StoreRefused):
            reason = "refused"
        elif isinstance(error, DBAPIError):
            reason = "deadlock" if isinstance(error.orig, _REPEAT) else "other"
        else:
            return
        self._failed(operation, reason)

    def transact(self, work: Callable[[Tx], T], *, limit_s: float | None = None) -> T:
        """Run ``work`` in a transaction, again if PostgreSQL chose it as a deadlock's victim.

        ``limit_s`` limits each try, as in ``begin``.

        Raises:
            StoreUnavailable: as ``begin``, and after ten deadlocks in a row.
        """
        for repeat in range(_REPEATS):
            try:
                with self.begin(limit_s=limit_s) as tx:
                    return work(tx)
            except DBAPIError as error:
                if not isinstance(error.orig, _REPEAT):
                    raise
                time.sleep(random.uniform(0, 0.02 * (repeat + 1)))  # noqa: S311  only spreads
        raise StoreUnavailable("ten deadlocks in a row")

    @property
    def is_pooled(self) -> bool:
        """Whether connections go to a pooler such as PgBouncer; False before the first one."""
        return self._keeper.is_pooled

    @property
    def in_use(self) -> int:
        """Connections that this process uses now."""
        pool = self.engine.pool
        return pool.checkedout() if isinstance(pool, sa.QueuePool) else 0

    def close(self) -> None:
        """Close every pooled connection."""
        self.engine.dispose()


def _link(connection: Connection) -> Link:
    return cast("Link", connection.connection.driver_connection)


def _roll_back(connection: Connection, transaction: sa.RootTransaction) -> None:
    try:
        transaction.rollback()
    except DBAPIError:
        connection.invalidate()  # the server is gone and has rolled back by itself


def _is_lost(error: DBAPIError) -> bool:
    return error.connection_invalidated or (
        isinstance(error.orig, psycopg.OperationalError)
        and (error.orig.sqlstate is None or error.orig.sqlstate.startswith(("08", "57P")))
    )


def _is_too_much(error: BaseException | None) -> bool:
    """Whether a value is beyond a limit of PostgreSQL's (class 54): no repetition will help, though
    psycopg names it among the errors of operation."""
    return isinstance(error, psycopg.Error) and (error.sqlstate or "").startswith("54")


def _named(error: BaseException) -> BaseException:
    """Translate what callers decide on; deadlocks stay as they are for ``transact``."""
    if isinstance(error, DBAPIError):
        if isinstance(error.orig, _REPEAT):
            return error
        if _is_too_much(error.orig):
            return StoreRefused(_reason(error))
        if _is_lost(error) or isinstance(
            error.orig, psycopg.OperationalError | psycopg.errors.ReadOnlySqlTransaction
        ):
            return StoreUnavailable(_reason(error))
        if isinstance(error.orig, psycopg.DataError | psycopg.IntegrityError):
            return StoreRefused(_reason(error))
    elif isinstance(error, StatementError | UnicodeEncodeError):
        return StoreRefused(str(error).splitlines()[0][:300])
    return error


def _reason(error: BaseException) -> str:
    """First line of the server's words, without statement and parameters."""
    original = getattr(error, "orig", None) or error
    return (str(original).strip().splitlines() or [type(original).__name__])[0][:300]
