"""PostgreSQL restarts, ends sessions, is full; clocks are wrong: nobody has to help."""

import json
import os
import signal
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Self

import psycopg
import pytest
from pydantic import SecretStr

from factories import World
from live_workers import TESTS
from own_servers import REGISTERED, Postgres, own_place, until, workers
from ppworker import settings, wiring
from ppworker.embedded import EmbeddedServers
from ppworker.store import schema
from ppworker.store.db import Database
from running_program import Running

DAWDLER = "scripted_runners:DawdlingRunner"


@pytest.fixture
def postgres() -> Iterator[Postgres]:
    with own_place() as place:
        made = Postgres(place, "data")
        made.make()
        made.start("max_connections=40")
        made.ask("CREATE DATABASE ppworker", database="postgres")
        try:
            yield made
        finally:
            made.stop()


@pytest.fixture
def world(postgres: Postgres, tmp_path: Path) -> Iterator[World]:
    db = Database(postgres.url, connections=3)
    schema.migrate(db)
    given = settings.load(database_url=postgres.url, data_dir=tmp_path / "d")
    yield World(wiring.build_deps(given, db, emit=lambda _: None))
    db.close()


def left(postgres: Postgres) -> int:
    return int(postgres.ask("SELECT count(*) FROM post_processor_jobs WHERE status <> 'completed'"))


def _at_most(postgres: Postgres, jobs: int) -> bool:
    return left(postgres) <= jobs


def assert_clean(world: World, jobs: int) -> None:
    assert set(world.statuses()) == {"completed"}
    found = world.sql("SELECT count(*), count(DISTINCT item_id) FROM annotations")[0]
    assert tuple(found) == (jobs, jobs)
    world.check()


@pytest.mark.promise
@pytest.mark.long
@pytest.mark.timeout(200)
def test_a_restart_of_postgresql_needs_no_restart_of_anybody(
    world: World, postgres: Postgres, tmp_path: Path, promise
) -> None:
    jobs, restarts = 1200, 3
    world.processor(runner=DAWDLER, runner_config={"seconds": 0.01}, batch_size=10, max_attempts=1)
    world.add(*(f"word {i}" for i in range(jobs)))
    waits = []
    with workers(postgres.url, tmp_path) as group:
        both = [group.start(), group.start()]
        until(lambda: postgres.ask(REGISTERED) == len(both), seconds=60, what="their start")
        for restart in range(restarts):
            goal = jobs - 100 * (restart + 1)
            until(partial(_at_most, postgres, goal), seconds=40, what="progress")
            postgres.stop()  # as `pg_ctl stop -m immediate` does
            time.sleep(2)
            postgres.start()
            fewer = partial(_at_most, postgres, left(postgres) - 1)
            waits.append(until(fewer, seconds=40, what="work after it"))
        until(lambda: left(postgres) == 0, seconds=90, what="the end")
        assert [process.poll() for process in both] == [None, None]
    assert_clean(world, jobs)
    promise(
        "F8",
        promise="A restart of PostgreSQL needs no restart of workers and costs no job an attempt.",
        fault=f"PostgreSQL is stopped at once (no clean shutdown) for 2 s, {restarts} times in a "
        f"drain of {jobs} jobs that have one attempt each (the reference: 15 s, 5 times, 10,000)",
        target="no process ends; jobs go on within 30 s of its return; clean",
        figure=f"jobs went on after at most {max(waits):.1f} s; none failed; clean",
        passed=max(waits) <= 30,
        figures={"went_on_s": [round(each, 2) for each in waits]},
    )


