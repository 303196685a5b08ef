"""What was found by attacking the laws of jobs with fresh eyes; each finding is a promise now."""

from dataclasses import replace
from uuid import UUID, uuid4

import pytest

from factories import World, classes
from ppworker import wiring
from ppworker.domain.job import Attempt, Outcome, decide
from ppworker.errors import UnreadableInput
from ppworker.pipeline.control import operate, operations, reapply, retry_jobs
from ppworker.pipeline.control.operation_steps import STEPS
from ppworker.pipeline.deps import Deps
from ppworker.store import job_restarts, workers
from ppworker.store.blobs import text_sha256
from ppworker.store.results import Scope
from ppworker.worker.heartbeat import Heartbeat


class Worker:
    """A worker's row in the register, with a lease of its own length."""

    def __init__(self, world: World, lease_s: float) -> None:
        self.world, self.id, self.lease_s = world, uuid4(), lease_s
        with world.deps.db.begin() as tx:
            workers.register(tx, self.id, host="h", pid=1, version="1", slots=2, lease_s=lease_s)

    @property
    def deps(self) -> Deps:
        settings = self.world.deps.settings.model_copy(update={"lease_s": self.lease_s})
        return replace(self.world.deps, worker_id=self.id, settings=settings)

    def beat(self) -> float | None:
        with self.world.deps.db.begin() as tx:
            return workers.mark_seen(tx, self.id)

    def may_rescue(self) -> bool:
        with self.world.deps.db.begin() as tx:
            return workers.may_rescue(tx, self.id)


def later(world: World, seconds: float) -> None:
    """Let time pass for the whole register."""
    world.sql(
        "UPDATE workers SET seen_at = seen_at - make_interval(secs => :s), "
        "steady_since = steady_since - make_interval(secs => :s)",
        s=seconds,
    )


def beat_for(world: World, seconds: float, *beating: Worker) -> None:
    for _ in range(round(seconds)):
        later(world, 1)
        for each in beating:
            each.beat()


def test_a_worker_with_a_short_lease_waits_for_one_with_a_long_lease(world: World) -> None:
    short, long = Worker(world, 5), Worker(world, 60)
    processor = world.processor()
    world.add("one")
    beat_for(world, 70, short, long)
    world.claim(processor, deps=long.deps)
    assert short.may_rescue()
    later(world, 70)  # the server was away, for longer than any lease
    beat_for(world, 20, short)
    assert not short.may_rescue(), "the other one may renew its lease only now"
    long.beat()
    beat_for(world, 41, short, long)
    assert short.may_rescue()


def test_an_absence_that_is_short_for_a_long_lease_is_one_for_all(world: World) -> None:
    short, long = Worker(world, 5), Worker(world, 600)
    beat_for(world, 620, short, long)
    assert short.may_rescue()
    assert long.may_rescue()
    later(world, 100)  # too short for a lease of 600 s to be lost, long enough for one of 5 s
    long.beat()
    short.beat()
    assert not long.may_rescue()
    assert not short.may_rescue()


def test_who_starts_with_a_long_lease_does_not_take_over_what_ended_with_an_absence(
    world: World,
) -> None:
    short = Worker(world, 5)
    beat_for(world, 120, short)
    later(world, 20)
    assert not Worker(world, 60).may_rescue()


def test_a_worker_beats_as_often_as_the_shortest_lease_of_all_asks(world: World) -> None:
    """Else it would not notice an absence that cost another one its lease."""
    long = Worker(world, 60)
    assert long.beat() == 60
    Worker(world, 5)
    assert long.beat() == 5
    heart = Heartbeat(lambda _: set(), long.beat, lease_s=60)
    heart.beat()
    assert heart._period_s < 5 / 2  # nobody sees it else before a minute is over


def test_a_worker_with_a_lease_of_an_hour_stays_known_between_its_beats(world: World) -> None:
    """Forgotten at every beat, it would never be steady, and nothing would ever be rescued."""
    worker = Worker(world, 3600)
    sweep = next(s for s in wiring.sweeps(worker.deps) if s.name == "workers")
    later(world, 1300)
    assert sweep.run() == 0
    later(world, 6000)
    assert sweep.run() == 1


def test_who_was_away_with_the_server_is_not_forgotten_for_it(world: World) -> None:
    first, other = Worker(world, 5), Worker(world, 60)
    beat_for(world, 70, first, other)
    later(world, 600)
    first.beat()
    sweeps = wiring.sweeps(first.deps, may_rescue=first.may_rescue)
    assert next(s for s in sweeps if s.name == "workers").run() == 0
    assert other.beat() is not None


def test_the_slots_of_workers_with_long_leases_count_between_their_beats(world: World) -> None:
    """With none to be seen, many failed jobs would be restarted all at once."""
    Worker(world, 600)
    later(world, 220)
    with world.deps.db.begin() as tx:
        assert job_restarts.read_load(tx, [], late_s=1)[1] == 2


@pytest.mark.parametrize("waits_s", [60, 3600])
def test_jobs_that_no_worker_can_run_do_not_hold_up_a_bulk_retry_for_ever(
    world: World, monkeypatch: pytest.MonkeyPatch, waits_s: int
) -> None:
    monkeypatch.setattr(retry_jobs, "AT_ONCE", 3)
    Worker(world, 30)
    world.processor("nobody has its runner")
    failing = world.processor()
    world.add(*(f"t{i}" for i in range(5)))
    world.run(failing, UnreadableInput("no"))
    world.sql(
        "UPDATE post_processor_jobs SET priority = 1, run_at = now() - make_interval(secs => :s) "
        "WHERE status = 'pending'",
        s=waits_s,
    )
    id_ = retry_jobs.begin(world.deps, world.user, retry_jobs.Wanted(dataset_id=world.dataset.id))
    assert isinstance(id_, UUID)
    for _ in range(3):
        world.sql("UPDATE operations SET run_at = now()")
        operations.run(world.deps, STEPS, operation_id=id_)
    done = world.sql("SELECT status FROM operations")[0].status == "completed"
    assert done == (waits_s > 300)
    world.check()


