"""Interactive jobs before bulk ones, and nobody for ever last; counted in claims, not in seconds."""

from collections import Counter, defaultdict

import pytest

from factories import World
from ppworker.domain.post_processor import PostProcessor
from ppworker.domain.turns import BULK, INTERACTIVE, ROUND, first_priority
from ppworker.pipeline.runs import execute
from promises import Keep

BATCH = 10
"""Jobs of one claim: what can be done in one round."""


class Load:
    """Jobs that arrive round by round and are claimed a batch a round; waits in rounds."""

    def __init__(self, world: World, processor: PostProcessor) -> None:
        self.world, self.processor = world, processor
        self.round = 0
        self.owed = Counter[int]()
        self.arrived: dict[object, int] = {}
        self.waits: dict[int, list[int]] = defaultdict(list)
        self.claimed = Counter[int]()

    def arrive(self, priority: int, per_round: float) -> None:
        """So many jobs a round on average, the fractions carried on."""
        self.owed[priority] += round(per_round * 100)
        count, self.owed[priority] = divmod(self.owed[priority], 100)
        if count:
            self.world.add(*("word" for _ in range(count)), priority=priority)

    def turn(self) -> None:
        """One claim of one process, run at once."""
        for row in self.world.sql("SELECT id FROM post_processor_jobs WHERE status = 'pending'"):
            self.arrived.setdefault(row.id, self.round)
        batch = execute.claim(
            self.world.deps, self.processor, limit=BATCH, first=first_priority(self.round)
        )
        for job in batch.jobs:
            self.waits[job.priority].append(self.round - self.arrived[job.id])
            self.claimed[job.priority] += 1
        self.world.run(self.processor, batch=batch)
        self.round += 1

    def oldest(self, priority: int) -> int:
        """Longest wait there was or is, in rounds."""
        left = self.world.sql(
            "SELECT id FROM post_processor_jobs WHERE status = 'pending' AND priority = :p",
            p=priority,
        )
        open_ = [self.round - self.arrived.get(row.id, self.round) for row in left]
        return max([*self.waits[priority], *open_], default=0)


def p95(waits: list[int]) -> int:
    return sorted(waits)[int(len(waits) * 0.95)]


@pytest.mark.promise
@pytest.mark.timeout(120)
def test_bulk_gets_its_share_beside_a_stream_of_interactive_jobs(
    world: World, promise: Keep
) -> None:
    rounds = 60
    load = Load(world, world.processor(batch_size=BATCH))
    for _ in range(rounds):
        load.arrive(INTERACTIVE, 0.9 * 1.1 * BATCH)
        load.arrive(BULK, 0.1 * 1.1 * BATCH)
        load.turn()
    bulk, interactive = load.oldest(BULK), p95(load.waits[INTERACTIVE])
    share = load.claimed[BULK] / load.claimed.total()
    overload = 0.1 * rounds
    claim_s = world.deps.settings.batch_target_s
    promise(
        "F29",
        promise="Bulk work goes on beside a steady stream of interactive work, however long.",
        fault=f"9 interactive jobs to 1 of bulk at 110 % of capacity for {rounds} claims of "
        f"{BATCH} jobs by one slot, counted, not timed: {rounds * claim_s:g} s at the batch target "
        f"of {claim_s:g} s (10 min in the reference)",
        target=f"no bulk job waits longer than {ROUND} claims, {ROUND * claim_s:g} s at the batch "
        "target (the reference says 5 min); bulk gets at least 9 % of the work; interactive p95 "
        f"not above what the overload alone makes it ({overload:g} claims + 1)",
        figure=f"bulk waited {bulk} claims at most, {bulk * claim_s:g} s at the batch target, and "
        f"got {share:.0%}; interactive p95 {interactive} claims",
        passed=bulk <= ROUND and share >= 0.09 and interactive <= overload + 1,
        figures={"bulk_oldest": bulk, "bulk_share": share, "interactive_p95": interactive},
    )


@pytest.mark.promise
@pytest.mark.timeout(120)
def test_interactive_jobs_pass_a_bulk_backlog(world: World, promise: Keep) -> None:
    rounds = 30
    load = Load(world, world.processor(batch_size=BATCH))
    load.arrive(BULK, rounds * BATCH)
    for _ in range(rounds):
        load.arrive(INTERACTIVE, 0.5 * BATCH)
        load.turn()
    waits = load.waits[INTERACTIVE]
    promise(
        "F29",
        promise="Interactive work passes a backlog of bulk work.",
        fault=f"a bulk backlog that fills the machine, interactive jobs at half of its capacity, "
        f"{rounds} claims of {BATCH} jobs, counted, not timed",
        target="interactive jobs wait for the one claim that was bulk's turn at most",
        figure=f"interactive p95 {p95(waits)}, longest {max(waits)} claims; bulk had "
        f"{load.claimed[BULK]} of {load.claimed.total()} jobs",
        passed=max(waits) <= 1,
        figures={"p95": p95(waits), "longest": max(waits)},
    )


def test_each_priority_has_its_own_place(world: World) -> None:
    """Behind the last bulk job, an interactive one that came later is still the next."""
    processor = world.processor()
    world.add("a", "b", priority=BULK)
    first = execute.claim(world.deps, processor, limit=1)
    world.add("now", priority=INTERACTIVE)
    (next_,) = execute.claim(world.deps, processor, limit=1, behind=first.places).jobs
    assert next_.priority == INTERACTIVE


def test_bulk_first_falls_through_to_interactive(world: World) -> None:
    processor = world.processor()
    world.add("a", "b", priority=INTERACTIVE)
    world.add("c", priority=BULK)
    batch = execute.claim(world.deps, processor, limit=3, first=BULK)
    assert sorted(job.priority for job in batch.jobs) == [0, 0, 1]
    assert not execute.claim(world.deps, processor, limit=3, first=BULK).jobs
