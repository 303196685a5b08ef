"""What becomes of pooled connections when the server restarts, turns read-only, hangs or is full."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from threading import Barrier, Thread

import psycopg
import pytest
import sqlalchemy as sa

from conftest import execute
from own_servers import until
from ppworker.errors import CommitUnknown, StoreUnavailable
from ppworker.store.connections import Limits
from ppworker.store.db import Database, allow

Open = Callable[..., Database]


@pytest.fixture
def open_db(database_url: str) -> Iterator[Open]:
    opened: list[Database] = []

    def make(**options: object) -> Database:
        opened.append(Database(database_url, **options))  # type: ignore[arg-type]
        return opened[-1]

    yield make
    for each in opened:
        each.close()


def pid(db: Database) -> int:
    with db.begin() as tx:
        return int(tx.execute(sa.text("SELECT pg_backend_pid()")).scalar_one())


def pids(db: Database, n: int) -> set[int]:
    """Of ``n`` connections at once, so that the pool holds as many afterwards."""
    with ExitStack() as held:
        links = [held.enter_context(db.begin()) for _ in range(n)]
        return {int(tx.execute(sa.text("SELECT pg_backend_pid()")).scalar_one()) for tx in links}


def end_sessions(url: str, *, but: int = 0) -> None:
    execute(
        url,
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
        f"WHERE datname = current_database() AND pid NOT IN (pg_backend_pid(), {but})",
    )


def test_pooled_connections_that_died_cost_nobody_an_error(
    database_url: str, open_db: Open
) -> None:
    """As after a restart of PostgreSQL while nobody asked anything."""
    db = open_db(connections=5)
    before = pids(db, 5)
    end_sessions(database_url)
    assert not pids(db, 5) & before


def _use_a_dead_one(url: str, db: Database) -> None:
    with db.begin() as tx:
        end_sessions(url)
        tx.execute(sa.text("SELECT 1"))


def test_one_loss_in_use_costs_one_error_and_renews_the_whole_pool(
    database_url: str, open_db: Open
) -> None:
    db = open_db(connections=5)
    before = pids(db, 5)
    with pytest.raises(StoreUnavailable):
        _use_a_dead_one(database_url, db)
    assert not pids(db, 5) & before


def test_a_connection_made_after_the_loss_stays(database_url: str, open_db: Open) -> None:
    """The second of two dead ones in use must not have the new one made once more."""
    db = open_db(connections=3)
    new = 0

    def use_a_dead_one_late() -> None:
        nonlocal new
        with db.begin() as late:
            late.execute(sa.text("SELECT 1"))
            with pytest.raises(StoreUnavailable):
                _use_a_dead_one(database_url, db)
            new = pid(db)
            late.execute(sa.text("SELECT 1"))

    with pytest.raises(StoreUnavailable):
        use_a_dead_one_late()
    assert new in pids(db, 3)


def test_a_server_that_takes_no_writes_any_more_is_left(database_url: str, open_db: Open) -> None:
    db = open_db(connections=3)
    before = pids(db, 3)

    def write() -> None:
        with db.begin() as tx:
            tx.execute(sa.text("SET LOCAL transaction_read_only = on"))
            tx.execute(sa.text("CREATE TABLE t ()"))

    with pytest.raises(StoreUnavailable, match="read-only"):
        write()
    assert not pids(db, 3) & before


def test_a_transaction_is_cut_when_its_time_is_up(open_db: Open) -> None:
    db = open_db()
    started = time.monotonic()
    with pytest.raises(StoreUnavailable, match="in time"), db.begin(limit_s=0.5) as tx:
        tx.execute(sa.text("SELECT pg_sleep(30)"))
    with pytest.raises(StoreUnavailable, match="in time"), db.look(limit_s=0.5) as tx:
        tx.execute(sa.text("SELECT pg_sleep(30)"))
    assert time.monotonic() - started < 10
    with db.begin() as tx:  # the limit went with the transaction
        tx.execute(sa.text("SELECT pg_sleep(0.7)"))


def working(db: Database) -> int:
    """Sessions of this database that compute or wait inside a statement; the asking one aside."""
    with db.look() as tx:
        return int(
            tx.execute(
                sa.text(
                    "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' "
                    "AND datname = current_database() AND pid <> pg_backend_pid()"
                )
            ).scalar_one()
        )


@pytest.mark.parametrize("limit_s", [0.5, None])
def test_nobody_works_on_for_a_client_that_hung_up(
    open_db: Open, monkeypatch: pytest.MonkeyPatch, limit_s: float | None
) -> None:
    """Neither when the transaction's time is up nor when the statement's is."""
    monkeypatch.setattr("ppworker.store.connections._SILENCE_S", -59)  # the client's, after 1 s
    db, other = open_db(limits=Limits(statement_s=60, lock_s=30, idle_s=60)), open_db()
    for enter in (db.begin, db.look):
        with pytest.raises(StoreUnavailable, match="in time"), enter(limit_s=limit_s) as tx:
            tx.execute(sa.text("SELECT pg_sleep(60)"))
        until(lambda: not working(other), seconds=5, what="the end of the statement")


def test_a_commit_whose_time_is_up_goes_on(open_db: Open) -> None:
    """Of one that waits for a standby a cancellation would make a commit that counts here only."""
    db = open_db()
    with db.begin() as tx:
        tx.execute(sa.text("CREATE TABLE t (a int UNIQUE DEFERRABLE INITIALLY DEFERRED)"))
    with suppress(ZeroDivisionError), db.begin() as first:
        first.execute(sa.text("INSERT INTO t VALUES (1)"))
        with pytest.raises(CommitUnknown), db.begin(limit_s=0.5) as second:
            second.execute(sa.text("INSERT INTO t VALUES (1)"))
        raise ZeroDivisionError  # undone: the COMMIT of the second need not wait any more
    until(lambda: not working(db), seconds=5, what="the end of the COMMIT")
    with db.begin() as tx:
        assert tx.execute(sa.text("SELECT count(*) FROM t")).scalar_one() == 1


def test_what_one_transaction_is_allowed_the_next_is_not(
    open_db: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the server and by the client, whichever ends it first."""
    for silence_s, said in ((0.5, "statement timeout"), (-1.0, "in time")):
        monkeypatch.setattr("ppworker.store.connections._SILENCE_S", silence_s)
        db = open_db(connections=1, limits=Limits(statement_s=2, lock_s=2, idle_s=9))
        with db.begin() as tx:
            allow(tx, statement_s=30)
            tx.execute(sa.text("SELECT pg_sleep(3)"))
        with pytest.raises(StoreUnavailable, match=said), db.begin() as tx:
            tx.execute(sa.text("SELECT pg_sleep(30)"))


