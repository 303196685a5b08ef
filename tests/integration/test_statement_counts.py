"""A finished batch costs the same number of statements whatever its size, counted at the server."""

import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import sqlalchemy as sa

from factories import World, classes
from ppworker.errors import RunnerTimeout, UnreadableInput
from ppworker.runners.base import RunnerInput


@pytest.fixture
def statements(world: World, server_url: str) -> Callable[[Callable[[], object]], list[str]]:
    """Statements that the server executed for this database while a function ran."""
    log = _server_log(server_url)
    with world.deps.db.begin() as tx:
        name = tx.execute(sa.text("SELECT current_database()")).scalar_one()
        tx.execute(sa.text(f"ALTER DATABASE {name} SET log_statement = 'all'"))
    world.deps.db.close()  # new connections take the setting

    def count(run: Callable[[], object]) -> list[str]:
        world.sql("SELECT 'begin of the count'")
        run()
        world.sql("SELECT 'end of the count'")
        text = ""
        for _ in range(100):
            text = log.read_text(errors="replace")
            if "end of the count" in text.rpartition("begin of the count")[2]:
                break
            time.sleep(0.05)
        counted = text.rpartition("begin of the count")[2].partition("end of the count")[0]
        found = re.findall(r"LOG:  (?:statement|execute [^:]*): (.*)", counted)
        return [line for line in found if not line.startswith("SELECT 'end")][1:-1]

    return count


def _server_log(server_url: str) -> Path:
    """The log of this very server: other runs beside this one have servers and logs too."""
    host = str(sa.make_url(server_url).query.get("host", ""))
    embedded = Path(host).resolve().parent / "postgres.log"
    if embedded.exists():
        return embedded
    engine = sa.create_engine(server_url)
    with engine.connect() as connection:
        data = connection.execute(sa.text("SHOW data_directory")).scalar_one()
    engine.dispose()
    candidates = [*Path(data).parent.rglob("postgres.log"), *Path(data).rglob("*.log")]
    assert candidates, f"no log of the server at {host}"
    return max(candidates, key=lambda path: path.stat().st_mtime)


def say(given: RunnerInput):
    """Mixed outcomes, and a new label for every tenth item."""
    number = int(str(given.text).split()[-1])
    if number % 10 == 3:
        return UnreadableInput("broken")
    if number % 10 == 7:
        return RunnerTimeout("slow")
    return classes(f"label {number // 10}" if number % 10 == 0 else "cat")


def test_a_batch_of_200_costs_as_many_statements_as_a_batch_of_1(
    world: World, statements: Callable[[Callable[[], object]], list[str]]
) -> None:
    processor = world.processor(batch_size=200)
    world.add("item 1000")
    one = statements(lambda: world.run(processor, say))
    world.add(*(f"item {i}" for i in range(200)))
    many = statements(lambda: world.run(processor, say, limit=200))
    print(f"statements per batch: {len(one)} for 1 job, {len(many)} for 200 jobs")
    assert len(one) == len(many), "\n".join([*one, "-----", *many])
    assert 10 < len(many) < 40
    assert {job.status for job in world.jobs()} == {"completed", "failed", "pending"}
    world.check()
