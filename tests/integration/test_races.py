"""Every two things that may happen to an item's jobs, at once, in either order.

The first holds its locks with all written and nothing committed when the second begins. The second
must then wait, or leave alone what is locked, and what comes out must be what comes out when one
follows the other: whoever comes late finds a world that the first has left, and does it no harm.
"""

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa

from factories import Model, World, classes
from lock_words import waiting
from ppworker.domain.post_processor import PostProcessor
from ppworker.errors import RequestError, RunnerUnavailable
from ppworker.pipeline.control import operate, operations
from ppworker.pipeline.control.operation_steps import STEPS
from ppworker.pipeline.deps import Deps
from ppworker.pipeline.edits import moves, reviews, undo
from ppworker.pipeline.runs import execute, rescue
from ppworker.pipeline.runs.label_cache import LabelCache
from ppworker.pipeline.transfer import delete
from ppworker.store.db import Database, Tx

MOST_S = 20.0


class Paused(Database):
    """A database whose first transaction that holds the item, or one of its jobs, waits at its
    end, before the COMMIT, until it is let go."""

    def __init__(self, inner: Database, item_id: UUID) -> None:
        vars(self).update(vars(inner))
        self._inner = inner
        self._item_id = item_id
        self.holds = threading.Event()
        self.go_on = threading.Event()

    @contextmanager
    def begin(self, *, limit_s: float | None = None) -> Iterator[Tx]:
        with super().begin(limit_s=limit_s) as tx:
            yield tx
            if not self.holds.is_set() and self._is_held():
                self.holds.set()
                assert self.go_on.wait(MOST_S)

    def _is_held(self) -> bool:
        with self._inner.begin() as other:
            free = other.execute(
                sa.text(
                    "SELECT (SELECT count(*) FROM (SELECT 1 FROM dataset_items WHERE id = :i "
                    "FOR UPDATE SKIP LOCKED) x), (SELECT count(*) FROM (SELECT 1 FROM "
                    "post_processor_jobs WHERE item_id = :i FOR UPDATE SKIP LOCKED) y), "
                    "(SELECT count(*) FROM dataset_items WHERE id = :i), "
                    "(SELECT count(*) FROM post_processor_jobs WHERE item_id = :i)"
                ),
                {"i": self._item_id},
            ).one()
        return (free[0], free[1]) != (free[2], free[3])


@dataclass
class Scene:
    """An item with a job for every taste: one that runs on a lease that is over, one that failed,
    one that waits, one behind them, and suggestions of one that is done."""

    world: World
    item: UUID
    running: PostProcessor
    failed: PostProcessor
    waiting: PostProcessor
    last: PostProcessor
    done: PostProcessor
    batch: execute.Batch
    target: dict[str, str]
    """Whose job is cancelled, and whose is claimed, where it is not the usual one."""
    job_ids: dict[str, UUID] = field(default_factory=dict)
    suggested: list[UUID] = field(default_factory=list)

    def job(self, which: str) -> UUID:
        return UUID(
            str(next(j.id for j in self.world.jobs(getattr(self, which)) if j.item_id == self.item))
        )


def scene(world: World, target: dict[str, str]) -> Scene:
    for label in ("cat", "dog", "new"):  # no finish has to make them in a transaction before it
        world.annotate(world.add("other", split=world.test)[0], label, split=world.test)
    done = world.processor("done")
    (item,) = world.add("one")
    world.run(done, classes("cat", "dog"))
    last = world.processor("last", order=1)
    running, failed, waiting_ = (
        world.processor(name, max_attempts=1 if name == "failed" else 3)
        for name in ("running", "failed", "waiting")
    )
    for each in (running, failed, waiting_, last):
        assert sum(step.changed for step in operate.backfill(world.deps, each, [world.train])) == 1
    world.run(failed, RunnerUnavailable("gone"))
    batch = world.claim(running)
    world.sql(
        "UPDATE post_processor_jobs SET lease_expires_at = clock_timestamp() - interval '1 s' "
        "WHERE batch_id = :b",
        b=batch.id,
    )
    found = Scene(world, item, running, failed, waiting_, last, done, batch, target)
    found.job_ids = {name: found.job(name) for name in ("running", "failed", "waiting", "last")}
    found.suggested = [each.id for each in world.annotations(item)]
    return found


Act = Callable[[Scene, Deps], object]


def finish_it(s: Scene, deps: Deps) -> object:
    model = Model(lambda _: classes("cat", "new"))
    report = execute.run(deps, LabelCache(deps.db), s.running, model, s.batch)
    return ("completed", report.completed, "lost", report.lost)


def rescue_it(_: Scene, deps: Deps) -> object:
    return rescue.rescue(deps)


def cancel_it(s: Scene, deps: Deps) -> None:
    operate.cancel(deps, s.world.user, s.job_ids[s.target.get("cancel", "running")])


def retry_it(s: Scene, deps: Deps) -> None:
    operate.retry(deps, s.world.user, s.job_ids["failed"])


def delete_it(s: Scene, deps: Deps) -> None:
    delete.item(deps, s.world.train, s.item)


def move_it(s: Scene, deps: Deps) -> object:
    return moves.move(deps, [s.item], source=s.world.train, to=s.world.valid)


def undo_it(s: Scene, deps: Deps) -> object:
    begun = undo.begin(
        deps, s.world.dataset.id, s.world.user, s.world.dataset.version_id, s.done.id
    )
    found = operations.run(deps, STEPS, operation_id=begun)
    assert found is not None
    return found.counts.get("annotations_removed", 0)


def accept_it(s: Scene, deps: Deps) -> object:
    return reviews.review(deps, s.world.dataset.version_id, s.suggested, "accept")["changed"]


