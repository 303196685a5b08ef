"""What an attack on everything around the jobs found, each finding kept as a test."""

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from math import inf
from uuid import uuid4

import pytest
import sqlalchemy as sa
from psycopg.conninfo import conninfo_to_dict

from conftest import execute, on
from factories import World
from ppworker import settings
from ppworker.errors import ConfigurationError
from ppworker.pipeline.control import operations
from ppworker.pipeline.control.operations import Chunk, Write
from ppworker.pipeline.deps import Deps
from ppworker.pipeline.runs import refresh
from ppworker.pipeline.runs.retention import removals
from ppworker.store import checkup, connections
from ppworker.store import operations as store
from ppworker.store.db import Database, Tx
from ppworker.store.ids import new_id
from ppworker.store.operations import Operation
from ppworker.worker.broker import connect


def eventually(check: Callable[[], bool], within_s: float = 30.0) -> None:
    until = time.monotonic() + within_s
    while not check():
        assert time.monotonic() < until, "it did not happen in time"
        time.sleep(0.05)


def with_settings(deps: Deps, **values: object) -> Deps:
    return replace(deps, settings=deps.settings.model_copy(update=values))


def test_a_chunk_that_takes_longer_than_a_lease_to_prepare_is_done_once_and_by_one(
    world: World,
) -> None:
    """A file of two gigabytes on a slow disk: it was begun again and again, and then given up."""
    mine = with_settings(world.deps, lease_s=1.0)
    other = replace(mine, worker_id=uuid4())
    prepared: list[int] = []
    steps: dict[str, operations.Step] = {}

    def is_past_the_first_lease(ends_at: object) -> bool:
        (row,) = world.sql(
            "SELECT clock_timestamp() > :ends AS is_past FROM operations", ends=ends_at
        )
        return bool(row.is_past)

    def step(_deps: Deps, operation: Operation) -> Write:
        prepared.append(operation.lease_token)
        (row,) = world.sql("SELECT lease_expires_at AS ends_at FROM operations")
        eventually(partial(is_past_the_first_lease, row.ends_at))
        assert operations.run(other, steps) is None
        return lambda _tx: Chunk(cursor=1, done=1, counts={}, is_last=True)

    steps["slow"] = step
    with world.deps.db.begin() as tx:
        store.insert_operation(
            tx, new_id(), world.user, kind="slow", arguments={}, dataset_id=None, total=1
        )
    done = operations.run(mine, steps)
    assert done is not None
    assert (done.status, done.attempts, prepared) == ("completed", 1, [1])


@pytest.mark.parametrize("seconds", [inf, 1e11])
@pytest.mark.parametrize("name", ["keep_completed_s", "keep_failed_s", "keep_keys_s", "recount_s"])
def test_a_time_that_no_calendar_holds_is_refused_at_the_start(name: str, seconds: float) -> None:
    """It ended each sweep of what is old, or of the counts, with an error, for ever."""
    with pytest.raises(ConfigurationError, match=f"PPWORKER_{name.upper()}"):
        settings.load(**{name: seconds})


def test_the_longest_time_that_is_allowed_removes_nothing_and_fails_nothing(world: World) -> None:
    longest = dict.fromkeys(("keep_completed_s", "keep_failed_s", "keep_keys_s", "recount_s"), 1e9)
    assert settings.load(**longest).keep_keys_s == 1e9
    world.add("one", key="k")
    world.run(world.processor())
    deps = with_settings(world.deps, **longest)
    assert sum(removed or 0 for removed in removals(deps)) == 0
    refresh.recount(deps, age_s=1e9, budget_s=inf)


