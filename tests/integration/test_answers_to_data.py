"""From an answer to data: labels, single-label items, replacement, people's work, drops."""

import threading
from typing import Any

from factories import World, classes
from ppworker.pipeline.runs import finish
from ppworker.store import labels


def test_a_rerun_changes_only_its_own_unreviewed_output_and_keeps_ids(world: World) -> None:
    mine, other = world.processor(), world.processor()
    (item,) = world.add("one")
    world.run(mine, classes("cat", "dog"))
    world.run(other, classes("cat"))
    human = world.annotate(item, "bird")
    before = {a.label: a.id for a in world.annotations(item) if a.post_processor == mine.name}
    run_again(world, mine, classes("dog", "fox"))
    after = {a.label: a.id for a in world.annotations(item) if a.post_processor == mine.name}
    assert set(after) == {"dog", "fox"}
    assert after["dog"] == before["dog"]
    rest = {a.id for a in world.annotations(item)} - set(after.values())
    assert human in rest
    assert len(rest) == 2, "the other post-processor's and the person's"
    world.check()


def test_an_equal_rerun_changes_no_row(world: World) -> None:
    processor = world.processor()
    world.add("one")
    world.run(processor, classes("cat", "dog"))
    before = world.sql(
        "SELECT id, label_id, score, updated_at, xmin::text FROM annotations ORDER BY id"
    )
    run_again(world, processor, classes("cat", "dog"))
    assert before == world.sql(
        "SELECT id, label_id, score, updated_at, xmin::text FROM annotations ORDER BY id"
    )
    world.check()


def test_a_reviewed_suggestion_is_never_changed_or_deleted(world: World) -> None:
    processor = world.processor()
    (item,) = world.add("one")
    world.run(processor, classes("cat"))
    world.sql("UPDATE annotations SET review = 'accepted'")
    run_again(world, processor, classes("dog"))
    assert sorted(a.label for a in world.annotations(item)) == ["cat", "dog"]
    world.check()


def test_a_suggestion_that_a_person_deleted_does_not_come_back(world: World) -> None:
    processor = world.processor()
    (item,) = world.add("one")
    world.run(processor, classes("cat", "dog"))
    world.sql(
        "UPDATE annotations a SET deleted_at = now(), review = 'rejected' FROM labels l "
        "WHERE l.id = a.label_id AND l.name = 'cat'"
    )
    world.sql(
        "INSERT INTO label_stat_deltas (split_id, bucket, label_id, annotation_count, item_count) "
        "SELECT s.split_id, b.bucket, CASE b.bucket WHEN 'label' THEN a.label_id END, -1, "
        "CASE b.bucket WHEN 'label' THEN -1 ELSE 0 END FROM annotations a "
        "JOIN item_splits s ON s.item_id = a.item_id, (VALUES ('label'), ('total')) b(bucket) "
        "WHERE a.deleted_at IS NOT NULL"
    )
    world.check()
    run_again(world, processor, classes("cat", "dog"))
    assert [a.label for a in world.annotations(item)] == ["dog"]
    assert world.jobs()[-1].dropped == {"deleted_by_person": 1}
    world.check()


def test_single_label_items_keep_one_class_whatever_the_order_of_runs(worlds: Any) -> None:
    for turn in range(2):
        world = worlds(multi_label=False)
        low, high = world.processor(), world.processor()
        (item,) = world.add("one")  # both ready at once, so that either may finish first
        high = world.change(high, order=5)
        for processor, label in [(low, "cat"), (high, "dog")][:: 1 if turn else -1]:
            world.run(processor, classes(label, "other", score=0.5))
        assert [a.label for a in world.annotations(item)] == ["dog"]
        world.check()


def test_on_single_label_items_the_persons_label_wins(worlds: Any) -> None:
    world = worlds(multi_label=False)
    processor = world.processor()
    (item,) = world.add("one")
    world.annotate(item, "bird")
    world.run(processor, classes("cat"))
    assert [a.label for a in world.annotations(item)] == ["bird"]
    assert world.jobs()[0].dropped == {"outranked": 1}
    world.check()