def test_an_answer_for_old_input_is_refused_where_a_failover_gave_its_token_out_again(
    world: World,
) -> None:
    """A standby that takes over may not know of the last claims: their tokens come a second time."""
    processor = world.processor(reads="text")
    (item,) = world.add("old")
    before = world.claim(processor)
    world.sql(
        "UPDATE post_processor_jobs SET status = 'pending', attempts = 0, lease_token = 0, "
        "lease_owner = NULL, lease_expires_at = NULL, batch_id = NULL, deadline_at = NULL, "
        "started_at = NULL, input_revision = NULL"
    )
    world.sql("UPDATE dataset_items SET text = 'new', text_sha256 = :s", s=text_sha256("new"))
    again = world.claim(processor)
    assert again.jobs[0].lease_token == before.jobs[0].lease_token
    assert world.run(processor, classes("old"), batch=before).again == 1
    assert world.run(processor, classes("new"), batch=again).lost == 1
    world.run(processor, classes("new"))
    names = world.sql("SELECT l.name FROM annotations a JOIN labels l ON l.id = a.label_id")
    assert [row.name for row in names] == ["new"]
    assert len(world.annotations(item)) == 1
    world.check()


def test_a_retry_revives_nothing_behind_another_failed_job_that_says_stop(world: World) -> None:
    first, second = (world.processor(on_failure="stop") for _ in range(2))
    late = world.processor(order=1)
    last = world.processor(order=2, on_failure="stop")
    world.add("one")
    for processor in (first, second):
        world.run(processor, UnreadableInput("no"))
    for processor, still in ((first, "failed"), (second, "pending")):
        operate.retry(world.deps, world.user, world.jobs(processor)[0].id)
        world.run(processor)
        assert world.statuses(late) == world.statuses(last) == [still]
    assert world.run(late).completed == 1
    assert world.run(last).completed == 1
    world.check()


def test_a_retry_revives_the_whole_chain_that_stopped_behind_it(world: World) -> None:
    chain = [world.processor(order=place, on_failure="stop") for place in range(4)]
    world.add("one")
    world.run(chain[0], UnreadableInput("no"))
    assert set(world.statuses()) == {"failed"}
    operate.retry(world.deps, world.user, world.jobs(chain[0])[0].id)
    for processor in chain:
        assert world.run(processor).completed == 1
    world.check()


def test_a_job_that_answered_since_says_stop_no_more_though_its_newer_job_is_pruned(
    world: World,
) -> None:
    first, second = (world.processor(on_failure="stop") for _ in range(2))
    late = world.processor(order=1)
    world.add("one")
    for processor in (first, second):
        world.run(processor, UnreadableInput("no"))
    (old,) = world.jobs(second)
    world.sql(
        "INSERT INTO job_results (item_id, version_id, post_processor_id, job_id, raw, "
        "model_version, input_revision) SELECT item_id, version_id, post_processor_id, "
        "gen_random_uuid(), '{}', '', '' FROM post_processor_jobs WHERE id = :id",
        id=old.id,
    )
    operate.retry(world.deps, world.user, world.jobs(first)[0].id)
    assert world.statuses(late) == ["pending"]


@pytest.mark.parametrize(
    "waits",
    [
        Outcome(kind="error", code="overloaded", retryable=True, retry_after_s=1.0),
        Outcome(kind="error", code="unavailable", retryable=True, is_free=True),
    ],
    ids=["asked to wait", "a probe that failed"],
)
def test_a_suspect_that_has_to_wait_is_not_let_in_among_others_again(waits: Outcome) -> None:
    """Its death there gives a last attempt back, and its wait does too: it would go on for ever."""
    died = decide(
        Attempt(attempts=3, max_attempts=3, in_model=True),
        Outcome(kind="lease_expired", code="lease_expired"),
        jitter=0,
    )
    assert died.is_suspect
    again = Attempt(attempts=died.attempts + 1, max_attempts=3, is_suspect=True)
    assert decide(again, waits, jitter=0).is_suspect


def test_an_answer_takes_the_labels_that_another_one_of_its_batch_created_up_to_the_cap(
    world: World,
) -> None:
    """Dropped for want of room, its prediction would come back with a reapply that changes nothing
    of the settings."""
    processor = world.processor(max_new_labels=2)
    first, second = world.add("fox cat", "fox cat noise")
    scores = {"noise": 1.0, "fox": 0.9, "cat": 0.8}
    world.run(
        processor,
        lambda given: {
            "predictions": [
                {"label": label, "score": scores[label]} for label in str(given.text).split()
            ]
        },
    )
    assert {a.label for a in world.annotations(first)} == {"fox", "cat"}
    assert {a.label for a in world.annotations(second)} == {"fox", "cat"}
    assert [job.dropped for job in world.jobs()] == [{}, {"label_cap": 1}]
    scope = Scope(post_processor_id=processor.id, dataset_id=world.dataset.id)
    id_ = reapply.begin(world.deps, processor, scope, world.user)
    done = operations.run(world.deps, STEPS, operation_id=id_)
    assert done is not None
    assert "annotations_added" not in done.counts
    world.check()
