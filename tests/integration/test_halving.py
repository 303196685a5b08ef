"""A batch in which several inputs hang: it keeps its time, and nobody pays for what was not asked."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import pytest

from factories import World, classes
from ppworker.domain.post_processor import PostProcessor
from ppworker.errors import RunnerError, RunnerTimeout
from ppworker.pipeline.runs import execute, rescue
from ppworker.runners.base import RawAnswer, RunnerInput
from ppworker.runners.child import LOAD_TIMEOUT_S
from ppworker.runners.pool import RunnerPool

RUNNER = "scripted_runners:ChildEchoRunner"


@dataclass
class Hanging:
    """A model in a process of its own, on a clock of its own: HANG takes all the time it may, and
    so does loading it again. Then a sweep looks for whose deadline is over."""

    world: World
    now: float = 0.0
    pid: None = None
    is_loaded_for_good: bool = False
    shares_process: bool = False
    pool: RunnerPool | None = None

    def ask(self, inputs: Sequence[RunnerInput], timeout_s: float) -> list[RawAnswer | RunnerError]:
        if not any("HANG" in str(each.text) for each in inputs):
            return [RawAnswer(raw=classes("cat")) for _ in inputs]
        took_s = LOAD_TIMEOUT_S + timeout_s
        self.now += took_s
        self.world.sql(
            "UPDATE post_processor_jobs SET deadline_at = deadline_at - make_interval(secs => :s) "
            "WHERE status = 'processing'",
            s=took_s,
        )
        rescue.rescue(self.world.deps)
        raise RunnerTimeout("no answer in time")

    def unload_if_idle(self, seconds: float) -> bool:
        return False

    def close(self) -> None:
        pass

    def predict(
        self, inputs: Sequence[RunnerInput], *, timeout_s: float
    ) -> list[RawAnswer | RunnerError]:
        assert self.pool is not None
        permit = self.pool.acquire(RUNNER, {})
        assert permit is not None
        with permit:
            return self.pool.predict(permit, inputs, timeout_s)


@pytest.fixture
def model(world: World, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hanging]:
    model = Hanging(world)
    monkeypatch.setattr(RunnerPool, "_model", lambda *_args, **_options: model)
    model.pool = RunnerPool(clock=lambda: model.now)
    yield model
    model.pool.close()


def run(world: World, processor: PostProcessor, model: Hanging) -> int:
    world.make_due()
    batch = world.claim(processor, limit=16)
    execute.run(world.deps, world.labels, processor, model, batch)
    return len(batch.jobs)


def test_two_that_hang_in_different_halves_cost_nobody_else_an_attempt(
    world: World, model: Hanging
) -> None:
    processor = world.processor(runner=RUNNER, timeout_s=300.0, max_attempts=2)
    texts = [f"good {i}" for i in range(16)]
    texts[3] = texts[12] = "HANG"
    world.add(*texts)
    batches = 0
    while run(world, processor, model):
        batches += 1
        assert batches < 20
    good = [job for job in world.jobs() if job.status == "completed"]
    bad = [job for job in world.jobs() if job.status == "failed"]
    assert (len(good), {job.attempts for job in good}) == (14, {1})
    assert [(job.reason, job.attempts) for job in bad] == [("timeout", 2)] * 2
    ends = world.sql(
        "SELECT DISTINCT cause, reason, error FROM job_attempts WHERE cause <> :f", f="finished"
    )
    assert {(row.cause, row.reason) for row in ends} == {
        ("snoozed", "put_off"), ("transient_error", "timeout"), ("exhausted", "timeout"),
    }  # fmt: skip
    assert {row.error for row in ends if row.reason == "put_off"} == {
        "not asked: the time of its batch was over"
    }
    world.check()


def test_a_model_that_hangs_on_everything_costs_one_attempt_and_pauses(
    world: World, model: Hanging
) -> None:
    processor = world.processor(runner=RUNNER, timeout_s=300.0)
    world.add(*("HANG" for _ in range(16)))
    assert run(world, processor, model) == 16
    assert sorted(job.attempts for job in world.jobs()) == [*[0] * 15, 1]
    rows = world.sql(
        "SELECT failures, reason, open_until > now() AS is_open FROM post_processor_circuits"
    )
    assert [tuple(row) for row in rows] == [(16, "timeout", True)]
    world.check()


def test_a_model_is_not_asked_after_the_deadline(world: World, model: Hanging) -> None:
    """PostgreSQL was away for so long that its worker waited with the batch."""
    processor = world.processor(runner=RUNNER)
    world.add("one", "HANG")
    batch = world.claim(processor)
    late = replace(batch, claimed_at=time.monotonic() - batch.deadline_s - 1)
    report = execute.run(world.deps, world.labels, processor, model, late)
    assert (report.again, model.now) == (2, 0.0)
    assert {(job.status, job.reason, job.attempts) for job in world.jobs()} == {
        ("pending", "put_off", 0)
    }
    assert world.sql("SELECT 1 FROM post_processor_circuits") == []
    world.check()
