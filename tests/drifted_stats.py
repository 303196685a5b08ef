"""Label stats of many rows, and a hand that spoils them."""

from factories import World, classes
from ppworker.pipeline.runs import refresh
from ppworker.pipeline.setup import catalogue


def spoil(world: World, rows: int) -> int:
    """Change that many counters; returns how many there were to change."""
    return len(
        world.sql(
            "UPDATE label_stats SET item_count = item_count + 1 WHERE ctid IN "
            "(SELECT ctid FROM label_stats ORDER BY split_id, bucket, label_id LIMIT :n) "
            "RETURNING 1", n=rows,
        )
    )  # fmt: skip


def many_rows(world: World) -> None:
    """A hundred label rows and more, folded."""
    processor = world.processor()
    version = world.dataset.version_id
    splits = [world.train, world.valid, world.test]
    splits += [
        catalogue.create_split(world.deps, version, world.user, f"s{i}", description="")
        for i in range(5)
    ]
    labels = [f"label-{i}" for i in range(12)]
    for split in splits:
        world.add("one", "two", split=split)
    world.run(processor, classes(*labels))
    refresh.fold(world.deps)