@pytest.mark.promise
@pytest.mark.long
@pytest.mark.timeout(150)
def test_ended_sessions_are_errors_and_never_fatal(
    world: World, postgres: Postgres, tmp_path: Path, promise
) -> None:
    jobs = 1500
    world.processor(runner=DAWDLER, runner_config={"seconds": 0.01}, batch_size=10)
    world.add(*(f"word {i}" for i in range(jobs)))
    ended = 0
    with workers(postgres.url, tmp_path) as group:
        both = [group.start(), group.start()]
        until(lambda: postgres.ask(REGISTERED) == len(both), seconds=60, what="their start")
        until(lambda: left(postgres) < jobs, seconds=40, what="progress")
        began = time.monotonic()
        while left(postgres):
            ended += postgres.ask(
                "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity "
                "WHERE application_name LIKE 'ppworker worker%'"
            )
            time.sleep(0.5)
        fault_s = time.monotonic() - began
        assert [process.poll() for process in both] == [None, None]
    assert_clean(world, jobs)
    rescued = world.sql("SELECT count(*) FROM job_attempts WHERE cause = 'rescued'")[0][0]
    promise(
        "F9",
        promise="Sessions that an administrator ends cost a worker an error and nothing else.",
        fault=f"every session of two workers is ended twice a second during {jobs:,} jobs "
        f"({fault_s:.0f} s; the reference: 2 sessions a second for 60 s)",
        target="no process ends; none of it is fatal; clean",
        figure=f"{ended} sessions ended, {rescued} attempts lost by it; clean",
        passed=ended >= 20,
        figures={"ended": ended, "rescued": rescued},
    )


class Hog:
    """Takes every connection there is, and ends those that ppworker has."""

    def __init__(self, postgres: Postgres) -> None:
        self._postgres = postgres
        self._held = ExitStack()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.is_full = threading.Event()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self._held.close()

    def _run(self) -> None:
        first = self._connect()
        while not self._ended.is_set():
            with suppress(psycopg.OperationalError):
                while not self._ended.is_set():
                    self._connect()
            found = first.execute(
                "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity "
                "WHERE application_name LIKE 'ppworker%'"
            ).fetchone()
            if found == (0,):
                self.is_full.set()
                self._ended.wait(0.05)

    def _connect(self) -> psycopg.Connection:
        link = psycopg.connect(self._postgres.url, autocommit=True, application_name="hog")
        return self._held.enter_context(link)


def health(address: str, check: str) -> int:
    try:
        with urllib.request.urlopen(f"{address}/health/{check}", timeout=20) as answer:  # noqa: S310  ours
            return int(answer.status)
    except urllib.error.HTTPError as error:
        with error:
            json.loads(error.read())
            return error.code


@pytest.mark.promise
@pytest.mark.long
@pytest.mark.timeout(150)
def test_a_postgresql_without_a_free_connection_is_waited_for(
    world: World, postgres: Postgres, tmp_path: Path, promise
) -> None:
    jobs, full_s = 600, 12.0
    world.processor(runner=DAWDLER, runner_config={"seconds": 0.01}, batch_size=10)
    world.add(*(f"word {i}" for i in range(jobs)))
    world.deps.db.close()
    more = {
        "PPWORKER_DATABASE_URL": postgres.url,
        "PPWORKER_LEASE_S": "6",
        "PPWORKER_PROCESSES": "2",
        "PYTHONPATH": str(TESTS),
    }
    with Running(tmp_path / "d", "worker", "--port", "0", **more) as program:
        address = str(program.ready["address"])
        until(lambda: left(postgres) < jobs - 20, seconds=40, what="progress")
        lives = []
        with Hog(postgres) as hog:
            assert hog.is_full.wait(30)
            full_at = time.monotonic()
            until(lambda: health(address, "ready") == 503, seconds=30, what="503 of readiness")
            unready_s = time.monotonic() - full_at
            while time.monotonic() < full_at + full_s:
                lives.append(health(address, "live"))
                time.sleep(0.25)
        free_at = time.monotonic()
        until(lambda: health(address, "ready") == 200, seconds=60, what="200 of readiness")
        ready_s = time.monotonic() - free_at
        until(lambda: left(postgres) == 0, seconds=90, what="the end")
    assert_clean(world, jobs)
    promise(
        "F10",
        promise="A PostgreSQL without a free connection is waited for: workers stay, say so, and "
        "go on by themselves.",
        fault=f"for {full_s:.0f} s (the reference: 60 s) others hold every connection; ppworker's "
        "sessions are ended",
        target="liveness stays 200, readiness is 503 within 10 s, it recovers alone; clean",
        figure=f"liveness {set(lives)}, 503 after {unready_s:.1f} s, ready again {ready_s:.1f} s "
        "after the first free connection; clean",
        passed=set(lives) == {200} and unready_s <= 10,
        figures={"unready_s": round(unready_s, 2), "ready_s": round(ready_s, 2)},
    )