@pytest.mark.parametrize(
    "url",
    [
        "redis://127.0.0.1:1/0?ssl=true",
        "redis://127.0.0.1:1/0?hush=1",
        "rediss://127.0.0.1:1/0?ssl_cert_reqs=hush",
    ],
)
def test_a_redis_url_with_an_option_that_is_none_is_refused_at_the_start(url: str) -> None:
    """It was taken, and then no process could look for work without an error."""
    with pytest.raises(ConfigurationError, match="PPWORKER_REDIS_URL") as caught:
        connect(url)
    assert "hush" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "wanted"),
    [
        (
            "postgresql://me:hush@db1:5432,db2:5433/jobs",
            "postgresql://me@/jobs?host=db1%2Cdb2&port=5432%2C5433&target_session_attrs=read-write",
        ),
        ("postgresql://me:hush@db1:5432/jobs?sslpassword=hush", "postgresql://me@db1:5432/jobs"),
        ("postgresql://db1/jobs?user=me&password=hush", "postgresql://me@db1/jobs"),
        ("postgresql://me:hush@/jobs?host=/run/pg", "postgresql://me@/jobs?host=%2Frun%2Fpg"),
    ],
)
def test_the_address_of_several_hosts_is_shown_to_people_as_that_of_one(
    url: str, wanted: str
) -> None:
    """`ppworker up`, `api` and `worker` never said that they were ready with hosts and ports."""
    assert connections.shown(url) == wanted
    assert conninfo_to_dict(wanted)["user"] == "me"


def test_a_role_that_shows_dates_in_another_way_can_work(
    database_url: str, server_url: str
) -> None:
    name = sa.make_url(database_url).database
    execute(server_url, f"ALTER DATABASE {name} SET DateStyle = 'German'")
    db = Database(database_url, connections=1)
    try:
        with db.begin() as tx:
            assert tx.execute(sa.text("SELECT now() > '2020-01-01'::timestamptz, now()")).one()[0]
    finally:
        db.close()


@pytest.fixture
def weak(database_url: str, server_url: str) -> Iterator[str]:
    """URL of a role that may only log in and read."""
    name = f"weak_{uuid4().hex[:8]}"
    execute(server_url, f"CREATE ROLE {name} LOGIN")
    execute(database_url, f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {name}")
    yield sa.make_url(database_url).set(username=name).render_as_string(hide_password=False)
    execute(database_url, f"DROP OWNED BY {name}")
    execute(server_url, f"DROP ROLE {name}")


def look(url: str) -> checkup.ServerFacts:
    db = Database(url, connections=3)
    try:
        return checkup.read(db, old_after_s=300)
    finally:
        db.close()


@pytest.mark.parametrize(
    "place",
    ["pg_stat_activity", "pg_replication_slots", "pg_prepared_xacts", "pg_settings", "pg_database"],
)
def test_doctor_tells_where_it_may_not_look_and_looks_everywhere_else(
    database_url: str, weak: str, place: str
) -> None:
    """It ended with an unexpected error, and told nothing at all."""
    execute(database_url, f"REVOKE ALL ON {place} FROM PUBLIC")
    found = look(weak)
    assert found.settings["server_encoding"] == "UTF8"
    assert all(place in each for each in found.untold)
    assert bool(found.untold) == (place != "pg_settings")  # which `current_setting` does not need
    assert found.through == ""


def test_doctor_counts_the_connections_that_a_role_may_have(weak: str, server_url: str) -> None:
    """A role of one connection passed as fit for 26, or ended the doctor with an error."""
    execute(server_url, f"ALTER ROLE {sa.make_url(weak).username} CONNECTION LIMIT 1")
    assert look(weak).limit == 1
    assert look(on(server_url, str(sa.make_url(weak).database))).limit is None


def test_doctor_is_not_held_up_by_what_holds_a_table(
    database_url: str, db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It waited for ever behind a migration or a VACUUM FULL."""
    from ppworker.errors import StoreUnavailable
    from ppworker.store import schema

    monkeypatch.setattr(checkup, "LIMIT_S", 0.5)
    with db.begin() as tx:
        _lock(tx, "alembic_version")
        other = Database(database_url, connections=3)
        with pytest.raises(StoreUnavailable):
            schema.check(other, limit_s=checkup.LIMIT_S)
        assert checkup.read(other, old_after_s=300).through == ""
        other.close()


def _lock(tx: Tx, table: str) -> None:
    tx.execute(sa.text(f"LOCK TABLE {table}"))
