"""Label stats: exact at each commit, folded by anyone, rebuilt without stopping the world."""

import threading

from factories import World, classes
from ppworker.pipeline.runs import refresh
from ppworker.pipeline.uploads import ingest
from ppworker.store import stats


def test_stats_are_exact_after_every_step(world: World) -> None:
    processor = world.processor()
    world.check()
    world.add("one", "two", "three")
    world.check()
    world.run(processor, classes("cat"), limit=1)
    world.check()
    world.run(processor, classes("cat", "dog"))
    refresh.fold(world.deps)
    world.check()


def test_the_unlabelled_row_counts_items_without_any_annotation(world: World) -> None:
    processor = world.processor()
    world.add("one", "two", "three")
    world.run(processor, classes("cat"), limit=1)
    with world.deps.db.begin() as tx:
        rows = {
            s.bucket: (s.annotation_count, s.item_count)
            for s in stats.read_stats(tx, [world.train.id])
        }
    assert rows == {"label": (1, 1), "unlabelled": (0, 2), "total": (1, 3)}


def test_folds_at_once_lose_and_double_nothing(world: World) -> None:
    processor = world.processor()
    for i in range(30):
        world.add(f"t{i}")
        world.run(processor, classes(f"label {i % 5}"))
    threads = [threading.Thread(target=refresh.fold, args=(world.deps,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        world.check()  # a reader between two folds sees exact figures
    for thread in threads:
        thread.join()
    refresh.fold(world.deps)  # deltas that another fold held were left by each
    assert world.sql("SELECT count(*) FROM label_stat_deltas")[0][0] == 0
    world.check()


def test_drift_is_found_and_rebuilt_even_twice_at_once(world: World) -> None:
    processor = world.processor()
    world.add("one", "two", "three")
    world.run(processor, classes("cat"))
    refresh.fold(world.deps)
    world.sql("UPDATE label_stats SET item_count = item_count + 5 WHERE bucket = 'label'")
    assert [s.item_count for s in refresh.verify(world.deps, [world.train.id])] == [-5]
    barrier = threading.Barrier(2)
    changed: list[int] = []

    def rebuild() -> None:
        barrier.wait()
        changed.append(refresh.rebuild(world.deps, world.train.id))

    threads = [threading.Thread(target=rebuild) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(changed) == [0, 1]
    world.check()


def test_two_finishes_of_one_item_count_it_once(world: World) -> None:
    """Both read the item's annotations after the lock; a count before it would say 'first' twice."""
    for turn in range(10):
        left, right = world.processor(), world.processor()
        world.add(f"turn {turn}")
        batches = [(p, world.claim(p)) for p in (left, right)]
        barrier = threading.Barrier(2)
        threads = [
            threading.Thread(
                target=world.run,
                args=(p, classes("cat")),
                kwargs={"batch": b, "during": barrier.wait},
            )
            for p, b in batches
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        world.sql("UPDATE post_processors SET enabled = false")
        world.check()


def test_an_idempotency_key_makes_two_uploads_one(world: World) -> None:
    world.processor()
    first = world.add("one", "two", key="k")
    assert world.add("one", "two", key="k") == first
    assert len(world.jobs()) == 2
    world.check()


def test_a_key_of_another_upload_is_refused(world: World) -> None:
    import pytest

    from ppworker.errors import Conflict

    world.add("one", key="k")
    with pytest.raises(Conflict, match="key"):
        world.add("two", key="k")
    world.check()


def test_the_same_key_sent_at_once_makes_one_upload(world: World) -> None:
    world.processor()
    found: list[object] = []
    barrier = threading.Barrier(8)

    def send() -> None:
        barrier.wait()
        found.append(
            tuple(
                ingest.take_upload(
                    world.deps, world.train, [ingest.Upload(name="a", text="a")], key="k"
                ).item_ids
            )
        )

    threads = [threading.Thread(target=send) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len(set(found)) == 1
    assert world.sql("SELECT count(*) FROM dataset_items")[0][0] == 1
    world.check()
