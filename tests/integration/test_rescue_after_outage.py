"""PostgreSQL was away for longer than a lease: who waits with an answer keeps its job."""

from uuid import UUID, uuid4

import pytest

from factories import World
from ppworker import wiring
from ppworker.pipeline.runs import finish
from ppworker.store import jobs, workers
from ppworker.worker.heartbeat import Heartbeat


class Other:
    """Another worker's process: its row in the register, and its sweep for expired leases."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.id = uuid4()
        self.lease_s = world.deps.settings.lease_s
        self.register()
        self.sweep = next(
            each
            for each in wiring.sweeps(world.deps, may_rescue=self.may_rescue)
            if each.name == "rescue"
        )

    def register(self) -> None:
        with self.world.deps.db.begin() as tx:
            workers.register(
                tx, self.id, host="h", pid=1, version="1", slots=1, lease_s=self.lease_s
            )

    def beat(self) -> None:
        with self.world.deps.db.begin() as tx:
            assert workers.mark_seen(tx, self.id)

    def may_rescue(self) -> bool:
        with self.world.deps.db.begin() as tx:
            return workers.may_rescue(tx, self.id)

    def later(self, leases: float) -> None:
        """Let time pass for the whole register."""
        self.world.sql(
            "UPDATE workers SET seen_at = seen_at - make_interval(secs => :s), "
            "steady_since = steady_since - make_interval(secs => :s)",
            s=leases * self.lease_s,
        )

    def beat_for(self, leases: float) -> None:
        for _ in range(round(leases * 3)):
            self.later(1 / 3)
            self.beat()


@pytest.fixture
def other(world: World) -> Other:
    return Other(world)


def test_the_owner_that_waits_with_its_answer_keeps_its_job(world: World, other: Other) -> None:
    processor = world.processor(max_attempts=1)
    world.add("one")
    other.beat_for(2)
    assert other.may_rescue()
    batch = world.claim(processor)

    def outage() -> None:
        """Comes while the model runs; the other process is the first to be back."""
        world.expire()
        other.later(2)
        assert other.sweep.run() == 0, "its own last sign of life is old"
        other.beat()
        assert other.sweep.run() == 0
        owner.beat()
        other.beat_for(1)
        assert other.may_rescue()
        assert other.sweep.run() == 0, "it may rescue now, and finds nothing to rescue"

    def extend(held: dict[UUID, int]) -> set[UUID]:
        with world.deps.db.begin() as tx:
            return jobs.extend_leases(tx, held, lease_s=other.lease_s)

    owner = Heartbeat(extend, lambda: None, lease_s=other.lease_s)  # type: ignore[arg-type]
    with owner.holding(processor.id, batch.jobs):
        assert world.run(processor, batch=batch, during=outage).completed == 1
    assert [a.cause for a in world.attempts(batch.jobs[0].id)] == ["finished"]
    world.check()


def test_an_owner_that_never_came_back_loses_its_job_a_lease_later(
    world: World, other: Other
) -> None:
    processor = world.processor()
    world.add("one")
    world.claim(processor)
    world.expire()
    for _ in range(3):
        assert other.sweep.run() == 0
        other.beat_for(1 / 3)
    assert other.sweep.run() == 1
    assert world.statuses() == ["pending"]
    world.check()


def test_one_that_has_just_started_knows_what_the_dead_knew(world: World, other: Other) -> None:
    """Workers that are killed one after the other would rescue nothing for each other else."""
    other.beat_for(3)
    other.later(0.4)  # it died, less than half a lease ago
    heir = Other(world)
    assert heir.may_rescue()
    heir.later(0.4)
    heir.beat()
    assert heir.may_rescue(), "by its own row now"


def test_what_was_seen_before_an_absence_is_not_taken_over(world: World, other: Other) -> None:
    other.beat_for(3)
    other.later(0.6)  # nobody was answered for more than half a lease
    heir = Other(world)
    assert not heir.may_rescue()
    heir.beat_for(1)
    assert heir.may_rescue()


def test_one_that_was_cut_off_alone_follows_the_others_when_it_is_back(
    world: World, other: Other
) -> None:
    cut_off = Other(world)
    for _ in range(6):
        other.later(1 / 3)
        other.beat()
    assert not cut_off.may_rescue()
    cut_off.beat()
    assert cut_off.may_rescue(), "the server was there all the time, for whoever could reach it"


def test_a_rescued_or_released_job_keeps_its_place_in_the_queue(world: World) -> None:
    """Behind the backlog, what a dead worker had would wait for the whole of it once more."""
    processor = world.processor()
    first, _ = world.add("first", "second")
    for end in ("rescued", "released"):
        batch = world.claim(processor, limit=1)
        assert batch.jobs[0].item_id == first
        if end == "rescued":
            world.expire()
            sweeps = {each.name: each for each in wiring.sweeps(world.deps)}
            assert sweeps["rescue"].run() == 1
        else:
            held = {job.id: (job.item_id, job.lease_token) for job in batch.jobs}
            assert finish.release(world.deps, {processor.id: processor.name}, held) == 1
    assert world.claim(processor, limit=1).jobs[0].item_id == first
