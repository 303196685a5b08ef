"""A worker is cut from the database for longer than its lease, while its model runs on."""

import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa

from factories import World, classes
from own_servers import until
from ppworker import wiring
from ppworker.chaos.proxy import Proxy
from ppworker.domain.events import Event, LeaseRefused
from ppworker.errors import RunnerError, StoreUnavailable
from ppworker.pipeline.deps import Deps
from ppworker.pipeline.runs import rescue
from ppworker.runners.base import RawAnswer, RunnerInput
from ppworker.runners.pool import Permit, RunnerPool
from ppworker.store import jobs
from ppworker.store.connections import Limits
from ppworker.store.db import Database
from ppworker.worker.heartbeat import Heartbeat, beat_limit_s
from ppworker.worker.loop import Loop

LEASE_S = 2.0
ROUNDS = 5
ECHO = "scripted_runners:EchoRunner"


class Models(RunnerPool):
    """A pool whose model waits until it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.entered = threading.Event()
        self.go = threading.Event()
        self.asked: Counter[str] = Counter()

    def predict(
        self, permit: Permit, inputs: Sequence[RunnerInput], timeout_s: float
    ) -> list[RawAnswer | RunnerError]:
        self.asked.update(each.name for each in inputs)
        self.entered.set()
        assert self.go.wait(60)
        return [RawAnswer(raw=classes("cut off"), model_version="m1") for _ in inputs]


class Worker:
    """A worker's slot and heartbeat in threads of this process, behind a proxy."""

    def __init__(self, world: World, deps: Deps, models: Models) -> None:
        self.world = world
        self.db = deps.db
        self.events: list[Event] = []
        self.models = models
        self.renewed: list[bool] = []
        self.heartbeat = Heartbeat(
            self._extend, lambda: None, lease_s=LEASE_S, turned=self.renewed.append
        )
        self.loop = Loop(
            deps,
            models,
            self.heartbeat,
            refresh=lambda: None,
            stopping=threading.Event(),
        )

    def _extend(self, held: Any) -> set[UUID]:
        with self.db.begin(limit_s=beat_limit_s(LEASE_S)) as tx:
            return jobs.extend_leases(tx, held, lease_s=LEASE_S)

    def run(self, processor_id: UUID) -> threading.Thread:
        def turn() -> None:
            try:
                self.loop.run_slice(processor_id, lambda: None)
            except StoreUnavailable:
                self.renewed.append(False)

        thread = threading.Thread(target=turn)
        thread.start()
        return thread


@pytest.fixture
def proxy(database_url: str) -> Iterator[Proxy]:
    query = sa.make_url(database_url).query
    with Proxy(f"{query['host']}/.s.PGSQL.{query['port']}") as made:
        yield made


@pytest.fixture
def worker(world: World, proxy: Proxy, database_url: str) -> Iterator[Worker]:
    """With a lease of two seconds, and nothing that the server would do for it."""
    url = sa.make_url(database_url)
    through = url.set(query={"host": "127.0.0.1", "port": str(proxy.port)})
    db = Database(
        through.render_as_string(hide_password=False),
        connections=4,
        limits=Limits(statement_s=60, lock_s=30, idle_s=60),
    )
    settings = world.deps.settings.model_copy(update={"lease_s": LEASE_S})
    found: list[Event] = []
    made = Worker(world, wiring.build_deps(settings, db, emit=found.extend), Models())
    made.events = found
    made.heartbeat.start()
    yield made
    made.models.go.set()
    proxy.flow()
    made.heartbeat.stop()
    db.close()


def expires_in(world: World) -> float:
    return float(
        world.sql(
            "SELECT extract(epoch FROM min(lease_expires_at) - clock_timestamp()) "
            "FROM post_processor_jobs WHERE status = 'processing'"
        )[0][0]
    )


