"""Connections to PostgreSQL: their address, their session, and when one is worth keeping.

A pooler such as PgBouncer in transaction mode gives each transaction another session. There nothing
is prepared, and what a session is to have is set anew in each transaction.
"""

import logging
import random
import select
import time
from collections.abc import Generator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from math import inf
from threading import Lock
from typing import Any, TypeVar

import psycopg
import sqlalchemy as sa
from psycopg import capabilities, sql
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import DisconnectionError
from sqlalchemy.pool import ConnectionPoolEntry

from ppworker.errors import ConfigurationError

log = logging.getLogger(__name__)

T = TypeVar("T")

STEADY_PLANS = {"plan_cache_mode": "force_generic_plan", "enable_seqscan": "off", "jit": "off"}
"""One plan for each statement, made once, by its index however small the table was by then."""

CONNECT: Mapping[str, Any] = {
    "connect_timeout": 5,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 20_000,
}
_LIFE_S = 1800.0
"""Seconds after which a connection is made anew, jittered by a fifth: load balancers and changed
addresses are followed, and the server's memory for old sessions is freed."""
_COMMIT_S = 15.0
"""Seconds after which a COMMIT is in doubt, where statements have limits."""
_SILENCE_S = 15.0
"""Seconds past the server's limit of a statement after which a client takes the server for dead."""
_CANCEL_S = 1.0
"""Seconds that whoever hangs up waits for the server to hear of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What PostgreSQL ends in a session by itself.

    Attributes:
        statement_s: seconds of one statement. The client waits a little longer, then hangs up.
        lock_s: seconds of waiting for one lock.
        idle_s: seconds of an open transaction in which nothing is asked.
    """

    statement_s: int
    lock_s: int
    idle_s: int

    def settings(self) -> dict[str, str]:
        """The same as parameters of a session."""
        return {
            "statement_timeout": f"{self.statement_s}s",
            "lock_timeout": f"{self.lock_s}s",
            "idle_in_transaction_session_timeout": f"{self.idle_s}s",
        }


WORKER_LIMITS = Limits(statement_s=60, lock_s=30, idle_s=60)
"""Of workers, whose statements last milliseconds: what hangs must not hold a slot or a lock."""
SERVER_LIMITS = Limits(statement_s=300, lock_s=30, idle_s=300)
"""Of the HTTP API, which takes many items in one request."""


def address(url: str) -> sa.URL:
    """The address of a ``postgresql://`` URL, in libpq's form; it may name several hosts.

    Of several hosts the one that accepts writes is looked for, unless the URL says otherwise.

    Raises:
        ConfigurationError: the URL is malformed; the message never repeats it.
    """
    scheme, colon, rest = url.partition("://")
    if colon and scheme.partition("+")[0] not in {"postgresql", "postgres"}:
        raise ConfigurationError("PPWORKER_DATABASE_URL: must begin with postgresql://")
    try:
        parts = conninfo_to_dict(f"postgresql://{rest}") if colon else {}
    except psycopg.Error:  # whose message repeats what it could not read
        raise _not_a_url() from None
    hosts = str(parts.get("host") or "")
    ports = str(parts.get("port") or "")
    if (
        not colon
        or "@" in hosts  # part of a password, which the driver's errors would repeat
        or not all(port.isdecimal() for port in ports.split(",") if port)
        or ports.count(",") not in {0, hosts.count(",")}
    ):
        raise _not_a_url()
    if "," in hosts:
        parts.setdefault("target_session_attrs", "read-write")
        if ports and "," not in ports:  # libpq's one port for all, which SQLAlchemy does not know
            parts["port"] = ",".join([ports] * len(hosts.split(",")))
    user, password, name = (parts.pop(key, None) for key in ("user", "password", "dbname"))
    return sa.URL.create(
        "postgresql+psycopg",
        username=None if user is None else str(user),
        password=None if password is None else str(password),
        database=None if name is None else str(name),
        query={key: str(value) for key, value in parts.items()},
    )


