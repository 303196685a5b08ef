"""The proxy between the real driver and the real PostgreSQL: it cuts the COMMITs it should."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa

from factories import World
from ppworker.chaos.commits import Cut
from ppworker.chaos.proxy import Proxy, address_of, through
from ppworker.errors import CommitUnknown, StoreUnavailable
from ppworker.pipeline.control import operations
from ppworker.pipeline.control.operation_steps import STEPS
from ppworker.pipeline.transfer import bulk, stage
from ppworker.store.db import Database, Tx


@contextmanager
def proxied(
    database_url: str, choose: Callable[[Sequence[str]], Cut | None] | None = None
) -> Iterator[tuple[Proxy, Database]]:
    with Proxy(address_of(database_url), choose=choose) as proxy:
        db = Database(through(database_url, proxy.port), connections=2, steady_plans=True)
        yield proxy, db
        db.close()


def numbers(db: Database) -> list[int]:
    with db.look() as tx:
        return list(tx.execute(sa.text("SELECT n FROM chosen ORDER BY n")).scalars())


@pytest.fixture
def direct(db: Database) -> Database:
    with db.begin() as tx:
        tx.execute(sa.text("CREATE TABLE chosen (n int PRIMARY KEY)"))
    return db


@pytest.mark.parametrize("cut", Cut)
def test_a_cut_commit_is_unknown_to_the_client_and_written_as_chosen(
    direct: Database, database_url: str, cut: Cut
) -> None:
    def choose(texts: Sequence[str]) -> Cut | None:
        return cut if any("INSERT INTO chosen" in text for text in texts) else None

    with proxied(database_url, choose) as (proxy, db):
        for n in range(20):  # psycopg prepares a statement that it repeats
            with pytest.raises(CommitUnknown), db.begin() as tx:
                tx.execute(sa.text("INSERT INTO chosen VALUES (:n)"), {"n": n})
        with db.begin() as tx:  # what was not chosen is left alone
            assert tx.execute(sa.text("SELECT 1")).scalar_one() == 1
        with direct.begin() as tx:  # waits for COMMITs that are still on their way
            tx.execute(sa.text("LOCK TABLE chosen"))
    assert numbers(direct) == ([] if cut is Cut.BEFORE else list(range(20)))
    assert proxy.counts[cut] == 20
    assert proxy.counts[f"{cut} written"] == (0 if cut is Cut.BEFORE else 20)


def test_a_late_commit_is_waited_for_by_whoever_locks_its_rows(
    direct: Database, database_url: str
) -> None:
    """The rule of the protocol: an unlocked read does not see it yet."""
    with direct.begin() as tx:
        tx.execute(sa.text("INSERT INTO chosen VALUES (1)"))

    def choose(texts: Sequence[str]) -> Cut | None:
        return Cut.LATE if any("UPDATE chosen" in text for text in texts) else None

    with proxied(database_url, choose) as (_, db):
        with pytest.raises(CommitUnknown), db.begin() as tx:
            tx.execute(sa.text("UPDATE chosen SET n = 2"))
        with direct.begin() as tx:
            assert tx.execute(sa.text("SELECT n FROM chosen")).scalar_one() == 1
            assert tx.execute(sa.text("SELECT n FROM chosen FOR UPDATE")).scalar_one() == 2


def test_a_database_that_was_dropped_refused_and_back_again_is_told_as_such(
    direct: Database, database_url: str
) -> None:
    def one(tx: Tx) -> int:
        return int(tx.execute(sa.text("SELECT 1")).scalar_one())

    with proxied(database_url) as (proxy, db):
        assert db.transact(one) == 1
        proxy.drop()
        proxy.refuse()
        for _ in range(2):
            with pytest.raises(StoreUnavailable):
                db.transact(one)
        proxy.listen()
        assert db.transact(one) == 1


@pytest.mark.parametrize("cut", Cut)
def test_a_claim_is_given_back_even_when_its_commit_comes_after_the_question(
    world: World, database_url: str, cut: Cut
) -> None:
    processor = world.processor(max_attempts=1)
    world.add("one", "two")

    def choose(texts: Sequence[str]) -> Cut | None:
        return cut if any("lease_token = j.lease_token + 1" in text for text in texts) else None

    with proxied(database_url, choose) as (proxy, db):
        with pytest.raises(CommitUnknown):
            world.claim(processor, deps=replace(world.deps, db=db))
        assert proxy.counts[cut] == 1
    assert [(job.status, job.attempts) for job in world.jobs()] == [("pending", 0)] * 2
    assert world.run(processor).completed == 2
    world.check()


@pytest.mark.parametrize("cut", [Cut.BEFORE, Cut.AFTER])
def test_many_items_are_imported_once_when_nobody_knew_whether_they_were_taken(
    world: World, database_url: str, tmp_path: Path, cut: Cut
) -> None:
    lines = tmp_path / "items.jsonl"
    lines.write_text('{"name": "one", "text": "a"}\n{"name": "two", "text": "b"}\n')

    def choose(texts: Sequence[str]) -> Cut | None:
        return cut if any("INSERT INTO idempotency_keys" in text for text in texts) else None

    def take(db: Database) -> stage.Accepted:
        deps = replace(world.deps, db=db)
        return bulk.take_lines(deps, world.user, world.train.version_id, lines, key="k")

    with proxied(database_url, choose) as (_, db), pytest.raises(CommitUnknown):
        take(db)
    accepted = take(world.deps.db)
    assert accepted.repeated == (cut is Cut.AFTER)
    done = operations.follow(world.deps, STEPS, world.user, accepted.operation_id)
    assert (done.status, done.done) == ("completed", 2)
    assert world.sql("SELECT count(*) FROM dataset_items")[0][0] == 2
    world.check()
