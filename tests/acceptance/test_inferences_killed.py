"""Inferences by the ten thousand, while the processes that apply them are killed."""

import json
import os
import signal
from functools import partial
from pathlib import Path
from uuid import UUID

import pytest

from factories import World
from live_workers import Start, wait_for
from ppworker.pipeline.inferences import inferences
from ppworker.store import operations
from ppworker.store.operations import Operation

GROWTH_MB = 100


def read(world: World, id_: UUID) -> Operation:
    with world.deps.db.begin() as tx:
        found = operations.find_operation(tx, world.user, id_)
    assert found is not None
    return found


def memory_mb(pid: int, name: str) -> float:
    (line,) = [
        line
        for line in Path(f"/proc/{pid}/status").read_text().splitlines()
        if line.startswith(f"{name}:")
    ]
    return int(line.split()[1]) / 1024


def write_lines(path: Path, total: int) -> int:
    """Texts with one to three predictions; every hundredth line repeats the one before it."""
    predictions = 0
    with path.open("w") as out:
        for number in range(total):
            own = number - 1 if number % 100 == 99 else number
            said = [
                {"prediction": f"label {(own + place) % 20}", "confidence": 0.5}
                for place in range(1 + own % 3)
            ]
            predictions += len(said) if own == number else 0
            line = {"id": f"inference {own}", "name": f"text {own}", "inference_items": said}
            out.write(json.dumps(line) + "\n")
    return predictions


@pytest.mark.slow
@pytest.mark.timeout(280)
def test_kill_9_three_times_on_the_way_leaves_no_trace(
    live: World, start: Start, tmp_path: Path
) -> None:
    total = int(os.environ.get("PPWORKER_TEST_INFERENCES", "20000"))
    path = tmp_path / "inferences.jsonl"
    predictions = write_lines(path, total)
    unique = total - total // 100
    processor = live.processor(splits=("test",))  # of no item here
    accepted = inferences.add_file(live.deps, live.train, path)
    assert accepted.total == total

    def is_at(goal: int) -> bool:
        return read(live, accepted.operation_id).done >= goal

    for kill in range(1, 4):
        workers = [start(), start()]
        goal = max(read(live, accepted.operation_id).done + 1, total * kill // 5)
        wait_for(partial(is_at, goal), seconds=60, what="progress")
        for worker in workers:
            os.kill(worker.pid, signal.SIGKILL)
            worker.wait()
        left = read(live, accepted.operation_id)
        # Pending is the moment between two slices; either way it is not over.
        assert left.status in {"processing", "pending"}, "the kill was to land on the way"
        assert left.done < total
        print(f"kill {kill} at {left.done} of {total}")

    last = start()
    wait_for(partial(is_at, read(live, accepted.operation_id).done + 1), seconds=60, what="rescue")
    wait_for(lambda: read(live, accepted.operation_id).is_over, seconds=120, what="the end")
    done = read(live, accepted.operation_id)
    assert (done.status, done.done) == ("completed", total)
    assert done.counts == {
        "items_created": unique,
        "repeated": total - unique,
        "predictions": predictions + sum(1 + (n - 1) % 3 for n in range(99, total, 100)),
        "annotations_added": predictions,
        "already_there": sum(1 + (n - 1) % 3 for n in range(99, total, 100)),
    }
    counted = "SELECT count(*), count(DISTINCT item_id) FROM "
    assert live.sql(counted + "item_splits")[0] == (unique, unique)
    assert live.sql(counted + "annotations")[0] == (predictions, unique)
    assert live.sql(counted + "inferences")[0] == (unique, unique)
    assert live.sql("SELECT count(*) FROM dataset_items")[0][0] == unique
    assert live.statuses(processor) == []
    live.check()
    print(f"claims: {done.lease_token}, memory {memory_mb(last.pid, 'VmHWM'):.0f} MB at most")


@pytest.mark.timeout(120)
def test_a_workers_memory_does_not_grow_with_the_number_of_inferences(
    live: World, start: Start, tmp_path: Path
) -> None:
    path = tmp_path / "inferences.jsonl"
    write_lines(path, 8_000)
    worker = start()
    wait_for(lambda: live.sql("SELECT 1 FROM workers"), seconds=30, what="a worker")
    before = memory_mb(worker.pid, "VmRSS")
    accepted = inferences.add_file(live.deps, live.train, path)
    wait_for(lambda: read(live, accepted.operation_id).is_over, seconds=60, what="the end")
    growth = memory_mb(worker.pid, "VmHWM") - before
    print(f"memory grew by {growth:.0f} MB")
    assert growth < GROWTH_MB
    assert read(live, accepted.operation_id).status == "completed"


@pytest.mark.timeout(120)
def test_a_stopping_worker_gives_the_operation_back_for_another(
    live: World, start: Start, tmp_path: Path
) -> None:
    path = tmp_path / "inferences.jsonl"
    write_lines(path, 20_000)
    worker = start()
    accepted = inferences.add_file(live.deps, live.train, path)
    wait_for(lambda: read(live, accepted.operation_id).done > 0, seconds=30, what="the first chunk")
    worker.terminate()
    assert worker.wait(15) == 0
    given_back = read(live, accepted.operation_id)
    assert (given_back.status, given_back.attempts) == ("pending", 0)
    assert 0 < given_back.done < 20_000
    live.check()
