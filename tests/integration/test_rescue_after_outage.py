"""PostgreSQL was away for longer than a lease: who waits with an answer keeps its job."""

from uuid import UUID

import pytest

from factories import World
from ppworker import wiring
from ppworker.store import jobs
from ppworker.worker.heartbeat import Heartbeat
from ppworker.worker.steadiness import Steadiness


class Other:
    """Another worker's process after the outage: its clock, and its sweep for expired leases."""

    def __init__(self, world: World) -> None:
        self.now = 0.0
        self.lease_s = world.deps.settings.lease_s
        self.steadiness = Steadiness(self.lease_s, clock=lambda: self.now)
        found = wiring.sweeps(world.deps, may_rescue=self.steadiness.lasts_a_lease)
        self.sweep = next(each for each in found if each.name == "rescue")

    def beat(self, seconds: float = 0) -> None:
        """One successful heartbeat after so many seconds."""
        self.now += seconds
        self.steadiness.note(answered=True)


@pytest.fixture
def other(world: World) -> Other:
    return Other(world)


def test_the_owner_that_waits_with_its_answer_keeps_its_job(world: World, other: Other) -> None:
    processor = world.processor(max_attempts=1)
    world.add("one")
    batch = world.claim(processor)

    def outage() -> None:
        """Comes while the model runs; the other process is the first to be back."""
        world.expire()
        other.beat()
        assert other.sweep.run() == 0
        owner.beat()
        for _ in range(3):
            other.beat(other.lease_s / 3)
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
    other.beat()
    for _ in range(2):
        assert other.sweep.run() == 0
        other.beat(other.lease_s / 3)
    other.beat(other.lease_s / 3)
    assert other.sweep.run() == 1
    assert world.statuses() == ["pending"]
    world.check()