@pytest.mark.promise
@pytest.mark.slow
@pytest.mark.timeout(120)
def test_a_worker_cut_off_doubts_its_lease_before_the_server_ends_it(
    world: World, worker: Worker, proxy: Proxy, promise
) -> None:
    """Its link is a black hole while the model runs; another worker does the job meanwhile."""
    processor = world.processor(runner=ECHO)
    margins = []
    for turn in range(ROUNDS):
        (item,) = world.add(f"word {turn}")
        worker.models.entered.clear()
        worker.models.go.clear()
        thread = worker.run(processor.id)
        assert worker.models.entered.wait(30)
        proxy.stall()
        until(worker.heartbeat.in_doubt, seconds=30, what="doubt")
        margins.append(expires_in(world))
        until(lambda: rescue.rescue(world.deps), seconds=30, what="the rescue")
        world.make_due()
        assert world.run(processor, classes("other")).completed == 1
        worker.models.go.set()
        if turn % 2:
            proxy.drop()
        proxy.flow()
        thread.join(60)
        assert not thread.is_alive()
        assert [row.label for row in world.annotations(item)] == ["other"]
    refused = sum(isinstance(each, LeaseRefused) for each in worker.events)
    causes = Counter(a.cause for job in world.jobs() for a in world.attempts(job.id))
    world.check()
    promise(
        "F41",
        promise="A worker that is cut from the database doubts its leases before the server ends "
        "them, begins nothing under them, and its late answers are dropped.",
        fault=f"the link is a black hole for longer than the lease while the model runs, {ROUNDS} "
        "times; another worker does the job meanwhile",
        target="in doubt before the lease is over, no annotation doubled, each late answer refused",
        figure=f"in doubt {min(margins):.2f} s or more before the server; {refused} of {ROUNDS} "
        "late answers refused, 0 doubled",
        passed=min(margins) > 0
        and refused == ROUNDS
        and causes == {"rescued": ROUNDS, "finished": ROUNDS},
        figures={"margins_s": [round(each, 3) for each in margins], "refused": refused},
    )


@pytest.mark.timeout(60)
def test_whoever_hangs_up_on_a_black_hole_does_not_wait_to_be_heard(
    worker: Worker, proxy: Proxy
) -> None:
    def ask() -> None:
        with worker.db.begin(limit_s=0.5) as tx:
            tx.execute(sa.text("SELECT 1"))
            proxy.stall()
            tx.execute(sa.text("SELECT 1"))

    started = time.monotonic()
    with pytest.raises(StoreUnavailable, match="in time"):
        ask()
    assert time.monotonic() - started < 5


@pytest.mark.timeout(60)
def test_no_model_is_asked_under_a_lease_in_doubt(
    world: World, worker: Worker, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut off between the claim and the model: the job is another's by the time of the question."""
    from ppworker.pipeline.runs import execute

    claimed = threading.Event()
    cut = threading.Event()
    inputs = execute._inputs

    def wait(*arguments: Any) -> Any:
        claimed.set()
        assert cut.wait(30)
        return inputs(*arguments)

    monkeypatch.setattr(execute, "_inputs", wait)
    processor = world.processor(runner=ECHO)
    world.add("one")
    thread = worker.run(processor.id)
    assert claimed.wait(30)
    proxy.stall()
    until(worker.heartbeat.in_doubt, seconds=30, what="doubt")
    cut.set()
    until(lambda: rescue.rescue(world.deps), seconds=30, what="the rescue")
    monkeypatch.setattr(execute, "_inputs", inputs)
    world.make_due()
    assert world.run(processor).completed == 1
    proxy.drop()
    proxy.flow()
    thread.join(60)
    assert not thread.is_alive()
    assert not worker.models.asked
    assert [a.cause for a in world.attempts(world.jobs()[0].id)] == ["rescued", "finished"]
    world.check()


@pytest.mark.timeout(60)
def test_an_answer_of_a_cut_worker_counts_if_nobody_has_taken_its_job(
    world: World, worker: Worker, proxy: Proxy
) -> None:
    """The lease is over and nobody came: the fence holds, and the answer is not thrown away."""
    processor = world.processor(runner=ECHO, max_attempts=1)
    (item,) = world.add("one")
    thread = worker.run(processor.id)
    assert worker.models.entered.wait(30)
    proxy.stall()
    until(lambda: expires_in(world) < -0.5, seconds=30, what="the end of the lease")
    worker.models.go.set()
    time.sleep(0.2)  # the finish runs into the black hole
    proxy.drop()
    proxy.flow()
    thread.join(60)
    assert [row.label for row in world.annotations(item)] == ["cut off"]
    assert [a.cause for a in world.attempts(world.jobs()[0].id)] == ["finished"]
    world.check()