def test_a_commit_whose_time_is_up_is_in_doubt(open_db: Open) -> None:
    db = open_db()
    with db.begin() as tx:
        tx.execute(sa.text("CREATE TABLE t (a int UNIQUE DEFERRABLE INITIALLY DEFERRED)"))
    with db.begin() as first:
        first.execute(sa.text("INSERT INTO t VALUES (1)"))
        # Its COMMIT waits for the first transaction: only that decides whether 1 is unique.
        with pytest.raises(CommitUnknown), db.begin(limit_s=0.5) as second:
            second.execute(sa.text("INSERT INTO t VALUES (1)"))


def test_the_server_ends_what_a_session_forgets(open_db: Open) -> None:
    db = open_db(limits=Limits(statement_s=2, lock_s=1, idle_s=1))

    def forget() -> None:
        with db.begin() as tx:
            tx.execute(sa.text("SELECT 1"))
            time.sleep(1.5)  # the time is what is tested
            tx.execute(sa.text("SELECT 1"))

    with pytest.raises(StoreUnavailable, match="statement timeout"), db.look() as tx:
        tx.execute(sa.text("SELECT pg_sleep(30)"))
    with pytest.raises(StoreUnavailable):
        forget()
    with db.begin() as tx:
        tx.execute(sa.text("CREATE TABLE t ()"))
    other = open_db()
    with other.begin() as holder:
        holder.execute(sa.text("LOCK TABLE t"))
        with pytest.raises(StoreUnavailable, match="lock timeout"), db.begin() as tx:
            tx.execute(sa.text("LOCK TABLE t"))
    assert pid(db)


def test_plans_and_limits_are_the_sessions_own(open_db: Open) -> None:
    db = open_db(steady_plans=True, limits=Limits(statement_s=60, lock_s=30, idle_s=60))
    with db.look() as tx:
        found = tx.execute(
            sa.text(
                "SELECT name || '=' || setting FROM pg_settings WHERE source = 'session' "
                "AND name <> 'application_name' ORDER BY name"
            )
        )
        assert found.scalars().all() == [
            "DateStyle=ISO, MDY",
            "enable_seqscan=off",
            "idle_in_transaction_session_timeout=60000",
            "jit=off",
            "lock_timeout=30000",
            "plan_cache_mode=force_generic_plan",
            "statement_timeout=60000",
        ]
    assert not db.is_pooled


def test_a_server_without_a_free_connection_is_away_and_then_back(
    database_url: str, open_db: Open
) -> None:
    name = sa.make_url(database_url).database
    role = f"few_{name}"
    execute(database_url, f"CREATE ROLE {role} LOGIN CONNECTION LIMIT 1")
    try:
        few = Database(str(sa.make_url(database_url).set(username=role)), connections=2)
        with few.begin() as tx:
            tx.execute(sa.text("SELECT 1"))
            with pytest.raises(StoreUnavailable, match="too many connections"), few.begin():
                pass
        assert pid(few)
        few.close()
    finally:
        execute(database_url, f"DROP ROLE {role}")


def test_a_connection_lives_for_a_while_and_not_for_ever(
    open_db: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ppworker.store.connections._LIFE_S", 0.2)
    db = open_db()
    first = pid(db)
    time.sleep(0.3)
    assert pid(db) != first


def test_a_restart_under_many_threads_leaves_every_one_with_a_connection(
    database_url: str, open_db: Open
) -> None:
    db = open_db(connections=6)
    barrier = Barrier(7)
    errors: list[BaseException] = []
    answers: list[int] = []

    def work() -> None:
        for turn in range(5):
            barrier.wait(30)
            try:
                answers.append(pid(db))
            except StoreUnavailable:
                errors.append(AssertionError(f"turn {turn}"))

    threads = [Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for _ in range(5):
        end_sessions(database_url)
        barrier.wait(30)
    for thread in threads:
        thread.join(30)
    # Killed in the middle of its one statement a thread may see one error; not one for each use.
    assert len(errors) <= 6
    assert len(answers) + len(errors) == 30


def test_the_driver_is_that_of_psycopg(open_db: Open) -> None:
    """Types are those that SQLAlchemy registers for it, although the connection is our own."""
    with open_db().begin() as tx:
        driver = tx.connection.driver_connection
        assert isinstance(driver, psycopg.Connection)
        assert tx.execute(sa.text("SELECT CAST('{\"a\": 1}' AS jsonb)")).scalar_one() == {"a": 1}