def claim_it(s: Scene, deps: Deps) -> object:
    which: PostProcessor = getattr(s, s.target.get("claim", "waiting"))
    return len(execute.claim(deps, which, limit=10, behind=None).jobs)


ACTS: dict[str, Act] = {
    "finish": finish_it,
    "rescue": rescue_it,
    "cancel": cancel_it,
    "retry": retry_it,
    "delete": delete_it,
    "move": move_it,
    "undo": undo_it,
    "accept": accept_it,
    "claim": claim_it,
}
SAME_JOB = {
    ("cancel", "claim"): {"cancel": "waiting"},
    ("claim", "cancel"): {"cancel": "waiting"},
    ("cancel", "retry"): {"cancel": "failed"},
    ("retry", "cancel"): {"cancel": "failed"},
    ("retry", "claim"): {"claim": "failed"},
    ("rescue", "claim"): {"claim": "running"},
    ("finish", "claim"): {"claim": "running"},
}
"""Pairs that would not meet on one job otherwise, in either order."""
APART = {
    *itertools.permutations(("claim", "move")),
    *itertools.permutations(("claim", "undo")),
    *itertools.permutations(("claim", "accept")),
    ("claim", "finish"),
    ("claim", "retry"),
}
"""Pairs that touch nothing in common: a claim takes one job and leaves the item and others alone."""
PASSING = {"rescue", "claim"}
"""What leaves alone what it finds locked, and comes by again."""


PAIRS = list(itertools.product(ACTS, repeat=2))


def attempt(act: Act, s: Scene, deps: Deps) -> str:
    try:
        return f"did {act(s, deps)}"
    except RequestError as error:
        return f"refused: {type(error).__name__}"


def state(s: Scene) -> dict[str, Any]:
    """All that matters of what came out, without ids and times."""
    names = {getattr(s, n).id: n for n in ("running", "failed", "waiting", "last", "done")}
    jobs = {
        names[row.post_processor_id]: tuple(row)[1:]
        for row in s.world.sql(
            "SELECT post_processor_id, status, ready, attempts, lease_token, reason, crash_count "
            "FROM post_processor_jobs WHERE item_id = :i", i=s.item,
        )
    }  # fmt: skip
    history = sorted(
        (row.cause, row.reason, row.n)
        for row in s.world.sql(
            "SELECT a.cause, a.reason, count(*) AS n FROM job_attempts a JOIN post_processor_jobs j "
            "ON j.id = a.job_id WHERE j.item_id = :i GROUP BY 1, 2", i=s.item,
        )
    )  # fmt: skip
    marks = sorted(
        (row.name, row.review, row.is_gone, names.get(row.post_processor_id, "person"))
        for row in s.world.sql(
            "SELECT l.name, a.review, a.deleted_at IS NOT NULL AS is_gone, a.post_processor_id "
            "FROM annotations a JOIN labels l ON l.id = a.label_id WHERE a.item_id = :i", i=s.item,
        )
    )  # fmt: skip
    splits = sorted(
        row.name
        for row in s.world.sql(
            "SELECT p.name FROM item_splits m JOIN dataset_splits p ON p.id = m.split_id "
            "WHERE m.item_id = :i", i=s.item,
        )
    )  # fmt: skip
    return {"jobs": jobs, "history": history, "annotations": marks, "splits": splits}


@dataclass
class Raced:
    said: dict[str, str]
    state: dict[str, Any]


def serially(world: World, first: str, second: str) -> Raced:
    s = prepared(world, first, second)
    said = {"first": attempt(ACTS[first], s, world.deps)}
    said["second"] = attempt(ACTS[second], s, world.deps)
    world.check()
    return Raced(said, state(s))


def prepared(world: World, first: str, second: str) -> Scene:
    return scene(world, SAME_JOB.get((first, second), {}))


def deadlocks(world: World) -> int:
    world.sql("SELECT pg_stat_force_next_flush()")
    return int(
        world.sql("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()")[0][0]
    )


@pytest.mark.parametrize(("first", "second"), PAIRS, ids=[f"{a}-{b}" for a, b in PAIRS])
def test_whoever_comes_second_finds_what_the_first_left_and_does_no_harm(
    worlds: Callable[..., World], first: str, second: str
) -> None:
    expected = serially(worlds(), first, second)
    world = worlds()
    s = prepared(world, first, second)
    before = deadlocks(world)
    holding = Paused(world.deps.db, s.item)
    said: dict[str, str] = {}

    def run(name: str, act: str, deps: Deps) -> None:
        said[name] = attempt(ACTS[act], s, deps)

    one = threading.Thread(target=run, args=("first", first, replace(world.deps, db=holding)))
    two = threading.Thread(target=run, args=("second", second, world.deps))
    one.start()
    until = time.monotonic() + MOST_S
    while not holding.holds.is_set() and one.is_alive() and time.monotonic() < until:
        time.sleep(0.002)
    assert holding.holds.is_set(), f"{first} never held the item: {said}"
    two.start()
    with world.deps.db.begin() as tx:
        while two.is_alive() and not waiting(tx) and time.monotonic() < until:
            time.sleep(0.002)
        was_waiting = two.is_alive()
    is_apart = (first, second) in APART
    assert was_waiting or second in PASSING or is_apart, f"{second} passed {first}: {said}"
    holding.go_on.set()
    one.join(MOST_S)
    two.join(MOST_S)
    assert not one.is_alive()
    assert not two.is_alive()
    if second in PASSING and said["second"] != expected.said["second"]:
        assert said["second"] == "did 0", "it leaves alone what it finds locked"
        said["second"] = attempt(ACTS[second], s, world.deps)  # its next time
    assert Raced(said, state(s)) == expected
    assert deadlocks(world) == before
    world.check()