def shown(url: str) -> str:
    """The address for a person or psql, without driver and passwords; of several hosts too.

    Raises:
        ConfigurationError: as ``address``.
    """
    found = address(url)
    kept = {name: str(value) for name, value in found.query.items() if "password" not in name}
    host, port = kept.get("host", ""), kept.get("port", "")
    is_one = bool(host) and not host.startswith("/") and "," not in host
    if is_one:
        kept = {name: value for name, value in kept.items() if name not in {"host", "port"}}
    return sa.URL.create(
        "postgresql",
        found.username,
        host=host if is_one else None,
        port=int(port) if is_one and port else None,
        database=found.database,
        query=kept,
    ).render_as_string()


def _not_a_url() -> ConfigurationError:
    return ConfigurationError(
        "PPWORKER_DATABASE_URL: not a URL like postgresql://user@host/name; "
        "in a password write @ as %40, : as %3A and / as %2F"
    )


class Link(psycopg.Connection[Any]):
    """A connection that does not wait for ever for a server that says nothing.

    Attributes:
        until: monotonic time by which the transaction must be over, None for no such time.
        statement_s: most seconds to wait for one statement, None for no limit.
    """

    until: float | None = None
    statement_s: float | None = None
    _commits = False

    def allow(self, statement_s: float) -> None:
        """Wait for a statement as long as the server was told to work on it, and a little longer;
        until the connection is given back."""
        if self.statement_s is not None:
            self.statement_s = statement_s + _SILENCE_S

    def wait(self, gen: Generator[Any, Any, T], *args: Any, **options: Any) -> T:
        """Wait for an answer; hang up when it is not there in time.

        Raises:
            psycopg.OperationalError: it was not; the connection is closed.
        """
        until = self.until
        if self.statement_s is not None:
            until = min(until or inf, time.monotonic() + self.statement_s)
        return super().wait(gen if until is None else self._within(gen, until), *args, **options)

    def commit(self) -> None:
        """Commit, and take a COMMIT that lasts for a dead one: that of a primary whose
        synchronous standby was promoted waits for ever, and its end proves nothing.

        Raises:
            psycopg.OperationalError: whether it was committed is unknown.
        """
        before = self.until
        if self.statement_s is not None:
            self.until = min(before or inf, time.monotonic() + _COMMIT_S)
        self._commits = True
        try:
            super().commit()
        finally:
            self.until, self._commits = before, False

    def _within(self, gen: Generator[Any, Any, T], until: float) -> Generator[Any, Any, T]:
        """The same generator, looked after each time that psycopg wakes: ten times a second."""
        try:
            wanted = next(gen)
            while True:
                ready = yield wanted
                if not ready and time.monotonic() > until:
                    self._hang_up()
                    raise psycopg.OperationalError("no answer in time; the connection was cut")
                wanted = gen.send(ready)
        except StopIteration as done:
            result: T = done.value
            return result
        finally:
            gen.close()

    def _hang_up(self) -> None:
        """Close, and have the server end what nobody waits for any more: it would work on, with
        its snapshot and its locks, and notice at the end only.

        Never a COMMIT: what waits for a standby would by that be committed here alone, be seen and
        believed, and be lost with the next failover.
        """
        if not self._commits and capabilities.has_cancel_safe():  # the other way has no limit
            with suppress(psycopg.Error):
                self.cancel_safe(timeout=_CANCEL_S)
        self.pgconn.finish()


