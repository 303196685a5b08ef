"""Items move between splits with all they are, and the label stats of both are exact."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from factories import World, classes
from ppworker.errors import Invalid, NotFound
from ppworker.pipeline.edits import moves
from ppworker.pipeline.runs import refresh
from ppworker.store import datasets, stats


def counts(world: World, split: datasets.Split) -> tuple[int, int, int]:
    """Items, those without annotations, annotations."""
    with world.deps.db.begin() as tx:
        found = {
            each.bucket: each for each in stats.read_stats(tx, [split.id]) if not each.label_id
        }
    total = found.get("total")
    bare = found.get("unlabelled")
    return (
        total.item_count if total else 0,
        bare.item_count if bare else 0,
        total.annotation_count if total else 0,
    )


def test_a_moved_item_takes_its_annotations_and_stats_along(world: World) -> None:
    processor = world.processor()
    first, second = world.add("one", "two")
    world.run(processor, classes("cat", "dog"), limit=1)
    version = world.sql("SELECT version FROM dataset_items WHERE id = :i", i=first)[0][0]
    before = {each.id for each in world.annotations(first)}
    assert moves.move(world.deps, [first, first], source=world.train, to=world.valid) == 1
    assert counts(world, world.train) == (1, 1, 0)
    assert counts(world, world.valid) == (1, 0, 2)
    assert {each.id for each in world.annotations(first)} == before
    assert (
        world.sql("SELECT version FROM dataset_items WHERE id = :i", i=first)[0][0] == version + 1
    )
    assert moves.move(world.deps, [second], source=world.train, to=world.valid) == 1
    assert counts(world, world.train) == (0, 0, 0)
    assert counts(world, world.valid) == (2, 1, 2)
    refresh.fold(world.deps)
    world.check()


def test_no_job_is_planned_or_ended_and_a_running_one_counts_where_its_item_is(
    world: World,
) -> None:
    processor = world.processor()
    world.processor("elsewhere", splits=["valid"])
    (item,) = world.add("one")
    batch = world.claim(processor)
    moves.move(world.deps, [item], source=world.train, to=world.valid)
    assert len(world.jobs()) == 1
    assert world.run(processor, classes("cat"), batch=batch).completed == 1
    assert counts(world, world.train) == (0, 0, 0)
    assert counts(world, world.valid) == (1, 0, 1)
    world.check()


def test_one_that_is_in_both_leaves_the_first(world: World) -> None:
    (item,) = world.add("one")
    world.annotate(item, "cat")
    world.sql(
        "INSERT INTO item_splits (split_id, item_id, version_id) VALUES (:s, :i, :v)",
        s=world.valid.id, i=item, v=world.valid.version_id,
    )  # fmt: skip
    with world.deps.db.begin() as tx:
        stats.append_members(tx, [item], [world.valid.id], sign=1)
    world.check()
    moves.move(world.deps, [item], source=world.train, to=world.valid)
    assert counts(world, world.train) == (0, 0, 0)
    assert counts(world, world.valid) == (1, 0, 1)
    world.check()


def test_all_or_none_move_and_the_one_that_is_not_there_is_named(world: World) -> None:
    here, elsewhere = world.add("one")[0], world.add("two", split=world.test)[0]
    with pytest.raises(NotFound, match=str(elsewhere)):
        moves.move(world.deps, [here, elsewhere], source=world.train, to=world.valid)
    assert counts(world, world.train) == (1, 1, 0)
    with pytest.raises(Invalid, match="already"):
        moves.move(world.deps, [here], source=world.train, to=world.train)
    world.sql("UPDATE dataset_splits SET deleted_at = now() WHERE id = :s", s=world.valid.id)
    with pytest.raises(NotFound, match="was deleted"):
        moves.move(world.deps, [here], source=world.train, to=world.valid)
    assert counts(world, world.train) == (1, 1, 0)


def test_a_split_of_another_version_is_refused(world: World) -> None:
    other = World(world.deps)
    (item,) = world.add("one")
    with pytest.raises(Invalid, match="another version"):
        moves.move(world.deps, [item], source=world.train, to=other.train)


def test_the_command_line_moves_items(world: World, database_url: str, tmp_path: Path) -> None:
    mine = World(world.deps, username="local")
    first, second = mine.add("one", "two")

    def run(*arguments: str) -> tuple[int, str]:
        done = subprocess.run(
            [sys.executable, "-m", "ppworker", "items", "move", *arguments, "--json"],
            env={
                "PATH": os.environ["PATH"],
                "PPWORKER_DATABASE_URL": database_url,
                "PPWORKER_DATA_DIR": str(tmp_path),
            },
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        return done.returncode, done.stdout or done.stderr

    name = mine.dataset.name
    code, said = run(str(first), str(second), "--from", f"{name}/train", "--to", f"{name}/test")
    assert (code, json.loads(said)) == (0, {"moved": 2})
    assert counts(mine, mine.test) == (2, 2, 0)
    code, said = run(str(first), "--from", f"{name}/train", "--to", f"{name}/test")
    assert code == 2
    assert str(first) in said
