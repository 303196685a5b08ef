"""A primary with a streaming replica: the replica is promoted, and workers find it by themselves."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from factories import World
from own_servers import REGISTERED, Postgres, own_place, until, workers
from ppworker import settings, wiring
from ppworker.store import schema
from ppworker.store.db import Database

JOBS = 400
DAWDLER = "scripted_runners:DawdlingRunner"


class Pair:
    """A primary and its standby, synchronously replicated."""

    def __init__(self, first: Postgres, second: Postgres) -> None:
        self.first, self.second = first, second

    @property
    def url(self) -> str:
        hosts = ",".join(f"127.0.0.1:{each.port}" for each in (self.first, self.second))
        return f"postgresql://ppworker@{hosts}/ppworker"


@pytest.fixture
def pair() -> Iterator[Pair]:
    with own_place() as place, ExitStack() as stack:
        first, second = Postgres(place, "first"), Postgres(place, "second")
        first.make()
        second.copy_of(first)
        for each in (first, second):
            stack.callback(each.stop)
        first.start("synchronous_standby_names=*")
        second.start()
        sync = "SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'"
        until(lambda: first.ask(sync, database="postgres"), seconds=30, what="replication")
        first.ask("CREATE DATABASE ppworker", database="postgres")
        yield Pair(first, second)


@pytest.mark.promise
@pytest.mark.long
@pytest.mark.timeout(200)
@pytest.mark.parametrize("old_primary", ["stopped", "read-only"])
def test_workers_move_to_the_promoted_replica(
    pair: Pair, tmp_path: Path, old_primary: str, promise
) -> None:
    db = Database(pair.url, connections=4)
    schema.migrate(db)
    given = settings.load(database_url=pair.url, data_dir=tmp_path / "d")
    world = World(wiring.build_deps(given, db, emit=lambda _: None))
    world.processor(runner=DAWDLER, runner_config={"seconds": 0.02}, batch_size=10)
    world.add(*(f"word {i}" for i in range(JOBS)))

    def left() -> int:
        statement = "SELECT count(*) FROM post_processor_jobs WHERE status <> 'completed'"
        return int(pair.first.ask(statement))

    def done_on_the_second() -> int:
        statement = "SELECT count(*) FROM job_attempts WHERE cause = 'finished'"
        return int(pair.second.ask(statement))

    with workers(pair.url, tmp_path) as group:
        both = [group.start(), group.start()]
        until(lambda: pair.first.ask(REGISTERED) == len(both), seconds=60, what="their start")
        until(lambda: left() < JOBS - 20, seconds=40, what="progress")
        if old_primary == "stopped":
            pair.first.stop()
        else:
            pair.first.ask("ALTER SYSTEM SET default_transaction_read_only = on")
            pair.first.ask("SELECT pg_reload_conf()")
        pair.second.ask("SELECT pg_promote()", database="postgres")
        before = done_on_the_second()
        attached_s = until(
            lambda: done_on_the_second() > before, seconds=60, what="work on the new primary"
        )
        until(lambda: set(world.statuses()) == {"completed"}, seconds=90, what="the end")
        assert [process.poll() for process in both] == [None, None]
    annotations = world.sql("SELECT count(*), count(DISTINCT item_id) FROM annotations")[0]
    assert tuple(annotations) == (JOBS, JOBS)
    world.check()
    db.close()
    promise(
        "F11",
        promise="When a replica is promoted, workers go on with it by themselves, with nothing "
        "lost and nothing doubled.",
        fault=f"a synchronous replica is promoted in the middle of {JOBS} jobs, the old primary is "
        f"{old_primary}",
        target="workers finish jobs on the new primary within 10 s of the promotion; clean",
        figure=f"after {attached_s:.1f} s; clean",
        passed=attached_s <= 10,
        figures={"attached_s": round(attached_s, 2)},
    )