class Keeper:
    """Looks after the connections of one engine: how each begins, and which is given out again.

    Args:
        session: parameters that each session is to have.
        limits: what the server and the client end by themselves.
    """

    def __init__(self, session: Mapping[str, str], limits: Limits | None) -> None:
        self._session = {**session, **(limits.settings() if limits else {})}
        self._statement_s = limits.statement_s + _SILENCE_S if limits else None
        self._lock = Lock()
        self._generation = 0
        self._must_write = False
        self.is_pooled = False
        """Whether the last connection went to a pooler rather than to PostgreSQL itself."""

    def look_after(self, engine: sa.Engine) -> None:
        """Begin to keep the connections of an engine."""
        self._must_write = engine.url.query.get("target_session_attrs") == "read-write"
        sa.event.listen(engine, "do_connect", self._connect)
        sa.event.listen(engine, "connect", self._begin)
        sa.event.listen(engine, "checkout", self._check)
        sa.event.listen(engine, "handle_error", self._failed)

    def settings_of(self, connection: sa.Connection) -> str | None:
        """What each transaction of this connection has to begin with, if anything."""
        if not self._session or not connection.info.get("is_pooled"):
            return None
        return _set(self._session, is_local=True)

    def _connect(
        self, _dialect: object, _record: object, args: list[Any], options: dict[str, Any]
    ) -> Link:
        return Link.connect(*args, **options)

    def _begin(self, link: Link, record: ConnectionPoolEntry) -> None:
        link.statement_s = self._statement_s
        # A pooler tells a process id that no server has; a session of its own there is none.
        name = {"application_name": link.info.parameter_status("application_name") or ""}
        style = {"DateStyle": "ISO"}  # whatever the role's is: the driver reads no other
        pid = link.info.backend_pid
        link.autocommit = True
        found = link.execute(
            _set(name | style | self._session, is_local=False) + f" WHERE pg_backend_pid() = {pid}"
        )
        is_pooled = found.rowcount == 0
        link.autocommit = False
        if is_pooled:
            link.prepare_threshold = None
            if not self.is_pooled:
                log.info("a pooler stands before PostgreSQL: no statement is prepared")
        self.is_pooled = is_pooled
        record.info["is_pooled"] = is_pooled
        record.info["generation"] = self._generation
        record.info["retire_at"] = time.monotonic() + _LIFE_S * random.uniform(0.8, 1.2)  # noqa: S311

    def _check(self, link: Link, record: ConnectionPoolEntry, _fairy: object) -> None:
        """Have another one made for a connection that is dead, outdated or old; costs no query."""
        info = record.info
        if info["generation"] != self._generation or time.monotonic() > info["retire_at"]:
            raise DisconnectionError
        if not _is_quiet(link) or (self._must_write and _is_read_only(link)):
            self._forget(info["generation"])
            raise DisconnectionError
        link.statement_s = self._statement_s  # whatever the last transaction was allowed

    def _failed(self, context: ExceptionContext) -> None:
        """Forget every connection of a server that went away or takes no writes any more."""
        # SQLAlchemy would do it by a clock that can be set back.
        context.invalidate_pool_on_disconnect = False
        is_read_only = isinstance(context.original_exception, psycopg.errors.ReadOnlySqlTransaction)
        if context.connection is not None and (context.is_disconnect or is_read_only):
            self._forget(context.connection.info.get("generation"))

    def _forget(self, generation: int | None) -> None:
        """Have every connection of this generation made anew when it is next asked for.

        Those that were made since the first of them failed stay.
        """
        with self._lock:
            if generation == self._generation:
                self._generation += 1


def _set(values: Mapping[str, str], *, is_local: bool) -> str:
    pairs = sql.SQL(", ").join(
        sql.SQL("({}, {})").format(sql.Literal(name), sql.Literal(value))
        for name, value in values.items()
    )
    return (
        sql.SQL("SELECT set_config(name, value, {}) FROM (VALUES {}) AS s(name, value)")
        .format(sql.Literal(is_local), pairs)
        .as_string()
    )


def _is_read_only(link: Link) -> bool:
    """Whether the server said with its last answer that it takes no writes: who only reads would
    else stay with a primary of yesterday."""
    names = ("default_transaction_read_only", "in_hot_standby")
    return any(link.info.parameter_status(name) == "on" for name in names)


def _is_quiet(link: Link) -> bool:
    """Whether the server said nothing since the last answer; its last words are a good-bye.

    A changed parameter of the server is told unasked too; after it the connection is quiet again.
    """
    poller = select.poll()
    poller.register(link.fileno(), select.POLLIN)
    if not poller.poll(0):
        return True
    with suppress(psycopg.Error):
        link.pgconn.consume_input()
        return not poller.poll(0) and not link.broken
    return False
