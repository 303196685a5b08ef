"""The transaction: the only place that connects, commits and names what PostgreSQL did wrong."""

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import psycopg
import sqlalchemy as sa
from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError, StatementError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from ppworker.errors import CommitUnknown, ConfigurationError, StoreRefused, StoreUnavailable

T = TypeVar("T")
Tx = Connection
"""A connection inside a transaction; store functions take it first and never commit."""


def by_name(row: sa.Row[*tuple[Any, ...]]) -> dict[str, Any]:
    """The values of a row by the names of their columns."""
    return dict(row._mapping)  # noqa: SLF001  public by documentation


_REPEAT = (psycopg.errors.DeadlockDetected, psycopg.errors.SerializationFailure)
_REPEATS = 10
_CONNECT_TIMEOUT_S = 5
_POOL_TIMEOUT_S = 30


class Database:
    """A bounded pool of connections to one PostgreSQL.

    Args:
        url: ``postgresql://`` or ``postgres://`` URL.
        connections: most connections of this process.
        name: shown as ``application_name`` in ``pg_stat_activity``.
        steady_plans: for workers, who send the same few statements all day: plan each once, and
            by its index however small the table was when it was planned. Planning anew costs more
            than running them, and a plan made for an empty table would scan a full one.
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
        failed: Callable[[str, str], None] = lambda _operation, _reason: None,
        came_back: Callable[[], None] = lambda: None,
    ) -> None:
        self._failed = failed
        self._came_back = came_back
        self._is_away = False
        self.engine = sa.create_engine(
            _normalised(url),
            # Errors are logged with their statements, and values may be hashes of passwords.
            hide_parameters=True,
            pool_size=connections,
            max_overflow=0,
            pool_timeout=_POOL_TIMEOUT_S,
            pool_use_lifo=True,
            connect_args={
                "application_name": name,
                "connect_timeout": _CONNECT_TIMEOUT_S,
                "keepalives_idle": 10,
                "keepalives_interval": 5,
                "keepalives_count": 3,
                "tcp_user_timeout": 20_000,
            },
        )

        if steady_plans:
            sa.event.listen(self.engine, "connect", _steady)

    @contextmanager
    def begin(self) -> Iterator[Tx]:
        """One READ COMMITTED transaction; commits at the end, rolls back on any error.

        Raises:
            StoreUnavailable: no connection, or it was lost before COMMIT: nothing was written.
            CommitUnknown: the connection was lost during COMMIT.
            StoreRefused: a value or a constraint was violated.
        """
        with self._connected() as connection:
            transaction = connection.begin()
            try:
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
    def look(self) -> Iterator[Tx]:
        """A connection to read with, each statement for itself: saves two of three round trips.

        Raises:
            StoreUnavailable: as ``begin``.
        """
        with self._connected() as connection:
            try:
                yield connection.execution_options(isolation_level="AUTOCOMMIT")
            except DBAPIError as error:
                named = _named(error)
                self._note("transaction", named)
                if named is error:
                    raise
                raise named from error

    @contextmanager
    def _connected(self) -> Iterator[Connection]:
        try:
            connection = self.engine.connect()
        except (DBAPIError, PoolTimeout) as error:
            away = StoreUnavailable(_reason(error))
            self._note("connect", away)
            raise away from error
        if self._is_away:
            self._is_away = False
            self._came_back()
        with connection:
            yield connection

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

    def transact(self, work: Callable[[Tx], T]) -> T:
        """Run ``work`` in a transaction, again if PostgreSQL chose it as a deadlock's victim.

        Raises:
            StoreUnavailable: as ``begin``, and after ten deadlocks in a row.
        """
        for repeat in range(_REPEATS):
            try:
                with self.begin() as tx:
                    return work(tx)
            except DBAPIError as error:
                if not isinstance(error.orig, _REPEAT):
                    raise
                time.sleep(random.uniform(0, 0.02 * (repeat + 1)))  # noqa: S311  only spreads
        raise StoreUnavailable("ten deadlocks in a row")

    @property
    def in_use(self) -> int:
        """Connections that this process uses now."""
        pool = self.engine.pool
        return pool.checkedout() if isinstance(pool, sa.QueuePool) else 0

    def close(self) -> None:
        """Close every pooled connection."""
        self.engine.dispose()


def _steady(connection: psycopg.Connection[object], _record: object) -> None:
    connection.autocommit = True
    connection.execute(
        "SELECT set_config(name, value, false) FROM (VALUES ('plan_cache_mode', "
        "'force_generic_plan'), ('enable_seqscan', 'off'), ('jit', 'off')) AS s(name, value)"
    )
    connection.autocommit = False


def _normalised(url: str) -> sa.URL:
    try:
        parsed = sa.make_url(url)
    except (sa.exc.ArgumentError, ValueError):  # the latter for a port that is no number
        raise _not_a_url() from None
    if "@" in (parsed.host or ""):  # part of a password, which the driver's errors would repeat
        raise _not_a_url()
    if parsed.get_backend_name() not in {"postgresql", "postgres"}:
        raise ConfigurationError("PPWORKER_DATABASE_URL: must begin with postgresql://")
    return parsed.set(drivername="postgresql+psycopg")


def _not_a_url() -> ConfigurationError:
    return ConfigurationError(
        "PPWORKER_DATABASE_URL: not a URL like postgresql://user@host/name; "
        "in a password write @ as %40, : as %3A and / as %2F"
    )


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