def test_a_label_deleted_in_between_is_a_counted_drop_and_fails_nothing(world: World) -> None:
    processor = world.processor()
    *_, last = world.add("one", "two", "three")
    for _ in range(2):  # the first run makes the label, the second remembers it
        world.run(processor, classes("cat"), limit=1)

    def delete_label() -> None:
        world.sql("DELETE FROM annotations")
        world.sql("DELETE FROM label_stat_deltas")
        world.sql("DELETE FROM labels")
        world.sql(
            "INSERT INTO label_stat_deltas (split_id, bucket, annotation_count, item_count) "
            "SELECT id, b, 0, 3 FROM dataset_splits, unnest(ARRAY['unlabelled', 'total']) b "
            "WHERE name = 'train'"
        )

    report = world.run(processor, classes("cat"), during=delete_label)
    assert report == finish.Report(completed=1)
    assert world.jobs()[-1].dropped == {"label_deleted": 1}
    assert world.annotations(last) == []
    world.check()


def test_labels_made_at_once_get_different_indexes_and_one_row_per_name(world: World) -> None:
    processors = [world.processor() for _ in range(4)]
    world.add(*(f"t{i}" for i in range(8)))
    barrier = threading.Barrier(4)
    errors: list[BaseException] = []

    def go(processor: Any, number: int) -> None:
        try:
            world.run(
                processor,
                lambda _: classes("Shared", f"own {number}", "SHARED" if number % 2 else "shared"),
                during=barrier.wait,
            )
        except BaseException as error:  # noqa: BLE001  shown below
            errors.append(error)

    threads = [threading.Thread(target=go, args=(p, i)) for i, p in enumerate(processors)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    with world.deps.db.begin() as tx:
        found = labels.list_labels(tx, world.train.version_id)
    assert sorted(label.index for label in found) == list(range(5))
    assert {label.name.casefold() for label in found} == {
        "shared",
        "own 0",
        "own 1",
        "own 2",
        "own 3",
    }
    world.check()


def test_the_cap_of_new_labels_holds_over_batches_and_is_counted(world: World) -> None:
    processor = world.processor(max_new_labels=3)
    world.add(*(f"t{i}" for i in range(10)))
    world.run(processor, lambda given: classes(f"label of {given.text}"), limit=5)
    world.run(processor, lambda given: classes(f"label of {given.text}"), limit=5)
    assert world.sql("SELECT count(*) FROM labels")[0][0] == 3
    assert sum((job.dropped or {}).get("label_cap", 0) for job in world.jobs()) == 7
    world.check()


def test_unknown_labels_are_dropped_and_counted_when_they_may_not_be_made(world: World) -> None:
    processor = world.processor(auto_create_labels=False, confidence_threshold=0.5)
    (item,) = world.add("one")
    with world.deps.db.begin() as tx:
        labels.create_label(tx, world.train.version_id, world.user, "Cat")
    raw = {
        "predictions": [
            {"label": "cat", "score": 0.5},
            {"label": "dog", "score": 0.9},
            {"label": "cat", "score": 0.49},
        ]
    }
    world.run(processor, raw)
    assert [(a.label, a.score) for a in world.annotations(item)] == [("Cat", 0.5)]
    assert world.jobs()[0].dropped == {"below_threshold": 1, "unknown_label": 1}
    world.check()


def test_mapping_and_prefix_decide_the_label(world: World) -> None:
    processor = world.processor(label_mapping={"kitty": "cat", "noise": None}, label_prefix="auto-")
    (item,) = world.add("one")
    world.run(processor, classes("kitty", "noise", "fox"))
    assert sorted(a.label for a in world.annotations(item)) == ["auto-cat", "auto-fox"]
    assert world.jobs()[0].dropped == {"mapped_to_nothing": 1}
    world.check()


def run_again(world: World, processor: Any, answer: dict[str, Any]) -> None:
    """Plan the item's job anew, as a re-run would, and run it."""
    world.sql(
        "INSERT INTO post_processor_jobs (id, post_processor_id, item_id, version_id, user_id, "
        'ready, "order", max_attempts) SELECT gen_random_uuid(), post_processor_id, item_id, '
        'version_id, user_id, true, "order", max_attempts FROM post_processor_jobs '
        "WHERE post_processor_id = :p AND status = 'completed' LIMIT 1",
        p=processor.id,
    )
    assert world.run(processor, answer).completed == 1
