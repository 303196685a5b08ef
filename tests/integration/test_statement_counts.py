"""A batch and a chunk cost the same number of statements whatever their size, counted at the server."""

import fcntl
import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from factories import Model, World, classes
from ppworker.errors import RunnerTimeout, UnreadableInput
from ppworker.pipeline.control import operations, reapply
from ppworker.pipeline.control.operation_steps import STEPS
from ppworker.pipeline.inferences import inferences
from ppworker.pipeline.runs import execute
from ppworker.runners.base import RunnerInput
from ppworker.store import labels
from ppworker.store.datasets import Split
from ppworker.store.operations import Operation
from ppworker.store.results import Scope


@pytest.fixture
def statements(
    world: World, server_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[Callable[[], object]], list[str]]]:
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

    # One test after the other, whichever process runs it: statements of two would mix in the log.
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    with (folder / "counting.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield count


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
    # One more where jobs failed, for the later jobs of their items.
    assert len(one) + 1 == len(many), "\n".join([*one, "-----", *many])
    assert 10 < len(many) < 40
    assert {job.status for job in world.jobs()} == {"completed", "failed", "pending"}
    world.check()


def test_a_model_in_the_workers_process_costs_one_statement_more(
    world: World, statements: Callable[[Callable[[], object]], list[str]]
) -> None:
    """The note of who was in it, should it die; the end of the batch takes it away by the way."""
    processor = world.processor()

    def run(*, shares_process: bool) -> None:
        model = Model(lambda _: classes("cat"), shares_process=shares_process)
        execute.run(world.deps, world.labels, processor, model, world.claim(processor))

    for word in ("makes the label", "reads it"):  # later runs know it, and find the connections
        world.add(word)
        statements(lambda: run(shares_process=True))
    world.add("one")
    apart = statements(lambda: run(shares_process=False))
    world.add("two")
    within = statements(lambda: run(shares_process=True))
    added = [line for line in within if "INSERT INTO model_entries" in line]
    print(f"statements per batch: {len(apart)} apart, {len(within)} within the worker's process")
    assert (len(within) - len(apart), len(added)) == (1, 1), "\n".join([*apart, "---", *within])


def test_a_chunk_of_a_reapply_costs_as_many_statements_for_100_items_as_for_1(
    world: World, statements: Callable[[Callable[[], object]], list[str]]
) -> None:
    processor = world.processor(confidence_threshold=0.5)
    (first,) = world.add("item")
    rest = world.add(*(f"item {i}" for i in range(100)), split=world.valid)

    def answer(given: RunnerInput) -> dict[str, object]:
        return {
            "predictions": [
                *classes("cat")["predictions"],
                *classes("low", score=0.2)["predictions"],
            ]
        }

    world.run(processor, answer, limit=200)
    world.sql(
        "UPDATE post_processors SET label_prefix = 'auto-', confidence_threshold = 0.1, "
        """label_mapping = '{"cat": "Cat of today"}'"""
    )

    def reapplied(split: Split) -> Operation | None:
        scope = Scope(
            post_processor_id=processor.id, dataset_id=world.dataset.id, split_id=split.id
        )
        id_ = reapply.begin(world.deps, processor, scope, world.user)
        return operations.run(world.deps, STEPS, operation_id=id_)

    done: list[Operation | None] = []
    reapplied(world.test)  # nothing is in it; later runs find the same connections
    world.annotate(first, "auto-low")  # both labels are there, or to be made, in both runs
    with world.deps.db.begin() as tx:
        labels.create_label(tx, world.train.version_id, world.user, "auto-Cat of today")
    one = statements(lambda: done.append(reapplied(world.train)))
    many = statements(lambda: done.append(reapplied(world.valid)))
    print(f"statements per reapply: {len(one)} for 1 item, {len(many)} for 100 items")
    assert len(one) == len(many), "\n".join([*one, "-----", *many])
    assert [each.counts["answers_changed"] for each in done if each] == [1, len(rest)]
    assert len(many) < 45
    world.check()


def test_a_chunk_of_inferences_costs_as_many_statements_for_100_as_for_1(
    world: World, statements: Callable[[Callable[[], object]], list[str]]
) -> None:
    world.processor()
    linked = world.add(*(f"item {i}" for i in range(50)), split=world.valid)

    def add(first: int, count: int) -> int:
        """New, linked and known inferences, with labels that are new and old."""
        lines: list[dict[str, object]] = []
        for number in range(first, first + count):
            said = [{"prediction": "cat"}, {"prediction": f"label {first}", "coordinates": "0 4"}]
            lines += [
                {"id": f"new {number}", "name": f"text {number}", "inference_items": said},
                {"dataset_item_id": str(linked[number]), "inference_items": said},
            ]
        accepted = inferences.add(world.deps, world.train, [*lines, *lines[:1]])
        done = operations.run(world.deps, STEPS, operation_id=accepted.operation_id)
        assert done is not None
        return done.counts["annotations_added"]

    added = [add(48, 1)]
    one = statements(lambda: added.append(add(0, 1)))
    many = statements(lambda: added.append(add(2, 40)))
    print(f"statements per chunk: {len(one)} for 3 inferences, {len(many)} for 81")
    assert len(one) == len(many), "\n".join([*one, "-----", *many])
    assert added == [4, 4, 160]
    assert len(many) < 50
    world.check()