@pytest.mark.promise
@pytest.mark.long
@pytest.mark.timeout(120)
def test_worker_clocks_that_are_ten_minutes_wrong_change_nothing(
    live: World, servers: EmbeddedServers, tmp_path: Path, promise
) -> None:
    jobs = 300
    url = SecretStr(servers.redis_url) if servers.redis_url else None
    redis = {"PPWORKER_REDIS_URL": servers.redis_url} if servers.redis_url else {}
    processor = live.processor(
        runner=DAWDLER, runner_config={"seconds": 0.01}, batch_size=10, max_attempts=2
    )
    live.add(*(f"word {i}" for i in range(jobs)))
    (late,) = live.add("not before its time")
    live.sql(
        "UPDATE post_processor_jobs SET run_at = now() + interval '8 s' WHERE item_id = :i", i=late
    )
    with workers(servers.database_url, tmp_path, **redis) as group:
        path = os.pathsep.join([str(TESTS / "wrong_clock"), group.path])
        clocks = {"PPWORKER_TEST_CLOCK_S": "600"}, {"PPWORKER_TEST_CLOCK_S": "-600"}
        both = [group.start(PYTHONPATH=path, **clock) for clock in clocks]

        def ended() -> int:
            return live.statuses(processor).count("completed")

        until(lambda: ended() == jobs + 1, seconds=60, what="the end")
        broker = wiring.hint_broker(live.deps.settings.model_copy(update={"redis_url": url}))
        live.deps = wiring.build_deps(
            live.deps.settings, live.deps.db, broker=broker, emit=lambda _: None
        )
        pickup = until_picked_up(live)
        broker.close()
        assert [process.poll() for process in both] == [None, None]
        both[0].send_signal(signal.SIGTERM)
        assert both[0].wait(30) == 0
    causes = {
        (row.cause, row.n)
        for row in live.sql("SELECT cause, count(*) AS n FROM job_attempts GROUP BY cause")
    }
    early = live.sql("SELECT count(*) FROM post_processor_jobs WHERE started_at < run_at")[0][0]
    negative = live.sql(
        "SELECT count(*) FROM job_attempts WHERE ended_at < started_at OR started_at < "
        "(SELECT min(created_at) FROM post_processor_jobs)"
    )[0][0]
    assert_clean(live, len(live.jobs()))
    promise(
        "F36",
        promise="A worker's wall clock decides nothing: leases, due times and waits are of the "
        "database's clock and of monotonic ones.",
        fault="the clocks of two workers are ten minutes fast and ten minutes slow",
        target="no premature rescue, no early run, no negative wait; a hint that one of them takes "
        "for a stale one costs a poll at most",
        figure=f"causes {sorted(causes)}, {early} early, {negative} negative; a new job was picked "
        f"up after {pickup * 1000:.0f} ms",
        passed={cause for cause, _ in causes} == {"finished"}
        and not early
        and not negative
        and pickup < 3,
        figures={"pickup_s": round(pickup, 3)},
    )


def _is_done(world: World) -> bool:
    return set(world.statuses()) == {"completed"}


def until_picked_up(world: World) -> float:
    """The longest wait of some new jobs, by the database's clock."""
    for word in range(5):
        world.add(f"new {word}")
        until(partial(_is_done, world), seconds=20, what="the end of a new job")
    return float(
        world.sql(
            "SELECT max(extract(epoch FROM j.started_at - j.created_at)) FROM post_processor_jobs j "
            "JOIN dataset_items i ON i.id = j.item_id WHERE i.text LIKE 'new %'"
        )[0][0]
    )
